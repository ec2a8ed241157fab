//! The size and free space of the file system of a directory (statvfs(3)).

use std::{io, path::Path};

use crate::doctor::rules::Room;

/// Probes the directory, or its nearest existing parent.
///
/// # Errors
/// The error of statvfs(3).
pub fn room(directory: &Path) -> io::Result<Room> {
    let there = directory.ancestors().find(|above| above.is_dir()).unwrap_or(directory);
    let stat = rustix::fs::statvfs(there)?;
    let bytes = |blocks: u64| blocks.saturating_mul(stat.f_frsize);
    Ok(Room {
        at: directory.display().to_string(),
        free: bytes(stat.f_bavail),
        total: bytes(stat.f_blocks),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_that_is_not_there_yet_is_in_the_one_above() {
        let directory = tempfile::tempdir().unwrap();
        let room = room(&directory.path().join("a/b")).unwrap();
        assert!(room.at.ends_with("/a/b") && room.free <= room.total && room.total > 0, "{room:?}");
    }
}
