//! The states of the machine.

use std::time::Duration;

use super::{
    event::{Command, Event},
    intention::{AfterQemu, Intention},
    requester::Requester,
};

/// What the VM does. Times count from an origin that the driver chooses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// No QEMU process is attached yet; the start has reached this phase.
    Starting(Phase),
    /// A stop was requested before the guest ran; the start is being canceled.
    Canceling {
        /// The phase that is being canceled.
        phase: Phase,
        /// The run ends then even if the start has not reported its cancellation.
        until: Duration,
        /// What was requested.
        request: StopRequest,
    },
    /// The guest runs.
    Running,
    /// The vCPUs are stopped.
    Paused(PauseReason),
    /// The vCPUs are stopped, and the guest's state is being saved.
    Suspending(Saving),
    /// The stop ladder: the guest was asked to shut down.
    Stopping(StopLadder),
    /// QMP `quit` was sent: QEMU flushes its disks and exits.
    Quitting {
        /// When SIGKILL follows.
        kill_at: Duration,
        /// The VM is being forced off: the next signal or `Terminate` sends SIGKILL.
        hurried: bool,
        /// What follows the exit of QEMU.
        then: AfterQemu,
    },
    /// QEMU was sent SIGKILL.
    Killing {
        /// When the run ends even if QEMU has not exited: the kernel blocks it on storage.
        until: Duration,
        /// What follows the exit of QEMU.
        then: AfterQemu,
    },
    /// The run has ended.
    Ended,
}

/// The phase of a start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// The run record and the liveness locks are read: an earlier supervisor may have left a QEMU
    /// process or a saved state. Control requests wait for the result.
    FindingPrevious,
    /// The VM file is read again before a relaunch.
    ReadingVmFile,
    /// The start waits for memory on the host, and for its turn.
    Admitting(Boot),
    /// Image, disks and seed are prepared.
    Preparing(Boot),
    /// QEMU is started, and the guest boots or is restored.
    Launching(Boot),
    /// The supervisor connects to a QEMU process that an earlier supervisor started.
    Adopting,
}

/// How a new QEMU process gets its guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Boot {
    /// The guest boots.
    Cold,
    /// QEMU reads the guest's state from the saved state.
    Restore,
}

/// A stop that was requested before the guest was attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopRequest {
    /// A signal.
    Signal,
    /// A signal because the host goes down: the guest's state is to be saved.
    HostShutdown,
    /// A clean shutdown, within this time instead of the VM's own.
    Operator(Option<Duration>),
    /// Force off.
    Terminate,
}

impl StopRequest {
    /// Who requested it.
    pub fn by(self) -> Requester {
        match self {
            Self::Signal | Self::HostShutdown => Requester::Signal,
            Self::Operator(_) | Self::Terminate => Requester::Operator,
        }
    }

    /// The same request, to a guest that is attached.
    pub(super) fn event(self) -> Event {
        match self {
            Self::Signal => Event::StopSignaled,
            Self::HostShutdown => Event::HostShutdownStarted,
            Self::Operator(timeout) => Event::Requested(Command::Stop { timeout }),
            Self::Terminate => Event::Requested(Command::Terminate),
        }
    }
}

/// Why the vCPUs are stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PauseReason {
    /// An operator requested it, or QEMU stopped them by itself.
    Operator,
    /// A disk's file system on the host is full; the guest is resumed when space is free again.
    DiskFull,
    /// The guest's kernel panicked; it cannot be resumed.
    Panic,
}

/// A save of the guest's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Saving {
    /// When the save is canceled.
    pub until: Duration,
    /// Who requested it.
    pub by: Requester,
    /// The guest was paused before the save, and stays paused after it.
    pub held: bool,
}

/// A clean shutdown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StopLadder {
    /// When QMP `quit` is sent.
    pub deadline: Duration,
    /// When the power button is pressed again.
    pub press_at: Duration,
    /// What follows the exit of QEMU.
    pub then: AfterQemu,
}

impl State {
    /// How QEMU is being ended; `None` if it is not.
    pub fn intention(&self) -> Option<Intention> {
        match self {
            Self::Stopping(ladder) => {
                Some(Intention { then: ladder.then.clone(), deadline: Some(ladder.deadline) })
            }
            Self::Quitting { then, .. } | Self::Killing { then, .. } => {
                Some(Intention { then: then.clone(), deadline: None })
            }
            Self::Starting(_)
            | Self::Canceling { .. }
            | Self::Running
            | Self::Paused(_)
            | Self::Suspending(_)
            | Self::Ended => None,
        }
    }

    /// When the driver has to send [`super::Event::DeadlinePassed`]; `None` without a deadline.
    pub fn deadline(&self) -> Option<Duration> {
        match self {
            Self::Canceling { until, .. } => Some(*until),
            Self::Stopping(ladder) => Some(ladder.deadline.min(ladder.press_at)),
            Self::Suspending(saving) => Some(saving.until),
            Self::Quitting { kill_at, .. } => Some(*kill_at),
            Self::Killing { until, .. } => Some(*until),
            Self::Starting(_) | Self::Running | Self::Paused(_) | Self::Ended => None,
        }
    }

    /// The guest runs or is paused, and was not requested to stop.
    pub fn is_up(&self) -> bool {
        matches!(self, Self::Running | Self::Paused(_))
    }
}
