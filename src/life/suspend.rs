//! Saving the guest's state, and the events that interrupt the save.

use std::time::Duration;

use super::{
    action::{Action, Rung},
    end::Cause,
    event::{Command, Event},
    intention::AfterQemu,
    limits::QUIT_GRACE,
    policy::Policy,
    requester::Requester,
    state::{PauseReason, Saving, State},
    stop_ladder::{ask, end, ended, panicked, quit},
};

/// The save has the time of a shutdown; a shutdown after a failed save has that time again.
pub(super) fn save(
    by: Requester,
    held: bool,
    now: Duration,
    policy: &Policy,
) -> (State, Vec<Action>) {
    let limit = policy.shutdown_timeout;
    let notice = match by {
        Requester::Signal => Some(Action::NotifyStopping(limit + limit + QUIT_GRACE)),
        // The guest keeps running where the save fails.
        Requester::Operator => None,
    };
    let actions = notice.into_iter().chain([Action::Announce(Rung::Saving(limit)), Action::Save]);
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
    // A paused guest cannot see the power button.
    let stop = |by, timeout| ask(by, timeout, now, vec![Action::CancelSave, Action::Resume]);
    match event {
        Event::StateSaved => {
            let notice = match by {
                Requester::Signal => None,
                Requester::Operator => Some(Action::NotifyStopping(QUIT_GRACE)),
            };
            let before = notice.into_iter().chain([Action::Announce(Rung::Saved)]).collect();
            quit(ended(Cause::Suspended(by)), false, now, before)
        }
        Event::SaveFailed(_) => not_saved(saving, now, policy),
        Event::DeadlinePassed if now >= until => not_saved(saving, now, policy),
        // The host shuts down during an operator's save: the save continues for that reason.
        Event::HostShutdownStarted if by == Requester::Operator => {
            let limit = until.saturating_sub(now) + policy.shutdown_timeout + QUIT_GRACE;
            let saving = Saving { by: Requester::Signal, ..saving };
            (State::Suspending(saving), vec![Action::NotifyStopping(limit)])
        }
        Event::StopSignaled | Event::HostShutdownStarted => {
            stop(Requester::Signal, policy.shutdown_timeout)
        }
        Event::Requested(Command::Stop { timeout }) => {
            stop(Requester::Operator, timeout.unwrap_or(policy.shutdown_timeout))
        }
        Event::Requested(Command::Terminate) => {
            let before = vec![Action::CancelSave, Action::Announce(Rung::Hurried)];
            quit(ended(Cause::Killed), true, now, before)
        }
        // Done by the guest before it was paused.
        Event::GuestShutdown => quit(ended(Cause::GuestShutdown), false, now, give_up()),
        Event::GuestReboot => match by {
            Requester::Signal => quit(ended(Cause::Stopped(by)), false, now, give_up()),
            Requester::Operator => quit(AfterQemu::Relaunch, false, now, give_up()),
        },
        Event::GuestPanicked => match by {
            Requester::Signal => quit(ended(Cause::Stopped(by)), false, now, give_up()),
            Requester::Operator => {
                let (state, actions) = panicked(now, policy);
                (state, give_up().into_iter().chain(actions).collect())
            }
        },
        Event::QemuExited(gone) => end(Cause::QemuDied(gone)),
        Event::Requested(
            Command::Reboot | Command::Reset | Command::Pause | Command::Resume | Command::Suspend,
        )
        | Event::GuestReady
        | Event::GuestNotReady(_)
        | Event::Start(_)
        | Event::GuestReset
        | Event::VcpusStopped
        | Event::DiskSpaceExhausted
        | Event::DiskSpaceFreed
        | Event::VcpusResumed
        | Event::DeadlinePassed => (State::Suspending(Saving { until, by, held }), vec![]),
    }
}

