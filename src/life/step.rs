//! The transitions of a VM whose QEMU process is attached: one function a state, each total.

use std::time::Duration;

use super::{
    action::{Action, Rung},
    end::{Cause, End, QemuExit},
    event::{Command, Event, StartEvent},
    intention::AfterQemu,
    limits::{KILL_GRACE, PRESS_EVERY},
    mode::Mode,
    policy::Policy,
    requester::Requester,
    start::{canceling, starting},
    state::{PauseReason, Phase, State, StopLadder},
    stop_ladder::{
        ask, end, ended, finish, guest_done, instead_of_relaunch, not_ready, panicked, quit,
        reboot, resume, stop_instead,
    },
    suspend::{save, suspending},
};

/// The state after `event`, and the actions.
pub(super) fn step(
    state: State,
    event: Event,
    now: Duration,
    policy: &Policy,
    mode: Mode,
) -> (State, Vec<Action>) {
    let event = match (&state, event) {
        (
            State::Starting(Phase::FindingPrevious | Phase::Adopting)
            | State::Running
            | State::Paused(PauseReason::Operator | PauseReason::DiskFull)
            | State::Suspending(_),
            Event::HostShutdownStarted,
        ) => Event::HostShutdownStarted,
        // There is no state to save.
        (_, Event::HostShutdownStarted) => Event::StopSignaled,
        (_, event) => event,
    };
    match state {
        State::Starting(phase) => starting(phase, event, now, mode),
        State::Canceling { phase, until, request } => canceling(phase, until, request, event, now),
        State::Running => running(event, now, policy),
        State::Paused(hold) => paused(hold, event, now, policy),
        State::Suspending(saving) => suspending(saving, event, now, policy),
        State::Stopping(ladder) => stopping(ladder, event, now),
        State::Quitting { kill_at, hurried, then } => quitting(kill_at, hurried, then, event, now),
        State::Killing { until, then } => killing(until, then, event, now),
        State::Ended => (State::Ended, vec![]),
    }
}

fn running(event: Event, now: Duration, policy: &Policy) -> (State, Vec<Action>) {
    match event {
        Event::StopSignaled => ask(Requester::Signal, policy.shutdown_timeout, now, vec![]),
        Event::Requested(Command::Stop { timeout }) => {
            ask(Requester::Operator, timeout.unwrap_or(policy.shutdown_timeout), now, vec![])
        }
        Event::Requested(Command::Reboot) => reboot(now, policy, vec![]),
        Event::HostShutdownStarted => save(Requester::Signal, false, now, policy),
        Event::Requested(Command::Suspend) => save(Requester::Operator, false, now, policy),
        Event::Requested(Command::Terminate) => {
            quit(ended(Cause::Killed), true, now, vec![Action::Announce(Rung::Hurried)])
        }
        Event::Requested(Command::Reset) => (State::Running, vec![Action::Reset]),
        Event::Requested(Command::Pause) => (State::Running, vec![Action::Pause]),
        // A pause may be in progress.
        Event::Requested(Command::Resume) => (State::Running, vec![Action::Resume]),
        Event::GuestShutdown => guest_done(ended(Cause::GuestShutdown), now),
        Event::GuestReboot => quit(AfterQemu::Relaunch, false, now, vec![]),
        Event::GuestPanicked => panicked(now, policy),
        Event::VcpusStopped => (State::Paused(PauseReason::Operator), vec![]),
        Event::DiskSpaceExhausted => (State::Paused(PauseReason::DiskFull), vec![]),
        Event::GuestNotReady(why) => not_ready(why, now, policy, vec![]),
        Event::Start(StartEvent::ShutdownResumed(intention)) => resume(intention, now, vec![]),
        Event::QemuExited(gone) => end(Cause::QemuDied(gone)),
        Event::Start(_)
        | Event::GuestReady
        | Event::GuestReset
        | Event::StateSaved
        | Event::SaveFailed(_)
        | Event::DiskSpaceFreed
        | Event::VcpusResumed
        | Event::DeadlinePassed => (State::Running, vec![]),
    }
}

