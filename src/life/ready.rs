//! Whether the guest is ready: looked for once it runs, within a bound, and told to the service manager once a run.

use std::time::Duration;

use super::{Action, Event, Policy, Ready, ReadyFailure, State, step::step};

/// Whether the guest is ready.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Readiness {
    /// No guest has run yet.
    Before,
    /// It is looked for.
    Awaited {
        /// Not longer than this.
        until: Duration,
    },
    /// It is, or was: what the guest does later does not change it.
    Met,
    /// It was not, and is waited for no more; why.
    Missed(String),
}

/// A VM from its start to its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Life {
    /// What it does.
    pub state: State,
    /// Whether it is ready.
    pub readiness: Readiness,
}

impl Default for Life {
    fn default() -> Self {
        Self { state: State::Preparing, readiness: Readiness::Before }
    }
}

impl Life {
    /// When the driver has to send [`Event::Tick`], if ever.
    pub fn deadline(&self) -> Option<Duration> {
        let until = match self.readiness {
            Readiness::Awaited { until } if self.is_up() => Some(until),
            _ => None,
        };
        self.state.deadline().into_iter().chain(until).min()
    }

    /// The guest's vCPUs run, or could: it was not asked to go.
    fn is_up(&self) -> bool {
        matches!(self.state, State::Running | State::Paused(_))
    }

    /// What is so after `event`, and what has to be done.
    pub fn step(self, event: Event, now: Duration, policy: &Policy) -> (Self, Vec<Action>) {
        let awaited = match self.readiness {
            Readiness::Awaited { until } if self.is_up() => Some(until),
            _ => None,
        };
        match (awaited, event) {
            (Some(_), Event::Ready) => {
                (Self { readiness: Readiness::Met, ..self }, vec![Action::NotifyReady])
            }
            (Some(_), Event::NotReady(why)) => self.missed(why, now, policy),
            (Some(until), Event::Tick) if now >= until => {
                let limit = match policy.ready {
                    Ready::Within(limit) => limit.as_secs(),
                    Ready::Running => 0,
                };
                self.missed(format!("not within {limit} s"), now, policy)
            }
            // Too late: the guest goes down, or is another by now.
            (None, Event::Ready | Event::NotReady(_)) => (self, vec![]),
            (_, event) => self.other(event, now, policy),
        }
    }

    fn missed(self, why: String, now: Duration, policy: &Policy) -> (Self, Vec<Action>) {
        let mut actions = vec![Action::StopAwaiting, Action::GiveUpReady(why.clone())];
        let readiness = Readiness::Missed(why.clone());
        let state = match policy.ready_failure {
            ReadyFailure::Continue => {
                actions.push(Action::NotifyReady);
                self.state
            }
            ReadyFailure::Fail => {
                let (state, ladder) = step(self.state, Event::NotReady(why), now, policy);
                actions.extend(ladder);
                state
            }
        };
        (Self { state, readiness }, actions)
    }

