//! Finds a lock in /proc/locks (proc_locks(5)), for a user without permission to open
//! the locked file.

use std::{fs, io, path::Path};

use rustix::fs::{AtFlags, CWD, StatxFlags, statx};

use super::state::LockState;

/// The number of reads of /proc/locks before a lock counts as free. The kernel outputs one page at
/// a time and omits a lock if an earlier one is released between two pages.
const READS: u32 = 8;

/// A file as identified in /proc/locks.
#[derive(Debug, PartialEq, Eq)]
struct Inode {
    /// Major and minor device number of the file system, as in /proc/self/mountinfo.
    device: (u32, u32),
    number: u64,
}

/// A mount of /proc/self/mountinfo.
#[derive(Debug, PartialEq, Eq)]
struct Mount {
    device: (u32, u32),
    /// The file system's type.
    kind: String,
}

/// Returns the state of the lock on the file at `path`.
///
/// # Errors
/// The state cannot be determined: the file cannot be accessed, or /proc/locks does not identify
/// files of this file system.
pub(crate) fn probe(path: &Path) -> io::Result<LockState> {
    let wanted = StatxFlags::BASIC_STATS | StatxFlags::MNT_ID;
    let stat = match statx(CWD, path, AtFlags::SYMLINK_NOFOLLOW, wanted) {
        Ok(stat) => stat,
        Err(rustix::io::Errno::NOENT) => return Ok(LockState::Missing),
        Err(error) => return Err(error.into()),
    };
    if stat.stx_mask & StatxFlags::MNT_ID.bits() == 0 {
        return Err(undecided("the kernel does not report mounts (statx(2))"));
    }
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let mount = mount(&mounts, stat.stx_mnt_id)
        .ok_or_else(|| undecided("the mount of the file is not in /proc/self/mountinfo"))?;
    let named = (stat.stx_dev_major, stat.stx_dev_minor) == mount.device;
    if !named && mount.kind != "btrfs" {
        return Err(undecided("/proc/locks does not identify files of this file system"));
    }
    let inode = Inode { device: mount.device, number: stat.stx_ino };
    for _ in 0..READS {
        if let Some(state) = held(&fs::read_to_string("/proc/locks")?, &inode) {
            // btrfs subvolumes share a device and number their files independently.
            let known = "/proc/locks does not distinguish btrfs subvolumes";
            return if named { Ok(state) } else { Err(undecided(known)) };
        }
    }
    Ok(LockState::Free)
}

fn undecided(why: &str) -> io::Error {
    io::Error::other(why.to_owned())
}

/// Returns the mount with this ID.
fn mount(mountinfo: &str, id: u64) -> Option<Mount> {
    let line = mountinfo
        .lines()
        .find(|line| line.split(' ').next().and_then(|first| first.parse().ok()) == Some(id))?;
    let (major, minor) = line.split(' ').nth(2)?.split_once(':')?;
    // After an optional list of fields, which ends with a hyphen.
    let kind = line.split_once(" - ")?.1.split(' ').next()?.to_owned();
    Some(Mount { device: (major.parse().ok()?, minor.parse().ok()?), kind })
}

/// Finds a lock in the text of /proc/locks. flock(2) locks and leases have other types.
fn held(locks: &str, inode: &Inode) -> Option<LockState> {
    locks.lines().find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        // A line with `->` is a process waiting for the lock.
        let [_, "OFDLCK" | "POSIX", _, _, _, file, start, end] = fields[..] else { return None };
        let mut parts = file.split(':');
        let device = (
            u32::from_str_radix(parts.next()?, 16).ok()?,
            u32::from_str_radix(parts.next()?, 16).ok()?,
        );
        let number = parts.next()?.parse().ok()?;
        if *inode != (Inode { device, number }) {
            return None;
        }
        let length = end.parse::<i64>().ok().zip(start.parse::<i64>().ok());
        Some(LockState::of_length(length.map(|(end, start)| end - start + 1)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_lock_by_device_and_inode() {
        let locks = "1: OFDLCK ADVISORY  WRITE -1 00:2c:1234 0 EOF\n\
                     2: FLOCK  ADVISORY  WRITE 77 00:2c:99 0 EOF\n\
                     3: OFDLCK ADVISORY  WRITE -1 fe:10:1235 0 0\n\
                     3: -> OFDLCK ADVISORY  WRITE -1 fe:10:1236 0 EOF\n";
        let at = |device, number| held(locks, &Inode { device, number });
        assert_eq!(at((0, 0x2c), 1234), Some(LockState::HeldByQemu));
        assert_eq!(at((0xfe, 0x10), 1235), Some(LockState::HeldByQvm));
        assert_eq!(at((0, 0x2c), 99), None, "another kind of lock");
        assert_eq!(at((0, 0x2c), 1235), None, "another device");
        assert_eq!(at((0xfe, 0x10), 1236), None, "only waited for");
    }

    #[test]
    fn device_is_that_of_the_mount() {
        let mounts = "35 1 0:44 /vms /var/lib/qvm rw,relatime shared:3 - btrfs /dev/sda2 rw\n\
                      36 35 259:1 / /boot rw - ext4 /dev/sda1 rw\n";
        let found = |id| mount(mounts, id);
        assert_eq!(found(35), Some(Mount { device: (0, 44), kind: "btrfs".into() }));
        assert_eq!(found(36), Some(Mount { device: (259, 1), kind: "ext4".into() }));
        assert_eq!(found(3), None);
    }
}