fn paused(hold: PauseReason, event: Event, now: Duration, policy: &Policy) -> (State, Vec<Action>) {
    // A paused guest cannot see the power button, so it is resumed first. A panicked guest never
    // sees it.
    let wake = || vec![Action::Resume];
    match (hold, event) {
        (PauseReason::Operator | PauseReason::DiskFull, Event::StopSignaled) => {
            ask(Requester::Signal, policy.shutdown_timeout, now, wake())
        }
        (
            PauseReason::Operator | PauseReason::DiskFull,
            Event::Requested(Command::Stop { timeout }),
        ) => ask(Requester::Operator, timeout.unwrap_or(policy.shutdown_timeout), now, wake()),
        (PauseReason::Operator | PauseReason::DiskFull, Event::Requested(Command::Reboot)) => {
            reboot(now, policy, wake())
        }
        // Only a pause that an operator requested is restored.
        (PauseReason::Operator | PauseReason::DiskFull, Event::HostShutdownStarted) => {
            save(Requester::Signal, hold == PauseReason::Operator, now, policy)
        }
        (PauseReason::Operator | PauseReason::DiskFull, Event::Requested(Command::Suspend)) => {
            save(Requester::Operator, hold == PauseReason::Operator, now, policy)
        }
        (PauseReason::Panic, Event::StopSignaled | Event::HostShutdownStarted) => {
            quit(ended(Cause::Stopped(Requester::Signal)), false, now, vec![])
        }
        (PauseReason::Panic, Event::Requested(Command::Stop { .. })) => {
            quit(ended(Cause::Stopped(Requester::Operator)), false, now, vec![])
        }
        (_, Event::Requested(Command::Terminate)) => {
            quit(ended(Cause::Killed), true, now, vec![Action::Announce(Rung::Hurried)])
        }
        (_, Event::Requested(Command::Reset)) => {
            (State::Paused(hold), vec![Action::Reset, Action::Resume])
        }
        (PauseReason::Operator | PauseReason::DiskFull, Event::Requested(Command::Resume))
        | (PauseReason::DiskFull, Event::DiskSpaceFreed) => (State::Paused(hold), wake()),
        // A resume may be in progress.
        (PauseReason::Operator | PauseReason::DiskFull, Event::Requested(Command::Pause)) => {
            (State::Paused(PauseReason::Operator), vec![Action::Pause])
        }
        // QMP STOP may come before its reason.
        (PauseReason::Operator, Event::DiskSpaceExhausted) => {
            (State::Paused(PauseReason::DiskFull), vec![])
        }
        (_, Event::VcpusResumed) => (State::Running, vec![]),
        (PauseReason::Operator | PauseReason::DiskFull, Event::GuestNotReady(why)) => {
            not_ready(why, now, policy, wake())
        }
        (
            PauseReason::Operator | PauseReason::DiskFull,
            Event::Start(StartEvent::ShutdownResumed(intention)),
        ) => resume(intention, now, wake()),
        (PauseReason::Panic, Event::Start(StartEvent::ShutdownResumed(intention))) => {
            quit(intention.then, false, now, vec![])
        }
        (PauseReason::Panic, Event::GuestNotReady(why)) => {
            quit(ended(Cause::NotReady(why)), false, now, vec![])
        }
        (_, Event::GuestShutdown) => guest_done(ended(Cause::GuestShutdown), now),
        (_, Event::GuestReboot) => quit(AfterQemu::Relaunch, false, now, vec![]),
        (PauseReason::Operator | PauseReason::DiskFull, Event::GuestPanicked) => {
            panicked(now, policy)
        }
        (_, Event::QemuExited(gone)) => end(Cause::QemuDied(gone)),
        (
            PauseReason::Panic,
            Event::Requested(Command::Resume | Command::Pause | Command::Reboot | Command::Suspend)
            | Event::GuestPanicked,
        )
        | (
            PauseReason::Operator | PauseReason::Panic | PauseReason::DiskFull,
            Event::Start(_)
            | Event::GuestReady
            | Event::GuestReset
            | Event::StateSaved
            | Event::SaveFailed(_)
            | Event::VcpusStopped
            | Event::DiskSpaceExhausted
            | Event::DiskSpaceFreed
            | Event::DeadlinePassed,
        ) => (State::Paused(hold), vec![]),
    }
}

