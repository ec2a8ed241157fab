//! Directories: made, listed, emptied and flushed.

use super::error::Error;

use std::{
    fs::{self, DirBuilder, File, Permissions},
    io::{self},
    os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
};

/// The mode of a directory: its group may read it.
pub(crate) const DIRECTORY: u32 = 0o750;

/// Makes a directory, and those above it, with mode 0750 whatever the umask is. A directory that exists keeps its mode.
///
/// # Errors
/// It cannot be made.
pub fn make_dir(dir: &Path) -> Result<(), Error> {
    make_dirs(dir).map_err(Error::on("make the directory", dir))
}

pub(crate) fn make_dirs(dir: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(DIRECTORY).create(dir) {
        Ok(()) => {
            let made = File::open(dir)?;
            let mode = made.metadata()?.mode() & 0o7777;
            // The umask may have taken bits away. Only then: chmod(2) by a process without CAP_FSETID, as a supervisor is,
            // takes away set-group-ID, which is inherited and gives the files in it their group.
            match mode & 0o777 == DIRECTORY {
                true => Ok(()),
                false => made.set_permissions(Permissions::from_mode(mode & 0o7000 | DIRECTORY)),
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => match dir.parent() {
            Some(above) if above != Path::new("") => {
                make_dirs(above)?;
                make_dirs(dir)
            }
            _ => Err(error),
        },
        Err(_) if dir.is_dir() => Ok(()),
        Err(error) => Err(error),
    }
}

/// The directory that a path is in; `.` for a bare name.
pub(crate) fn dir_of(path: &Path) -> &Path {
    match path.parent() {
        Some(dir) if dir != Path::new("") => dir,
        Some(_) => Path::new("."),
        None => Path::new("/"),
    }
}

/// Removes a file; one that is not there is removed already.
///
/// # Errors
/// It cannot be removed.
pub fn remove(path: &Path) -> Result<(), Error> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(Error::on("remove", path)(e)),
        _ => Ok(()),
    }
}

/// Removes a directory with all that is in it; one that is not there is removed already.
///
/// # Errors
/// Something in it cannot be removed.
pub fn remove_tree(dir: &Path) -> Result<(), Error> {
    match fs::remove_dir_all(dir) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(Error::on("remove", dir)(e)),
        _ => Ok(()),
    }
}

/// Makes the names in the directory of `path` last.
///
/// # Errors
/// Syncing fails.
pub fn sync_dir(path: &Path) -> Result<(), Error> {
    let dir = dir_of(path);
    File::open(dir).and_then(|d| d.sync_all()).map_err(Error::on("sync the directory", dir))
}

/// The files of a directory, in the order of their names; none where the directory is not there.
///
/// # Errors
/// It cannot be read.
pub fn list(dir: &Path) -> Result<Vec<PathBuf>, Error> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(Error::on("read the directory", dir)(e)),
    };
    let paths: io::Result<Vec<PathBuf>> = entries.map(|e| e.map(|e| e.path())).collect();
    let mut paths = paths.map_err(Error::on("read the directory", dir))?;
    paths.sort();
    Ok(paths)
}
