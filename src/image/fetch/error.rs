//! The errors of downloads.

use std::path::PathBuf;

use crate::{
    image::{
        download::{self, proxy::Proxy},
        writer,
    },
    sys::file,
    value::{ErrorCode, Explain, Size},
};

/// The maximum size of a list of checksums in bytes; those of Fedora and Debian have a few KiB.
pub(crate) const LARGEST: usize = 4 << 20;

/// Why a download failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No response, or an incomplete one.
    #[error("cannot download {url}{}{received}", times(*.attempts))]
    Download {
        /// The URL.
        url: String,
        /// The number of attempts.
        attempts: u32,
        /// The data received.
        received: Received,
        /// The error of the last attempt.
        source: download::Error,
    },
    /// The server responded with an error.
    #[error("cannot download {url}: the server responded with status \
        {status}{}{}{}{received}", meaning(*.status),
        through(.proxy.as_deref()), times(*.attempts))]
    Status {
        /// The URL.
        url: String,
        /// The number of attempts.
        attempts: u32,
        /// The data received.
        received: Received,
        /// The status.
        status: u16,
        /// The proxy used, from which the response may come.
        proxy: Option<Box<Proxy>>,
    },
    /// Not enough disk space.
    #[error("not enough space for {url}: it has {}, but {} are free on the file system of `{}`",
        mib(*.needed), mib(*.free), .dir.display())]
    NoRoom {
        /// The URL.
        url: String,
        /// The missing bytes.
        needed: u64,
        /// The free space in bytes.
        free: u64,
        /// The directory.
        dir: PathBuf,
    },
    /// A list of checksums is too large.
    #[error("{url} is larger than {}, so it is not a list of \
        checksums", Size::from_bytes(LARGEST as u64))]
    TooLarge {
        /// The URL.
        url: String,
    },
    /// A local error.
    #[error(transparent)]
    Writer(#[from] writer::Error),
    /// The download was canceled.
    #[error("the download was canceled")]
    Canceled,
}

impl Explain for Error {
    fn wrapped(&self) -> Option<&dyn Explain> {
        match self {
            Self::Download { source, .. } => Some(source),
            Self::Writer(error) => Some(error),
            _ => None,
        }
    }

    fn own_code(&self) -> Option<ErrorCode> {
        Some(match self {
            Self::Status { .. } => ErrorCode::DownloadRefused,
            Self::NoRoom { .. } => ErrorCode::NoSpace,
            Self::TooLarge { .. } => ErrorCode::ChecksumListInvalid,
            Self::Canceled => ErrorCode::Canceled,
            Self::Download { .. } | Self::Writer(..) => return None,
        })
    }

    fn own_hint(&self) -> Option<String> {
        match self {
            Self::Status { status: 404 | 410, .. } => {
                Some("check the URL in a browser; publishers remove old images".into())
            }
            Self::Status { status: 407, proxy: Some(proxy), .. } => Some(format!(
                "set the proxy's user and password in `{}`: `http://USER:PASSWORD@HOST:PORT`",
                proxy.variable
            )),
            Self::NoRoom { .. } => {
                Some("free disk space; `qvm image prune` removes unused images".into())
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
        Self::Writer(error.into())
    }
}

/// The progress of a download. Displayed at the end of a message; empty if no data was received.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Received {
    /// The number of bytes from the start of the file.
    pub bytes: u64,
    /// The size of the file, if known.
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

/// Returns true if a retry may get another status.
pub(crate) const fn may_pass(status: u16) -> bool {
    matches!(status, 408 | 425 | 429 | 500..600)
}

/// Formats the proxy for a message.
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
        500..600 => " (server error)",
        _ => "",
    }
}
