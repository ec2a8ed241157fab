//! The errors of disks.

use std::{io, path::PathBuf};

use crate::{
    image::{self, cache, qcow2, qemu_img},
    store::snapshots,
    sys::file::Error as FileError,
    value::{ErrorCode, Explain, Label},
};

/// Why a disk cannot be provided.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The image cannot be provided.
    #[error("disk {disk}")]
    Image {
        /// The disk.
        disk: Label,
        /// The cause.
        source: Box<image::Error>,
    },
    /// A file operation failed.
    #[error("disk {disk}")]
    File {
        /// The disk.
        disk: Label,
        /// The cause.
        source: FileError,
    },
    /// qemu-img failed.
    #[error("disk {disk}")]
    QemuImg {
        /// The disk.
        disk: Label,
        /// The cause.
        source: qemu_img::Error,
    },
    /// The disk does not exist and has no image.
    #[error("disk {disk}: `{}` does not exist, and the VM file has no image to create it \
        from", .path.display())]
    Nothing {
        /// The disk.
        disk: Label,
        /// The path of the disk.
        path: PathBuf,
    },
    /// A file of the operator that does not exist or cannot be opened.
    #[error("disk {disk}: cannot open `{}` for {}",
        .path.display(), if *.write { "writing" } else { "reading" })]
    Open {
        /// The disk.
        disk: Label,
        /// The file.
        path: PathBuf,
        /// Opened for writing.
        write: bool,
        /// The cause.
        source: io::Error,
    },
    /// A file of the operator with another type than configured.
    #[error("disk {disk}: `{}` {why}", .path.display())]
    Kind {
        /// The disk.
        disk: Label,
        /// The file.
        path: PathBuf,
        /// The predicate of the message.
        why: &'static str,
        /// The key to use instead.
        hint: Option<&'static str>,
    },
    /// A disk with an unexpected backing file.
    #[error("disk {disk}: `{}` {why}", .path.display())]
    Alien {
        /// The disk.
        disk: Label,
        /// The file.
        path: PathBuf,
        /// The predicate of the message.
        why: String,
        /// What to do.
        hint: &'static str,
    },
    /// The image cache failed.
    #[error("disk {disk}")]
    Cache {
        /// The disk.
        disk: Label,
        /// The cause.
        source: Box<cache::Error>,
    },
    /// A damaged disk created by qvm.
    #[error("disk {disk}: `{}` is damaged", .path.display())]
    Header {
        /// The disk.
        disk: Label,
        /// The file.
        path: PathBuf,
        /// The damage.
        source: qcow2::Error,
    },
    /// A disk that QEMU has marked as corrupt and cannot open for writing.
    #[error("disk {disk}: `{}` is marked corrupt, so QEMU cannot open it for \
        writing", .path.display())]
    MarkedCorrupt {
        /// The disk.
        disk: Label,
        /// The file.
        path: PathBuf,
    },
    /// A disk whose snapshots exist, and which itself does not.
    #[error("disk {disk}: `{}` does not exist, but snapshots of it do", .path.display())]
    Lost {
        /// The disk.
        disk: Label,
        /// The file.
        path: PathBuf,
    },
    /// The records of the VM's snapshots cannot be used.
    #[error("disk {disk}")]
    Snapshots {
        /// The disk.
        disk: Label,
        /// The cause.
        source: snapshots::Error,
    },
    /// Not enough space for the copy.
    #[error("disk {disk}: not enough space: it requires {} MiB, but {} MiB are free on the file \
        system of `{}`",
        .needed.div_ceil(1 << 20), .free >> 20, .dir.display())]
    NoRoom {
        /// The disk.
        disk: Label,
        /// The number of bytes.
        needed: u64,
        /// The number of bytes.
        free: u64,
        /// The directory.
        dir: PathBuf,
    },
    /// The operation was canceled.
    #[error("the creation of disk {0} was canceled")]
    Canceled(Label),
}

impl Error {
    /// Returns true if the operation was canceled.
    pub fn is_canceled(&self) -> bool {
        match self {
            Self::Canceled(_) | Self::QemuImg { source: qemu_img::Error::Canceled, .. } => true,
            Self::Image { source, .. } => source.is_canceled(),
            _ => false,
        }
    }
}

/// The code for a file of the operator that cannot be opened.
fn open_code(error: &io::Error) -> ErrorCode {
    match error.kind() {
        io::ErrorKind::ResourceBusy => ErrorCode::DiskBusy,
        io::ErrorKind::PermissionDenied => ErrorCode::DiskDenied,
        io::ErrorKind::NotFound => ErrorCode::DiskMissing,
        _ => ErrorCode::of_io(error),
    }
}

impl Explain for Error {
    fn wrapped(&self) -> Option<&dyn Explain> {
        match self {
            Self::Image { source, .. } => Some(source.as_ref()),
            Self::File { source, .. } => Some(source),
            Self::QemuImg { source, .. } => Some(source),
            Self::Cache { source, .. } => Some(source.as_ref()),
            Self::Snapshots { source, .. } => Some(source),
            _ => None,
        }
    }

    fn own_code(&self) -> Option<ErrorCode> {
        Some(match self {
            Self::Nothing { .. } => ErrorCode::DiskMissing,
            Self::Open { source, .. } => open_code(source),
            Self::Kind { .. } => ErrorCode::DiskWrongType,
            Self::Alien { .. } => ErrorCode::DiskBackingUnexpected,
            Self::Header { .. } => ErrorCode::DiskDamaged,
            Self::MarkedCorrupt { .. } => ErrorCode::DiskCorrupt,
            Self::Lost { .. } => ErrorCode::DiskLost,
            Self::NoRoom { .. } => ErrorCode::NoSpace,
            Self::Canceled(..) => ErrorCode::Canceled,
            Self::Image { .. }
            | Self::File { .. }
            | Self::QemuImg { .. }
            | Self::Cache { .. }
            | Self::Snapshots { .. } => {
                return None;
            }
        })
    }

    fn own_hint(&self) -> Option<String> {
        match self {
            Self::Nothing { .. } => {
                Some("add `[image]` with `url` or `path`, or create the disk at this path".into())
            }
            Self::Open { source, .. } if source.kind() == io::ErrorKind::ResourceBusy => Some(
                "the device is mounted, or in use by another program or VM; a guest requires \
                 exclusive access"
                    .into(),
            ),
            Self::Open { path, source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                Some(format!("allow the user that runs qvm to read and write `{}`", path.display()))
            }
            Self::Open { source, .. } if source.kind() == io::ErrorKind::NotFound => Some(
                "qvm does not create files of `path`: create it, or replace `path` by \
                 `size`"
                    .into(),
            ),
            Self::Kind { hint, .. } => hint.map(str::to_owned),
            Self::Alien { hint, .. } => Some((*hint).to_owned()),
            Self::Header { .. } => {
                Some("restore it from a backup; `qemu-img check` prints details".into())
            }
            Self::Lost { .. } => Some(
                "restore the file from a backup; `qvm snapshot list NAME` lists the snapshots"
                    .into(),
            ),
            Self::MarkedCorrupt { path, .. } => Some(format!(
                "copy the file, then repair it: `qemu-img check -r all {}`; or restore it from a \
                 backup",
                path.display()
            )),
            Self::NoRoom { .. } => {
                Some("free disk space; `qvm image prune` removes unused images".into())
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
