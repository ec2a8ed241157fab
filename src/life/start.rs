//! The start of a guest: a QEMU process to adopt, a saved state to restore, or a cold boot.

use std::time::Duration;

use super::{
    action::{Action, VmFile},
    end::{Cause, End, Exit, Explanation, Fault, QemuExit, StartFailure},
    event::{Command, Event, Guest, Leftover, PreviousQemu, SavedState, StartEvent},
    intention::AfterQemu,
    limits::{ADOPTION_GRACE, START_CANCEL_GRACE},
    mode::Mode,
    state::{Boot, PauseReason, Phase, State, StopRequest},
    stop_ladder::{end, ended, quit},
};

/// What a start does after `event`.
pub(super) fn starting(
    phase: Phase,
    event: Event,
    now: Duration,
    mode: Mode,
) -> (State, Vec<Action>) {
    match event {
        Event::Start(event) => next_phase(phase, event, mode),
        Event::StopSignaled => cancel(phase, StopRequest::Signal, now),
        Event::HostShutdownStarted => cancel(phase, StopRequest::HostShutdown, now),
        Event::Requested(Command::Stop { timeout }) => {
            cancel(phase, StopRequest::Operator(timeout), now)
        }
        Event::Requested(Command::Terminate) => cancel(phase, StopRequest::Terminate, now),
        Event::GuestReady
        | Event::GuestNotReady(_)
        | Event::StateSaved
        | Event::SaveFailed(_)
        | Event::Requested(
            Command::Reboot | Command::Reset | Command::Pause | Command::Resume | Command::Suspend,
        )
        | Event::GuestShutdown
        | Event::GuestReboot
        | Event::GuestReset
        | Event::GuestPanicked
        | Event::VcpusStopped
        | Event::DiskSpaceExhausted
        | Event::DiskSpaceFreed
        | Event::VcpusResumed
        | Event::QemuExited(_)
        | Event::DeadlinePassed => (State::Starting(phase), vec![]),
    }
}

/// An adoption is not canceled, nor the search for a QEMU process to adopt: its guest would keep
/// running without a supervisor. A request to force the VM off waits less: its verb ends a QEMU
/// process that the supervisor leaves.
fn cancel(phase: Phase, request: StopRequest, now: Duration) -> (State, Vec<Action>) {
    let (actions, grace) = match phase {
        Phase::FindingPrevious | Phase::Adopting if request == StopRequest::Terminate => {
            (vec![], START_CANCEL_GRACE)
        }
        Phase::FindingPrevious | Phase::Adopting => (vec![], ADOPTION_GRACE),
        Phase::ReadingVmFile | Phase::Admitting(_) | Phase::Preparing(_) | Phase::Launching(_) => {
            (vec![Action::CancelStart], START_CANCEL_GRACE)
        }
    };
    (State::Canceling { phase, until: now + grace, request }, actions)
}

fn next_phase(phase: Phase, event: StartEvent, mode: Mode) -> (State, Vec<Action>) {
    match (phase, event) {
        (Phase::FindingPrevious, StartEvent::PreviousFound { qemu, saved }) => {
            after_previous(qemu, saved, mode)
        }
        // What is unknown is not "no": a second QEMU process would destroy the disks.
        (Phase::FindingPrevious, StartEvent::PreviousUnknown(why)) => fail(Fault::Host, why),
        // The host has room for it already: it ran until now.
        (Phase::ReadingVmFile, StartEvent::VmFileRead) => (
            State::Starting(Phase::Preparing(Boot::Cold)),
            vec![Action::UseVmFile(VmFile::Current), Action::RenewReservation, Action::Prepare],
        ),
        (Phase::Admitting(boot), StartEvent::Admitted) => {
            (State::Starting(Phase::Preparing(boot)), vec![Action::Prepare])
        }
        (Phase::Preparing(boot), StartEvent::Prepared) => {
            (State::Starting(Phase::Launching(boot)), vec![Action::Launch(boot)])
        }
        (Phase::Launching(_) | Phase::Adopting, StartEvent::Launched { guest, .. }) => {
            (launched(guest), vec![])
        }
        (_, StartEvent::Failed { failure, leftover }) => failed(phase, failure, leftover),
        (
            Phase::ReadingVmFile
            | Phase::Admitting(_)
            | Phase::Preparing(_)
            | Phase::Launching(_)
            | Phase::Adopting,
            StartEvent::PreviousFound { .. } | StartEvent::PreviousUnknown(_),
        )
        | (
            Phase::FindingPrevious
            | Phase::Admitting(_)
            | Phase::Preparing(_)
            | Phase::Launching(_)
            | Phase::Adopting,
            StartEvent::VmFileRead,
        )
        | (
            Phase::FindingPrevious
            | Phase::ReadingVmFile
            | Phase::Preparing(_)
            | Phase::Launching(_)
            | Phase::Adopting,
            StartEvent::Admitted,
        )
        | (
            Phase::FindingPrevious
            | Phase::ReadingVmFile
            | Phase::Admitting(_)
            | Phase::Launching(_)
            | Phase::Adopting,
            StartEvent::Prepared,
        )
        | (
            Phase::FindingPrevious
            | Phase::ReadingVmFile
            | Phase::Admitting(_)
            | Phase::Preparing(_),
            StartEvent::Launched { .. },
        )
        // Only a canceled start is aborted, and only an adopted guest has a shutdown to continue.
        | (_, StartEvent::Aborted(_) | StartEvent::ShutdownResumed(_)) => {
            (State::Starting(phase), vec![])
        }
    }
}

