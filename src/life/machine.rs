//! The machine that a supervisor drives: the state, and the guest's readiness, which is reported
//! once a run to the service manager.

use std::time::Duration;

use super::{
    action::Action,
    event::{Event, Guest, StartEvent},
    intention::Intention,
    mode::Mode,
    policy::{Policy, Ready, ReadyFailure},
    state::{Phase, State},
    step::step,
};

/// Whether the guest is ready.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Readiness {
    /// No guest has run yet.
    Before,
    /// The guest is being probed.
    Awaited {
        /// Until then.
        until: Duration,
    },
    /// The guest was ready once; later events do not change that.
    Met,
    /// The guest did not become ready, and is not waited for any longer; why.
    Missed(String),
}

/// The life of a VM within one run of its supervisor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Life {
    state: State,
    readiness: Readiness,
    mode: Mode,
}

impl Life {
    /// Begins with [`super::Phase::FindingPrevious`]; returns the first actions.
    pub fn new(mode: Mode) -> (Self, Vec<Action>) {
        let state = State::Starting(Phase::FindingPrevious);
        (Self { state, readiness: Readiness::Before, mode }, vec![Action::FindPrevious])
    }

    /// What the VM does.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Whether the guest is ready.
    pub fn readiness(&self) -> &Readiness {
        &self.readiness
    }

    /// What the supervisor is for.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// Whether control requests can be answered: the state is known. A guest that an earlier
    /// supervisor left running must not be reported as starting.
    pub fn answers_requests(&self) -> bool {
        self.state != State::Starting(Phase::FindingPrevious)
    }

    /// When the driver has to send [`Event::DeadlinePassed`]; `None` without a deadline.
    pub fn deadline(&self) -> Option<Duration> {
        let until = match self.readiness {
            Readiness::Awaited { until } if self.state.is_up() => Some(until),
            _ => None,
        };
        self.state.deadline().into_iter().chain(until).min()
    }

    /// Handles an event; returns the actions that follow from it, in their order.
    pub fn step(&mut self, event: Event, now: Duration, policy: &Policy) -> Vec<Action> {
        let follow_ups = match &event {
            Event::Start(StartEvent::Launched { guest, intention, .. }) => {
                self.after_launch(*guest, intention.clone())
            }
            _ => vec![],
        };
        let mut actions = self.handle(event, now, policy);
        for event in follow_ups {
            if self.is_due(&event) {
                actions.extend(self.handle(event, now, policy));
            }
        }
        actions
    }

    /// Returns the events that follow a launch: a shutdown to continue, a shutdown or panic of the
    /// guest without a supervisor, and a stop that was requested meanwhile.
    fn after_launch(&self, guest: Guest, intention: Option<Intention>) -> Vec<Event> {
        let (phase, request) = match &self.state {
            State::Starting(phase) => (*phase, None),
            State::Canceling { phase: Phase::Adopting, request, .. } => {
                (Phase::Adopting, Some(*request))
            }
            _ => return vec![],
        };
        let intention = intention.filter(|_| phase == Phase::Adopting);
        let resumed = intention.map(|intention| StartEvent::ShutdownResumed(intention).into());
        let missed = match guest {
            Guest::Running | Guest::Paused => None,
            Guest::ShutDown => Some(Event::GuestShutdown),
            Guest::Panicked => Some(Event::GuestPanicked),
        };
        let stop = match (request, self.mode) {
            (Some(request), _) => Some(request.event()),
            (None, Mode::ShutDown) => Some(Event::StopSignaled),
            (None, Mode::Run) => None,
        };
        resumed.into_iter().chain(missed).chain(stop).collect()
    }

    /// A signal does not restart a shutdown that an earlier supervisor began: the deadline stays.
    fn is_due(&self, event: &Event) -> bool {
        let goes_down = self.state.intention().is_some_and(|intention| intention.ends_run());
        !goes_down || !matches!(event, Event::StopSignaled | Event::HostShutdownStarted)
    }

