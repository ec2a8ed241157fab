//! The lock of one cached image: exclusive for a download, shared for creating a disk.
//!
//! A flock(2) on a file beside the image, which the kernel releases when the process ends. The file
//! contains the PID of the downloading process for messages. The last holder removes the file; a
//! process that then locks the removed file detects this by its inode and retries.

use std::{
    fs::{File, OpenOptions, Permissions},
    io::{self, Read, Seek, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use crate::sys::flock;

/// The mode of a lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hold {
    /// Exclusive.
    Alone,
    /// Shared.
    Shared,
}

/// Only the owner may open the file: flock(2) works on any readable descriptor, so every reader
/// could hold the lock.
const MODE: u32 = 0o600;

/// A held lock.
#[derive(Debug)]
pub struct Lock {
    file: File,
    path: PathBuf,
}

/// The result of trying to acquire a lock.
#[derive(Debug)]
pub enum Tried {
    /// The lock was acquired.
    Held(Lock),
    /// Another process holds it; with its PID from the file, if readable.
    Busy(Option<u32>),
}

/// Tries to acquire the lock at `path`.
///
/// # Errors
/// The file cannot be created or locked.
pub fn try_lock(path: &Path, hold: Hold) -> io::Result<Tried> {
    loop {
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(MODE)
            .open(path)?;
        // Earlier versions created it with more permissions; a file system need not support modes.
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
    /// Converts to a shared lock. The conversion is not atomic (flock(2)), so check again what the
    /// lock protects.
    ///
    /// # Errors
    /// The conversion fails and the lock is released.
    pub fn share(&self) -> io::Result<()> {
        flock::shared(&self.file)
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Only the exclusive holder may remove the file.
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
    fn readers_cannot_acquire_the_lock() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.lock");
        std::fs::write(&path, "").unwrap();
        std::fs::set_permissions(&path, Permissions::from_mode(0o660)).unwrap();
        for _ in ["mode of an earlier version", "new file"] {
            let lock = held(try_lock(&path, Hold::Shared).unwrap());
            assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
            drop(lock);
        }
    }

    #[test]
    fn exclusive_or_shared_and_file_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.lock");
        let alone = held(try_lock(&path, Hold::Alone).unwrap());
        for hold in [Hold::Alone, Hold::Shared] {
            let Tried::Busy(pid) = try_lock(&path, hold).unwrap() else { panic!("acquired twice") };
            assert_eq!(pid, Some(std::process::id()));
        }
        alone.share().unwrap();
        let second = held(try_lock(&path, Hold::Shared).unwrap());
        assert!(matches!(try_lock(&path, Hold::Alone).unwrap(), Tried::Busy(_)));
        drop(alone);
        assert!(path.exists(), "the second lock is still held");
        drop(second);
        assert!(!path.exists());
        held(try_lock(&path, Hold::Alone).unwrap());
    }
}