/// A new run record is about to be written, or the supervisor ends: what the earlier supervisor
/// left is settled first. Where it was ending QEMU, the end is the one that it intended: a VM that
/// was stopped stays down, and one that was to get a new QEMU process is started.
fn after_previous(qemu: PreviousQemu, saved: SavedState, mode: Mode) -> (State, Vec<Action>) {
    let settled = match qemu {
        PreviousQemu::None => vec![],
        PreviousQemu::NeverExecuted => vec![Action::RemoveRecord],
        PreviousQemu::Exited { intended: Some(AfterQemu::Relaunch) } => vec![Action::RemoveRecord],
        PreviousQemu::Exited { intended: Some(AfterQemu::End(end)) } if mode == Mode::Run => {
            let exit = Action::Exit(end.exit());
            return (State::Ended, vec![Action::Record(end), Action::RemoveRecord, exit]);
        }
        PreviousQemu::Exited { intended: Some(AfterQemu::End(end)) } => {
            vec![Action::Record(end), Action::RemoveRecord]
        }
        // QEMU exited without a supervisor.
        PreviousQemu::Exited { intended: None } => {
            let end = End { cause: Cause::QemuDied(QemuExit::Unknown) };
            vec![Action::Record(end), Action::RemoveRecord]
        }
        PreviousQemu::Running => {
            let actions = vec![Action::UseVmFile(VmFile::Booted), Action::Adopt];
            return (State::Starting(Phase::Adopting), actions);
        }
    };
    let (state, next) = match mode {
        Mode::Run => after_saved(saved),
        Mode::ShutDown => (State::Ended, vec![Action::Exit(Exit::Code(0))]),
    };
    (state, settled.into_iter().chain(next).collect())
}

fn after_saved(saved: SavedState) -> (State, Vec<Action>) {
    let admit = |boot, mut actions: Vec<Action>| {
        actions.push(Action::Admit);
        (State::Starting(Phase::Admitting(boot)), actions)
    };
    match saved {
        SavedState::None => admit(Boot::Cold, vec![]),
        SavedState::Usable => admit(Boot::Restore, vec![Action::UseVmFile(VmFile::Saved)]),
        SavedState::Unusable(why) => admit(Boot::Cold, vec![Action::QuarantineSavedState(why)]),
        SavedState::Unreadable(why) => fail(Fault::Host, why),
    }
}

fn launched(guest: Guest) -> State {
    match guest {
        Guest::Paused => State::Paused(PauseReason::Operator),
        // A shutdown or panic without a supervisor follows as another event.
        Guest::Running | Guest::ShutDown | Guest::Panicked => State::Running,
    }
}