    fn handle(&mut self, event: Event, now: Duration, policy: &Policy) -> Vec<Action> {
        let awaited = match self.readiness {
            Readiness::Awaited { until } if self.state.is_up() => Some(until),
            _ => None,
        };
        match (awaited, event) {
            (Some(_), Event::GuestReady) => {
                self.readiness = Readiness::Met;
                vec![Action::NotifyReady]
            }
            (Some(_), Event::GuestNotReady(why)) => self.missed(why, now, policy),
            (Some(until), Event::DeadlinePassed) if now >= until => {
                let limit = match policy.ready {
                    Ready::Within(limit) => limit.as_secs(),
                    Ready::Running => 0,
                };
                self.missed(format!("not within {limit} s"), now, policy)
            }
            // Too late: the guest is being stopped, or another one runs.
            (None, Event::GuestReady | Event::GuestNotReady(_)) => vec![],
            (_, event) => self.other(event, now, policy),
        }
    }

    fn change_state(&mut self, event: Event, now: Duration, policy: &Policy) -> Vec<Action> {
        let before = std::mem::replace(&mut self.state, State::Ended);
        let (state, actions) = step(before, event, now, policy, self.mode);
        self.state = state;
        actions
    }

    fn missed(&mut self, why: String, now: Duration, policy: &Policy) -> Vec<Action> {
        let mut actions = vec![Action::StopAwaiting, Action::GiveUpReady(why.clone())];
        self.readiness = Readiness::Missed(why.clone());
        match policy.ready_failure {
            ReadyFailure::Continue => actions.push(Action::NotifyReady),
            ReadyFailure::Fail => {
                actions.extend(self.change_state(Event::GuestNotReady(why), now, policy));
            }
        }
        actions
    }

