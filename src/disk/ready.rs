//! A disk that is ready for QEMU.

use super::error::Error;
use crate::{
    image::qcow2,
    spec::{Disk, Format},
    value::Note,
};
use std::path::{Path, PathBuf};

/// A disk that QEMU can be given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ready {
    /// The file or device.
    pub path: PathBuf,
    /// In which format it is, whatever the VM file says.
    pub format: Format,
    /// What the guest sees, in bytes; `None` for a device.
    pub virtual_size: Option<u64>,
    /// What the operator should know.
    pub notes: Vec<Note>,
}

/// Refuses a disk that QEMU would not open for writing, before QEMU is started.
///
/// # Errors
/// It is marked as corrupt, and the guest may write to it.
pub(crate) fn refuse_corrupt(
    disk: &Disk,
    path: &Path,
    header: &qcow2::Header,
) -> Result<(), Error> {
    match header.corrupt && !disk.read_only {
        true => Err(Error::MarkedCorrupt { disk: disk.name.clone(), path: path.to_owned() }),
        false => Ok(()),
    }
}
