//! Why a supervisor cannot begin.

use crate::sys::{file, socket};

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
