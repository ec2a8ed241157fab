//! The file or device of a disk.

use std::path::PathBuf;

use crate::spec::{Format, SectorSize};

/// An existing disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskFile {
    /// The file or block device.
    pub path: PathBuf,
    /// The format.
    pub format: Format,
    /// The disk is a block device of the host.
    pub is_device: bool,
    /// The backing files, the direct one first.
    pub backing: Vec<Backing>,
    /// The sectors that the guest sees.
    pub sector_size: SectorSize,
}

/// A backing file of a qcow2 file; never written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backing {
    /// The file.
    pub path: PathBuf,
    /// The format.
    pub format: Format,
}
