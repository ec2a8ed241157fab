//! Properties of the machine under events in random orders.

use std::time::Duration;

use proptest::prelude::*;

use super::{
    start_tests::start_events,
    tests::{POLICY, at},
    *,
};

fn any_event() -> impl Strategy<Value = Event> {
    let gone = prop_oneof![
        Just(QemuExit::Code(0)),
        Just(QemuExit::Code(1)),
        Just(QemuExit::Unknown),
        any::<bool>().prop_map(|oom| QemuExit::Signal { signal: 9, oom }),
    ];
    let command = prop_oneof![
        proptest::option::of(1u64..100)
            .prop_map(|t| Command::Stop { timeout: t.map(Duration::from_secs) }),
        Just(Command::Terminate),
        Just(Command::Reboot),
        Just(Command::Reset),
        Just(Command::Pause),
        Just(Command::Resume),
        Just(Command::Suspend),
    ];
    prop_oneof![
        6 => prop::sample::select(start_events()).prop_map(Event::Start),
        18 => any_other_event(command, gone),
    ]
}

fn any_other_event(
    command: impl Strategy<Value = Command> + 'static,
    gone: impl Strategy<Value = QemuExit> + 'static,
) -> impl Strategy<Value = Event> {
    prop_oneof![
        Just(Event::GuestReady),
        Just(Event::GuestNotReady("late".into())),
        Just(Event::StopSignaled),
        Just(Event::HostShutdownStarted),
        Just(Event::StateSaved),
        Just(Event::SaveFailed("no".into())),
        command.prop_map(Event::Requested),
        Just(Event::GuestShutdown),
        Just(Event::GuestReboot),
        Just(Event::GuestReset),
        Just(Event::GuestPanicked),
        Just(Event::VcpusStopped),
        Just(Event::DiskSpaceExhausted),
        Just(Event::DiskSpaceFreed),
        Just(Event::VcpusResumed),
        gone.prop_map(Event::QemuExited),
        Just(Event::DeadlinePassed),
    ]
}

/// Both modes, and starts that reach each phase: random orders seldom reach a running guest.
fn any_beginning() -> impl Strategy<Value = (Mode, Vec<StartEvent>)> {
    let found = |qemu, saved| StartEvent::PreviousFound { qemu, saved };
    let launched = StartEvent::Launched { guest: Guest::Running, ready: false, intention: None };
    let ready = StartEvent::Launched { guest: Guest::Running, ready: true, intention: None };
    let intention = Some(Intention { then: AfterQemu::Relaunch, deadline: Some(at(20)) });
    let stopping = StartEvent::Launched { guest: Guest::Running, ready: true, intention };
    let none = found(PreviousQemu::None, SavedState::None);
    let restore = found(PreviousQemu::None, SavedState::Usable);
    let adopt = found(PreviousQemu::Running, SavedState::None);
    let beginnings = vec![
        vec![],
        vec![none.clone()],
        vec![none.clone(), StartEvent::Admitted],
        vec![none.clone(), StartEvent::Admitted, StartEvent::Prepared],
        vec![none, StartEvent::Admitted, StartEvent::Prepared, launched.clone()],
        vec![restore.clone(), StartEvent::Admitted, StartEvent::Prepared],
        vec![restore, StartEvent::Admitted, StartEvent::Prepared, ready],
        vec![adopt.clone()],
        vec![adopt.clone(), launched],
        vec![adopt, stopping],
    ];
    let mode = prop_oneof![4 => Just(Mode::Run), 1 => Just(Mode::ShutDown)];
    (mode, prop::sample::select(beginnings))
}

/// Events in their order, each some seconds after the one before.
type Order = (Mode, Vec<(u64, Event)>);

fn any_order(most: usize) -> impl Strategy<Value = Order> {
    let events = prop::collection::vec((0u64..40, any_event()), 0..most);
    (any_beginning(), events).prop_map(|((mode, beginning), events)| {
        let beginning = beginning.into_iter().map(|event| (0, Event::Start(event)));
        (mode, beginning.chain(events).collect())
    })
}

/// The machine after these events, all actions, and the time.
fn drive((mode, events): &Order) -> (Life, Vec<Action>, Duration) {
    let ((mut life, mut done), mut now) = (Life::new(*mode), at(0));
    for (pause, event) in events {
        now += at(*pause);
        done.extend(life.step(event.clone(), now, &POLICY));
    }
    (life, done, now)
}

