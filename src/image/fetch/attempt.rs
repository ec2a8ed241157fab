//! The failure of a download attempt, and whether a retry may succeed.

use super::error::{Error, Received, may_pass, meaning, through};
use crate::{
    image::download::{self, proxy::Proxy},
    value::chain,
};

/// The failure of an attempt.
pub(crate) enum Failed {
    /// A permanent failure.
    Hard(Error),
    /// A failure of the server or the network.
    Soft(Soft),
}

pub(crate) enum Soft {
    Download(download::Error),
    Status(u16, Option<Box<Proxy>>),
    /// The parts do not match: the next attempt starts at the first byte.
    Anew(String),
}

impl<E: Into<Error>> From<E> for Failed {
    fn from(error: E) -> Self {
        Self::Hard(error.into())
    }
}

impl Soft {
    /// Returns true if a retry may succeed.
    pub(crate) fn passes(&self) -> bool {
        match self {
            Self::Download(error) => error.passes(),
            Self::Status(status, _) => may_pass(*status),
            Self::Anew(_) => true,
        }
    }

    /// Returns the reason for a note.
    pub(crate) fn why(&self) -> String {
        match self {
            Self::Download(error) => chain(error),
            Self::Status(status, proxy) => {
                format!(
                    "the server responded with status {status}{}{}",
                    meaning(*status),
                    through(proxy.as_deref())
                )
            }
            Self::Anew(why) => why.clone(),
        }
    }

    /// Returns the error of the failed download.
    pub(crate) fn into_error(self, url: String, attempts: u32, received: Received) -> Error {
        match self {
            Self::Download(source) => Error::Download { url, attempts, received, source },
            Self::Status(status, proxy) => Error::Status { url, attempts, received, status, proxy },
            Self::Anew(why) => {
                let source = download::Error::Broken(why);
                Error::Download { url, attempts, received, source }
            }
        }
    }
}
