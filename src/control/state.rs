//! The states of a VM, as `qvm status` prints them.

use serde::{Deserialize, Serialize};

/// The states that `qvm status` tells apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// No supervisor, and the last one ended as it should.
    Stopped,
    /// The supervisor prepares or launches.
    Starting,
    /// The guest runs.
    Running,
    /// The guest's vCPUs are held.
    Paused,
    /// On the way down the stop ladder.
    Stopping,
    /// No supervisor, and the last one failed.
    Failed,
    /// No supervisor, and it is not known whether QEMU runs. No supervisor says this of its VM.
    Unknown,
}

impl State {
    /// The word for it, in tables and in JSON.
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
