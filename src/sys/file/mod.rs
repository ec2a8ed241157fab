//! Reads, lists, removes and atomically replaces files: at every instant a file has either its old
//! or its new content.

pub(crate) mod directory;
pub(crate) mod error;
pub(crate) mod temporary;

pub use self::directory::{list, make_dir, remove, remove_tree, sync_dir};

pub use self::error::Error;

use std::{
    fs::{self, File, OpenOptions, Permissions},
    io::{self, Read},
    os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

pub use self::temporary::{Temporary, remove_abandoned, remove_abandoned_beside};

/// The name prefix of unfinished files and directories. No VM name begins like this.
pub const UNFINISHED: &str = ".qvm-";

/// Returns true if the path has the name of an unfinished file.
pub fn is_unfinished(path: &Path) -> bool {
    path.file_name().and_then(|n| n.to_str()).is_some_and(|n| n.starts_with(UNFINISHED))
}

/// Returns the fixed temporary name of `path`, for content that another program such as qemu-img
/// writes. The caller holds a lock that excludes other writers of `path`; the next holder of this
/// lock removes the leftover of a crash. Use [`Temporary`] for everything else.
pub fn temporary_under_lock(path: &Path) -> PathBuf {
    let mut temporary = std::ffi::OsString::from(".qvm-");
    temporary.push(path.file_name().unwrap_or_default());
    // No program processes files with this suffix, whatever the suffix of the target.
    temporary.push(".tmp");
    path.with_file_name(temporary)
}

/// Creates an empty file with mode 0600 and replaces the leftover of a crash.
///
/// # Errors
/// The file cannot be created.
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

/// Syncs `from`, renames it to `to` and syncs the directory.
///
/// # Errors
/// Syncing or renaming fails.
pub fn commit(from: &Path, to: &Path) -> Result<(), Error> {
    File::open(from).and_then(|f| f.sync_all()).map_err(Error::on("sync", from))?;
    fs::rename(from, to).map_err(Error::on("rename to", to))?;
    sync_dir(to)
}

/// Replaces a small file atomically and durably: also after a power failure it has either its old
/// or its new content.
///
/// # Errors
/// Any step fails; no temporary file remains.
pub fn write(path: &Path, content: &[u8], mode: u32) -> Result<(), Error> {
    let temporary = Temporary::for_target(path)?;
    temporary.fill(path, content)?;
    temporary.replace(path, mode)
}

/// [`write`] for a file that must not exist: of concurrent writers exactly one succeeds.
///
/// # Errors
/// Any step fails; [`io::ErrorKind::AlreadyExists`] if the file exists. No temporary file remains.
pub fn write_new(path: &Path, content: &[u8], mode: u32) -> Result<(), Error> {
    remove_abandoned_beside(path);
    let temporary = Temporary::for_target(path)?;
    temporary.fill(path, content)?;
    temporary.create(path, mode)
}

/// [`write`] without syncing, for a file that need not survive a reboot of the host, such as one in
/// /run.
///
/// # Errors
/// The file cannot be written; the old file is unchanged and no temporary file remains.
pub fn write_volatile(path: &Path, content: &[u8], mode: u32) -> Result<(), Error> {
    let temporary = Temporary::for_target(path)?;
    temporary.fill(path, content)?;
    temporary.replace_volatile(path, mode)
}

/// [`write_volatile`] if content or mode differ; returns true if the file was written. For files
/// that are generated before each use: the leftover of a host crash is detected and replaced.
///
/// # Errors
/// The file cannot be written; the old file is unchanged.
pub fn write_if_changed(path: &Path, content: &[u8], mode: u32) -> Result<bool, Error> {
    let same_mode = fs::symlink_metadata(path)
        .is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o7777 == mode);
    if same_mode && fs::read(path).is_ok_and(|old| old == content) {
        return Ok(false);
    }
    write_volatile(path, content, mode).map(|()| true)
}

