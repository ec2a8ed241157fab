//! How a supervisor ends: why it cannot begin, and what it leaves.

use crate::{
    life::StartFailure,
    sys::{file, socket},
};

/// How the loop ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The VM has ended; the exit code.
    Exit(u8),
    /// The guest did not come up.
    NotStarted(StartFailure),
    /// The supervisor shall be replaced by its program's file, in place.
    Reexec,
}

/// Why a supervisor cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Signals cannot be watched.
    #[error("cannot watch signals")]
    Signals(#[source] std::io::Error),
    /// The control socket cannot be made.
    #[error(transparent)]
    Socket(#[from] socket::Error),
    /// A directory cannot be made.
    #[error(transparent)]
    File(#[from] file::Error),
}

impl Error {
    /// The host is at fault.
    pub fn is_the_hosts(&self) -> bool {
        match self {
            Self::Signals(_) => false,
            Self::Socket(error) => error.is_the_hosts(),
            Self::File(error) => error.is_the_hosts(),
        }
    }

    /// The way out.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Signals(_) => None,
            Self::Socket(error) => error.hint(),
            Self::File(error) => error.hint(),
        }
    }
}
