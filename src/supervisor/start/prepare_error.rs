//! Why a VM cannot be prepared.

use crate::{
    disk,
    machine::{
        facts::{self, Qemu},
        firmware as descriptors, probe,
    },
    seed::iso9660,
    snapshot,
    store::{identity_store, liveness},
    sys::file,
    systemd::unit_mounts::Closed,
    value::{ErrorCode, Explain},
};

/// Why a VM cannot be prepared.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The host lacks something.
    #[error(transparent)]
    Probe(#[from] probe::Error),
    /// KVM is required, but not usable.
    #[error(transparent)]
    NoKvm(#[from] facts::NoKvm),
    /// A file cannot be read or written.
    #[error(transparent)]
    File(#[from] file::Error),
    /// The liveness locks.
    #[error(transparent)]
    Liveness(#[from] liveness::Error),
    /// identity.toml.
    #[error(transparent)]
    Identity(identity_store::Error),
    /// The guest was created with a later QEMU.
    #[error(
        "this VM has the machine type `{machine}`, which `{}` (QEMU {}) does not support",
        .qemu.binary.display(), .qemu.version
    )]
    OlderQemu {
        /// The machine type of the identity.
        machine: String,
        /// The installed version.
        qemu: Qemu,
    },
    /// A disk cannot be created.
    #[error("{at}")]
    Disk {
        /// The location of the disk in the VM file.
        at: String,
        /// The cause.
        source: disk::Error,
    },
    /// An interrupted snapshot operation cannot be completed.
    #[error(transparent)]
    Snapshot(#[from] Box<snapshot::Error>),
    /// The unit has no access to a disk.
    #[error(transparent)]
    Closed(#[from] Closed),
    /// The firmware does not exist.
    #[error(transparent)]
    Firmware(#[from] descriptors::Error),
    /// The seed does not fit into an ISO image.
    #[error("cannot create the seed")]
    Seed(#[from] iso9660::Error),
    /// The start was canceled.
    #[error("canceled")]
    Canceled,
}

impl From<identity_store::Error> for Error {
    fn from(error: identity_store::Error) -> Self {
        if error.is_canceled() { Self::Canceled } else { Self::Identity(error) }
    }
}

impl Explain for Error {
    fn wrapped(&self) -> Option<&dyn Explain> {
        match self {
            Self::Probe(error) => Some(error),
            Self::NoKvm(error) => Some(error),
            Self::File(error) => Some(error),
            Self::Liveness(error) => Some(error),
            Self::Disk { source, .. } => Some(source),
            Self::Identity(error) => Some(error),
            Self::Closed(error) => Some(error),
            Self::Snapshot(error) => Some(error.as_ref()),
            Self::Firmware(error) => Some(error),
            _ => None,
        }
    }

    fn own_code(&self) -> Option<ErrorCode> {
        Some(match self {
            Self::OlderQemu { .. } => ErrorCode::MachineTypeUnsupported,
            Self::Seed(error) => error.code(),
            Self::Canceled => ErrorCode::Canceled,
            Self::Probe(..)
            | Self::NoKvm(..)
            | Self::File(..)
            | Self::Liveness(..)
            | Self::Disk { .. }
            | Self::Identity(..)
            | Self::Closed(..)
            | Self::Snapshot(..)
            | Self::Firmware(..) => return None,
        })
    }

    fn own_hint(&self) -> Option<String> {
        match self {
            Self::OlderQemu { machine, qemu } => Some(format!(
                "run the QEMU that created it, or a later one (`QVM_QEMU`); or replace \
                 `{machine}` by `{}` in the VM's identity.toml, which changes the guest's \
                 hardware",
                qemu.machine
            )),
            _ => None,
        }
    }

    fn is_own_host_fault(&self) -> bool {
        matches!(self, Self::NoKvm(_) | Self::Liveness(_))
    }
}
