//! Creates, lists, empties and syncs directories.

use super::error::Error;

use std::{
    fs::{self, DirBuilder, File, Permissions},
    io::{self},
    os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
};

/// The mode of directories: the group may read.
pub(crate) const DIRECTORY: u32 = 0o750;

/// Creates a directory and its parents with mode 0750, independent of the umask. An existing
/// directory keeps its mode.
///
/// # Errors
/// The directory cannot be created.
pub fn make_dir(dir: &Path) -> Result<(), Error> {
    make_dirs(dir).map_err(Error::on("create the directory", dir))
}

pub(crate) fn make_dirs(dir: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(DIRECTORY).create(dir) {
        Ok(()) => {
            let made = File::open(dir)?;
            let mode = made.metadata()?.mode() & 0o7777;
            // The umask may have removed bits. chmod(2) is called only then: without CAP_FSETID, as
            // in a supervisor, it removes the set-group-ID bit, which the directory inherits to
            // give its files their group.
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

/// Returns the directory of a path; `.` for a file name alone.
pub(crate) fn dir_of(path: &Path) -> &Path {
    match path.parent() {
        Some(dir) if dir != Path::new("") => dir,
        Some(_) => Path::new("."),
        None => Path::new("/"),
    }
}

/// Removes a file. A missing file is no error.
///
/// # Errors
/// The file cannot be removed.
pub fn remove(path: &Path) -> Result<(), Error> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(Error::on("remove", path)(e)),
        _ => Ok(()),
    }
}

/// Removes a directory with its content. A missing directory is no error.
///
/// # Errors
/// An entry cannot be removed.
pub fn remove_tree(dir: &Path) -> Result<(), Error> {
    match fs::remove_dir_all(dir) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(Error::on("remove", dir)(e)),
        _ => Ok(()),
    }
}

/// Makes changes of names in the directory of `path` durable.
///
/// # Errors
/// Syncing fails.
pub fn sync_dir(path: &Path) -> Result<(), Error> {
    let dir = dir_of(path);
    File::open(dir).and_then(|d| d.sync_all()).map_err(Error::on("sync the directory", dir))
}

/// Returns the paths in a directory, sorted by name; none if the directory does not exist.
///
/// # Errors
/// The directory cannot be read.
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
