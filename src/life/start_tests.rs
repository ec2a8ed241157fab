//! The start, phase by phase: every pair of a phase and an event.

use super::{
    tests::{POLICY, at, feed, step},
    *,
};

const RUNNING: StartEvent =
    StartEvent::Launched { guest: Guest::Running, ready: false, intention: None };

pub(super) fn failed(fault: Fault, leftover: Leftover) -> StartEvent {
    StartEvent::Failed { failure: StartFailure { fault, why: "no".into() }, leftover }
}

pub(super) fn found(qemu: PreviousQemu) -> StartEvent {
    StartEvent::PreviousFound { qemu, saved: SavedState::None }
}

pub(super) fn stopped() -> AfterQemu {
    AfterQemu::End(End { cause: Cause::Stopped(Requester::Operator) })
}

/// What an earlier supervisor may have intended with its QEMU process.
fn intended() -> [Option<AfterQemu>; 3] {
    [None, Some(AfterQemu::Relaunch), Some(stopped())]
}

fn in_phase(phase: Phase, event: StartEvent) -> (State, Vec<Action>) {
    feed(State::Starting(phase), &[(0, event.into())])
}

/// Every phase.
pub(super) fn phases() -> [Phase; 9] {
    [
        Phase::FindingPrevious,
        Phase::ReadingVmFile,
        Phase::Admitting(Boot::Cold),
        Phase::Admitting(Boot::Restore),
        Phase::Preparing(Boot::Cold),
        Phase::Preparing(Boot::Restore),
        Phase::Launching(Boot::Cold),
        Phase::Launching(Boot::Restore),
        Phase::Adopting,
    ]
}

/// Every event of a start.
pub(super) fn start_events() -> Vec<StartEvent> {
    let mut events = vec![
        StartEvent::PreviousUnknown("unknown".into()),
        StartEvent::VmFileRead,
        StartEvent::Admitted,
        StartEvent::Prepared,
        StartEvent::Aborted(Leftover::None),
        StartEvent::Aborted(Leftover::MayRun),
    ];
    let exited = intended().map(|intended| PreviousQemu::Exited { intended });
    for qemu in [PreviousQemu::None, PreviousQemu::NeverExecuted, PreviousQemu::Running]
        .into_iter()
        .chain(exited)
    {
        for saved in [
            SavedState::None,
            SavedState::Usable,
            SavedState::Unusable("damaged".into()),
            SavedState::Unreadable("EIO".into()),
        ] {
            events.push(StartEvent::PreviousFound { qemu: qemu.clone(), saved });
        }
    }
    for guest in [Guest::Running, Guest::Paused, Guest::ShutDown, Guest::Panicked] {
        events.push(StartEvent::Launched { guest, ready: false, intention: None });
        for then in intended().into_iter().flatten() {
            for deadline in [None, Some(at(20))] {
                let intention = Intention { then: then.clone(), deadline };
                let intention_too = Some(intention.clone());
                events.push(StartEvent::Launched { guest, ready: false, intention: intention_too });
                events.push(StartEvent::ShutdownResumed(intention));
            }
        }
    }
    for fault in [Fault::Vm, Fault::Host, Fault::InsufficientMemory] {
        for leftover in [Leftover::None, Leftover::MayRun] {
            events.push(failed(fault, leftover));
        }
    }
    events
}

pub(super) fn exit_code(actions: &[Action]) -> Option<u8> {
    actions.iter().find_map(|action| match action {
        Action::Exit(Exit::Code(code)) => Some(*code),
        Action::Exit(Exit::NotStarted(failure)) => Some(failure.fault.exit_code()),
        _ => None,
    })
}

#[test]
fn cold_boot_passes_all_phases() {
    let (mut life, actions) = Life::new(Mode::Run);
    assert_eq!(actions, [Action::FindPrevious]);
    for (event, phase, action) in [
        (found(PreviousQemu::None), Phase::Admitting(Boot::Cold), Action::Admit),
        (StartEvent::Admitted, Phase::Preparing(Boot::Cold), Action::Prepare),
        (StartEvent::Prepared, Phase::Launching(Boot::Cold), Action::Launch(Boot::Cold)),
    ] {
        assert_eq!(life.step(event.into(), at(0), &POLICY), [action]);
        assert_eq!(*life.state(), State::Starting(phase));
    }
    life.step(RUNNING.into(), at(0), &POLICY);
    assert_eq!(*life.state(), State::Running);
}

