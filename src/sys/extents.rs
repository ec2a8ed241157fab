//! The bytes of a file that no other file shares, by FIEMAP (Documentation/filesystems/fiemap.rst).

use std::{fs::File, io, os::fd::AsRawFd};

use nix::libc;

/// The extents that one call returns.
const COUNT: usize = 512;
/// `FIEMAP_EXTENT_LAST` and `FIEMAP_EXTENT_SHARED` of linux/fiemap.h.
const LAST: u32 = 0x1;
const SHARED: u32 = 0x2000;
/// `FS_IOC_FIEMAP` of linux/fs.h: `_IOWR('f', 11, struct fiemap)`.
const FS_IOC_FIEMAP: libc::c_ulong = 0xc020_660b;

/// `struct fiemap_extent`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
struct Extent {
    logical: u64,
    physical: u64,
    length: u64,
    reserved: [u64; 2],
    flags: u32,
    reserved_more: [u32; 3],
}

/// `struct fiemap`, with room for the extents behind it.
#[repr(C)]
#[derive(Debug)]
struct Map {
    start: u64,
    length: u64,
    flags: u32,
    mapped_extents: u32,
    extent_count: u32,
    reserved: u32,
    extents: [Extent; COUNT],
}

/// Returns the number of bytes of a file that are shared with another file, such as by a reflink.
///
/// # Errors
/// The file system does not report extents.
pub fn shared_bytes(file: &File) -> io::Result<u64> {
    let (mut start, mut shared) = (0, 0_u64);
    loop {
        let mut map = Box::new(Map {
            start,
            length: u64::MAX - start,
            flags: 0,
            mapped_extents: 0,
            extent_count: COUNT as u32,
            reserved: 0,
            extents: [Extent::default(); COUNT],
        });
        // SAFETY: the kernel reads the header and writes at most `extent_count` extents behind it,
        // all of which are in `map`, which lives until the call returns.
        let done = unsafe { libc::ioctl(file.as_raw_fd(), FS_IOC_FIEMAP as _, &raw mut *map) };
        if done < 0 {
            return Err(io::Error::last_os_error());
        }
        let count = usize::try_from(map.mapped_extents).unwrap_or(COUNT).min(COUNT);
        let found = map.extents.get(..count).unwrap_or_default();
        let is_shared = |extent: &&Extent| extent.flags & SHARED != 0;
        shared += found.iter().filter(is_shared).map(|extent| extent.length).sum::<u64>();
        match found.last() {
            Some(last) if last.flags & LAST == 0 => {
                let end = last.logical.saturating_add(last.length);
                if end <= start {
                    return Ok(shared);
                }
                start = end;
            }
            _ => return Ok(shared),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn new_file_shares_nothing() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[1; 1 << 20]).unwrap();
        file.sync_all().unwrap();
        match shared_bytes(&file) {
            Ok(shared) => assert_eq!(shared, 0),
            Err(error) => println!("skipped: {error}"),
        }
    }
}