fn stopping(ladder: StopLadder, event: Event, now: Duration) -> (State, Vec<Action>) {
    match event {
        Event::StopSignaled => match ladder.then {
            AfterQemu::Relaunch | AfterQemu::End(End { cause: Cause::NotReady(_) }) => {
                stop_instead(ladder, Requester::Signal, None, now)
            }
            AfterQemu::End(_) => quit(
                ended(Cause::ForcedOff(Requester::Signal)),
                true,
                now,
                vec![Action::Announce(Rung::Hurried)],
            ),
        },
        Event::Requested(Command::Stop { timeout }) => {
            stop_instead(ladder, Requester::Operator, timeout, now)
        }
        Event::Requested(Command::Terminate) => {
            quit(ended(Cause::Killed), true, now, vec![Action::Announce(Rung::Hurried)])
        }
        // A guest that reboots instead of shutting down has flushed its disks as well.
        Event::GuestShutdown | Event::GuestReboot => guest_done(ladder.then, now),
        Event::GuestPanicked => quit(ladder.then, false, now, vec![]),
        Event::QemuExited(QemuExit::Code(0) | QemuExit::Unknown) => finish(ladder.then),
        Event::QemuExited(gone) => end(Cause::QemuDied(gone)),
        Event::DeadlinePassed if now >= ladder.deadline => {
            let then = match ladder.then {
                AfterQemu::End(End { cause: Cause::Stopped(by) }) => ended(Cause::ForcedOff(by)),
                other @ (AfterQemu::End(_) | AfterQemu::Relaunch) => other,
            };
            quit(then, true, now, vec![Action::Announce(Rung::TimeUp)])
        }
        Event::DeadlinePassed if now >= ladder.press_at => {
            let left = ladder.deadline - now;
            let ladder = StopLadder { press_at: now + PRESS_EVERY, ..ladder };
            let again = vec![Action::Announce(Rung::AskedAgain(left)), Action::PressPowerButton];
            (State::Stopping(ladder), again)
        }
        Event::Requested(Command::Resume) | Event::DiskSpaceFreed => {
            (State::Stopping(ladder), vec![Action::Resume])
        }
        Event::DeadlinePassed
        | Event::GuestReady
        | Event::GuestNotReady(_)
        | Event::HostShutdownStarted
        | Event::StateSaved
        | Event::SaveFailed(_)
        | Event::Requested(Command::Reboot | Command::Reset | Command::Pause | Command::Suspend)
        | Event::Start(_)
        | Event::GuestReset
        | Event::VcpusStopped
        | Event::DiskSpaceExhausted
        | Event::VcpusResumed => (State::Stopping(ladder), vec![]),
    }
}

fn quitting(
    kill_at: Duration,
    hurried: bool,
    then: AfterQemu,
    event: Event,
    now: Duration,
) -> (State, Vec<Action>) {
    let kill = |then| {
        let actions = vec![Action::Announce(Rung::Killed), Action::Kill];
        (State::Killing { until: now + KILL_GRACE, then }, actions)
    };
    match event {
        Event::QemuExited(_) => finish(then),
        Event::DeadlinePassed if now >= kill_at => kill(then),
        Event::StopSignaled if hurried => {
            kill(instead_of_relaunch(then, Cause::ForcedOff(Requester::Signal)))
        }
        Event::Requested(Command::Terminate) if hurried => {
            kill(instead_of_relaunch(then, Cause::Killed))
        }
        Event::StopSignaled => {
            let then = instead_of_relaunch(then, Cause::Stopped(Requester::Signal));
            (State::Quitting { kill_at, hurried: true, then }, vec![])
        }
        Event::Requested(Command::Terminate) => {
            let then = instead_of_relaunch(then, Cause::Killed);
            (State::Quitting { kill_at, hurried: true, then }, vec![])
        }
        Event::Requested(Command::Stop { .. }) => {
            let then = instead_of_relaunch(then, Cause::Stopped(Requester::Operator));
            (State::Quitting { kill_at, hurried, then }, vec![])
        }
        Event::DeadlinePassed
        | Event::GuestReady
        | Event::GuestNotReady(_)
        | Event::HostShutdownStarted
        | Event::StateSaved
        | Event::SaveFailed(_)
        | Event::Requested(
            Command::Reboot | Command::Reset | Command::Pause | Command::Resume | Command::Suspend,
        )
        | Event::Start(_)
        | Event::GuestShutdown
        | Event::GuestReboot
        | Event::GuestReset
        | Event::GuestPanicked
        | Event::VcpusStopped
        | Event::DiskSpaceExhausted
        | Event::DiskSpaceFreed
        | Event::VcpusResumed => (State::Quitting { kill_at, hurried, then }, vec![]),
    }
}

fn killing(until: Duration, then: AfterQemu, event: Event, now: Duration) -> (State, Vec<Action>) {
    let then = match event {
        Event::QemuExited(_) => return finish(then),
        Event::DeadlinePassed if now >= until => {
            let stays_down = matches!(&then, AfterQemu::End(end) if !end.failed());
            return end(Cause::QemuNotExited { stays_down });
        }
        Event::StopSignaled => instead_of_relaunch(then, Cause::ForcedOff(Requester::Signal)),
        Event::Requested(Command::Stop { .. }) => {
            instead_of_relaunch(then, Cause::ForcedOff(Requester::Operator))
        }
        Event::Requested(Command::Terminate) => instead_of_relaunch(then, Cause::Killed),
        Event::Requested(
            Command::Reboot | Command::Reset | Command::Pause | Command::Resume | Command::Suspend,
        )
        | Event::GuestReady
        | Event::GuestNotReady(_)
        | Event::HostShutdownStarted
        | Event::StateSaved
        | Event::SaveFailed(_)
        | Event::Start(_)
        | Event::GuestShutdown
        | Event::GuestReboot
        | Event::GuestReset
        | Event::GuestPanicked
        | Event::VcpusStopped
        | Event::DiskSpaceExhausted
        | Event::DiskSpaceFreed
        | Event::VcpusResumed
        | Event::DeadlinePassed => then,
    };
    (State::Killing { until, then }, vec![])
}
