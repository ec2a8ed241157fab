//! Saving the guest's state: when it begins, and what may come in between.

use std::time::Duration;

use super::{
    Action, By, Cause, Command, Event, Hold, Outcome, Policy, QUIT_GRACE, Rung, Saving, State,
    stop_ladder::{ask, end, ended, panicked, quit},
};

/// Saving the state has as long as a shutdown; where it fails, a shutdown has its own time after it.
pub(super) fn save(by: By, held: bool, now: Duration, policy: &Policy) -> (State, Vec<Action>) {
    let limit = policy.shutdown_timeout;
    let told = match by {
        By::Signal => Some(Action::NotifyStopping(limit + limit + QUIT_GRACE)),
        // It may go on all the same.
        By::Operator => None,
    };
    let actions = told.into_iter().chain([Action::Announce(Rung::Saving(limit)), Action::Save]);
    (State::Suspending(Saving { until: now + limit, by, held }), actions.collect())
}

pub(super) fn suspending(
    saving: Saving,
    event: Event,
    now: Duration,
    policy: &Policy,
) -> (State, Vec<Action>) {
    let Saving { until, by, held } = saving;
    let give_up = || vec![Action::CancelSave];
    // A held guest cannot see the button.
    let stop = |by, timeout| ask(by, timeout, now, vec![Action::CancelSave, Action::Continue]);
    match event {
        Event::Saved => {
            let told = match by {
                By::Signal => None,
                By::Operator => Some(Action::NotifyStopping(QUIT_GRACE)),
            };
            let before = told.into_iter().chain([Action::Announce(Rung::Saved)]).collect();
            quit(ended(Cause::Suspended(by)), false, now, before)
        }
        Event::NotSaved(_) => not_saved(saving, now, policy),
        Event::Tick if now >= until => not_saved(saving, now, policy),
        // The host goes down while an operator's save is under way: that is what is wanted now.
        Event::HostDown if by == By::Operator => {
            let limit = until.saturating_sub(now) + policy.shutdown_timeout + QUIT_GRACE;
            let saving = Saving { by: By::Signal, ..saving };
            (State::Suspending(saving), vec![Action::NotifyStopping(limit)])
        }
        Event::Signalled | Event::HostDown => stop(By::Signal, policy.shutdown_timeout),
        Event::Asked(Command::Stop { timeout }) => {
            stop(By::Operator, timeout.unwrap_or(policy.shutdown_timeout))
        }
        Event::Asked(Command::Terminate) => {
            let before = vec![Action::CancelSave, Action::Announce(Rung::Hurried)];
            quit(ended(Cause::Killed), true, now, before)
        }
        // What the guest had done before it was held.
        Event::GuestShutdown => quit(ended(Cause::GuestShutdown), false, now, give_up()),
        Event::GuestReboot => match by {
            By::Signal => quit(ended(Cause::Stopped(by)), false, now, give_up()),
            By::Operator => quit(Outcome::Relaunch, false, now, give_up()),
        },
        Event::GuestPanicked => match by {
            By::Signal => quit(ended(Cause::Stopped(by)), false, now, give_up()),
            By::Operator => {
                let (state, actions) = panicked(now, policy);
                (state, give_up().into_iter().chain(actions).collect())
            }
        },
        Event::QemuGone(gone) => end(Cause::QemuDied(gone)),
        Event::Asked(
            Command::Reboot | Command::Reset | Command::Pause | Command::Resume | Command::Suspend,
        )
        | Event::Ready
        | Event::NotReady(_)
        | Event::Start(_)
        | Event::GuestReset
        | Event::Held
        | Event::NoSpace
        | Event::Room
        | Event::Continued
        | Event::Tick => (State::Suspending(Saving { until, by, held }), vec![]),
    }
}

