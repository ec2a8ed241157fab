//! Files that matter: written beside their place, synced, and renamed into it.

use std::{
    fs::{self, DirBuilder, File, OpenOptions, Permissions},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use crate::plan::layout::VmPaths;

/// What was tried, on which file.
#[derive(Debug, thiserror::Error)]
#[error("cannot {doing} `{}`", .path.display())]
pub struct Error {
    doing: &'static str,
    path: PathBuf,
    source: io::Error,
}

impl Error {
    /// For `map_err`: what was tried on `path`.
    pub fn on(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self { doing, path: path.to_owned(), source }
    }

    /// The cause.
    pub fn kind(&self) -> io::ErrorKind {
        self.source.kind()
    }

    /// The host is at fault: there is no room, or its disk fails.
    pub fn is_the_hosts(&self) -> bool {
        use io::ErrorKind::{
            QuotaExceeded, ReadOnlyFilesystem, StaleNetworkFileHandle, StorageFull,
        };
        let kind = self.source.kind();
        matches!(kind, StorageFull | QuotaExceeded | ReadOnlyFilesystem | StaleNetworkFileHandle)
            || self.source.raw_os_error() == Some(nix::libc::EIO)
    }

    /// The way out, where there is one.
    pub fn hint(&self) -> Option<String> {
        let place = self.path.parent().unwrap_or(&self.path).display();
        match self.source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Some(format!(
                "make room on the file system of `{place}`; `qvm image prune` removes images that no VM needs"
            )),
            io::ErrorKind::FileTooLarge => Some(format!(
                "the file system of `{place}`, or a limit (`ulimit -f`), allows no file of that size"
            )),
            io::ErrorKind::PermissionDenied => {
                Some(format!("run as the user who owns `{place}`, or as root"))
            }
            io::ErrorKind::ReadOnlyFilesystem => {
                Some(format!("`{place}` must be on a file system that can be written"))
            }
            _ => None,
        }
    }
}

/// The mode of a directory: its group may read it.
const DIRECTORY: u32 = 0o750;

/// Makes a directory, and those above it, with mode 0750 whatever the umask is. A directory that exists keeps its mode.
///
/// # Errors
/// It cannot be made.
pub fn make_dir(dir: &Path) -> Result<(), Error> {
    make_dirs(dir).map_err(Error::on("make the directory", dir))
}

