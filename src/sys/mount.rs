//! The mount that a path is on: the type of its file system, its source and its mount point
//! (proc_pid_mountinfo(5)).

use std::{
    ffi::OsString,
    fs, io,
    os::unix::ffi::OsStringExt,
    path::{Path, PathBuf},
};

use rustix::fs::{AtFlags, CWD, StatxFlags, statx};

/// A mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// The type of the file system, such as `ext4`.
    pub file_system: String,
    /// What is mounted, such as a device; a name that the file system chooses.
    pub source: PathBuf,
    /// The directory that it is mounted on.
    pub point: PathBuf,
}

/// Returns the mount that `path` is on. Symbolic links are followed.
///
/// # Errors
/// The path cannot be reached, or the kernel does not report its mount.
pub fn of_path(path: &Path) -> io::Result<Mount> {
    let wanted = StatxFlags::BASIC_STATS | StatxFlags::MNT_ID;
    let stat = statx(CWD, path, AtFlags::empty(), wanted)?;
    if stat.stx_mask & StatxFlags::MNT_ID.bits() == 0 {
        return Err(io::Error::other("the kernel does not report mounts (statx(2))"));
    }
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    find(&mounts, stat.stx_mnt_id)
        .ok_or_else(|| io::Error::other("its mount is not in /proc/self/mountinfo"))
}

/// Returns the mount with this identifier.
fn find(mountinfo: &str, id: u64) -> Option<Mount> {
    let line = mountinfo
        .lines()
        .find(|line| line.split(' ').next().and_then(|first| first.parse().ok()) == Some(id))?;
    // An optional list of fields is before the hyphen.
    let (before, after) = line.split_once(" - ")?;
    let mut after = after.split(' ');
    let file_system = after.next()?.to_owned();
    let source = unescape(after.next()?);
    Some(Mount { file_system, source, point: unescape(before.split(' ').nth(4)?) })
}

/// Returns a field as it was before the kernel wrote blanks and backslashes as three octal digits.
fn unescape(field: &str) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        let digits = after.get(..3).filter(|_| byte == b'\\');
        let code = digits.and_then(|digits| std::str::from_utf8(digits).ok());
        match code.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(code) => {
                bytes.push(code);
                rest = after.get(3..).unwrap_or_default();
            }
            None => {
                bytes.push(byte);
                rest = after;
            }
        }
    }
    OsString::from_vec(bytes).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "21 1 8:1 / / rw,relatime shared:1 master:2 - ext4 /dev/sda1 rw\n\
                          30 21 0:25 /vms /srv/my\\040vms rw - btrfs /dev/mapper/pool rw\n";

    #[test]
    fn reads_type_source_and_point() {
        let root = find(MOUNTS, 21).unwrap();
        assert_eq!(
            (root.file_system.as_str(), root.source.as_path()),
            ("ext4", "/dev/sda1".as_ref())
        );
        assert_eq!(root.point, Path::new("/"));
        assert_eq!(find(MOUNTS, 30).unwrap().point, Path::new("/srv/my vms"));
        assert_eq!(find(MOUNTS, 2), None);
    }

    #[test]
    fn finds_the_mount_of_a_path() {
        let found = of_path(Path::new("/proc/self/status")).unwrap();
        assert_eq!((found.file_system.as_str(), found.point.as_path()), ("proc", "/proc".as_ref()));
        assert!(of_path(Path::new("/nowhere")).is_err());
    }
}
