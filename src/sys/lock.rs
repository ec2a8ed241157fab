//! One supervisor a VM: a lock on a file, held as long as the descriptor is open, gone with the process however it ends.

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
use crate::value::{Explain, is_host_fault};

/// Why the lock was not taken.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Somebody else holds it.
    #[error("already supervised by pid {}", pid.map_or("unknown".to_owned(), |p| p.to_string()))]
    Taken {
        /// The holder, as it wrote itself down.
        pid: Option<u32>,
    },
    /// The file cannot be made.
    #[error("cannot lock `{}`", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl Explain for Error {
    fn own_hint(&self) -> Option<String> {
        match self {
            Self::Taken { .. } => {
                Some("`qvm status` shows what it is doing; `qvm stop` ends it".into())
            }
            Self::Io { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                Some("run it as root, or with a `--runtime-dir` of your own".into())
            }
            Self::Io { path, source } if source.kind() == io::ErrorKind::StorageFull => {
                let place = path.parent().unwrap_or(path).display();
                Some(format!("make room on the file system of `{place}`"))
            }
            Self::Io { .. } => None,
        }
    }

    fn is_own_host_fault(&self) -> bool {
        is_host_fault(self)
    }
}

/// Nobody else opens it: flock(2) asks for no more than a descriptor that reads, so whoever may read a lock may hold it.
const MODE: u32 = 0o600;

/// The lock, held.
#[derive(Debug)]
pub struct Lock {
    file: File,
}

impl Lock {
    /// Takes the lock, or says who has it. The directory of `path` has to be there.
    ///
    /// # Errors
    /// It is taken, or the file cannot be made.
    pub fn acquire(path: &Path) -> Result<Self, Error> {
        let wrap = |source| Error::Io { path: path.to_owned(), source };
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(MODE);
        let mut file = loop {
            let file = options.open(path).map_err(wrap)?;
            narrow(&file);
            if !flock::try_exclusive(&file).map_err(wrap)? {
                return Err(Error::Taken { pid: written_pid(path) });
            }
            // Somebody may have removed the file between our open and our lock; then another could lock a new one.
            if same(&file.metadata().map_err(wrap)?, path) {
                break file;
            }
        };
        file.set_len(0).map_err(wrap)?;
        file.rewind().map_err(wrap)?;
        writeln!(file, "{}", std::process::id()).map_err(wrap)?;
        Ok(Self { file })
    }

    /// Who holds the lock now, if anybody does; `Some(None)` where the holder did not write itself down.
    pub fn holder(path: &Path) -> Option<Option<u32>> {
        let file = File::open(path).ok()?;
        match flock::try_shared(&file) {
            Ok(true) => None,
            Ok(false) | Err(_) => Some(written_pid(path)),
        }
    }

    /// Lets the lock survive an exec; the number is for [`Lock::inherited`].
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn pass_on(&self) -> io::Result<i32> {
        fcntl_setfd(&self.file, FdFlags::empty())?;
        Ok(self.file.as_raw_fd())
    }

    /// The lock that the program before us passed on; `None` where `fd` is anything else than the file at `path`.
    pub fn inherited(fd: i32, path: &Path) -> Option<Self> {
        if !same(&fs::metadata(format!("/proc/self/fd/{fd}")).ok()?, path) {
            return None;
        }
        // SAFETY: the descriptor is open, as /proc has just shown, and it came through exec with this number for us alone:
        // nothing else in this program, which opens its descriptors itself, has opened the lock.
        let file = File::from(unsafe { OwnedFd::from_raw_fd(fd) });
        fcntl_setfd(&file, FdFlags::CLOEXEC).ok()?;
        Some(Self { file })
    }
}

/// What an earlier version made for more than its owner is the owner's from now on; where the file system has modes.
fn narrow(file: &File) {
    if file.metadata().is_ok_and(|meta| meta.mode() & 0o7777 != MODE) {
        let _ = file.set_permissions(fs::Permissions::from_mode(MODE));
    }
}

/// Whether an open file is the one at `path`; not, where there is none.
fn same(open: &fs::Metadata, path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|named| (open.dev(), open.ino()) == (named.dev(), named.ino()))
}

/// The process that holds a flock(2) on a file, as the kernel says (proc_locks(5)); `None` where there is none, where it is in
/// another pid namespace, or where the file system shows another device number there than in stat(2), as btrfs does.
pub fn holding_process(path: &Path) -> Option<u32> {
    let file = fs::metadata(path).ok()?;
    let (major, minor) = (rustix::fs::major(file.dev()), rustix::fs::minor(file.dev()));
    let place = format!("{major:02x}:{minor:02x}:{}", file.ino());
    // `1: FLOCK ADVISORY WRITE 4711 08:01:1234 0 EOF`; whoever waits has `->` behind the number.
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
    fn the_loser_is_told_the_winners_pid() {
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
    fn who_may_only_read_cannot_hold_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let mode = || fs::metadata(&path).unwrap().mode() & 0o7777;
        drop(Lock::acquire(&path).unwrap());
        assert_eq!(mode(), 0o600);
        // As an earlier version made it: narrowed also by one that finds it taken.
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let reader = File::open(&path).unwrap();
        flock::shared(&reader).unwrap();
        assert!(matches!(Lock::acquire(&path), Err(Error::Taken { .. })));
        assert_eq!(mode(), 0o600);
        drop(reader);
        Lock::acquire(&path).unwrap();
    }

    #[test]
    fn only_the_lock_itself_is_inherited() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let lock = Lock::acquire(&path).unwrap();
        let other = File::open("/dev/null").unwrap();
        assert!(Lock::inherited(other.as_raw_fd(), &path).is_none());
        assert!(Lock::inherited(1_000_000, &path).is_none());
        drop(lock);
    }
}