/// Replaces `to` by `from`, with the mode and the owner of `like`.
///
/// # Errors
/// Any step fails; `to` is unchanged. Only root may change the owner.
pub fn replace(from: &Path, to: &Path, like: &fs::Metadata) -> Result<(), Error> {
    use std::os::unix::fs::chown;
    let now = fs::metadata(from).map_err(Error::on("examine", from))?;
    if (now.uid(), now.gid()) != (like.uid(), like.gid()) {
        let owner = (Some(like.uid()), Some(like.gid()));
        chown(from, owner.0, owner.1).map_err(Error::on("keep the owner of", to))?;
    }
    // After chown(2), which may clear mode bits.
    set_mode(from, like.permissions().mode() & 0o7777)?;
    commit(from, to)
}

/// Sets the mode of a file.
///
/// # Errors
/// The mode cannot be set.
pub fn set_mode(path: &Path, mode: u32) -> Result<(), Error> {
    let permissions = Permissions::from_mode(mode);
    fs::set_permissions(path, permissions).map_err(Error::on("set the mode of", path))
}

/// Reads at most `most` bytes from `offset`.
///
/// # Errors
/// The file cannot be opened or read.
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

/// Reads a small file; `None` if it does not exist.
///
/// # Errors
/// The file exists and cannot be read.
pub fn read(path: &Path) -> Result<Option<Vec<u8>>, Error> {
    match fs::read(path) {
        Ok(content) => Ok(Some(content)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::on("read", path)(e)),
    }
}

/// Returns the modification time of a file in seconds since 1970; `None` if the file cannot be
/// examined.
pub fn written_at(path: &Path) -> Option<i64> {
    fs::metadata(path).ok().map(|found| found.mtime())
}

/// Identifies a file: device, inode, and modification time in seconds since 1970.
pub type FileId = (u64, u64, i64);

/// Returns the identity of the file at `path`; `None` if it cannot be examined. /proc/PID/exe is no
/// alternative: only the process's own user and its tracers may read it (proc_pid_exe(5)).
pub fn file_id(path: &Path) -> Option<FileId> {
    fs::metadata(path).ok().map(|found| (found.dev(), found.ino(), found.mtime()))
}

/// Returns the metadata of a file; `None` if it does not exist.
///
/// # Errors
/// The file cannot be examined, for example because a directory of its path may not be searched.
pub fn metadata(path: &Path) -> Result<Option<fs::Metadata>, Error> {
    match fs::metadata(path) {
        Ok(metadata) => Ok(Some(metadata)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::on("examine", path)(e)),
    }
}

/// Whether a path exists, also as a symbolic link to a missing file.
///
/// # Errors
/// That cannot be determined, for example because a directory of the path may not be searched.
pub fn exists(path: &Path) -> Result<bool, Error> {
    match path.symlink_metadata() {
        Ok(_) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(Error::on("examine", path)(e)),
    }
}

/// Removes the leftovers of a crash from a directory of a VM. The caller holds the VM's lock, which
/// excludes all writers except those of [`Temporary`]. Temporary files of running writers are kept.
///
/// # Errors
/// The directory cannot be read, or a file cannot be removed.
pub fn remove_leftovers(dir: &Path) -> Result<(), Error> {
    let left = |path: &PathBuf| match super::file::temporary::is_temporary(path) {
        true => super::file::temporary::remove_if_abandoned(path),
        false => remove(path),
    };
    list(dir)?.iter().filter(|p| is_unfinished(p)).try_for_each(left)
}

