//! Errors of the start of a supervisor.

use crate::{
    sys::{file, socket},
    value::{ErrorCode, Explain},
};

/// Errors of the start of a supervisor.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Signals cannot be watched.
    #[error("cannot watch signals")]
    Signals(#[source] std::io::Error),
    /// The control socket cannot be created.
    #[error(transparent)]
    Socket(#[from] socket::Error),
    /// A directory cannot be created.
    #[error(transparent)]
    File(#[from] file::Error),
}

impl Explain for Error {
    fn wrapped(&self) -> Option<&dyn Explain> {
        match self {
            Self::Socket(error) => Some(error),
            Self::File(error) => Some(error),
            _ => None,
        }
    }

    fn own_code(&self) -> Option<ErrorCode> {
        Some(match self {
            Self::Signals(..) => ErrorCode::OutOfResources,
            Self::Socket(..) | Self::File(..) => return None,
        })
    }
}
