//! Why a disk is not ready, and what to do about it.

use std::{io, path::PathBuf};

use crate::{
    image::{self, cache, qcow2, qemu_img},
    sys::file::Error as FileError,
    value::{Explain, Label},
};

/// Why there is no disk.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Its image.
    #[error("disk {disk}")]
    Image {
        /// Which.
        disk: Label,
        /// Why not.
        source: Box<image::Error>,
    },
    /// A file.
    #[error("disk {disk}")]
    File {
        /// Which.
        disk: Label,
        /// What.
        source: FileError,
    },
    /// qemu-img.
    #[error("disk {disk}")]
    QemuImg {
        /// Which.
        disk: Label,
        /// What.
        source: qemu_img::Error,
    },
    /// There is none, and nothing to make it from.
    #[error("disk {disk}: there is no `{}`, and the VM file names no image", .path.display())]
    Nothing {
        /// Which.
        disk: Label,
        /// Where it would be.
        path: PathBuf,
    },
    /// A file of the operator's that is not there, or may not be opened.
    #[error("disk {disk}: cannot open `{}` for {}", .path.display(), if *.write { "writing" } else { "reading" })]
    Open {
        /// Which.
        disk: Label,
        /// Which file.
        path: PathBuf,
        /// For writing.
        write: bool,
        /// Why not.
        source: io::Error,
    },
    /// A file of the operator's that is of another kind than was written.
    #[error("disk {disk}: `{}` {why}", .path.display())]
    Kind {
        /// Which.
        disk: Label,
        /// Which file.
        path: PathBuf,
        /// What it is, and is not.
        why: &'static str,
        /// What to write instead.
        hint: Option<&'static str>,
    },
    /// A disk that depends on a file that it should not.
    #[error("disk {disk}: `{}` {why}", .path.display())]
    Alien {
        /// Which.
        disk: Label,
        /// Which file.
        path: PathBuf,
        /// On what.
        why: String,
        /// What to do.
        hint: &'static str,
    },
    /// The cache of images.
    #[error("disk {disk}")]
    Cache {
        /// Which.
        disk: Label,
        /// What.
        source: Box<cache::Error>,
    },
    /// A disk of qvm's own that is damaged.
    #[error("disk {disk}: `{}` is damaged", .path.display())]
    Header {
        /// Which.
        disk: Label,
        /// Which file.
        path: PathBuf,
        /// How.
        source: qcow2::Error,
    },
    /// QEMU has marked it as corrupt, and does not open it for writing.
    #[error("disk {disk}: `{}` is marked corrupt, and QEMU does not write to it", .path.display())]
    MarkedCorrupt {
        /// Which.
        disk: Label,
        /// Which file.
        path: PathBuf,
    },
    /// There is not room enough for the copy.
    #[error("disk {disk}: no room: it takes {} MiB, and {} MiB are free on the file system of `{}`",
        .needed.div_ceil(1 << 20), .free >> 20, .dir.display())]
    NoRoom {
        /// Which.
        disk: Label,
        /// In bytes.
        needed: u64,
        /// In bytes.
        free: u64,
        /// Where.
        dir: PathBuf,
    },
    /// It was called off.
    #[error("making disk {0} was called off")]
    CalledOff(Label),
}

impl Error {
    /// It was called off, and nothing is wrong.
    pub fn is_called_off(&self) -> bool {
        match self {
            Self::CalledOff(_) | Self::QemuImg { source: qemu_img::Error::CalledOff, .. } => true,
            Self::Image { source, .. } => source.is_called_off(),
            _ => false,
        }
    }
}

impl Explain for Error {
    fn wrapped(&self) -> Option<&dyn Explain> {
        match self {
            Self::Image { source, .. } => Some(source.as_ref()),
            Self::File { source, .. } => Some(source),
            Self::QemuImg { source, .. } => Some(source),
            Self::Cache { source, .. } => Some(source.as_ref()),
            _ => None,
        }
    }

    fn own_hint(&self) -> Option<String> {
        match self {
            Self::Nothing { .. } => {
                Some("write `[image]` with `url` or `path`, or put a disk there".into())
            }
            Self::Open { source, .. } if source.kind() == io::ErrorKind::ResourceBusy => Some(
                "it is mounted, or another program or VM has it; a guest must have it alone".into(),
            ),
            Self::Open { path, source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                Some(format!("let the user who runs qvm read and write `{}`", path.display()))
            }
            Self::Open { source, .. } if source.kind() == io::ErrorKind::NotFound => Some(
                "qvm makes no file of yours; make it, or leave `path` out and write `size`".into(),
            ),
            Self::Kind { hint, .. } => hint.map(str::to_owned),
            Self::Alien { hint, .. } => Some((*hint).to_owned()),
            Self::Header { .. } => {
                Some("restore it from a backup; `qemu-img check` tells more".into())
            }
            Self::MarkedCorrupt { path, .. } => Some(format!(
                "copy the file, then repair it: `qemu-img check -r all {}`; or restore it from a backup",
                path.display()
            )),
            Self::NoRoom { .. } => {
                Some("make room; `qvm image prune` removes images that no VM needs".into())
            }
            _ => None,
        }
    }

    fn is_own_host_fault(&self) -> bool {
        match self {
            Self::NoRoom { .. } => true,
            Self::Open { path, source, .. } => match source.kind() {
                io::ErrorKind::NotFound => path.starts_with("/dev"),
                io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::StaleNetworkFileHandle => true,
                _ => source.raw_os_error() == Some(nix::libc::EIO),
            },
            _ => false,
        }
    }
}