/// What an earlier supervisor left, against what was saved, in both modes.
#[test]
fn previous_run_decides_the_start() {
    let missed_end = Action::Record(End { cause: Cause::QemuDied(QemuExit::Unknown) });
    for (qemu, settled) in [
        (PreviousQemu::None, vec![]),
        (PreviousQemu::NeverExecuted, vec![Action::RemoveRecord]),
        (PreviousQemu::Exited { intended: None }, vec![missed_end, Action::RemoveRecord]),
        (PreviousQemu::Exited { intended: Some(AfterQemu::Relaunch) }, vec![Action::RemoveRecord]),
    ] {
        for (saved, boot, last) in [
            (SavedState::None, Boot::Cold, vec![Action::Admit]),
            (
                SavedState::Usable,
                Boot::Restore,
                vec![Action::UseVmFile(VmFile::Saved), Action::Admit],
            ),
            (
                SavedState::Unusable("damaged".into()),
                Boot::Cold,
                vec![Action::QuarantineSavedState("damaged".into()), Action::Admit],
            ),
        ] {
            let event = StartEvent::PreviousFound { qemu: qemu.clone(), saved };
            let (state, actions) = in_phase(Phase::FindingPrevious, event.clone());
            assert_eq!(state, State::Starting(Phase::Admitting(boot)));
            assert_eq!(actions, [&settled[..], &last].concat());
            let (mut life, _) = Life::new(Mode::ShutDown);
            let exit = vec![Action::Exit(Exit::Code(0))];
            assert_eq!(life.step(event.into(), at(0), &POLICY), [&settled[..], &exit].concat());
            assert_eq!(*life.state(), State::Ended);
        }
        // A later start may be able to read it.
        let saved = SavedState::Unreadable("EIO".into());
        let event = StartEvent::PreviousFound { qemu, saved };
        let (state, actions) = in_phase(Phase::FindingPrevious, event);
        assert_eq!((state, exit_code(&actions)), (State::Ended, Some(75)));
    }
    for mode in [Mode::Run, Mode::ShutDown] {
        for saved in [SavedState::None, SavedState::Usable, SavedState::Unreadable("x".into())] {
            let (mut life, _) = Life::new(mode);
            let event = StartEvent::PreviousFound { qemu: PreviousQemu::Running, saved };
            let actions = life.step(event.into(), at(0), &POLICY);
            assert_eq!(actions, [Action::UseVmFile(VmFile::Booted), Action::Adopt]);
            assert_eq!(*life.state(), State::Starting(Phase::Adopting));
        }
    }
}

#[test]
fn unknown_previous_run_starts_nothing() {
    for mode in [Mode::Run, Mode::ShutDown] {
        let (mut life, _) = Life::new(mode);
        let actions = life.step(StartEvent::PreviousUnknown("x".into()).into(), at(0), &POLICY);
        assert_eq!((life.state(), exit_code(&actions)), (&State::Ended, Some(75)));
    }
}

#[test]
fn requests_wait_for_a_known_state() {
    let (mut life, _) = Life::new(Mode::Run);
    assert!(!life.answers_requests());
    life.step(found(PreviousQemu::Running).into(), at(0), &POLICY);
    assert!(life.answers_requests());
    // And again where the QEMU process exits before it is adopted.
    life.step(failed(Fault::Host, Leftover::None).into(), at(0), &POLICY);
    assert!(!life.answers_requests());
    life.step(Event::StopSignaled, at(0), &POLICY);
    assert!(life.answers_requests());
}

#[test]
fn relaunch_reads_vm_file_without_admission() {
    let (state, actions) =
        feed(State::Running, &[(0, Event::GuestReboot), (1, Event::QemuExited(QemuExit::Code(0)))]);
    assert_eq!(state, State::Starting(Phase::ReadingVmFile));
    assert_eq!(actions, [Action::Quit, Action::ReadVmFile]);
    let (state, actions) = feed(state, &[(2, StartEvent::VmFileRead.into())]);
    assert_eq!(state, State::Starting(Phase::Preparing(Boot::Cold)));
    let current = Action::UseVmFile(VmFile::Current);
    assert_eq!(actions, [current, Action::RenewReservation, Action::Prepare]);
}