fn make_dirs(dir: &Path) -> io::Result<()> {
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

/// Where what becomes `path` is written first.
pub fn temporary(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default();
    let mut temporary = std::ffi::OsString::from(".qvm-");
    temporary.push(name);
    path.with_file_name(temporary)
}

/// A new empty file with mode 0600, in the place of one that a crash left there.
///
/// # Errors
/// It cannot be made.
pub fn create(path: &Path) -> Result<File, Error> {
    remove(path)?;
    OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(Error::on("create", path))
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

/// Gives `from`, whose content is synced first, the name `to`, and makes that last.
///
/// # Errors
/// Syncing or renaming fails.
pub fn commit(from: &Path, to: &Path) -> Result<(), Error> {
    File::open(from).and_then(|f| f.sync_all()).map_err(Error::on("sync", from))?;
    fs::rename(from, to).map_err(Error::on("rename to", to))?;
    sync_dir(to)
}

/// Makes the names in the directory of `path` last.
///
/// # Errors
/// Syncing fails.
pub fn sync_dir(path: &Path) -> Result<(), Error> {
    let dir = path.parent().unwrap_or(Path::new("/"));
    File::open(dir).and_then(|d| d.sync_all()).map_err(Error::on("sync the directory", dir))
}

/// Writes a small file so that at any instant the old content or the new one is there.
///
/// # Errors
/// Any step fails; nothing is left behind then.
pub fn write(path: &Path, content: &[u8], mode: u32) -> Result<(), Error> {
    let temporary = temporary(path);
    let written = create(&temporary).and_then(|mut file| {
        file.write_all(content).map_err(Error::on("write", &temporary))?;
        set_mode(&temporary, mode)?;
        commit(&temporary, path)
    });
    written.inspect_err(|_| drop(fs::remove_file(&temporary)))
}

/// [`write`] for a file that must not be there yet: of two that make it at once, one does.
///
/// # Errors
/// Any step fails, with [`io::ErrorKind::AlreadyExists`] where it is there; nothing is left behind then.
pub fn write_new(path: &Path, content: &[u8], mode: u32) -> Result<(), Error> {
    // Nobody else's, who makes the same.
    let mut own = temporary(path).into_os_string();
    own.push(format!("-{}", std::process::id()));
    let temporary = PathBuf::from(own);
    let written = create(&temporary).and_then(|mut file| {
        file.write_all(content).map_err(Error::on("write", &temporary))?;
        set_mode(&temporary, mode)?;
        file.sync_all().map_err(Error::on("sync", &temporary))?;
        // Unlike rename(2), link(2) replaces nothing.
        fs::hard_link(&temporary, path).map_err(Error::on("make", path))
    });
    let _ = fs::remove_file(&temporary);
    written.and_then(|()| sync_dir(path))
}

/// [`write`] for a file that need not survive the host's next boot, such as one in /run: nothing is synced.
///
/// # Errors
/// It cannot be written; the old file is then as it was, and nothing else is left.
pub fn write_volatile(path: &Path, content: &[u8], mode: u32) -> Result<(), Error> {
    let temporary = temporary(path);
    let _ = fs::remove_file(&temporary);
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(mode);
    let mut file = options.open(&temporary).map_err(Error::on("make", &temporary))?;
    // The umask may have taken bits of the mode away.
    let written = file
        .set_permissions(Permissions::from_mode(mode))
        .and_then(|()| file.write_all(content))
        .map_err(Error::on("write", &temporary));
    drop(file);
    let replaced =
        written.and_then(|()| fs::rename(&temporary, path).map_err(Error::on("replace", path)));
    replaced.inspect_err(|_| drop(fs::remove_file(&temporary)))
}

/// [`write_volatile`], unless the file has this content and this mode already; true when it was written. For what is made
/// anew from other files before each use: what a crash of the host leaves of it is compared, and replaced.
///
/// # Errors
/// It cannot be written; the old file is then as it was.
pub fn write_if_changed(path: &Path, content: &[u8], mode: u32) -> Result<bool, Error> {
    let same_mode = fs::symlink_metadata(path)
        .is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o7777 == mode);
    if same_mode && fs::read(path).is_ok_and(|old| old == content) {
        return Ok(false);
    }
    write_volatile(path, content, mode).map(|()| true)
}

/// Puts `from` in the place of `to`, with the mode and the owner that `like` has.
///
/// # Errors
/// Any step fails; `to` is then as it was. Only root may give a file to another user.
pub fn replace(from: &Path, to: &Path, like: &fs::Metadata) -> Result<(), Error> {
    use std::os::unix::fs::chown;
    let now = fs::metadata(from).map_err(Error::on("look at", from))?;
    if (now.uid(), now.gid()) != (like.uid(), like.gid()) {
        let owner = (Some(like.uid()), Some(like.gid()));
        chown(from, owner.0, owner.1).map_err(Error::on("keep the owner of", to))?;
    }
    // After the owner: to change that may take away bits of the mode.
    set_mode(from, like.permissions().mode() & 0o7777)?;
    commit(from, to)
}

/// Sets the permissions.
///
/// # Errors
/// They cannot be set.
pub fn set_mode(path: &Path, mode: u32) -> Result<(), Error> {
    let permissions = Permissions::from_mode(mode);
    fs::set_permissions(path, permissions).map_err(Error::on("set the mode of", path))
}

/// The first bytes of a file, at most so many, from `offset`.
///
/// # Errors
/// It cannot be opened or read.
pub fn read_at(path: &Path, offset: u64, most: usize) -> Result<Vec<u8>, Error> {
    use std::io::Seek;
    let read = || {
        let mut file = File::open(path)?;
        file.seek(io::SeekFrom::Start(offset))?;
        let mut bytes = Vec::with_capacity(most);
        file.take(most as u64).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    read().map_err(Error::on("read", path))
}

/// A whole small file; `None` where there is none.
///
/// # Errors
/// It is there and cannot be read.
pub fn read(path: &Path) -> Result<Option<Vec<u8>>, Error> {
    match fs::read(path) {
        Ok(content) => Ok(Some(content)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::on("read", path)(e)),
    }
}

/// When a file was last written, in seconds since 1970; `None` where there is none that can be looked at.
pub fn written_at(path: &Path) -> Option<i64> {
    fs::metadata(path).ok().map(|found| found.mtime())
}

/// What is known of a file without opening it; `None` where there is none.
///
/// # Errors
/// A directory on the way may not be searched, and the like.
pub fn metadata(path: &Path) -> Result<Option<fs::Metadata>, Error> {
    match fs::metadata(path) {
        Ok(metadata) => Ok(Some(metadata)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::on("look at", path)(e)),
    }
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

/// Removes what a crash left in a directory. Whoever calls holds the lock of whatever writes there.
///
/// # Errors
/// The directory cannot be read, or a file not removed.
pub fn remove_left_overs(dir: &Path) -> Result<(), Error> {
    list(dir)?.iter().filter(|p| VmPaths::is_left_over(p)).try_for_each(|p| remove(p))
}

/// How many bytes this user may still write on the file system of `dir`.
///
/// # Errors
/// It cannot be found out.
pub fn available(dir: &Path) -> Result<u64, Error> {
    fs2::available_space(dir).map_err(Error::on("find the free space of", dir))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.json");
        fs::write(temporary(&path), "left by a crash").unwrap();
        write(&path, b"one", 0o640).unwrap();
        write(&path, b"two", 0o640).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o640);
        assert_eq!(list(dir.path()).unwrap(), [path]);
        let blocked = dir.path().join("d");
        fs::create_dir(&blocked).unwrap();
        assert!(write(&blocked, b"x", 0o600).is_err(), "a directory is no place for a file");
        assert_eq!(list(dir.path()).unwrap().len(), 2, "and leaves nothing");
    }

    #[test]
    fn a_new_file_replaces_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.toml");
        write_new(&path, b"one", 0o640).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o640);
        let refused = write_new(&path, b"two", 0o640).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read(&path).unwrap(), b"one");
        assert_eq!(list(dir.path()).unwrap(), [path]);
    }

    #[test]
    fn removes_only_left_overs() {
        let dir = tempfile::tempdir().unwrap();
        for name in [".qvm-root.qcow2", "root.qcow2", ".hidden"] {
            fs::write(dir.path().join(name), "").unwrap();
        }
        remove_left_overs(dir.path()).unwrap();
        let left: Vec<_> = list(dir.path()).unwrap();
        assert_eq!(left, [dir.path().join(".hidden"), dir.path().join("root.qcow2")]);
        remove_left_overs(&dir.path().join("nowhere")).unwrap();
    }

    #[test]
    fn says_what_on_what_and_why() {
        let error = read_at(Path::new("/nowhere/x"), 0, 1).unwrap_err();
        assert_eq!(error.to_string(), "cannot read `/nowhere/x`");
        let full = Error::on("write", Path::new("/var/x"))(io::ErrorKind::StorageFull.into());
        assert!(full.hint().unwrap().contains("`/var`"));
    }
}
