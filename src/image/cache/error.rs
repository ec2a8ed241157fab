//! The errors of the image cache.

use std::{io, path::PathBuf};

use crate::{
    sys::file,
    value::{ErrorCode, Explain},
};

/// Why the cache cannot be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file operation failed.
    #[error(transparent)]
    File(#[from] file::Error),
    /// A lock cannot be acquired.
    #[error("cannot lock `{}`", .path.display())]
    Lock {
        /// The lock file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// Another process downloads the image or creates a disk from it.
    #[error("image {what} is being downloaded or cloned{}", by(*.pid))]
    Busy {
        /// The image.
        what: String,
        /// The PID of the process, if known.
        pid: Option<u32>,
    },
    /// Overlays use it as base.
    #[error("image {what} is the base of {}", joined(.disks))]
    Base {
        /// The image.
        what: String,
        /// The disks.
        disks: Vec<PathBuf>,
    },
    /// No image has this name.
    #[error("no image in the cache matches `{0}`")]
    Unknown(String),
    /// More than one image has this name.
    #[error("`{0}` matches more than one image of the cache")]
    Several(String),
}

impl Explain for Error {
    fn wrapped(&self) -> Option<&dyn Explain> {
        match self {
            Self::File(error) => Some(error),
            _ => None,
        }
    }

    fn own_code(&self) -> Option<ErrorCode> {
        Some(match self {
            Self::Lock { source, .. } => ErrorCode::of_io(source),
            Self::Busy { .. } => ErrorCode::ImageBusy,
            Self::Base { .. } => ErrorCode::ImageInUse,
            Self::Unknown(..) => ErrorCode::ImageUnknown,
            Self::Several(..) => ErrorCode::ImageAmbiguous,
            Self::File(..) => return None,
        })
    }

    fn own_hint(&self) -> Option<String> {
        match self {
            Self::Busy { .. } => Some("wait for the process, or stop its VM".into()),
            Self::Base { .. } => {
                Some("a disk created with `clone = \"overlay\"` requires its base image".into())
            }
            Self::Unknown(_) | Self::Several(_) => {
                Some("use a digest, at least 8 digits of it, or a URL of `qvm image list`".into())
            }
            _ => None,
        }
    }
}

fn by(pid: Option<u32>) -> String {
    pid.map(|p| format!(" by process {p}")).unwrap_or_default()
}

fn joined(paths: &[PathBuf]) -> String {
    let shown: Vec<String> = paths.iter().map(|p| format!("`{}`", p.display())).collect();
    shown.join(", ")
}