#[test]
fn failed_restore_becomes_a_cold_boot() {
    let restore = Phase::Launching(Boot::Restore);
    let (state, actions) = in_phase(restore, failed(Fault::Vm, Leftover::None));
    assert_eq!(state, State::Starting(Phase::Admitting(Boot::Cold)));
    assert_eq!(
        actions,
        [
            Action::QuarantineSavedState("no".into()),
            Action::UseVmFile(VmFile::Current),
            Action::RemoveRecord,
            Action::Admit
        ]
    );
    // A fault of the host does not make the saved state unusable: a later start may restore it.
    let (state, actions) = in_phase(restore, failed(Fault::Host, Leftover::None));
    assert_eq!((state, exit_code(&actions)), (State::Ended, Some(75)));
    assert!(!actions.iter().any(|a| matches!(a, Action::QuarantineSavedState(_))));
    // The process may have read the state already.
    let (state, actions) = in_phase(restore, failed(Fault::Vm, Leftover::MayRun));
    assert_eq!((state, exit_code(&actions)), (State::Ended, Some(75)));
    assert!(!actions.iter().any(|a| matches!(a, Action::QuarantineSavedState(_))));
    // The cold boot has no further fallback.
    let (state, _) = in_phase(Phase::Launching(Boot::Cold), failed(Fault::Vm, Leftover::None));
    assert_eq!(state, State::Ended);
}

#[test]
fn adoption_of_exited_qemu_boots() {
    let (state, actions) = in_phase(Phase::Adopting, failed(Fault::Host, Leftover::None));
    assert_eq!(state, State::Starting(Phase::FindingPrevious));
    assert_eq!(actions, [Action::UseVmFile(VmFile::Current), Action::FindPrevious]);
    let (state, actions) = in_phase(Phase::Adopting, failed(Fault::Vm, Leftover::MayRun));
    assert_eq!((state, exit_code(&actions)), (State::Ended, Some(75)));
    assert!(!actions.contains(&Action::RemoveRecord));
}

#[test]
fn failed_start_exits_by_its_fault() {
    for phase in phases().into_iter().filter(|phase| *phase != Phase::Adopting) {
        for (fault, code) in [(Fault::Vm, 1), (Fault::Host, 75), (Fault::InsufficientMemory, 69)] {
            if (phase, fault) == (Phase::Launching(Boot::Restore), Fault::Vm) {
                continue;
            }
            let (state, actions) = in_phase(phase, failed(fault, Leftover::None));
            assert_eq!((state, exit_code(&actions)), (State::Ended, Some(code)), "{phase:?}");
            let launched = matches!(phase, Phase::Launching(_));
            assert_eq!(actions.contains(&Action::RemoveRecord), launched, "{phase:?}");
        }
    }
}

#[test]
fn adopted_guest_keeps_its_state() {
    for (guest, state) in
        [(Guest::Running, State::Running), (Guest::Paused, State::Paused(PauseReason::Operator))]
    {
        let event = StartEvent::Launched { guest, ready: true, intention: None };
        assert_eq!(in_phase(Phase::Adopting, event).0, state);
    }
    for guest in [Guest::ShutDown, Guest::Panicked] {
        let (mut life, _) = Life::new(Mode::Run);
        life.step(found(PreviousQemu::Running).into(), at(0), &POLICY);
        // The unit must be reported as up before it ends, or systemd takes the end for a failure.
        let event = StartEvent::Launched { guest, ready: true, intention: None };
        let actions = life.step(event.into(), at(0), &POLICY);
        assert_eq!(actions[0], Action::NotifyReady);
        assert!(actions.contains(&Action::Quit));
        assert!(matches!(life.state(), State::Quitting { .. }));
    }
}

#[test]
fn shut_down_mode_stops_every_guest() {
    for on_panic in [OnPanic::Restart, OnPanic::Stop, OnPanic::Pause] {
        for guest in [Guest::Running, Guest::Paused, Guest::ShutDown, Guest::Panicked] {
            let policy = Policy { on_panic, ..POLICY };
            let (mut life, _) = Life::new(Mode::ShutDown);
            life.step(found(PreviousQemu::Running).into(), at(0), &policy);
            let event = StartEvent::Launched { guest, ready: true, intention: None };
            life.step(event.into(), at(0), &policy);
            assert!(
                matches!(life.state(), State::Stopping(_) | State::Quitting { .. }),
                "{guest:?}: {:?}",
                life.state()
            );
        }
    }
}