fn failed(phase: Phase, failure: StartFailure, leftover: Leftover) -> (State, Vec<Action>) {
    match (phase, leftover, failure.fault) {
        // The process may hold its guest: its record and a saved state stay. The exit code of a
        // fault of the VM would have the unit's ExecStopPost= end that guest.
        (Phase::Launching(_) | Phase::Adopting, Leftover::MayRun, _) => {
            fail(Fault::Host, failure.why)
        }
        // It exited before it was adopted: the same as if it had exited before the supervisor was
        // started, with the VM file as it is now.
        (Phase::Adopting, Leftover::None, _) => (
            State::Starting(Phase::FindingPrevious),
            vec![Action::UseVmFile(VmFile::Current), Action::FindPrevious],
        ),
        // A saved state that QEMU does not accept is no reason not to start: the guest boots, as
        // after a power failure.
        (Phase::Launching(Boot::Restore), Leftover::None, Fault::Vm) => (
            State::Starting(Phase::Admitting(Boot::Cold)),
            vec![
                Action::QuarantineSavedState(failure.why.text),
                Action::UseVmFile(VmFile::Current),
                Action::RemoveRecord,
                Action::Admit,
            ],
        ),
        (Phase::Launching(_), Leftover::None, _) => {
            let (state, actions) = end(Cause::StartFailed(failure));
            (state, [Action::RemoveRecord].into_iter().chain(actions).collect())
        }
        (
            Phase::FindingPrevious
            | Phase::ReadingVmFile
            | Phase::Admitting(_)
            | Phase::Preparing(_),
            _,
            _,
        ) => end(Cause::StartFailed(failure)),
    }
}

fn fail(fault: Fault, why: Explanation) -> (State, Vec<Action>) {
    end(Cause::StartFailed(StartFailure { fault, why }))
}

/// What a start that is being canceled does after `event`: it ends with the first result. An
/// adopted guest is stopped like any other, by its own event (see [`StopRequest::event`]).
pub(super) fn canceling(
    phase: Phase,
    until: Duration,
    request: StopRequest,
    event: Event,
    now: Duration,
) -> (State, Vec<Action>) {
    let by = request.by();
    let canceled = || end(Cause::StartCanceled(by));
    match event {
        Event::Start(StartEvent::PreviousFound { qemu: PreviousQemu::Running, .. })
            if phase == Phase::FindingPrevious =>
        {
            let actions = vec![Action::UseVmFile(VmFile::Booted), Action::Adopt];
            (State::Canceling { phase: Phase::Adopting, until, request }, actions)
        }
        Event::Start(StartEvent::Launched { guest, .. }) => match phase {
            Phase::Adopting => (launched(guest), vec![]),
            Phase::FindingPrevious
            | Phase::ReadingVmFile
            | Phase::Admitting(_)
            | Phase::Preparing(_)
            | Phase::Launching(_) => quit(ended(Cause::StartCanceled(by)), true, now, vec![]),
        },
        Event::Start(StartEvent::Failed { leftover, .. } | StartEvent::Aborted(leftover)) => {
            match (phase, leftover) {
                (Phase::Launching(_), Leftover::None) => {
                    let (state, actions) = canceled();
                    (state, [Action::RemoveRecord].into_iter().chain(actions).collect())
                }
                // The record of an adopted process stays: it has no recorded end yet.
                (Phase::Launching(_), Leftover::MayRun)
                | (
                    Phase::FindingPrevious
                    | Phase::ReadingVmFile
                    | Phase::Admitting(_)
                    | Phase::Preparing(_)
                    | Phase::Adopting,
                    Leftover::None | Leftover::MayRun,
                ) => canceled(),
            }
        }
        Event::Start(
            StartEvent::PreviousFound { .. }
            | StartEvent::PreviousUnknown(_)
            | StartEvent::VmFileRead
            | StartEvent::Admitted
            | StartEvent::Prepared
            | StartEvent::ShutdownResumed(_),
        )
        | Event::QemuExited(_) => canceled(),
        Event::DeadlinePassed if now >= until => canceled(),
        Event::Requested(Command::Terminate) => {
            let until = until.min(now + START_CANCEL_GRACE);
            (State::Canceling { phase, until, request: StopRequest::Terminate }, vec![])
        }
        Event::DeadlinePassed
        | Event::GuestReady
        | Event::GuestNotReady(_)
        | Event::HostShutdownStarted
        | Event::StateSaved
        | Event::SaveFailed(_)
        | Event::StopSignaled
        | Event::Requested(
            Command::Stop { .. }
            | Command::Reboot
            | Command::Reset
            | Command::Pause
            | Command::Resume
            | Command::Suspend,
        )
        | Event::GuestShutdown
        | Event::GuestReboot
        | Event::GuestReset
        | Event::GuestPanicked
        | Event::VcpusStopped
        | Event::DiskSpaceExhausted
        | Event::DiskSpaceFreed
        | Event::VcpusResumed => (State::Canceling { phase, until, request }, vec![]),
    }
}
