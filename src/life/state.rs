//! What a VM can be doing.

use std::time::Duration;

use super::{By, Command, End, Event};

/// The state. Times are since an origin of the driver's choice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// No QEMU process is attached yet; the start has reached this phase.
    Starting(Phase),
    /// A stop was requested before the guest ran; the start is being canceled.
    Cancelling {
        /// The phase that is being canceled.
        phase: Phase,
        /// The run ends then even if the start has not reported its cancellation.
        until: Duration,
        /// What was requested.
        request: StopRequest,
    },
    /// The guest runs.
    Running,
    /// The vCPUs are held.
    Paused(Hold),
    /// The vCPUs are held, and the guest's state is being saved.
    Suspending(Saving),
    /// The guest was asked to shut down.
    Stopping(Ladder),
    /// QEMU was told to quit.
    Quitting {
        /// When SIGKILL follows.
        kill_at: Duration,
        /// Somebody wanted it faster already; who wants it faster still gets SIGKILL.
        hurried: bool,
        /// What comes after.
        then: Outcome,
    },
    /// QEMU was sent SIGKILL.
    Killing {
        /// When the run ends though QEMU has not: the kernel waits for its storage.
        until: Duration,
        /// What comes after.
        then: Outcome,
    },
    /// Nothing is left.
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
    pub fn by(self) -> By {
        match self {
            Self::Signal | Self::HostShutdown => By::Signal,
            Self::Operator(_) | Self::Terminate => By::Operator,
        }
    }

    /// The same request, to a guest that is attached.
    pub(super) fn event(self) -> Event {
        match self {
            Self::Signal => Event::Signalled,
            Self::HostShutdown => Event::HostDown,
            Self::Operator(timeout) => Event::Asked(Command::Stop { timeout }),
            Self::Terminate => Event::Asked(Command::Terminate),
        }
    }
}

/// Why the vCPUs are held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hold {
    /// Asked for, or QEMU's own doing.
    Wanted,
    /// A disk's file system on the host is full; the guest goes on when there is room again.
    NoSpace,
    /// The guest's kernel panicked; it cannot go on.
    Panic,
}

/// A save under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Saving {
    /// When it is given up.
    pub until: Duration,
    /// Who asked.
    pub by: By,
    /// The vCPUs were held before, and are to be after.
    pub held: bool,
}

/// A clean shutdown under way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ladder {
    /// When the guest is forced off.
    pub deadline: Duration,
    /// When the button is pressed again.
    pub press_at: Duration,
    /// What comes after.
    pub then: Outcome,
}

/// What follows when QEMU has gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The run ends.
    End(End),
    /// A new QEMU is started.
    Relaunch,
}

impl State {
    /// When the driver has to send [`super::Event::Tick`], if ever.
    pub fn deadline(&self) -> Option<Duration> {
        match self {
            Self::Cancelling { until, .. } => Some(*until),
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