/// Whether an action may start a QEMU process. A running one is adopted even after a stop, because
/// only its supervisor can stop it.
fn starts(action: &Action) -> bool {
    matches!(
        action,
        Action::FindPrevious
            | Action::ReadVmFile
            | Action::Admit
            | Action::RenewReservation
            | Action::Prepare
            | Action::Launch(_)
    )
}

proptest! {
    #[test]
    fn exit_and_end_come_once_and_last(order in any_order(60)) {
        let (life, done, _) = drive(&order);
        let exits = done.iter().filter(|a| matches!(a, Action::Exit(_))).count();
        prop_assert_eq!(exits, usize::from(*life.state() == State::Ended));
        // The end of this run, and of an earlier run without a recorded end.
        let missed = Action::Record(End { cause: Cause::QemuDied(QemuExit::Unknown) });
        let records = done.iter().filter(|a| matches!(a, Action::Record(_))).count();
        prop_assert!(records <= exits || done.contains(&missed));
        if exits == 1 {
            prop_assert!(matches!(done.last(), Some(Action::Exit(_))));
        }
    }

    #[test]
    fn deadlines_alone_end_a_stopped_vm(order in any_order(40)) {
        let (mut life, _, mut now) = drive(&order);
        life.step(Event::StopSignaled, now, &POLICY);
        for _ in 0..200 {
            let Some(deadline) = life.deadline() else { break };
            now = now.max(deadline);
            life.step(Event::DeadlinePassed, now, &POLICY);
        }
        // Even if QEMU never exits, because it waits for storage.
        prop_assert_eq!(life.state(), &State::Ended);
    }

    #[test]
    fn nothing_starts_after_a_stop(
        before in any_order(40),
        after in prop::collection::vec((0u64..40, any_event()), 0..40)
    ) {
        let (mut life, _, mut now) = drive(&before);
        life.step(Event::StopSignaled, now, &POLICY);
        for (pause, event) in &after {
            now += at(*pause);
            let actions = life.step(event.clone(), now, &POLICY);
            prop_assert!(!actions.iter().any(starts), "{actions:?}");
        }
    }

    #[test]
    fn shut_down_mode_starts_no_qemu(order in any_order(40)) {
        let (life, done, _) = drive(&(Mode::ShutDown, order.1));
        let starts = |action: &&Action| {
            matches!(
                action,
                Action::Admit | Action::Prepare | Action::Launch(_) | Action::ReadVmFile
            )
        };
        prop_assert_eq!(done.iter().find(starts), None, "{:?}", life);
        prop_assert!(!life.state().is_up(), "{:?}", life);
    }

    #[test]
    fn tick_before_the_deadline_changes_nothing(order in any_order(40)) {
        let (life, _, now) = drive(&order);
        if life.deadline().is_none_or(|d| now < d) {
            let mut next = life.clone();
            prop_assert_eq!(next.step(Event::DeadlinePassed, now, &POLICY), vec![]);
            prop_assert_eq!(next, life);
        }
    }

    #[test]
    fn accepted_commands_are_executed(order in any_order(40)) {
        let (life, _, now) = drive(&order);
        for command in [Command::Reboot, Command::Reset] {
            let actions = life.clone().step(Event::Requested(command), now, &POLICY);
            if accepts(life.state(), command).is_ok() {
                prop_assert!(!actions.is_empty(), "{command:?} was accepted in {life:?}");
            } else {
                prop_assert!(actions.is_empty(), "{command:?} was refused in {life:?}");
            }
        }
    }

    #[test]
    fn ready_is_notified_once_and_only_while_up(order in any_order(60)) {
        let (life, done, _) = drive(&order);
        let notified = done.iter().filter(|a| **a == Action::NotifyReady).count();
        prop_assert!(notified <= 1);
        if notified == 0 {
            prop_assert!(*life.readiness() != Readiness::Met);
        }
        // Each probe is started and stopped in turn.
        let begun = done.iter().filter(|a| matches!(a, Action::AwaitReady(_))).count();
        let ended = done.iter().filter(|a| **a == Action::StopAwaiting).count();
        let found = usize::from(*life.readiness() == Readiness::Met && begun > ended);
        let goes_on =
            matches!(life.readiness(), Readiness::Awaited { .. }) && life.state().is_up();
        prop_assert_eq!(begun, ended + found + usize::from(goes_on));
    }

    /// With a driver that executes every action and has random results: a QEMU process is started
    /// only while none may be running, in the matching phase, one action at a time.
    #[test]
    fn no_second_qemu_is_started(
        mode in prop_oneof![Just(Mode::Run), Just(Mode::ShutDown)],
        choices in prop::collection::vec(any::<u8>(), 1..120)
    ) {
        let (mut life, actions) = Life::new(mode);
        let mut world = World::default();
        world.execute(&actions)?;
        for choice in choices {
            let event = world.next(choice);
            let actions = life.step(event, at(0), &POLICY);
            world.execute(&actions)?;
        }
    }
}

