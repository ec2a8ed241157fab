//! A disk as QEMU opens it.

use std::path::PathBuf;

use crate::spec::{Format, SectorSize};

/// A disk as it lies there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskFile {
    /// The file or block device.
    pub path: PathBuf,
    /// How bytes lie in it.
    pub format: Format,
    /// It is a block device of the host's.
    pub is_device: bool,
    /// What is below it, the nearest first.
    pub backing: Vec<Backing>,
    /// The sectors that the guest sees.
    pub sector_size: SectorSize,
}

/// A file that a qcow2 file stands on; never written to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backing {
    /// The file.
    pub path: PathBuf,
    /// How bytes lie in it.
    pub format: Format,
}