/// Each phase without a QEMU process to adopt is canceled by each kind of stop, and ends with the
/// first result.
#[test]
fn stop_cancels_each_phase() {
    let stop = Event::Requested(Command::Stop { timeout: None });
    let stops = [
        Event::StopSignaled,
        Event::HostShutdownStarted,
        stop,
        Event::Requested(Command::Terminate),
    ];
    let adopts = |phase: &Phase| matches!(phase, Phase::FindingPrevious | Phase::Adopting);
    for phase in phases().into_iter().filter(|phase| !adopts(phase)) {
        for stop in &stops {
            let (canceling, actions) = feed(State::Starting(phase), &[(0, stop.clone())]);
            assert_eq!(actions, [Action::CancelStart]);
            assert_eq!(canceling.deadline(), Some(START_CANCEL_GRACE));
            assert_eq!(feed(canceling.clone(), &[(4, Event::DeadlinePassed)]).0, canceling);
            let (state, actions) = feed(canceling.clone(), &[(5, Event::DeadlinePassed)]);
            assert_eq!((state, exit_code(&actions)), (State::Ended, Some(0)));
            for event in start_events() {
                let (state, actions) = feed(canceling.clone(), &[(1, event.clone().into())]);
                if let StartEvent::Launched { .. } = event {
                    assert_eq!(actions, [Action::Quit]);
                    assert!(matches!(state, State::Quitting { .. }));
                    continue;
                }
                assert_eq!((state, exit_code(&actions)), (State::Ended, Some(0)), "{event:?}");
                let gone = matches!(
                    event,
                    StartEvent::Aborted(Leftover::None)
                        | StartEvent::Failed { leftover: Leftover::None, .. }
                );
                let removes = gone && matches!(phase, Phase::Launching(_));
                assert_eq!(actions.contains(&Action::RemoveRecord), removes, "{phase:?} {event:?}");
            }
        }
    }
}

/// Which pairs of a phase and an event change nothing: all that the drawing does not have.
#[test]
fn phases_ignore_foreign_events() {
    for phase in phases() {
        for event in start_events() {
            let is_own = match &event {
                StartEvent::PreviousFound { .. } | StartEvent::PreviousUnknown(_) => {
                    phase == Phase::FindingPrevious
                }
                StartEvent::VmFileRead => phase == Phase::ReadingVmFile,
                StartEvent::Admitted => matches!(phase, Phase::Admitting(_)),
                StartEvent::Prepared => matches!(phase, Phase::Preparing(_)),
                StartEvent::Launched { .. } => {
                    matches!(phase, Phase::Launching(_) | Phase::Adopting)
                }
                StartEvent::Failed { .. } => true,
                StartEvent::Aborted(_) | StartEvent::ShutdownResumed(_) => false,
            };
            let before = State::Starting(phase);
            let after = step(before.clone(), event.clone().into(), at(1), &POLICY);
            assert_eq!(after == (before, vec![]), !is_own, "{phase:?} {event:?}");
        }
        for event in [
            Event::GuestReady,
            Event::GuestNotReady("x".into()),
            Event::StateSaved,
            Event::SaveFailed("x".into()),
            Event::Requested(Command::Reboot),
            Event::Requested(Command::Reset),
            Event::Requested(Command::Pause),
            Event::Requested(Command::Resume),
            Event::Requested(Command::Suspend),
            Event::GuestShutdown,
            Event::GuestReboot,
            Event::GuestReset,
            Event::GuestPanicked,
            Event::VcpusStopped,
            Event::DiskSpaceExhausted,
            Event::DiskSpaceFreed,
            Event::VcpusResumed,
            Event::QemuExited(QemuExit::Code(0)),
            Event::DeadlinePassed,
        ] {
            let before = State::Starting(phase);
            assert_eq!(step(before.clone(), event, at(1), &POLICY), (before, vec![]));
        }
    }
}
