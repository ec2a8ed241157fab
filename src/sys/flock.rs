//! Whole-file locks (flock(2)), released with the last copy of their descriptor.

use std::{fs::File, io};

/// Acquires the exclusive lock; returns false if another process holds a lock.
///
/// # Errors
/// The file system does not support locks, or the kernel refuses the lock.
pub(crate) fn try_exclusive(file: &File) -> io::Result<bool> {
    tried(|| fs2::FileExt::try_lock_exclusive(file))
}

/// Acquires a shared lock; returns false if another process holds the exclusive lock.
///
/// # Errors
/// As for [`try_exclusive`].
pub(crate) fn try_shared(file: &File) -> io::Result<bool> {
    tried(|| fs2::FileExt::try_lock_shared(file))
}

/// Waits for a shared lock and acquires it.
///
/// # Errors
/// As for [`try_exclusive`].
pub(crate) fn shared(file: &File) -> io::Result<()> {
    uninterrupted(|| fs2::FileExt::lock_shared(file))
}

fn tried(lock: impl Fn() -> io::Result<()>) -> io::Result<bool> {
    match uninterrupted(lock) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
        Err(error) => Err(error),
    }
}

fn uninterrupted(lock: impl Fn() -> io::Result<()>) -> io::Result<()> {
    loop {
        match lock() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            done => return done,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exclusive_lock_excludes_others() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let open = || File::open(file.path()).unwrap();
        let (first, second, third) = (open(), open(), open());
        assert!(try_exclusive(&first).unwrap());
        assert!(!try_exclusive(&second).unwrap() && !try_shared(&second).unwrap());
        // Several may hold shared locks.
        shared(&first).unwrap();
        assert!(try_shared(&second).unwrap() && !try_exclusive(&third).unwrap());
        drop((first, second));
        assert!(try_exclusive(&third).unwrap());
    }
}