    fn other(&mut self, event: Event, now: Duration, policy: &Policy) -> Vec<Action> {
        let was_up = self.state.is_up();
        let seen = matches!(event, Event::Start(StartEvent::Launched { ready: true, .. }));
        let mut actions = self.change_state(event, now, policy);
        match (&self.readiness, was_up, self.state.is_up()) {
            (Readiness::Before, false, true) => match policy.ready {
                Ready::Within(limit) if !seen => {
                    self.readiness = Readiness::Awaited { until: now + limit };
                    actions.push(Action::AwaitReady(limit));
                }
                Ready::Running | Ready::Within(_) => {
                    self.readiness = Readiness::Met;
                    actions.push(Action::NotifyReady);
                }
            },
            // A new QEMU process after a reboot; the deadline stays.
            (Readiness::Awaited { until }, false, true) => {
                actions.push(Action::AwaitReady(until.saturating_sub(now)));
            }
            (Readiness::Awaited { .. }, true, false) => actions.insert(0, Action::StopAwaiting),
            (
                Readiness::Before
                | Readiness::Awaited { .. }
                | Readiness::Met
                | Readiness::Missed(_),
                _,
                _,
            ) => {}
        }
        actions
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::life::{
        AfterQemu, Boot, Cause, Command, End, OnPanic, PauseReason, QemuExit, Requester,
        StopLadder, StopRequest,
    };

    const LIMIT: Duration = Duration::from_secs(30);
    const UNTIL: Duration = Duration::from_secs(40);
    const UP: Event =
        Event::Start(StartEvent::Launched { guest: Guest::Running, ready: false, intention: None });

    const GONE: Event = Event::QemuExited(QemuExit::Code(0));

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
            done.extend(life.step(event.clone(), at(*time), policy));
        }
        (life, done)
    }

    fn waiting(state: State) -> Life {
        in_state(state, Readiness::Awaited { until: UNTIL })
    }

    fn in_state(state: State, readiness: Readiness) -> Life {
        Life { state, readiness, mode: Mode::Run }
    }

    /// A new machine that has been admitted and prepared.
    fn launching() -> Life {
        in_state(State::Starting(Phase::Launching(Boot::Cold)), Readiness::Before)
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
    fn running_guest_is_ready_at_once() {
        let policy = policy(Ready::Running, ReadyFailure::Fail);
        let (life, actions) = feed(launching(), &[(1, UP)], &policy);
        assert_eq!(life, in_state(State::Running, Readiness::Met));
        assert_eq!(actions, [Action::NotifyReady]);
        assert_eq!(life.deadline(), None);
    }

    #[test]
    fn guest_is_probed_until_ready() {
        let policy = within(ReadyFailure::Fail);
        let (life, actions) = feed(launching(), &[(10, UP)], &policy);
        assert_eq!(life, waiting(State::Running));
        assert_eq!(actions, [Action::AwaitReady(LIMIT)]);
        assert_eq!(life.deadline(), Some(UNTIL));
        let (life, actions) =
            feed(life, &[(39, Event::DeadlinePassed), (39, Event::GuestReady)], &policy);
        assert_eq!(life, in_state(State::Running, Readiness::Met));
        assert_eq!(actions, [Action::NotifyReady]);
        // Once: later events change nothing.
        let late = [
            (50, Event::DeadlinePassed),
            (50, Event::GuestNotReady("x".into())),
            (50, Event::GuestReady),
        ];
        assert_eq!(feed(life.clone(), &late, &policy), (life, vec![]));
    }

    #[test]
    fn adopted_guest_stays_ready() {
        let found = StartEvent::Launched { guest: Guest::Paused, ready: true, intention: None };
        let policy = within(ReadyFailure::Fail);
        let adopting = in_state(State::Starting(Phase::Adopting), Readiness::Before);
        let (adopted, actions) = feed(adopting, &[(0, found.into())], &policy);
        assert_eq!(adopted, in_state(State::Paused(PauseReason::Operator), Readiness::Met));
        assert_eq!(actions, [Action::NotifyReady]);
    }

    #[test]
    fn late_guest_is_up_under_continue() {
        let policy = within(ReadyFailure::Continue);
        for (event, why) in
            [(Event::DeadlinePassed, "not within 30 s"), (Event::GuestNotReady("no".into()), "no")]
        {
            for state in [
                State::Running,
                State::Paused(PauseReason::Operator),
                State::Paused(PauseReason::Panic),
            ] {
                let (life, actions) = feed(waiting(state.clone()), &[(40, event.clone())], &policy);
                assert_eq!(life, in_state(state, Readiness::Missed(why.into())));
                let given_up = Action::GiveUpReady(why.into());
                assert_eq!(actions, [Action::StopAwaiting, given_up, Action::NotifyReady]);
                assert_eq!(life.deadline(), None);
            }
        }
    }

    #[test]
    fn late_guest_is_stopped_under_fail() {
        let policy = within(ReadyFailure::Fail);
        let events = [(40, Event::DeadlinePassed), (42, Event::GuestShutdown), (43, GONE)];
        for paused in [false, true] {
            let state = if paused { State::Paused(PauseReason::Operator) } else { State::Running };
            let (life, actions) = feed(waiting(state), &events, &policy);
            assert_eq!(life.state, State::Ended);
            assert_eq!(end(&actions), Some(("not-ready", 1)));
            assert_eq!(count(&actions, &Action::PressPowerButton), 1);
            assert_eq!(count(&actions, &Action::Resume), usize::from(paused));
            assert_eq!(count(&actions, &Action::NotifyReady), 0);
        }
        // The power button of a panicked guest is not pressed.
        let (_, actions) = feed(
            waiting(State::Paused(PauseReason::Panic)),
            &[(40, Event::DeadlinePassed), (41, GONE)],
            &policy,
        );
        assert_eq!(end(&actions), Some(("not-ready", 1)));
        assert_eq!(count(&actions, &Action::PressPowerButton), 0);
    }

    #[test]
    fn late_deaf_guest_is_forced_off() {
        let policy = within(ReadyFailure::Fail);
        let events = [(40, Event::DeadlinePassed), (100, Event::DeadlinePassed), (101, GONE)];
        let (_, actions) = feed(waiting(State::Running), &events, &policy);
        assert_eq!(end(&actions), Some(("not-ready", 1)));
        assert_eq!(count(&actions, &Action::Quit), 1);
    }

    #[test]
    fn stop_ends_the_probe() {
        for failure in [ReadyFailure::Continue, ReadyFailure::Fail] {
            let events = [
                (11, Event::StopSignaled),
                (12, Event::GuestReady),
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
    fn stop_replaces_the_readiness_failure() {
        let policy = within(ReadyFailure::Fail);
        let stop = Event::Requested(Command::Stop { timeout: None });
        for stop in [Event::StopSignaled, stop] {
            let events = [(40, Event::DeadlinePassed), (41, stop)];
            let (life, actions) = feed(waiting(State::Running), &events, &policy);
            assert_eq!(count(&actions, &Action::Quit), 0);
            let (_, actions) = feed(life, &[(42, Event::GuestShutdown), (43, GONE)], &policy);
            assert_eq!(end(&actions), Some(("stopped", 0)));
        }
    }

    #[test]
    fn relaunch_keeps_the_readiness_deadline() {
        let policy = within(ReadyFailure::Fail);
        let reboot = [
            (15, Event::GuestReboot),
            (16, GONE),
            (17, StartEvent::VmFileRead.into()),
            (18, StartEvent::Prepared.into()),
            (20, UP),
        ];
        let (life, actions) = feed(waiting(State::Running), &reboot, &policy);
        assert_eq!(life, waiting(State::Running));
        assert_eq!(actions[..2], [Action::StopAwaiting, Action::Quit]);
        assert_eq!(actions.last(), Some(&Action::AwaitReady(at(20))));
        // Without a guest, the deadline is ignored.
        let (life, _) = feed(waiting(State::Running), &reboot[..2], &policy);
        assert_eq!(life.deadline(), None);
        assert_eq!(feed(life.clone(), &[(99, Event::DeadlinePassed)], &policy), (life, vec![]));
    }

    #[test]
    fn relaunch_notifies_ready_only_once() {
        for readiness in [Readiness::Met, Readiness::Missed("x".into())] {
            let life = in_state(State::Running, readiness.clone());
            let reboot = [
                (15, Event::GuestReboot),
                (16, GONE),
                (17, StartEvent::VmFileRead.into()),
                (18, StartEvent::Prepared.into()),
                (20, UP),
            ];
            let (life, actions) = feed(life, &reboot, &within(ReadyFailure::Fail));
            assert_eq!(life, in_state(State::Running, readiness));
            assert_eq!(count(&actions, &Action::NotifyReady), 0);
        }
    }

    #[test]
    fn pause_keeps_the_probe() {
        let policy = within(ReadyFailure::Fail);
        let events =
            [(11, Event::VcpusStopped), (12, Event::VcpusResumed), (13, Event::VcpusStopped)];
        let (life, actions) = feed(waiting(State::Running), &events, &policy);
        assert_eq!((life, actions), (waiting(State::Paused(PauseReason::Operator)), vec![]));
    }

    /// Every state: a VM that is not up neither becomes ready nor fails.
    #[test]
    fn readiness_needs_a_guest_that_is_up() {
        let then = || AfterQemu::End(End { cause: Cause::Stopped(Requester::Signal) });
        let ladder = StopLadder { deadline: at(99), press_at: at(98), then: then() };
        for state in [
            State::Starting(Phase::Admitting(Boot::Cold)),
            State::Starting(Phase::Adopting),
            State::Canceling {
                phase: Phase::Adopting,
                until: at(99),
                request: StopRequest::Signal,
            },
            State::Stopping(ladder),
            State::Quitting { kill_at: at(99), hurried: false, then: then() },
            State::Killing { until: at(70), then: then() },
            State::Ended,
        ] {
            for event in
                [Event::GuestReady, Event::GuestNotReady("x".into()), Event::DeadlinePassed]
            {
                let life = waiting(state.clone());
                let same = feed(life.clone(), &[(50, event.clone())], &within(ReadyFailure::Fail));
                assert_eq!(same, (life, vec![]), "{event:?}");
                // The state alone ignores the event too.
                let alone =
                    step(state.clone(), event, at(50), &within(ReadyFailure::Fail), Mode::Run);
                assert_eq!(alone, (state.clone(), vec![]));
            }
        }
        for state in [
            State::Running,
            State::Paused(PauseReason::Operator),
            State::Paused(PauseReason::Panic),
        ] {
            for readiness in [Readiness::Before, Readiness::Met, Readiness::Missed("x".into())] {
                for event in
                    [Event::GuestReady, Event::GuestNotReady("x".into()), Event::DeadlinePassed]
                {
                    let life = in_state(state.clone(), readiness.clone());
                    let same = feed(life.clone(), &[(50, event)], &within(ReadyFailure::Fail));
                    assert_eq!(same, (life, vec![]));
                }
            }
        }
    }
}
