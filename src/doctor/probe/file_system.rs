//! The size and free space of the file system of a directory (statvfs(3)).

use std::{io, path::Path};

use crate::doctor::rules::DiskSpace;

/// Probes the directory, or its nearest existing parent.
///
/// # Errors
/// The error of statvfs(3).
pub fn disk_space(directory: &Path) -> io::Result<DiskSpace> {
    let there = directory.ancestors().find(|above| above.is_dir()).unwrap_or(directory);
    let stat = rustix::fs::statvfs(there)?;
    let bytes = |blocks: u64| blocks.saturating_mul(stat.f_frsize);
    Ok(DiskSpace {
        at: directory.display().to_string(),
        free: bytes(stat.f_bavail),
        total: bytes(stat.f_blocks),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_directory_is_probed_at_its_parent() {
        let directory = tempfile::tempdir().unwrap();
        let space = disk_space(&directory.path().join("a/b")).unwrap();
        assert!(space.at.ends_with("/a/b") && space.total > 0, "{space:?}");
        assert!(space.free <= space.total, "{space:?}");
    }
}
