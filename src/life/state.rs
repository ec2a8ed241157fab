//! What a VM can be doing.

use std::time::Duration;

use super::{By, End};

/// The state. Times are since an origin of the driver's choice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// Image, disks and seed are being made ready.
    Preparing,
    /// QEMU is being started.
    Launching,
    /// Asked to stop before the guest ran; waiting for the start to give up.
    Cancelling {
        /// Not longer than this.
        until: Duration,
        /// Who asked.
        by: By,
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
            Self::Preparing | Self::Launching | Self::Running | Self::Paused(_) | Self::Ended => {
                None
            }
        }
    }
}
