//! A lock that a QEMU process holds on a file while it exists: an open file description lock
//! (fcntl_locking(2)).
//!
//! The supervisor acquires the lock and passes the descriptor to QEMU. Only QEMU holds the lock
//! then: the kernel releases it when QEMU exits, independent of the supervisor and of the file.
//! Probing never acquires a lock. The length of a lock identifies its holder: qvm, or QEMU.

pub(crate) mod proc_locks;
pub(crate) mod state;

pub use self::state::LockState;
pub(crate) use self::state::OWN_LENGTH;

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::{
        fd::OwnedFd,
        unix::fs::{MetadataExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::{FcntlArg, fcntl},
    libc,
};

use crate::value::ErrorCode;

/// Only the owner may open a lock file: every process that can open it can acquire the lock.
const MODE: u32 = 0o600;
/// Why a lock was not acquired.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another process holds the lock.
    #[error("another process holds the lock `{}`", .0.display())]
    Held(PathBuf),
    /// The file cannot be opened or locked.
    #[error("cannot lock `{}`", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
}

impl Error {
    /// The code of the error.
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Held(_) => ErrorCode::LockHeld,
            Self::Io { source, .. } => ErrorCode::of_io(source),
        }
    }
}

/// A lock that this process holds; released when the last copy of its descriptor is closed.
#[derive(Debug)]
pub struct LivenessLock {
    file: File,
}

impl LivenessLock {
    /// Acquires the lock on the file at `path`, which is created if it does not exist.
    ///
    /// # Errors
    /// Another process holds the lock, or the file cannot be created or locked.
    pub fn acquire(path: &Path) -> Result<Self, Error> {
        let wrap = |source| Error::Io { path: path.to_owned(), source };
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(MODE);
        options.custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
        loop {
            let file = options.open(path).map_err(wrap)?;
            let lock = write_lock(OWN_LENGTH);
            match fcntl(&file, FcntlArg::F_OFD_SETLK(&lock)) {
                Ok(_) => {}
                Err(Errno::EAGAIN | Errno::EACCES) => return Err(Error::Held(path.to_owned())),
                Err(Errno::EINTR) => continue,
                Err(error) => return Err(wrap(error.into())),
            }
            // If the file was removed between open and lock, another process could lock a new file.
            if is_at(&file, path).map_err(wrap)? {
                return Ok(Self { file });
            }
        }
    }

    /// Extends the lock to a lock of QEMU, and returns the descriptor to pass to QEMU.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn into_qemu_fd(self) -> io::Result<OwnedFd> {
        fcntl(&self.file, FcntlArg::F_OFD_SETLK(&write_lock(0)))?;
        Ok(self.file.into())
    }
}

/// A write lock from the first byte on; length 0 means no end.
fn write_lock(length: i64) -> libc::flock {
    // Both constants fit: F_WRLCK is 1, SEEK_SET is 0.
    libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: length,
        l_pid: 0,
    }
}

/// Returns true if `path` still names the open file.
fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    let open = file.metadata()?;
    match fs::symlink_metadata(path) {
        Ok(named) => Ok((open.dev(), open.ino()) == (named.dev(), named.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Returns the state of a lock without acquiring it. If this user may not open the file,
/// /proc/locks is read.
///
/// # Errors
/// The state cannot be determined.
pub fn probe(path: &Path) -> io::Result<LockState> {
    let mut options = OpenOptions::new();
    options.read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
    let file = match options.open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(LockState::Missing),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            return super::liveness_lock::proc_locks::probe(path);
        }
        Err(error) => return Err(error),
    };
    let mut lock = write_lock(0);
    fcntl(&file, FcntlArg::F_OFD_GETLK(&mut lock))?;
    if i32::from(lock.l_type) == libc::F_UNLCK {
        return Ok(LockState::Free);
    }
    Ok(LockState::of_length((lock.l_len != 0).then_some(lock.l_len)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probe_reports_the_holder() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("qemu.lock");
        let probed = || {
            let state = probe(&path).unwrap();
            assert_eq!(proc_locks::probe(&path).unwrap(), state);
            let refused = LivenessLock::acquire(&path);
            match state {
                LockState::Missing | LockState::Free => drop(refused.unwrap()),
                LockState::HeldByQvm | LockState::HeldByQemu => {
                    assert!(matches!(refused.unwrap_err(), Error::Held(_)));
                }
            }
            state
        };
        assert_eq!(probe(&path).unwrap(), LockState::Missing);
        let lock = LivenessLock::acquire(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
        assert_eq!((probed(), probed()), (LockState::HeldByQvm, LockState::HeldByQvm));
        let passed = lock.into_qemu_fd().unwrap();
        assert_eq!((probed(), probed()), (LockState::HeldByQemu, LockState::HeldByQemu));
        // The copy that QEMU inherits keeps the lock.
        let copy = passed.try_clone().unwrap();
        drop(passed);
        assert_eq!(probed(), LockState::HeldByQemu);
        drop(copy);
        assert_eq!(probed(), LockState::Free);
    }

    #[test]
    fn probe_never_fails_an_acquisition() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("qemu.lock");
        drop(LivenessLock::acquire(&path).unwrap());
        let done = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(std::sync::atomic::Ordering::Relaxed) {
                    probe(&path).unwrap();
                }
            });
            for _ in 0..2000 {
                drop(LivenessLock::acquire(&path).unwrap());
            }
            done.store(true, std::sync::atomic::Ordering::Relaxed);
        });
    }

    #[test]
    fn unreachable_file_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        assert!(probe(&file.join("qemu.lock")).is_err());
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&file, &link).unwrap();
        assert!(probe(&link).is_err());
        assert!(LivenessLock::acquire(&link).is_err());
    }
}
