//! Finds the file system of a file.

use std::{
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

/// Returns the mount point of the file system of `file`: the uppermost directory on the same
/// device. `None` if the file cannot be examined.
pub fn mount_point(file: &Path) -> Option<PathBuf> {
    let file = file.canonicalize().ok()?;
    let device = file.metadata().ok()?.dev();
    let same = |path: &&Path| path.metadata().is_ok_and(|found| found.dev() == device);
    file.ancestors().skip(1).take_while(same).last().map(Path::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_mount_points_of_files_and_links() {
        assert_eq!(mount_point(Path::new("/proc/self/status")), Some("/proc".into()));
        let dir = tempfile::tempdir().unwrap();
        let link = dir.path().join("link");
        std::os::unix::fs::symlink("/proc/version", &link).unwrap();
        assert_eq!(mount_point(&link), Some("/proc".into()));
        assert_eq!(mount_point(&dir.path().join("none")), None);
    }
}
