//! Why the image cache cannot be read or changed, and what to do about it.

use std::{io, path::PathBuf};

use crate::{sys::file, value::Explain};

/// Why the cache could not be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file.
    #[error(transparent)]
    File(#[from] file::Error),
    /// A lock.
    #[error("cannot lock `{}`", .path.display())]
    Lock {
        /// Its file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Someone fetches it or makes a disk from it.
    #[error("image {what} is being fetched or cloned{}", by(*.pid))]
    Busy {
        /// Which.
        what: String,
        /// By whom, where that is known.
        pid: Option<u32>,
    },
    /// Overlays stand on it.
    #[error("image {what} is the base of {}", joined(.disks))]
    Base {
        /// Which.
        what: String,
        /// The disks.
        disks: Vec<PathBuf>,
    },
    /// No image is called so.
    #[error("no image in the cache is called `{0}`")]
    Unknown(String),
    /// More than one image is called so.
    #[error("`{0}` may be more than one image of the cache")]
    Several(String),
}

impl Explain for Error {
    fn wrapped(&self) -> Option<&dyn Explain> {
        match self {
            Self::File(error) => Some(error),
            _ => None,
        }
    }

    fn own_hint(&self) -> Option<String> {
        match self {
            Self::Busy { .. } => Some("wait for it, or stop that VM".into()),
            Self::Base { .. } => Some(
                "a disk made with `clone = \"overlay\"` needs its base for as long as it exists"
                    .into(),
            ),
            Self::Unknown(_) | Self::Several(_) => Some(
                "`qvm image list` names them; a digest, or 8 or more digits of one, or the address"
                    .into(),
            ),
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
