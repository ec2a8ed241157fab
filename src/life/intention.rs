//! How a QEMU process is being ended, and what follows its exit.

use std::time::Duration;

use super::end::End;

/// What follows the exit of QEMU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AfterQemu {
    /// The run ends.
    End(End),
    /// A new QEMU process is launched.
    Relaunch,
}

/// How a QEMU process is being ended. The driver records it before it requests
/// the end, so that the next supervisor can continue a shutdown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Intention {
    /// What follows.
    pub then: AfterQemu,
    /// The guest was asked to shut down, and is forced off at this time. `None`: QEMU is being
    /// ended.
    pub deadline: Option<Duration>,
}

impl Intention {
    /// Whether the run ends with the QEMU process.
    pub(super) fn ends_run(&self) -> bool {
        matches!(self.then, AfterQemu::End(_))
    }
}
