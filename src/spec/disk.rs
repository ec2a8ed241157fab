//! `[disk.NAME]`, and the flat key `diskSizeG` for the disk `root`.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::Image;
use crate::value::{Label, Size};

/// One disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// `root`, or the name of the table.
    pub name: Label,
    /// Where its content comes from.
    pub source: Source,
    /// `size` (`diskSizeG` for `root`): how large it is made, and grown to later; `None` is the image's own.
    pub size: Option<Size>,
    /// `format`: of the file that qvm makes, or of the one that `path` or `device` names.
    pub format: Format,
    /// `clone`: how the disk is made from its image.
    pub clone: Clone,
    /// `bus`: what the guest sees it as.
    pub bus: Bus,
    /// `media`: a disk or a CD.
    pub media: Media,
    /// `readOnly`.
    pub read_only: bool,
}

/// Where a disk's content comes from; which one is told by the key that is present.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// `[disk.NAME.image]`, or `[image]` for `root`: made from it once, by qvm, in the VM's state directory.
    Image(Box<Image>),
    /// `size` alone: made blank, once, by qvm, in the VM's state directory.
    Blank,
    /// Nothing was written: a disk that is in the VM's state directory already.
    Existing,
    /// `path`: a file of the operator's, never made and never grown by qvm.
    File(PathBuf),
    /// `device`: a block device of the operator's, always raw.
    Device(PathBuf),
}

/// How bytes lie in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// QEMU's own: sparse everywhere, the default.
    #[default]
    Qcow2,
    /// The bytes as they are.
    Raw,
}

impl Format {
    /// The name as QEMU's block drivers have it; also the file's suffix.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Qcow2 => "qcow2",
            Self::Raw => "raw",
        }
    }
}

/// How a disk is made from its image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Clone {
    /// A disk of its own: a reflink where the file system can, else a copy.
    #[default]
    Copy,
    /// A qcow2 overlay on the cached image, which is then protected.
    Overlay,
}

/// What the guest sees the disk as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Bus {
    /// virtio-blk: the fastest, needs a driver that every Linux and BSD has.
    #[default]
    Virtio,
    /// AHCI: for guests without virtio drivers, such as a Windows installer.
    Sata,
    /// NVMe: the same, for newer guests.
    Nvme,
}

/// What kind of thing is in the drive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Media {
    /// A disk.
    #[default]
    Disk,
    /// A CD, always read-only, on SATA; booted from when no disk boots.
    Cdrom,
}