    fn other(self, event: Event, now: Duration, policy: &Policy) -> (Self, Vec<Action>) {
        let was_up = self.is_up();
        let seen = matches!(event, Event::Launched { ready: true, .. });
        let (state, mut actions) = step(self.state, event, now, policy);
        let mut life = Self { state, readiness: self.readiness };
        match (&life.readiness, was_up, life.is_up()) {
            (Readiness::Before, false, true) => match policy.ready {
                Ready::Within(limit) if !seen => {
                    life.readiness = Readiness::Awaited { until: now + limit };
                    actions.push(Action::AwaitReady(limit));
                }
                Ready::Running | Ready::Within(_) => {
                    life.readiness = Readiness::Met;
                    actions.push(Action::NotifyReady);
                }
            },
            // A new QEMU after a reboot; the time goes on.
            (Readiness::Awaited { until }, false, true) => {
                actions.push(Action::AwaitReady(until.saturating_sub(now)));
            }
            (Readiness::Awaited { .. }, true, false) => actions.insert(0, Action::StopAwaiting),
            _ => {}
        }
        (life, actions)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::life::{By, Cause, Command, End, Gone, Hold, Ladder, OnPanic, Outcome};

    const LIMIT: Duration = Duration::from_secs(30);
    const UNTIL: Duration = Duration::from_secs(40);
    const UP: Event = Event::Launched { paused: false, ready: false };
    const GONE: Event = Event::QemuGone(Gone::Exited(0));

    fn policy(ready: Ready, ready_failure: ReadyFailure) -> Policy {
        let shutdown_timeout = Duration::from_secs(60);
        Policy { shutdown_timeout, on_panic: OnPanic::Restart, ready, ready_failure }
    }

    fn within(ready_failure: ReadyFailure) -> Policy {
        policy(Ready::Within(LIMIT), ready_failure)
    }

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn feed(mut life: Life, events: &[(u64, Event)], policy: &Policy) -> (Life, Vec<Action>) {
        let mut done = vec![];
        for (time, event) in events {
            let (next, actions) = life.step(event.clone(), at(*time), policy);
            life = next;
            done.extend(actions);
        }
        (life, done)
    }

    fn waiting(state: State) -> Life {
        Life { state, readiness: Readiness::Awaited { until: UNTIL } }
    }

    fn count(actions: &[Action], wanted: &Action) -> usize {
        actions.iter().filter(|action| *action == wanted).count()
    }

    fn end(actions: &[Action]) -> Option<(&'static str, u8)> {
        let end = actions.iter().find_map(|a| match a {
            Action::Record(end) => Some(end),
            _ => None,
        })?;
        Some((end.reason(), end.exit_code()))
    }

    #[test]
    fn a_guest_that_need_only_run_is_ready_at_once() {
        let policy = policy(Ready::Running, ReadyFailure::Fail);
        let (life, actions) = feed(Life::default(), &[(0, Event::Prepared), (1, UP)], &policy);
        assert_eq!(life, Life { state: State::Running, readiness: Readiness::Met });
        assert_eq!(actions, [Action::Launch, Action::NotifyReady]);
        assert_eq!(life.deadline(), None);
    }

    #[test]
    fn a_guest_is_looked_at_until_it_is_ready() {
        let policy = within(ReadyFailure::Fail);
        let (life, actions) = feed(Life::default(), &[(0, Event::Prepared), (10, UP)], &policy);
        assert_eq!(life, waiting(State::Running));
        assert_eq!(actions, [Action::Launch, Action::AwaitReady(LIMIT)]);
        assert_eq!(life.deadline(), Some(UNTIL));
        let (life, actions) = feed(life, &[(39, Event::Tick), (39, Event::Ready)], &policy);
        assert_eq!(life, Life { state: State::Running, readiness: Readiness::Met });
        assert_eq!(actions, [Action::NotifyReady]);
        // Once, whatever comes after.
        let late = [(50, Event::Tick), (50, Event::NotReady("x".into())), (50, Event::Ready)];
        assert_eq!(feed(life.clone(), &late, &policy), (life, vec![]));
    }

    #[test]
    fn one_that_an_earlier_supervisor_saw_ready_is_ready() {
        let found = Event::Launched { paused: true, ready: true };
        let policy = within(ReadyFailure::Fail);
        let life = Life { state: State::Launching, ..Life::default() };
        let (life, actions) = feed(life, &[(0, found)], &policy);
        let state = State::Paused(Hold::Wanted);
        assert_eq!(life, Life { state, readiness: Readiness::Met });
        assert_eq!(actions, [Action::NotifyReady]);
    }

    #[test]
    fn one_that_is_not_in_time_counts_as_up_if_the_operator_wants_it_so() {
        let policy = within(ReadyFailure::Continue);
        for (event, why) in [(Event::Tick, "not within 30 s"), (Event::NotReady("no".into()), "no")]
        {
            for state in [State::Running, State::Paused(Hold::Wanted), State::Paused(Hold::Panic)] {
                let (life, actions) = feed(waiting(state.clone()), &[(40, event.clone())], &policy);
                assert_eq!(life, Life { state, readiness: Readiness::Missed(why.into()) });
                let given_up = Action::GiveUpReady(why.into());
                assert_eq!(actions, [Action::StopAwaiting, given_up, Action::NotifyReady]);
                assert_eq!(life.deadline(), None);
            }
        }
    }

    #[test]
    fn one_that_is_not_in_time_is_shut_down_if_the_operator_wants_it_so() {
        let policy = within(ReadyFailure::Fail);
        let events = [(40, Event::Tick), (42, Event::GuestShutdown), (43, GONE)];
        for paused in [false, true] {
            let state = if paused { State::Paused(Hold::Wanted) } else { State::Running };
            let (life, actions) = feed(waiting(state), &events, &policy);
            assert_eq!(life.state, State::Ended);
            assert_eq!(end(&actions), Some(("not-ready", 1)));
            assert_eq!(count(&actions, &Action::PressPowerButton), 1);
            assert_eq!(count(&actions, &Action::Continue), usize::from(paused));
            assert_eq!(count(&actions, &Action::NotifyReady), 0);
        }
        // A guest that panicked is not asked.
        let (_, actions) =
            feed(waiting(State::Paused(Hold::Panic)), &[(40, Event::Tick), (41, GONE)], &policy);
        assert_eq!(end(&actions), Some(("not-ready", 1)));
        assert_eq!(count(&actions, &Action::PressPowerButton), 0);
    }

    #[test]
    fn a_deaf_guest_that_is_not_ready_is_forced_off_and_that_is_no_ready_one() {
        let policy = within(ReadyFailure::Fail);
        let events = [(40, Event::Tick), (100, Event::Tick), (101, GONE)];
        let (_, actions) = feed(waiting(State::Running), &events, &policy);
        assert_eq!(end(&actions), Some(("not-ready", 1)));
        assert_eq!(count(&actions, &Action::Quit), 1);
    }

    #[test]
    fn a_stop_while_it_is_waited_for_is_a_stop() {
        for failure in [ReadyFailure::Continue, ReadyFailure::Fail] {
            let events = [
                (11, Event::Signalled),
                (12, Event::Ready),
                (41, Event::GuestShutdown),
                (42, GONE),
            ];
            let (_, actions) = feed(waiting(State::Running), &events, &within(failure));
            assert_eq!(actions.first(), Some(&Action::StopAwaiting));
            assert_eq!(count(&actions, &Action::NotifyReady), 0);
            assert_eq!(end(&actions), Some(("stopped", 0)));
        }
    }

    #[test]
    fn a_stop_while_it_is_shut_down_for_not_being_ready_is_a_stop_and_no_hurry() {
        let policy = within(ReadyFailure::Fail);
        let stop = Event::Asked(Command::Stop { timeout: None });
        for stop in [Event::Signalled, stop] {
            let events = [(40, Event::Tick), (41, stop)];
            let (life, actions) = feed(waiting(State::Running), &events, &policy);
            assert_eq!(count(&actions, &Action::Quit), 0);
            let (_, actions) = feed(life, &[(42, Event::GuestShutdown), (43, GONE)], &policy);
            assert_eq!(end(&actions), Some(("stopped", 0)));
        }
    }

    #[test]
    fn a_reboot_into_a_new_qemu_goes_on_waiting_within_the_same_time() {
        let policy = within(ReadyFailure::Fail);
        let reboot = [(15, Event::GuestReboot), (16, GONE), (20, UP)];
        let (life, actions) = feed(waiting(State::Running), &reboot, &policy);
        assert_eq!(life, waiting(State::Running));
        let expected =
            [Action::StopAwaiting, Action::Quit, Action::Launch, Action::AwaitReady(at(20))];
        assert_eq!(actions, expected);
        // While there is no guest, its time being up means nothing.
        let (life, _) = feed(waiting(State::Running), &reboot[..2], &policy);
        assert_eq!(life.deadline(), None);
        assert_eq!(feed(life.clone(), &[(99, Event::Tick)], &policy), (life, vec![]));
    }

    #[test]
    fn a_reboot_of_a_ready_one_is_not_told() {
        for readiness in [Readiness::Met, Readiness::Missed("x".into())] {
            let life = Life { state: State::Running, readiness: readiness.clone() };
            let reboot = [(15, Event::GuestReboot), (16, GONE), (20, UP)];
            let (life, actions) = feed(life, &reboot, &within(ReadyFailure::Fail));
            assert_eq!(life, Life { state: State::Running, readiness });
            assert_eq!(actions, [Action::Quit, Action::Launch]);
        }
    }

    #[test]
    fn a_pause_does_not_end_the_wait() {
        let policy = within(ReadyFailure::Fail);
        let events = [(11, Event::Held), (12, Event::Continued), (13, Event::Held)];
        let (life, actions) = feed(waiting(State::Running), &events, &policy);
        assert_eq!((life, actions), (waiting(State::Paused(Hold::Wanted)), vec![]));
    }

    /// Every state: who is not up neither becomes ready nor fails, whatever is said.
    #[test]
    fn only_a_guest_that_is_up_can_be_ready_or_not() {
        let then = || Outcome::End(End { cause: Cause::Stopped(By::Signal) });
        let ladder = Ladder { deadline: at(99), press_at: at(98), then: then() };
        for state in [
            State::Preparing,
            State::Launching,
            State::Cancelling { until: at(99), by: By::Signal },
            State::Stopping(ladder),
            State::Quitting { kill_at: at(99), hurried: false, then: then() },
            State::Killing { until: at(70), then: then() },
            State::Ended,
        ] {
            for event in [Event::Ready, Event::NotReady("x".into()), Event::Tick] {
                let life = waiting(state.clone());
                let same = feed(life.clone(), &[(50, event.clone())], &within(ReadyFailure::Fail));
                assert_eq!(same, (life, vec![]), "{event:?}");
                // Nor does the state by itself make anything of it.
                let alone = step(state.clone(), event, at(50), &within(ReadyFailure::Fail));
                assert_eq!(alone, (state.clone(), vec![]));
            }
        }
        for state in [State::Running, State::Paused(Hold::Wanted), State::Paused(Hold::Panic)] {
            for readiness in [Readiness::Before, Readiness::Met, Readiness::Missed("x".into())] {
                for event in [Event::Ready, Event::NotReady("x".into()), Event::Tick] {
                    let life = Life { state: state.clone(), readiness: readiness.clone() };
                    let same = feed(life.clone(), &[(50, event)], &within(ReadyFailure::Fail));
                    assert_eq!(same, (life, vec![]));
                }
            }
        }
    }
}
