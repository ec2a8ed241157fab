//! Locks of whole files (flock(2)), which end with the last copy of their descriptor.

use std::{fs::File, io};

/// Acquires the exclusive lock; false where another process holds a lock.
///
/// # Errors
/// The file system has no locks, or the kernel refuses.
pub(crate) fn try_exclusive(file: &File) -> io::Result<bool> {
    tried(|| fs2::FileExt::try_lock_exclusive(file))
}

/// Acquires a shared lock; false where another process holds the exclusive one.
///
/// # Errors
/// As of [`try_exclusive`].
pub(crate) fn try_shared(file: &File) -> io::Result<bool> {
    tried(|| fs2::FileExt::try_lock_shared(file))
}

/// Acquires a shared lock, and waits for it.
///
/// # Errors
/// As of [`try_exclusive`].
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
    fn exclusive_lock_excludes_all_others() {
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
