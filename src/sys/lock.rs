//! The lock that allows only one supervisor a VM. The kernel releases it when the process ends.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Seek, Write},
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt},
    },
    path::{Path, PathBuf},
};

use rustix::io::{FdFlags, fcntl_setfd};

use super::flock;
use crate::value::{ErrorCode, Explain, is_host_fault};

/// Why the lock was not acquired.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another process holds the lock.
    #[error("already supervised by pid {}", pid.map_or("unknown".to_owned(), |p| p.to_string()))]
    Held {
        /// The holder's PID from the file, if readable.
        pid: Option<u32>,
    },
    /// The file cannot be created or locked.
    #[error("cannot lock `{}`", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
}

impl Explain for Error {
    fn own_code(&self) -> Option<ErrorCode> {
        Some(match self {
            Self::Held { .. } => ErrorCode::AlreadySupervised,
            Self::Io { source, .. } => ErrorCode::of_io(source),
        })
    }

    fn own_hint(&self) -> Option<String> {
        match self {
            Self::Held { .. } => {
                Some("`qvm status` shows the state of the VM; `qvm stop` stops the VM".into())
            }
            Self::Io { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                Some("run qvm as root, or choose another directory with `--runtime-dir`".into())
            }
            Self::Io { path, source } if source.kind() == io::ErrorKind::StorageFull => {
                let place = path.parent().unwrap_or(path).display();
                Some(format!("free space on the file system of `{place}`"))
            }
            Self::Io { .. } => None,
        }
    }

    fn is_own_host_fault(&self) -> bool {
        is_host_fault(self)
    }
}

/// Only the owner may open the file: flock(2) works on any readable descriptor, so every reader
/// could hold the lock.
const MODE: u32 = 0o600;

/// A held lock.
#[derive(Debug)]
pub struct Lock {
    file: File,
}

impl Lock {
    /// Acquires the lock. The directory of `path` must exist.
    ///
    /// # Errors
    /// Another process holds the lock, or the file cannot be created.
    pub fn acquire(path: &Path) -> Result<Self, Error> {
        let wrap = |source| Error::Io { path: path.to_owned(), source };
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(MODE);
        let mut file = loop {
            let file = options.open(path).map_err(wrap)?;
            narrow(&file);
            if !flock::try_exclusive(&file).map_err(wrap)? {
                return Err(Error::Held { pid: written_pid(path) });
            }
            // If the file was removed between open and lock, another process could lock a new file.
            if same(&file.metadata().map_err(wrap)?, path) {
                break file;
            }
        };
        file.set_len(0).map_err(wrap)?;
        file.rewind().map_err(wrap)?;
        writeln!(file, "{}", std::process::id()).map_err(wrap)?;
        Ok(Self { file })
    }

    /// Returns the PID of the lock's holder; `None` if the lock is free, `Some(None)` if the PID is
    /// unknown.
    pub fn holder(path: &Path) -> Option<Option<u32>> {
        let file = File::open(path).ok()?;
        match flock::try_shared(&file) {
            Ok(true) => None,
            Ok(false) | Err(_) => Some(written_pid(path)),
        }
    }

    /// Keeps the descriptor open across exec; the returned number is for [`Lock::inherited`].
    ///
    /// # Errors
    /// The descriptor flags cannot be set.
    pub fn pass_on(&self) -> io::Result<i32> {
        fcntl_setfd(&self.file, FdFlags::empty())?;
        Ok(self.file.as_raw_fd())
    }

    /// Returns the lock that was passed across exec; `None` if `fd` is not the file at `path`.
    pub fn inherited(fd: i32, path: &Path) -> Option<Self> {
        if !same(&fs::metadata(format!("/proc/self/fd/{fd}")).ok()?, path) {
            return None;
        }
        // SAFETY: the descriptor is open, as /proc shows, and exec passed it with this number only
        // for this use: the rest of the program opens its own descriptors.
        let file = File::from(unsafe { OwnedFd::from_raw_fd(fd) });
        fcntl_setfd(&file, FdFlags::CLOEXEC).ok()?;
        Some(Self { file })
    }
}

/// Restricts a lock file of an earlier version to its owner, if the file system has modes.
fn narrow(file: &File) {
    if file.metadata().is_ok_and(|meta| meta.mode() & 0o7777 != MODE) {
        let _ = file.set_permissions(fs::Permissions::from_mode(MODE));
    }
}

/// Returns true if `path` names the open file.
fn same(open: &fs::Metadata, path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|named| (open.dev(), open.ino()) == (named.dev(), named.ino()))
}

/// Returns the PID that holds a flock(2) on a file (proc_locks(5)). `None` if there is none, if it
/// is in another PID namespace, or if the file system reports another device number there than in
/// stat(2), as btrfs does.
pub fn holding_process(path: &Path) -> Option<u32> {
    let file = fs::metadata(path).ok()?;
    let (major, minor) = (rustix::fs::major(file.dev()), rustix::fs::minor(file.dev()));
    let place = format!("{major:02x}:{minor:02x}:{}", file.ino());
    // `1: FLOCK ADVISORY WRITE 4711 08:01:1234 0 EOF`; a waiting process has `->` after the number.
    fs::read_to_string("/proc/locks").ok()?.lines().find_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [_, "FLOCK", _, _, pid, at, ..] = words[..] else { return None };
        pid.parse().ok().filter(|pid| at == place && *pid > 0)
    })
}

fn written_pid(path: &Path) -> Option<u32> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refused_process_gets_the_holders_pid() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let lock = Lock::acquire(&path).unwrap();
        let error = Lock::acquire(&path).unwrap_err();
        assert_eq!(error.to_string(), format!("already supervised by pid {}", std::process::id()));
        assert_eq!(Lock::holder(&path), Some(Some(std::process::id())));
        drop(lock);
        assert_eq!(Lock::holder(&path), None);
        Lock::acquire(&path).unwrap();
    }

    #[test]
    fn readers_cannot_acquire_the_lock() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let mode = || fs::metadata(&path).unwrap().mode() & 0o7777;
        drop(Lock::acquire(&path).unwrap());
        assert_eq!(mode(), 0o600);
        // A file of an earlier version is restricted even if its lock is held.
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let reader = File::open(&path).unwrap();
        flock::shared(&reader).unwrap();
        assert!(matches!(Lock::acquire(&path), Err(Error::Held { .. })));
        assert_eq!(mode(), 0o600);
        drop(reader);
        Lock::acquire(&path).unwrap();
    }

    #[test]
    fn only_the_lock_file_is_inherited() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let lock = Lock::acquire(&path).unwrap();
        let other = File::open("/dev/null").unwrap();
        assert!(Lock::inherited(other.as_raw_fd(), &path).is_none());
        assert!(Lock::inherited(1_000_000, &path).is_none());
        drop(lock);
    }
}
