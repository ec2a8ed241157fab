//! What a directory's file system or a block device can do with the blocks of a disk, found out by
//! trying: on temporary files without a name, which vanish with their last descriptor.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::{
        fd::{AsFd, AsRawFd},
        unix::fs::{FileExt, MetadataExt, OpenOptionsExt},
    },
    path::Path,
};

use rustix::{
    fs::{FallocateFlags, OFlags, fallocate},
    io::Errno,
};

use super::reflink;

/// The largest block that O_DIRECT may want, in bytes.
const BLOCK: usize = 4096;

/// What a place can do; `None` is not known.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Capabilities {
    /// Two files can share blocks (FICLONE, ioctl_ficlone(2)).
    pub reflink: Option<bool>,
    /// Files can be read without the page cache (O_DIRECT, open(2)).
    pub direct: Option<bool>,
    /// Blocks that are not used can be given back (FALLOC_FL_PUNCH_HOLE, fallocate(2)).
    pub discard: Option<bool>,
}

/// Returns what the file system of a directory can do.
///
/// # Errors
/// No file can be created in the directory, for example without permission to write.
pub fn of_directory(directory: &Path) -> io::Result<Capabilities> {
    let file = tempfile::tempfile_in(directory)?;
    file.write_all_at(&[1; BLOCK], 0)?;
    let discard = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    Ok(Capabilities {
        reflink: can_reflink(&file, directory),
        direct: can_read_direct(&file),
        discard: match fallocate(&file, discard, 0, BLOCK as u64) {
            Ok(()) => Some(true),
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => Some(false),
            Err(_) => None,
        },
    })
}

/// Returns what a block device can do; `sys` is the directory that sysfs is mounted on.
///
/// # Errors
/// The device or its attributes in sysfs cannot be read.
pub fn of_device(device: &Path, sys: &Path) -> io::Result<Capabilities> {
    let limit = queue_attribute(device, sys, "discard_max_bytes")?;
    Ok(Capabilities { reflink: Some(false), direct: Some(true), discard: Some(limit > 0) })
}

/// Returns a number of the request queue of a block device or of the disk that it is a partition of
/// (sysfs, `queue/`).
///
/// # Errors
/// The device or the attribute cannot be read.
pub fn queue_attribute(device: &Path, sys: &Path, attribute: &str) -> io::Result<u64> {
    let number = fs::metadata(device)?.rdev();
    let (major, minor) = (rustix::fs::major(number), rustix::fs::minor(number));
    let entry = fs::canonicalize(sys.join(format!("dev/block/{major}:{minor}")))?;
    // Of a partition, the directory above is the disk's.
    let disk = entry.ancestors().take(2).find(|dir| dir.join("queue").is_dir());
    let disk = disk.ok_or(io::ErrorKind::NotFound)?;
    let text = fs::read_to_string(disk.join("queue").join(attribute))?;
    text.trim().parse().map_err(|_| io::ErrorKind::InvalidData.into())
}

fn can_reflink(file: &File, directory: &Path) -> Option<bool> {
    let copy = tempfile::tempfile_in(directory).ok()?;
    reflink::reflink(file, &copy).ok()
}

fn can_read_direct(file: &File) -> Option<bool> {
    let path = format!("/proc/self/fd/{}", file.as_fd().as_raw_fd());
    let flags = OFlags::DIRECT.bits().cast_signed();
    let direct = match OpenOptions::new().read(true).custom_flags(flags).open(path) {
        Ok(direct) => direct,
        Err(error) if error.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => {
            return Some(false);
        }
        Err(_) => return None,
    };
    let mut buffer = vec![0; 2 * BLOCK];
    let start = buffer.as_ptr().align_offset(BLOCK);
    let aligned = buffer.get_mut(start..start.checked_add(BLOCK)?)?;
    match direct.read_at(aligned, 0) {
        Ok(_) => Some(true),
        Err(error) if error.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => Some(false),
        Err(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tried_files_leave_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let found = of_directory(directory.path()).unwrap();
        assert!(found.reflink.is_some() && found.direct.is_some(), "{found:?}");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    #[test]
    fn missing_directory_is_an_error() {
        assert!(of_directory(Path::new("/nowhere")).is_err());
        assert!(of_device(Path::new("/nowhere"), Path::new("/sys")).is_err());
    }
}