/// An operator's guest goes on; where the host goes down, the guest is shut down instead.
fn not_saved(saving: Saving, now: Duration, policy: &Policy) -> (State, Vec<Action>) {
    let mut actions = vec![Action::CancelSave];
    match (saving.by, saving.held) {
        (By::Signal, _) => {
            actions.push(Action::Continue);
            ask(By::Signal, policy.shutdown_timeout, now, actions)
        }
        (By::Operator, true) => {
            actions.push(Action::Announce(Rung::NotSaved));
            (State::Paused(Hold::Wanted), actions)
        }
        (By::Operator, false) => {
            actions.extend([Action::Continue, Action::Announce(Rung::NotSaved)]);
            (State::Running, actions)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::life::{
        Boot, Gone, Phase, accepts,
        tests::{GONE, at, feed},
    };

    const SUSPEND: Event = Event::Asked(Command::Suspend);
    fn end(actions: &[Action]) -> Option<(&'static str, u8)> {
        actions.iter().find_map(|action| match action {
            Action::Record(end) => Some((end.reason(), end.exit_code())),
            _ => None,
        })
    }

    fn saving(by: By, held: bool) -> State {
        State::Suspending(Saving { until: at(60), by, held })
    }

    #[test]
    fn a_host_that_goes_down_saves_the_guest() {
        for (state, held) in [(State::Running, false), (State::Paused(Hold::Wanted), true)] {
            let (state, actions) = feed(state, &[(0, Event::HostDown)]);
            assert_eq!(state, saving(By::Signal, held));
            let told = Action::NotifyStopping(at(130));
            assert_eq!(actions, [told, Action::Announce(Rung::Saving(at(60))), Action::Save]);
            let (state, actions) = feed(state, &[(1, Event::Held), (9, Event::Saved), (10, GONE)]);
            assert_eq!(state, State::Ended);
            assert_eq!(actions[..2], [Action::Announce(Rung::Saved), Action::Quit]);
            assert_eq!(end(&actions), Some(("suspended", 0)));
        }
    }

    #[test]
    fn an_operator_does_and_the_service_manager_hears_of_it_when_it_is_sure() {
        let (state, actions) = feed(State::Running, &[(0, SUSPEND)]);
        assert_eq!(state, saving(By::Operator, false));
        assert_eq!(actions, [Action::Announce(Rung::Saving(at(60))), Action::Save]);
        let (_, actions) = feed(state, &[(9, Event::Saved), (10, GONE)]);
        assert_eq!(actions[0], Action::NotifyStopping(QUIT_GRACE));
        assert_eq!(end(&actions), Some(("suspended", 0)));
    }

    #[test]
    fn where_nothing_can_be_saved_it_is_a_stop() {
        for state in [
            State::Starting(Phase::FindingPrevious),
            State::Starting(Phase::Launching(Boot::Cold)),
            State::Paused(Hold::Panic),
        ] {
            let down = feed(state.clone(), &[(0, Event::HostDown)]);
            assert_eq!(down, feed(state, &[(0, Event::Signalled)]));
        }
        let stopping = feed(State::Running, &[(0, Event::Signalled)]).0;
        let forced = feed(stopping.clone(), &[(1, Event::HostDown)]);
        assert_eq!(forced, feed(stopping, &[(1, Event::Signalled)]));
    }

    #[test]
    fn a_guest_that_cannot_be_saved_is_shut_down_where_the_host_goes_down() {
        for event in [Event::NotSaved("no".into()), Event::Tick] {
            for held in [false, true] {
                let (state, actions) = feed(saving(By::Signal, held), &[(60, event.clone())]);
                let State::Stopping(ladder) = &state else { panic!("{state:?}") };
                // Its own time, whatever the save took.
                assert_eq!(ladder.deadline, at(120));
                assert_eq!(actions[..2], [Action::CancelSave, Action::Continue]);
                assert!(actions.contains(&Action::PressPowerButton));
                let (_, actions) = feed(state, &[(70, Event::GuestShutdown), (71, GONE)]);
                assert_eq!(end(&actions), Some(("stopped", 0)));
            }
        }
    }

    #[test]
    fn an_operator_s_guest_that_cannot_be_saved_goes_on_as_it_was() {
        for event in [Event::NotSaved("no".into()), Event::Tick] {
            let (state, actions) = feed(saving(By::Operator, false), &[(60, event.clone())]);
            assert_eq!(state, State::Running);
            let expected = [Action::CancelSave, Action::Continue, Action::Announce(Rung::NotSaved)];
            assert_eq!(actions, expected);
            let (state, actions) = feed(saving(By::Operator, true), &[(60, event)]);
            assert_eq!(state, State::Paused(Hold::Wanted));
            assert_eq!(actions, [Action::CancelSave, Action::Announce(Rung::NotSaved)]);
        }
    }

    #[test]
    fn who_wants_it_otherwise_gets_it() {
        let stop = Event::Asked(Command::Stop { timeout: Some(at(7)) });
        for by in [By::Signal, By::Operator] {
            for (event, deadline) in [(Event::Signalled, 61), (stop.clone(), 8)] {
                let (state, actions) = feed(saving(by, true), &[(1, event)]);
                let State::Stopping(ladder) = &state else { panic!("{state:?}") };
                assert_eq!(ladder.deadline, at(deadline));
                assert_eq!(actions[..2], [Action::CancelSave, Action::Continue]);
            }
            let kill = Event::Asked(Command::Terminate);
            let (_, actions) = feed(saving(by, false), &[(1, kill), (2, GONE)]);
            assert_eq!(actions[0], Action::CancelSave);
            assert_eq!(end(&actions), Some(("killed", 0)));
            let died = Event::QemuGone(Gone::Signalled { signal: 9, oom: true });
            let (_, actions) = feed(saving(by, false), &[(1, died)]);
            assert_eq!(end(&actions), Some(("oom-killed", 1)));
            let state = saving(by, false);
            for command in [Command::Pause, Command::Resume, Command::Reset, Command::Suspend] {
                assert_eq!(accepts(&state, command), Err("being suspended"));
            }
            assert_eq!(accepts(&state, Command::Terminate), Ok(()));
        }
    }

    #[test]
    fn the_host_goes_down_while_an_operator_s_save_is_under_way() {
        let (state, actions) = feed(saving(By::Operator, false), &[(10, Event::HostDown)]);
        assert_eq!(state, saving(By::Signal, false));
        assert_eq!(actions, [Action::NotifyStopping(at(50 + 60) + QUIT_GRACE)]);
        // And again: then it is to be faster, but clean.
        let (state, actions) = feed(state, &[(11, Event::HostDown)]);
        assert!(matches!(state, State::Stopping(_)));
        assert_eq!(actions[0], Action::CancelSave);
    }

    #[test]
    fn what_the_guest_did_just_before_counts() {
        for (event, by, reason) in [
            (Event::GuestShutdown, By::Signal, "guest-shutdown"),
            (Event::GuestShutdown, By::Operator, "guest-shutdown"),
            (Event::GuestReboot, By::Signal, "stopped"),
            (Event::GuestPanicked, By::Signal, "stopped"),
            (Event::GuestPanicked, By::Operator, "guest-panic"),
        ] {
            let (_, actions) = feed(saving(by, false), &[(1, event), (2, GONE)]);
            assert_eq!(actions[0], Action::CancelSave);
            assert_eq!(end(&actions).map(|end| end.0), Some(reason));
        }
        let (state, _) = feed(saving(By::Operator, false), &[(1, Event::GuestReboot), (2, GONE)]);
        assert_eq!(state, State::Starting(Phase::ReadingVmFile));
    }

    #[test]
    fn what_was_saved_counts_even_if_qemu_has_to_be_killed() {
        let late = (9 + QUIT_GRACE.as_secs(), Event::Tick);
        let killed = Event::QemuGone(Gone::Signalled { signal: 9, oom: false });
        let events = [(9, Event::Saved), (10, Event::Signalled), late, (30, killed)];
        let (_, actions) = feed(saving(By::Signal, false), &events);
        assert!(actions.contains(&Action::Kill));
        assert_eq!(end(&actions), Some(("suspended", 0)));
    }
}
