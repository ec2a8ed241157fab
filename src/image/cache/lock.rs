//! The lock of one image in the cache: whoever fetches it holds it alone, whoever makes a disk from it shares it.
//!
//! flock(2) on a file beside the image: the kernel lets go of it whoever dies and how. The file holds the pid
//! of the one who fetches, for messages. The last holder removes it; whoever then got the lock of a removed
//! file notices that by its inode, and begins anew.

use std::{
    fs::{File, OpenOptions, Permissions},
    io::{self, Read, Seek, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use crate::sys::flock;

/// How it is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hold {
    /// By one.
    Alone,
    /// By any number.
    Shared,
}

/// Nobody else opens it: flock(2) asks for no more than a descriptor that reads, so whoever may read a lock may hold it.
const MODE: u32 = 0o600;

/// A lock that is held until it is dropped.
#[derive(Debug)]
pub struct Lock {
    file: File,
    path: PathBuf,
}

/// What trying to get a lock gave.
#[derive(Debug)]
pub enum Tried {
    /// It is ours.
    Held(Lock),
    /// Another has it: the pid that it left in the file, if it did.
    Busy(Option<u32>),
}

/// Tries to get the lock at `path`.
///
/// # Errors
/// The file cannot be made or locked.
pub fn try_lock(path: &Path, hold: Hold) -> io::Result<Tried> {
    loop {
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(MODE)
            .open(path)?;
        // An earlier version made it for more; a file system need not have modes.
        if file.metadata()?.mode() & 0o7777 != MODE {
            let _ = file.set_permissions(Permissions::from_mode(MODE));
        }
        let is_locked = match hold {
            Hold::Alone => flock::try_exclusive(&file)?,
            Hold::Shared => flock::try_shared(&file)?,
        };
        if !is_locked {
            let mut pid = String::new();
            let _ = (&mut file).take(20).read_to_string(&mut pid);
            return Ok(Tried::Busy(pid.trim().parse().ok()));
        }
        if !is_at(&file, path)? {
            continue;
        }
        if hold == Hold::Alone {
            file.set_len(0)?;
            file.rewind()?;
            write!(file, "{}", std::process::id())?;
        }
        return Ok(Tried::Held(Lock { file, path: path.to_owned() }));
    }
}

fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    let ours = file.metadata()?;
    match std::fs::symlink_metadata(path) {
        Ok(there) => Ok((there.dev(), there.ino()) == (ours.dev(), ours.ino())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(e),
    }
}

impl Lock {
    /// Lets others share it. For an instant nobody holds it (flock(2)): look again at what it protects.
    ///
    /// # Errors
    /// The kernel refuses; the lock is gone then.
    pub fn share(&self) -> io::Result<()> {
        flock::shared(&self.file)
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Only who holds it alone may take the file away.
        let alone = flock::try_exclusive(&self.file).unwrap_or(false);
        if alone && is_at(&self.file, &self.path).unwrap_or(false) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(tried: Tried) -> Lock {
        match tried {
            Tried::Held(lock) => lock,
            Tried::Busy(pid) => panic!("busy: {pid:?}"),
        }
    }

    #[test]
    fn who_may_only_read_cannot_hold_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.lock");
        std::fs::write(&path, "").unwrap();
        std::fs::set_permissions(&path, Permissions::from_mode(0o660)).unwrap();
        for _ in ["made wider by an earlier version", "made anew"] {
            let lock = held(try_lock(&path, Hold::Shared).unwrap());
            assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
            drop(lock);
        }
    }

    #[test]
    fn one_alone_or_many_shared_and_no_file_left() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.lock");
        let alone = held(try_lock(&path, Hold::Alone).unwrap());
        for hold in [Hold::Alone, Hold::Shared] {
            let Tried::Busy(pid) = try_lock(&path, hold).unwrap() else { panic!("got it twice") };
            assert_eq!(pid, Some(std::process::id()));
        }
        alone.share().unwrap();
        let second = held(try_lock(&path, Hold::Shared).unwrap());
        assert!(matches!(try_lock(&path, Hold::Alone).unwrap(), Tried::Busy(_)));
        drop(alone);
        assert!(path.exists(), "the second still has it");
        drop(second);
        assert!(!path.exists());
        held(try_lock(&path, Hold::Alone).unwrap());
    }
}
