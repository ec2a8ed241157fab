//! Why a VM is not renamed, cloned, exported or imported, and what to do about it.

use std::{io, path::PathBuf};

use super::archive;
use crate::{
    disk,
    spec::Invalid,
    store::{identity_store, vm_state},
    sys::{file, lock},
    value::{Explain, Label, VmName},
};

/// Why not.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Its VM file.
    #[error("{0}")]
    Invalid(Invalid),
    /// The VM file that it would have.
    #[error("its VM file would not be valid")]
    WouldBeInvalid(Invalid),
    /// It is not there.
    #[error("there is no VM `{0}`")]
    NoVm(VmName),
    /// Only disks are.
    #[error("it has no VM file: `{}` is not there", .0.display())]
    NoFile(PathBuf),
    /// The same name twice.
    #[error("it is called `{0}` already")]
    Same(VmName),
    /// The new name is taken.
    #[error("there is a VM `{0}` already")]
    Exists(VmName),
    /// Something is kept under the new name.
    #[error("`{}` is there already, and no VM file with it", .path.display())]
    Kept {
        /// The VM that it would be of.
        name: VmName,
        /// The directory.
        path: PathBuf,
    },
    /// It runs.
    #[error(transparent)]
    Runs(#[from] vm_state::Error),
    /// Somebody has the new name's lock.
    #[error("the name `{name}` is in use")]
    InUse {
        /// The name.
        name: VmName,
        /// By whom.
        source: vm_state::Error,
    },
    /// It sleeps.
    #[error("its guest's state is saved: it is not shut down")]
    Suspended,
    /// Somebody else makes its VM file.
    #[error("`{}` is a link to `{}`", .file.display(), .target.display())]
    LinkedFile {
        /// The VM file.
        file: PathBuf,
        /// What it leads to.
        target: PathBuf,
    },
    /// A path of a VM file that leads into the directory that would move.
    #[error("`{}` names `{}`, which would not be there any more", .file.display(), .path.display())]
    Needed {
        /// The VM file.
        file: PathBuf,
        /// What it names.
        path: PathBuf,
    },
    /// A disk of the operator's that is written to.
    #[error("disk {disk}: `{}` is not a file that qvm made, and the VM writes to it", .path.display())]
    Own {
        /// Which.
        disk: Label,
        /// The file or device.
        path: PathBuf,
    },
    /// A disk that is not all there is of it.
    #[error("disk {disk}: `{}` {why}", .path.display())]
    Partial {
        /// Which.
        disk: Label,
        /// Its file.
        path: PathBuf,
        /// How.
        why: &'static str,
        /// The way out.
        hint: Option<&'static str>,
    },
    /// A disk.
    #[error(transparent)]
    Disk(#[from] disk::Error),
    /// A file.
    #[error(transparent)]
    File(#[from] file::Error),
    /// identity.toml.
    #[error(transparent)]
    Identity(#[from] identity_store::Error),
    /// The archive to be written is there.
    #[error("`{}` is there already", .0.display())]
    FileExists(PathBuf),
    /// The archive cannot be written.
    #[error("cannot write the archive")]
    Write(#[source] io::Error),
    /// The archive cannot be read.
    #[error("cannot read `{from}`")]
    Archive {
        /// The archive.
        from: String,
        /// Why.
        source: archive::Error,
    },
    /// Its identity is another VM's.
    #[error("the VM `{other}` has its {what} already")]
    Twin {
        /// The VM.
        other: VmName,
        /// `UUID`, or `MAC address …`.
        what: String,
    },
    /// There is another user-data of that name.
    #[error("`{}` is there already, with other content", .0.display())]
    UserData(PathBuf),
    /// It was called off.
    #[error("called off")]
    CalledOff,
}

impl Error {
    /// It was called off, and nothing is wrong.
    pub fn is_called_off(&self) -> bool {
        match self {
            Self::CalledOff => true,
            Self::Disk(error) => error.is_called_off(),
            _ => false,
        }
    }
}

impl Explain for Error {
    fn wrapped(&self) -> Option<&dyn Explain> {
        match self {
            Self::Runs(error) => Some(error),
            Self::File(error) => Some(error),
            Self::Identity(error) => Some(error),
            Self::InUse { source, .. } => Some(source),
            _ => None,
        }
    }

    fn own_hint(&self) -> Option<String> {
        Some(match self {
            Self::NoVm(_) => "`qvm list` shows those there are".into(),
            Self::InUse { name, source } if source.is_host_fault() => {
                return source.hint_for(name);
            }
            Self::Exists(_) | Self::InUse { .. } => "choose another name".into(),
            Self::Kept { name, .. } => format!(
                "choose another name; or `qvm rm {name} --disks` deletes it, if nobody needs it any more"
            ),
            Self::Runs(vm_state::Error::Lock(lock::Error::Held { .. })) => {
                "it must be shut down: `qvm stop`, and `qvm status` shows what it is doing".into()
            }
            Self::Runs(vm_state::Error::Alone(_)) => {
                "shut the guest down: `qvm start` adopts QEMU, then `qvm stop`".into()
            }
            Self::Suspended => {
                "`qvm start` it and `qvm stop` it; or `qvm start --discard-state`".into()
            }
            Self::LinkedFile { .. } => {
                "rename it where it is made (NixOS: `services.qvm.vms`), and then say this again before the VM is \
                 started: its disks follow"
                    .into()
            }
            Self::Needed { .. } => "change that first".into(),
            Self::Own { .. } => {
                "copy it yourself, and take the disk out of the VM file meanwhile; one with `readOnly = true` is no \
                 hindrance"
                    .into()
            }
            Self::Partial { hint, .. } => (*hint)?.into(),
            Self::FileExists(_) => "choose another name, or remove it".into(),
            Self::Write(error) if error.kind() == io::ErrorKind::StorageFull => "make room".into(),
            Self::Twin { .. } => "`--new-identity` makes a copy that can run beside it".into(),
            Self::UserData(_) => "rename it, and correct the VM file that names it".into(),
            Self::WouldBeInvalid(_) => "choose another name, or change the VM file first".into(),
            Self::Disk(error) => return error.hint(),
            Self::Archive { source, .. } => return source.hint(),
            _ => return None,
        })
    }
}
