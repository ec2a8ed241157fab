//! The errors of snapshots.

use std::{io, path::PathBuf};

use super::kind::Refusal;
use crate::{
    disk,
    image::{qcow2, qemu_img},
    spec::Invalid,
    store::{identity_store, snapshot_record::MAX_DEPTH, snapshots, vm_state},
    sys::file,
    value::{ErrorCode, Explain, Label, SnapshotName, VmName},
};

/// Why a snapshot operation failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The VM does not exist.
    #[error("there is no VM `{0}`")]
    NoVm(VmName),
    /// The VM has no VM file, only data.
    #[error("the VM file `{}` does not exist", .0.display())]
    NoFile(PathBuf),
    /// The VM file is invalid.
    #[error("{0}")]
    Invalid(Invalid),
    /// The VM is running, or this cannot be determined.
    #[error(transparent)]
    Runs(#[from] vm_state::Error),
    /// The VM is suspended: its saved state belongs to the present disks.
    #[error("the VM is suspended, not shut down")]
    Suspended,
    /// The identity cannot be read.
    #[error(transparent)]
    Identity(#[from] identity_store::Error),
    /// The records cannot be used or written.
    #[error(transparent)]
    Records(#[from] snapshots::Error),
    /// A file operation failed.
    #[error(transparent)]
    File(#[from] file::Error),
    /// A disk cannot be read.
    #[error(transparent)]
    Disk(#[from] disk::Error),
    /// The disks cannot be part of a snapshot.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// qemu-img failed.
    #[error("disk {disk}")]
    QemuImg {
        /// The disk.
        disk: Label,
        /// The cause.
        source: qemu_img::Error,
    },
    /// A name that qvm gives itself.
    #[error("snapshot names that begin with `auto-` or `before-rollback-` are reserved")]
    Reserved,
    /// A snapshot with this name exists.
    #[error("the snapshot `{0}` already exists")]
    Exists(SnapshotName),
    /// There is no snapshot with this name.
    #[error("there is no snapshot `{0}`")]
    NotFound(SnapshotName),
    /// A file has the name of a new one, and no record has it.
    #[error("`{}` already exists, and no snapshot record has it", .0.display())]
    FileExists(PathBuf),
    /// The removal of the snapshot was begun.
    #[error("the removal of the snapshot `{0}` was interrupted, so its disks may have changed")]
    Removing(SnapshotName),
    /// The chain of files would be too long.
    #[error("disk {0}: is based on {MAX_DEPTH} snapshots, the maximum")]
    TooDeep(Label),
    /// More than one file is based on a file to remove.
    #[error("disk {disk}: {} are based on the snapshot `{snapshot}`", .children.join(" and "))]
    InUse {
        /// The disk.
        disk: Label,
        /// The snapshot.
        snapshot: SnapshotName,
        /// What is based on it.
        children: Vec<String>,
    },
    /// No disk of the snapshot is a disk of the VM.
    #[error("the VM file has no disk of the snapshot `{0}`")]
    NoCommonDisk(SnapshotName),
    /// A disk has another format than in the snapshot.
    #[error("disk {disk}: is {now} now, and {then} in the snapshot")]
    OtherFormat {
        /// The disk.
        disk: Label,
        /// The format now.
        now: &'static str,
        /// The format in the snapshot.
        then: &'static str,
    },
    /// The file system has no hard links.
    #[error("cannot create a second name of `{}`", .path.display())]
    Link {
        /// The disk.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The file system does not share blocks after all.
    #[error("cannot create a reflink of `{}`", .0.display())]
    NoReflink(PathBuf),
    /// A file of the chain has a header that cannot be used.
    #[error("disk {disk}: cannot use `{}`", .path.display())]
    Header {
        /// The disk.
        disk: Label,
        /// The file.
        path: PathBuf,
        /// The damage.
        source: qcow2::Error,
    },
    /// A file of the chain is marked as corrupt, or has data in another file.
    #[error("disk {disk}: `{}` {why}", .path.display())]
    Unusable {
        /// The disk.
        disk: Label,
        /// The file.
        path: PathBuf,
        /// The predicate of the message.
        why: &'static str,
    },
    /// The files are not as an interrupted operation leaves them.
    #[error(
        "cannot complete an interrupted snapshot operation: `{}` {why}",
        .path.display()
    )]
    Unexpected {
        /// The file.
        path: PathBuf,
        /// The predicate of the message.
        why: &'static str,
    },
}

impl Error {
    /// Returns true if the operation was canceled.
    pub fn is_canceled(&self) -> bool {
        matches!(self, Self::QemuImg { source: qemu_img::Error::Canceled, .. })
    }
}

impl Explain for Error {
    fn wrapped(&self) -> Option<&dyn Explain> {
        match self {
            Self::Runs(error) => Some(error),
            Self::Identity(error) => Some(error),
            Self::Records(error) => Some(error),
            Self::File(error) => Some(error),
            Self::Disk(error) => Some(error),
            Self::Refused(error) => Some(error),
            Self::QemuImg { source, .. } => Some(source),
            _ => None,
        }
    }

    fn own_code(&self) -> Option<ErrorCode> {
        Some(match self {
            Self::NoVm(..) => ErrorCode::VmNotFound,
            Self::NoFile(..) => ErrorCode::VmFileMissing,
            Self::Invalid(invalid) => invalid.code(),
            Self::Suspended => ErrorCode::VmSuspended,
            Self::Reserved => ErrorCode::Usage,
            Self::Exists(..) => ErrorCode::SnapshotExists,
            Self::NotFound(..) => ErrorCode::SnapshotNotFound,
            Self::FileExists(..) => ErrorCode::FileExists,
            Self::Removing(..) => ErrorCode::SnapshotIncomplete,
            Self::TooDeep(..) => ErrorCode::SnapshotTooDeep,
            Self::InUse { .. } => ErrorCode::SnapshotInUse,
            Self::NoCommonDisk(..) | Self::OtherFormat { .. } => ErrorCode::SnapshotMismatch,
            Self::Link { .. } | Self::NoReflink(..) => ErrorCode::SnapshotRefused,
            Self::Header { .. } => ErrorCode::DiskDamaged,
            Self::Unusable { .. } => ErrorCode::DiskIncomplete,
            Self::Unexpected { .. } => ErrorCode::SnapshotUnexpected,
            Self::Runs(..)
            | Self::Identity(..)
            | Self::Records(..)
            | Self::File(..)
            | Self::Disk(..)
            | Self::Refused(..)
            | Self::QemuImg { .. } => return None,
        })
    }

    fn own_hint(&self) -> Option<String> {
        match self {
            Self::NoVm(_) => Some("`qvm list` shows all VMs".into()),
            Self::Suspended => {
                Some("`qvm start NAME` continues the guest; then `qvm stop NAME`".into())
            }
            Self::Exists(_) => {
                Some("choose another name, or remove it with `qvm snapshot rm`".into())
            }
            Self::NotFound(_) => Some("`qvm snapshot list NAME` lists the snapshots".into()),
            Self::Removing(name) => Some(format!("`qvm snapshot rm NAME {name}` completes it")),
            Self::TooDeep(_) => Some("remove a snapshot first: `qvm snapshot rm NAME SNAP`".into()),
            Self::InUse { .. } => {
                Some("remove all but one of them first: `qvm snapshot rm NAME SNAP`".into())
            }
            Self::FileExists(_) => Some("move the file away, or choose another name".into()),
            Self::Link { .. } => {
                Some("snapshots require a file system with hard links or reflinks".into())
            }
            Self::Unusable { .. } | Self::Header { .. } => {
                Some("restore the disk from a backup; `qemu-img check` prints details".into())
            }
            Self::Unexpected { .. } => Some(
                "qvm changes nothing in this state; `snapshots.toml` in the VM's state directory \
                 has the operation and its files"
                    .into(),
            ),
            _ => None,
        }
    }

    fn is_own_host_fault(&self) -> bool {
        matches!(self, Self::Unexpected { .. })
    }
}
