//! The outcome of a supervisor.

use crate::life::StartFailure;

/// The outcome of the loop.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The VM has ended, with this exit code.
    Exit(u8),
    /// The start has failed.
    NotStarted(StartFailure),
    /// The process has to execute its program file again.
    Reexec,
}
