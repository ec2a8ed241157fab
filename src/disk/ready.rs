//! A disk that is ready for QEMU.

use super::error::Error;
use crate::{
    image::qcow2,
    spec::{Disk, Format},
    value::Note,
};
use std::path::{Path, PathBuf};

/// A disk that QEMU can open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ready {
    /// The file or device.
    pub path: PathBuf,
    /// Its actual format.
    pub format: Format,
    /// The virtual size in bytes; `None` for a device.
    pub virtual_size: Option<u64>,
    /// Notes for the operator.
    pub notes: Vec<Note>,
}

/// Refuses a disk that QEMU could not open for writing.
///
/// # Errors
/// The disk is writable and marked as corrupt.
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
