//! Why a supervisor cannot begin.

use crate::{
    sys::{file, socket},
    value::Explain,
};

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

impl Explain for Error {
    fn wrapped(&self) -> Option<&dyn Explain> {
        match self {
            Self::Socket(error) => Some(error),
            Self::File(error) => Some(error),
            _ => None,
        }
    }
}
