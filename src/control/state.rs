//! The states of a VM, as `qvm status` prints them.

use serde::{Deserialize, Serialize};

/// The states that `qvm status` distinguishes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// The VM has no supervisor, and the last one ended without a failure.
    Stopped,
    /// The supervisor prepares or launches QEMU.
    Starting,
    /// The guest runs.
    Running,
    /// The guest's vCPUs are paused.
    Paused,
    /// The stop ladder is running.
    Stopping,
    /// The VM has no supervisor, and the last one failed.
    Failed,
    /// The VM has no supervisor, and it is unknown whether QEMU is running. A supervisor never
    /// reports this state.
    Unknown,
}

impl State {
    /// Returns the word in tables and JSON.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Stopped => "stopped",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopping => "stopping",
            Self::Failed => "failed",
            Self::Unknown => "unknown",
        }
    }
}