/// After an operator's save the guest keeps running; when the host shuts down, it is shut down.
fn not_saved(saving: Saving, now: Duration, policy: &Policy) -> (State, Vec<Action>) {
    let mut actions = vec![Action::CancelSave];
    match (saving.by, saving.held) {
        (Requester::Signal, _) => {
            actions.push(Action::Resume);
            ask(Requester::Signal, policy.shutdown_timeout, now, actions)
        }
        (Requester::Operator, true) => {
            actions.push(Action::Announce(Rung::NotSaved));
            (State::Paused(PauseReason::Operator), actions)
        }
        (Requester::Operator, false) => {
            actions.extend([Action::Resume, Action::Announce(Rung::NotSaved)]);
            (State::Running, actions)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::life::{
        Boot, Phase, QemuExit, accepts,
        tests::{GONE, at, feed},
    };

    const SUSPEND: Event = Event::Requested(Command::Suspend);
    fn end(actions: &[Action]) -> Option<(&'static str, u8)> {
        actions.iter().find_map(|action| match action {
            Action::Record(end) => Some((end.reason(), end.exit_code())),
            _ => None,
        })
    }

    fn saving(by: Requester, held: bool) -> State {
        State::Suspending(Saving { until: at(60), by, held })
    }

    #[test]
    fn host_shutdown_saves_the_guest() {
        for (state, held) in [(State::Running, false), (State::Paused(PauseReason::Operator), true)]
        {
            let (state, actions) = feed(state, &[(0, Event::HostShutdownStarted)]);
            assert_eq!(state, saving(Requester::Signal, held));
            let notice = Action::NotifyStopping(at(130));
            assert_eq!(actions, [notice, Action::Announce(Rung::Saving(at(60))), Action::Save]);
            let (state, actions) =
                feed(state, &[(1, Event::VcpusStopped), (9, Event::StateSaved), (10, GONE)]);
            assert_eq!(state, State::Ended);
            assert_eq!(actions[..2], [Action::Announce(Rung::Saved), Action::Quit]);
            assert_eq!(end(&actions), Some(("suspended", 0)));
        }
    }

    #[test]
    fn suspend_notifies_systemd_once_saved() {
        let (state, actions) = feed(State::Running, &[(0, SUSPEND)]);
        assert_eq!(state, saving(Requester::Operator, false));
        assert_eq!(actions, [Action::Announce(Rung::Saving(at(60))), Action::Save]);
        let (_, actions) = feed(state, &[(9, Event::StateSaved), (10, GONE)]);
        assert_eq!(actions[0], Action::NotifyStopping(QUIT_GRACE));
        assert_eq!(end(&actions), Some(("suspended", 0)));
    }

    #[test]
    fn host_shutdown_stops_unsavable_states() {
        for state in
            [State::Starting(Phase::Launching(Boot::Cold)), State::Paused(PauseReason::Panic)]
        {
            let down = feed(state.clone(), &[(0, Event::HostShutdownStarted)]);
            assert_eq!(down, feed(state, &[(0, Event::StopSignaled)]));
        }
        let stopping = feed(State::Running, &[(0, Event::StopSignaled)]).0;
        let forced = feed(stopping.clone(), &[(1, Event::HostShutdownStarted)]);
        assert_eq!(forced, feed(stopping, &[(1, Event::StopSignaled)]));
    }

    #[test]
    fn failed_save_at_host_shutdown_stops() {
        for event in [Event::SaveFailed("no".into()), Event::DeadlinePassed] {
            for held in [false, true] {
                let (state, actions) =
                    feed(saving(Requester::Signal, held), &[(60, event.clone())]);
                let State::Stopping(ladder) = &state else { panic!("{state:?}") };
                // The shutdown has its full time after the save.
                assert_eq!(ladder.deadline, at(120));
                assert_eq!(actions[..2], [Action::CancelSave, Action::Resume]);
                assert!(actions.contains(&Action::PressPowerButton));
                let (_, actions) = feed(state, &[(70, Event::GuestShutdown), (71, GONE)]);
                assert_eq!(end(&actions), Some(("stopped", 0)));
            }
        }
    }

    #[test]
    fn failed_suspend_restores_the_state_before() {
        for event in [Event::SaveFailed("no".into()), Event::DeadlinePassed] {
            let (state, actions) = feed(saving(Requester::Operator, false), &[(60, event.clone())]);
            assert_eq!(state, State::Running);
            let expected = [Action::CancelSave, Action::Resume, Action::Announce(Rung::NotSaved)];
            assert_eq!(actions, expected);
            let (state, actions) = feed(saving(Requester::Operator, true), &[(60, event)]);
            assert_eq!(state, State::Paused(PauseReason::Operator));
            assert_eq!(actions, [Action::CancelSave, Action::Announce(Rung::NotSaved)]);
        }
    }

    #[test]
    fn stop_and_kill_cancel_the_save() {
        let stop = Event::Requested(Command::Stop { timeout: Some(at(7)) });
        for by in [Requester::Signal, Requester::Operator] {
            for (event, deadline) in [(Event::StopSignaled, 61), (stop.clone(), 8)] {
                let (state, actions) = feed(saving(by, true), &[(1, event)]);
                let State::Stopping(ladder) = &state else { panic!("{state:?}") };
                assert_eq!(ladder.deadline, at(deadline));
                assert_eq!(actions[..2], [Action::CancelSave, Action::Resume]);
            }
            let kill = Event::Requested(Command::Terminate);
            let (_, actions) = feed(saving(by, false), &[(1, kill), (2, GONE)]);
            assert_eq!(actions[0], Action::CancelSave);
            assert_eq!(end(&actions), Some(("killed", 0)));
            let died = Event::QemuExited(QemuExit::Signal { signal: 9, oom: true });
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
    fn host_shutdown_takes_over_a_suspend() {
        let (state, actions) =
            feed(saving(Requester::Operator, false), &[(10, Event::HostShutdownStarted)]);
        assert_eq!(state, saving(Requester::Signal, false));
        assert_eq!(actions, [Action::NotifyStopping(at(50 + 60) + QUIT_GRACE)]);
        // And again: then it is to be faster, but clean.
        let (state, actions) = feed(state, &[(11, Event::HostShutdownStarted)]);
        assert!(matches!(state, State::Stopping(_)));
        assert_eq!(actions[0], Action::CancelSave);
    }

    #[test]
    fn guest_events_end_the_save() {
        for (event, by, reason) in [
            (Event::GuestShutdown, Requester::Signal, "guest-shutdown"),
            (Event::GuestShutdown, Requester::Operator, "guest-shutdown"),
            (Event::GuestReboot, Requester::Signal, "stopped"),
            (Event::GuestPanicked, Requester::Signal, "stopped"),
            (Event::GuestPanicked, Requester::Operator, "guest-panic"),
        ] {
            let (_, actions) = feed(saving(by, false), &[(1, event), (2, GONE)]);
            assert_eq!(actions[0], Action::CancelSave);
            assert_eq!(end(&actions).map(|end| end.0), Some(reason));
        }
        let (state, _) =
            feed(saving(Requester::Operator, false), &[(1, Event::GuestReboot), (2, GONE)]);
        assert_eq!(state, State::Starting(Phase::ReadingVmFile));
    }

    #[test]
    fn killed_qemu_after_save_is_suspended() {
        let late = (9 + QUIT_GRACE.as_secs(), Event::DeadlinePassed);
        let killed = Event::QemuExited(QemuExit::Signal { signal: 9, oom: false });
        let events = [(9, Event::StateSaved), (10, Event::StopSignaled), late, (30, killed)];
        let (_, actions) = feed(saving(Requester::Signal, false), &events);
        assert!(actions.contains(&Action::Kill));
        assert_eq!(end(&actions), Some(("suspended", 0)));
    }
}