/// A host with a QEMU process, or without.
#[derive(Debug, Default)]
struct World {
    /// A QEMU process of the VM runs.
    qemu: bool,
    /// The supervisor is connected to it.
    attached: bool,
    /// The saved state exists.
    saved: bool,
    /// What the start is doing.
    pending: Option<Action>,
    ended: bool,
}

impl World {
    fn execute(&mut self, actions: &[Action]) -> Result<(), TestCaseError> {
        for action in actions {
            prop_assert!(!self.ended, "{action:?} after the end");
            if starts(action) && *action != Action::RenewReservation {
                prop_assert!(self.pending.is_none(), "{action:?} during {:?}", self.pending);
                prop_assert!(!self.attached, "{action:?} with an attached QEMU");
                self.pending = Some(action.clone());
            }
            match action {
                Action::Launch(boot) => {
                    prop_assert!(!self.qemu, "a second QEMU process");
                    prop_assert!(*boot == Boot::Cold || self.saved, "no saved state");
                }
                Action::QuarantineSavedState(_) => self.saved = false,
                Action::CancelStart => {
                    self.pending = self.pending.take().map(|_| Action::CancelStart)
                }
                Action::RemoveRecord => prop_assert!(!self.qemu, "no record of a running QEMU"),
                Action::Exit(_) => self.ended = true,
                _ => {}
            }
        }
        Ok(())
    }

    /// A result of what the start is doing, or something that a QEMU process does.
    fn next(&mut self, choice: u8) -> Event {
        let gone = Event::QemuExited(QemuExit::Code(0));
        if choice.is_multiple_of(16) {
            return Event::StopSignaled;
        }
        let failure = |fault| StartFailure { fault, why: "x".into() };
        let failed = |fault, leftover| StartEvent::Failed { failure: failure(fault), leftover };
        let fault = if choice & 1 == 0 { Fault::Vm } else { Fault::Host };
        let event = match self.pending.take() {
            None if self.attached => match choice & 7 {
                0..=2 => {
                    (self.qemu, self.attached) = (false, false);
                    return gone;
                }
                3 => return Event::GuestReboot,
                4 => return Event::GuestShutdown,
                5 => return Event::Requested(Command::Reboot),
                _ => return Event::GuestPanicked,
            },
            None => return Event::DeadlinePassed,
            Some(Action::FindPrevious) => {
                // It was exited before it was adopted, or nothing is known yet.
                self.qemu = choice & 2 == 0;
                self.saved = choice & 4 == 0;
                let qemu = match (self.qemu, choice & 1) {
                    (true, _) => PreviousQemu::Running,
                    (false, 0) => PreviousQemu::None,
                    (false, _) => {
                        let relaunches = choice & 8 == 0;
                        let intended = relaunches.then_some(AfterQemu::Relaunch);
                        PreviousQemu::Exited { intended }
                    }
                };
                let saved = if self.saved { SavedState::Usable } else { SavedState::None };
                StartEvent::PreviousFound { qemu, saved }
            }
            Some(Action::ReadVmFile) => StartEvent::VmFileRead,
            Some(Action::Admit) if choice & 7 == 0 => {
                failed(Fault::InsufficientMemory, Leftover::None)
            }
            Some(Action::Admit) => StartEvent::Admitted,
            Some(Action::Prepare) if choice & 7 == 0 => failed(fault, Leftover::None),
            Some(Action::Prepare) => StartEvent::Prepared,
            Some(Action::Launch(_)) => match choice & 6 {
                0 => failed(fault, Leftover::None),
                2 => {
                    self.qemu = true;
                    failed(fault, Leftover::MayRun)
                }
                _ => {
                    (self.qemu, self.attached) = (true, true);
                    StartEvent::Launched { guest: Guest::Running, ready: false, intention: None }
                }
            },
            Some(Action::Adopt) => match choice & 6 {
                0 => {
                    self.qemu = false;
                    failed(fault, Leftover::None)
                }
                2 => failed(fault, Leftover::MayRun),
                _ => {
                    self.attached = true;
                    StartEvent::Launched { guest: Guest::Running, ready: true, intention: None }
                }
            },
            Some(_) => {
                let leftover = if self.qemu { Leftover::MayRun } else { Leftover::None };
                StartEvent::Aborted(leftover)
            }
        };
        event.into()
    }
}
