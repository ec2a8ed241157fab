//! Files: read, listed, removed, and replaced so that at any instant the old content or the new one is there.

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

/// The prefix of the name of a file or directory that is not finished. No VM can have such a name.
pub const UNFINISHED: &str = ".qvm-";

/// Whether the name of a path is one of an unfinished file.
pub fn is_unfinished(path: &Path) -> bool {
    path.file_name().and_then(|n| n.to_str()).is_some_and(|n| n.starts_with(UNFINISHED))
}

/// The one temporary name of `path`, for content that another program writes by name, such as qemu-img. The caller holds a
/// lock that excludes every other writer of `path`; the next holder of that lock removes the leftover of a crash.
/// Everything else is written by [`Temporary`].
pub fn temporary_under_lock(path: &Path) -> PathBuf {
    let mut temporary = std::ffi::OsString::from(".qvm-");
    temporary.push(path.file_name().unwrap_or_default());
    // No program looks for files that end so, whatever the target ends in.
    temporary.push(".tmp");
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

/// Gives `from`, whose content is synced first, the name `to`, and makes that last.
///
/// # Errors
/// Syncing or renaming fails.
pub fn commit(from: &Path, to: &Path) -> Result<(), Error> {
    File::open(from).and_then(|f| f.sync_all()).map_err(Error::on("sync", from))?;
    fs::rename(from, to).map_err(Error::on("rename to", to))?;
    sync_dir(to)
}

/// Writes a small file so that at any instant, also after a power cut, the old content or the new one is there.
///
/// # Errors
/// Any step fails; nothing is left behind then.
pub fn write(path: &Path, content: &[u8], mode: u32) -> Result<(), Error> {
    let temporary = Temporary::beside(path)?;
    temporary.fill(path, content)?;
    temporary.replace(path, mode)
}

/// [`write`] for a file that must not be there yet: of two that make it at once, one does.
///
/// # Errors
/// Any step fails, with [`io::ErrorKind::AlreadyExists`] where it is there; nothing is left behind then.
pub fn write_new(path: &Path, content: &[u8], mode: u32) -> Result<(), Error> {
    remove_abandoned_beside(path);
    let temporary = Temporary::beside(path)?;
    temporary.fill(path, content)?;
    temporary.create(path, mode)
}

/// [`write`] for a file that need not survive the host's next boot, such as one in /run: nothing is synced.
///
/// # Errors
/// It cannot be written; the old file is then as it was, and nothing else is left.
pub fn write_volatile(path: &Path, content: &[u8], mode: u32) -> Result<(), Error> {
    let temporary = Temporary::beside(path)?;
    temporary.fill(path, content)?;
    temporary.replace_volatile(path, mode)
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

/// Tells a file from another of the same path: device, inode, and modification time in seconds since 1970.
pub type FileId = (u64, u64, i64);

/// Returns which file `path` is; `None` where there is none that can be examined. The program of a process cannot be asked for
/// it: /proc/PID/exe is readable for the process's own user and for who may trace it (proc_pid_exe(5)).
pub fn file_id(path: &Path) -> Option<FileId> {
    fs::metadata(path).ok().map(|found| (found.dev(), found.ino(), found.mtime()))
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

/// Removes what a crash left in a directory of a VM. Whoever calls holds the VM's lock, which keeps away every writer but those of
/// [`Temporary`]; theirs stay as long as their writer lives.
///
/// # Errors
/// The directory cannot be read, or a file not removed.
pub fn remove_left_overs(dir: &Path) -> Result<(), Error> {
    let left = |path: &PathBuf| match super::file::temporary::is_temporary(path) {
        true => super::file::temporary::remove_if_abandoned(path),
        false => remove(path),
    };
    list(dir)?.iter().filter(|p| is_unfinished(p)).try_for_each(left)
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
    use std::process::{Command, Stdio};

    use super::*;
    use crate::value::Explain;

    #[test]
    fn writes_whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.json");
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

    /// Content of 1 to 64 KiB whose every byte says which writer wrote it, and how much.
    fn content(writer: u8) -> Vec<u8> {
        vec![writer; 1024 * (1 + usize::from(writer) % 64)]
    }

    fn is_whole(content: &[u8]) -> bool {
        content.first().is_some_and(|writer| content == self::content(*writer))
    }

    /// Writes `x.json` of a directory by each kind of writer, many times.
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

    /// A process of its own, started by the test below.
    #[test]
    #[ignore = "a child of another test"]
    fn writing_process() {
        let env = |key| std::env::var(key).unwrap();
        write_often(Path::new(&env("QVM_TEST_FILE")), env("QVM_TEST_WRITER").parse().unwrap());
    }

    #[test]
    fn many_writers_of_one_name_all_succeed() {
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
    fn of_many_new_files_one_is_made() {
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
    fn a_temporary_has_no_suffix_and_is_its_writers_alone() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("qvm.prom");
        let (one, other) =
            (Temporary::beside(&target).unwrap(), Temporary::beside(&target).unwrap());
        assert_ne!(one.path(), other.path());
        for temporary in [&one, &other] {
            assert_eq!(temporary.path().extension(), None);
            assert!(is_unfinished(temporary.path()));
            let mode = temporary.file().metadata().unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "nobody else reads what is not finished");
        }
        let under_lock = temporary_under_lock(&dir.path().join("root.qcow2"));
        assert_eq!(under_lock, dir.path().join(".qvm-root.qcow2.tmp"));
        drop((one, other));
        assert!(list(dir.path()).unwrap().is_empty());
    }

    #[test]
    fn modes_do_not_depend_on_the_umask() {
        let dir = tempfile::tempdir().unwrap();
        // In a process of its own: the umask is the whole process'.
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
    fn only_what_a_dead_writer_left_is_abandoned() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("identity.toml");
        let living = Temporary::beside(&target).unwrap();
        let left = dir.path().join(".qvm-tmp_0123456789abcdef");
        let others =
            [".qvm-tmp_short", ".qvm-facts-x", ".qvm-web", "x"].map(|n| dir.path().join(n));
        for path in others.iter().chain([&left]) {
            fs::write(path, "").unwrap();
        }
        // What a link leads to is not looked at.
        let link = dir.path().join(".qvm-tmp_fedcba9876543210");
        std::os::unix::fs::symlink(&others[3], &link).unwrap();
        remove_abandoned(dir.path()).unwrap();
        assert!(living.path().exists() && link.is_symlink() && !left.exists());
        assert!(others.iter().all(|path| path.exists()));
        remove_abandoned(&dir.path().join("nowhere")).unwrap();
        fs::remove_file(link).unwrap();
        // Under a VM's lock goes whatever nobody is writing.
        remove_left_overs(dir.path()).unwrap();
        assert_eq!(list(dir.path()).unwrap(), [living.path().to_owned(), others[3].clone()]);
        living.replace(&target, 0o600).unwrap();
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
