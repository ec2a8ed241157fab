//! How a supervisor ends.

use crate::life::StartFailure;

/// How the loop ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The VM has ended; the exit code.
    Exit(u8),
    /// The guest did not come up.
    NotStarted(StartFailure),
    /// The supervisor has to be replaced by its program's file, in place.
    Reexec,
}
