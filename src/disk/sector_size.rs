//! The sectors that the guest sees on a disk: those of the device, unless that would make its
//! content unreadable.

use std::path::Path;

use crate::{
    spec::{Bus, Disk, Firmware, Media, SectorSize, Vm},
    store::{layout::VmPaths, sector_sizes},
    sys::{
        capabilities::queue_attribute,
        file::{self, Error},
    },
    value::Label,
};

/// How much of a device has to be zero so that it counts as blank, in bytes.
const HEAD: usize = 64 << 10;
/// The first bytes of the header of a GPT, in the second sector (UEFI 2.10, 5.3.2).
const GPT: &[u8] = b"EFI PART";

/// The sectors of a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FoundSectors {
    /// What the guest sees.
    pub size: SectorSize,
    /// The size has to be recorded before the guest sees it.
    pub is_new: bool,
}

const SMALL: FoundSectors = FoundSectors { size: SectorSize::B512, is_new: false };

/// Returns the sectors of a disk: the key, or for a block device those that the guest has seen
/// before, or those that its content and the device have. `sys` is the directory that sysfs is
/// mounted on.
///
/// # Errors
/// The device, its attributes or the record cannot be read.
pub fn sectors(
    disk: &Disk,
    vm: &Vm,
    paths: &VmPaths,
    device: Option<&Path>,
    sys: &Path,
) -> Result<FoundSectors, Error> {
    if let Some(size) = disk.sector_size {
        return Ok(FoundSectors { size, is_new: false });
    }
    let Some(device) = device else { return Ok(SMALL) };
    if is_always_small(&disk.name, vm) || disk.bus == Bus::Sata {
        return Ok(SMALL);
    }
    let bytes = queue_attribute(device, sys, "logical_block_size");
    let bytes = bytes.map_err(Error::on("read the sector size of", device))?;
    if SectorSize::of_bytes(bytes) != Some(SectorSize::B4096) {
        return Ok(SMALL);
    }
    let recorded = sector_sizes::read(paths)?.get(&disk.name).copied();
    if let Some(size) = recorded.and_then(|bytes| SectorSize::of_bytes(bytes.into())) {
        return Ok(FoundSectors { size, is_new: false });
    }
    Ok(FoundSectors { size: by_content(&file::read_at(device, 0, HEAD)?), is_new: true })
}

/// Returns the sectors of a disk, and records those that follow from the device. The caller holds
/// the VM's lock.
///
/// # Errors
/// As of [`sectors`], or the record cannot be written.
pub fn ensure(
    disk: &Disk,
    vm: &Vm,
    paths: &VmPaths,
    device: Option<&Path>,
    sys: &Path,
) -> Result<SectorSize, Error> {
    let found = sectors(disk, vm, paths, device, sys)?;
    if found.is_new {
        sector_sizes::record(paths, &disk.name, found.size.bytes())?;
    }
    Ok(found.size)
}

/// SeaBIOS does not boot from larger sectors (src/hw/virtio-blk.c).
fn is_always_small(disk: &Label, vm: &Vm) -> bool {
    let first = vm.disks.iter().find(|disk| disk.media == Media::Disk);
    vm.firmware == Firmware::Bios && first.is_some_and(|first| first.name == *disk)
}

/// The sectors in which a device with sectors of 4096 bytes has been used: a partition table is
/// found only with its own.
fn by_content(head: &[u8]) -> SectorSize {
    let is_blank = head.iter().all(|byte| *byte == 0);
    let is_gpt = head.get(4096..).is_some_and(|sector| sector.starts_with(GPT));
    if is_blank || is_gpt { SectorSize::B4096 } else { SectorSize::B512 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partition_table_decides() {
        let mut head = vec![0; HEAD];
        assert_eq!(by_content(&head), SectorSize::B4096);
        head[510..512].copy_from_slice(&[0x55, 0xaa]);
        assert_eq!(by_content(&head), SectorSize::B512);
        head[512..520].copy_from_slice(GPT);
        assert_eq!(by_content(&head), SectorSize::B512);
        head[512..520].fill(0);
        head[4096..4104].copy_from_slice(GPT);
        assert_eq!(by_content(&head), SectorSize::B4096);
    }
}
