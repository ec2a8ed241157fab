//! How one attempt of a download failed, and whether another may succeed.

use super::error::{Error, Received, may_pass, meaning, through};
use crate::{
    image::download::{self, proxy::Proxy},
    value::chain,
};

/// How one attempt failed.
pub(crate) enum Failed {
    /// For good.
    Hard(Error),
    /// The server or the way to it.
    Soft(Soft),
}

pub(crate) enum Soft {
    Download(download::Error),
    Status(u16, Option<Box<Proxy>>),
    /// The pieces do not fit together: the next attempt begins with the first byte.
    Anew(String),
}

impl<E: Into<Error>> From<E> for Failed {
    fn from(error: E) -> Self {
        Self::Hard(error.into())
    }
}

impl Soft {
    /// A later attempt may succeed.
    pub(crate) fn passes(&self) -> bool {
        match self {
            Self::Download(error) => error.passes(),
            Self::Status(status, _) => may_pass(*status),
            Self::Anew(_) => true,
        }
    }

    /// The reason, for a note.
    pub(crate) fn why(&self) -> String {
        match self {
            Self::Download(error) => chain(error),
            Self::Status(status, proxy) => {
                format!("the server says {status}{}{}", meaning(*status), through(proxy.as_deref()))
            }
            Self::Anew(why) => why.clone(),
        }
    }

    /// The error of a download that is given up after it.
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
