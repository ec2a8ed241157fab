//! Why a download did not come about, and what to do about it.

use std::path::PathBuf;

use crate::{
    image::{
        download::{self, proxy::Proxy},
        writer,
    },
    sys::file,
    value::{Explain, Size},
};

/// The largest that is read; Fedora's and Debian's SUMS files have a few KiB.
pub(crate) const LARGEST: usize = 4 << 20;

/// Why it was not fetched.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No answer, or not all of it.
    #[error("cannot download {url}{}{received}", times(*.attempts))]
    Download {
        /// What.
        url: String,
        /// How often it was tried.
        attempts: u32,
        /// How much came.
        received: Received,
        /// How the last attempt ended.
        source: download::Error,
    },
    /// The server refuses.
    #[error("cannot download {url}: the server says {status}{}{}{}{received}", meaning(*.status),
        through(.proxy.as_deref()), times(*.attempts))]
    Status {
        /// What.
        url: String,
        /// How often it was tried.
        attempts: u32,
        /// How much came.
        received: Received,
        /// Its answer.
        status: u16,
        /// The proxy that the answer came through, and may be of.
        proxy: Option<Box<Proxy>>,
    },
    /// There is not room enough.
    #[error("no room for {url}: it has {}, and {} are free on the file system of `{}`",
        mib(*.needed), mib(*.free), .dir.display())]
    NoRoom {
        /// What.
        url: String,
        /// What is still to come, in bytes.
        needed: u64,
        /// What is free, in bytes.
        free: u64,
        /// Where.
        dir: PathBuf,
    },
    /// Something that is meant to be small is not.
    #[error("{url} has more than {} and cannot be a list of checksums", Size::from_bytes(LARGEST as u64))]
    TooLarge {
        /// What.
        url: String,
    },
    /// On this side.
    #[error(transparent)]
    Intake(#[from] writer::Error),
    /// It was called off.
    #[error("the download was called off")]
    CalledOff,
}

impl Explain for Error {
    fn wrapped(&self) -> Option<&dyn Explain> {
        match self {
            Self::Download { source, .. } => Some(source),
            Self::Intake(error) => Some(error),
            _ => None,
        }
    }

    fn own_hint(&self) -> Option<String> {
        match self {
            Self::Status { status: 404 | 410, .. } => {
                Some("check the address in a browser; publishers remove old images".into())
            }
            Self::Status { status: 407, proxy: Some(proxy), .. } => Some(format!(
                "write the proxy's user and password into `{}`: `http://USER:PASSWORD@HOST:PORT`",
                proxy.variable
            )),
            Self::NoRoom { .. } => {
                Some("make room; `qvm image prune` removes images that no VM needs".into())
            }
            _ => None,
        }
    }

    fn is_own_host_fault(&self) -> bool {
        match self {
            Self::Status { status, .. } => matches!(status, 408 | 429 | 500..600),
            Self::NoRoom { .. } => true,
            _ => false,
        }
    }
}

impl From<file::Error> for Error {
    fn from(error: file::Error) -> Self {
        Self::Intake(error.into())
    }
}

/// How far a download came at most. Shown as the end of a message; as nothing where nothing came.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Received {
    /// Bytes, counted from the beginning of the file.
    pub bytes: u64,
    /// How many the file has, where the server said so.
    pub total: Option<u64>,
}

impl std::fmt::Display for Received {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (self.bytes, self.total) {
            (0, None) => Ok(()),
            (bytes, None) => write!(f, ", received {bytes} bytes"),
            (bytes, Some(total)) => write!(f, ", received {bytes} of {total} bytes"),
        }
    }
}

/// Whether a later attempt may get another status.
pub(crate) const fn may_pass(status: u16) -> bool {
    matches!(status, 408 | 425 | 429 | 500..600)
}

/// The proxy, for the middle of a message.
pub(crate) fn through(proxy: Option<&Proxy>) -> String {
    proxy.map(|proxy| format!(" through the proxy {proxy}")).unwrap_or_default()
}

fn times(attempts: u32) -> String {
    if attempts > 1 { format!(" (tried {attempts} times)") } else { String::new() }
}

pub(crate) fn mib(bytes: u64) -> String {
    format!("{} MiB", bytes.div_ceil(1 << 20))
}

pub(crate) const fn meaning(status: u16) -> &'static str {
    match status {
        401 => " (it requires a password)",
        407 => " (the proxy requires a password)",
        403 => " (forbidden)",
        404 => " (not found)",
        410 => " (gone)",
        429 => " (too many requests)",
        500..600 => " (its own failure)",
        _ => "",
    }
}