/// Returns the number of bytes that this user may still write to the file system of `dir`.
///
/// # Errors
/// The free space cannot be determined.
pub fn available(dir: &Path) -> Result<u64, Error> {
    fs2::available_space(dir).map_err(Error::on("get the free space of", dir))
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;
    use crate::value::Explain;

    #[test]
    fn write_is_atomic() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.json");
        write(&path, b"one", 0o640).unwrap();
        write(&path, b"two", 0o640).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o640);
        assert_eq!(list(dir.path()).unwrap(), [path]);
        let blocked = dir.path().join("d");
        fs::create_dir(&blocked).unwrap();
        assert!(write(&blocked, b"x", 0o600).is_err(), "a directory is not replaced");
        assert_eq!(list(dir.path()).unwrap().len(), 2, "no temporary file remains");
    }

    #[test]
    fn unreachable_path_is_not_absent() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("loop");
        assert!(!exists(&path).unwrap());
        std::os::unix::fs::symlink(&path, &path).unwrap();
        assert!(exists(&path).unwrap());
        // ELOOP, also for root.
        assert!(exists(&path.join("x")).is_err());
    }

    #[test]
    fn new_file_replaces_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.toml");
        write_new(&path, b"one", 0o640).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o640);
        let refused = write_new(&path, b"two", 0o640).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read(&path).unwrap(), b"one");
        assert_eq!(list(dir.path()).unwrap(), [path]);
    }

    /// Content of 1 to 64 KiB whose first byte identifies the writer.
    fn content(writer: u8) -> Vec<u8> {
        vec![writer; 1024 * (1 + usize::from(writer) % 64)]
    }

    fn is_whole(content: &[u8]) -> bool {
        content.first().is_some_and(|writer| content == self::content(*writer))
    }

    /// Writes `x.json` of a directory many times by each kind of writer.
    fn write_often(path: &Path, writer: u8) {
        for round in 0..40 {
            let content = content(writer);
            match round % 3 {
                0 => write(path, &content, 0o640).unwrap(),
                1 => write_volatile(path, &content, 0o640).unwrap(),
                _ => drop(write_if_changed(path, &content, 0o640).unwrap()),
            }
            remove_abandoned(path.parent().unwrap()).unwrap();
        }
    }

    /// The child process of the next test.
    #[test]
    #[ignore = "the child process of another test"]
    fn writing_process() {
        let env = |key| std::env::var(key).unwrap();
        write_often(Path::new(&env("QVM_TEST_FILE")), env("QVM_TEST_WRITER").parse().unwrap());
    }

    #[test]
    fn concurrent_writers_all_succeed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.json");
        write(&path, &content(1), 0o640).unwrap();
        let program = std::env::current_exe().unwrap();
        let processes: Vec<_> = (1..=4)
            .map(|writer| {
                Command::new(&program)
                    .args(["--ignored", "--exact", "sys::file::tests::writing_process"])
                    .env("QVM_TEST_FILE", &path)
                    .env("QVM_TEST_WRITER", writer.to_string())
                    .stdout(Stdio::piped())
                    .spawn()
                    .unwrap()
            })
            .collect();
        std::thread::scope(|scope| {
            for writer in 100..104 {
                let path = &path;
                scope.spawn(move || write_often(path, writer));
            }
            for _ in 0..500 {
                let seen = fs::read(&path).unwrap();
                assert!(is_whole(&seen), "{} bytes: {:?}", seen.len(), seen.first());
            }
        });
        for process in processes {
            let output = process.wait_with_output().unwrap();
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            assert!(output.status.success() && text.contains("1 passed"), "{text}");
        }
        assert!(is_whole(&fs::read(&path).unwrap()));
        assert_eq!(list(dir.path()).unwrap(), [path]);
    }

    #[test]
    fn one_of_many_creators_succeeds() {
        let dir = tempfile::tempdir().unwrap();
        for round in 0..20 {
            let path = dir.path().join(round.to_string());
            let made = std::thread::scope(|scope| {
                let path = &path;
                let new = move |writer| write_new(path, &content(writer), 0o600);
                let writers: Vec<_> =
                    (1..=8).map(|writer| scope.spawn(move || new(writer))).collect();
                let made: Vec<_> = writers.into_iter().map(|w| w.join().unwrap()).collect();
                let mut refused = made.iter().filter_map(|made| made.as_ref().err());
                assert!(refused.all(|error| error.kind() == io::ErrorKind::AlreadyExists));
                made.iter().filter(|made| made.is_ok()).count()
            });
            assert_eq!(made, 1);
            assert!(is_whole(&fs::read(&path).unwrap()));
        }
        assert_eq!(list(dir.path()).unwrap().len(), 20);
    }

    #[test]
    fn temporary_has_no_suffix_and_mode_0600() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("qvm.prom");
        let (one, other) =
            (Temporary::for_target(&target).unwrap(), Temporary::for_target(&target).unwrap());
        assert_ne!(one.path(), other.path());
        for temporary in [&one, &other] {
            assert_eq!(temporary.path().extension(), None);
            assert!(is_unfinished(temporary.path()));
            let mode = temporary.file().metadata().unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "only the owner reads an unfinished file");
        }
        let under_lock = temporary_under_lock(&dir.path().join("root.qcow2"));
        assert_eq!(under_lock, dir.path().join(".qvm-root.qcow2.tmp"));
        drop((one, other));
        assert!(list(dir.path()).unwrap().is_empty());
    }

    #[test]
    fn modes_do_not_depend_on_the_umask() {
        let dir = tempfile::tempdir().unwrap();
        // In a child process: the umask applies to the whole process.
        let program = std::env::current_exe().unwrap();
        for umask in ["000", "077", "777"] {
            let path = dir.path().join(umask);
            let script = format!("umask {umask}; exec \"$0\" \"$@\"");
            let done = Command::new("sh")
                .args(["-c", &script])
                .arg(&program)
                .args(["--ignored", "--exact", "sys::file::tests::writing_process"])
                .env("QVM_TEST_FILE", &path)
                .env("QVM_TEST_WRITER", "7")
                .stdout(Stdio::null())
                .status();
            assert!(done.unwrap().success());
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o640);
        }
    }

    #[test]
    fn only_files_of_dead_writers_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("identity.toml");
        let living = Temporary::for_target(&target).unwrap();
        let left = dir.path().join(".qvm-tmp_0123456789abcdef");
        let others =
            [".qvm-tmp_short", ".qvm-facts-x", ".qvm-web", "x"].map(|n| dir.path().join(n));
        for path in others.iter().chain([&left]) {
            fs::write(path, "").unwrap();
        }
        // The target of a symbolic link is not examined.
        let link = dir.path().join(".qvm-tmp_fedcba9876543210");
        std::os::unix::fs::symlink(&others[3], &link).unwrap();
        remove_abandoned(dir.path()).unwrap();
        assert!(living.path().exists() && link.is_symlink() && !left.exists());
        assert!(others.iter().all(|path| path.exists()));
        remove_abandoned(&dir.path().join("nowhere")).unwrap();
        fs::remove_file(link).unwrap();
        // With a VM's lock, every file without a writer is removed.
        remove_leftovers(dir.path()).unwrap();
        assert_eq!(list(dir.path()).unwrap(), [living.path().to_owned(), others[3].clone()]);
        living.replace(&target, 0o600).unwrap();
    }

    #[test]
    fn removes_only_leftovers() {
        let dir = tempfile::tempdir().unwrap();
        for name in [".qvm-root.qcow2", "root.qcow2", ".hidden"] {
            fs::write(dir.path().join(name), "").unwrap();
        }
        remove_leftovers(dir.path()).unwrap();
        let left: Vec<_> = list(dir.path()).unwrap();
        assert_eq!(left, [dir.path().join(".hidden"), dir.path().join("root.qcow2")]);
        remove_leftovers(&dir.path().join("nowhere")).unwrap();
    }

    #[test]
    fn error_names_operation_and_file() {
        let error = read_at(Path::new("/nowhere/x"), 0, 1).unwrap_err();
        assert_eq!(error.to_string(), "cannot read `/nowhere/x`");
        let full = Error::on("write", Path::new("/var/x"))(io::ErrorKind::StorageFull.into());
        assert!(full.hint().unwrap().contains("`/var`"));
    }
}
