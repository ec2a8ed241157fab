//! The lock of the identities: whoever reads an identity.toml to change it, or chooses a MAC address or a UID that no other VM has,
//! holds it from the first read to the last write. One lock for the host, since such a choice depends on every VM.
//!
//! A running supervisor holds its VM's own lock for its whole life, so `qvm reseed` and a hot-plugged NIC could not exclude each
//! other by that one.

use std::{
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use super::layout::Layout;
use crate::sys::{
    file,
    lock::{self, Lock},
};
use crate::{sys::progress::Cancel, value::Explain};

/// Between two attempts.
const IDENTITY_LOCK_POLL: Duration = Duration::from_millis(5);
/// How long the wait may take until the operator is told of it, and until it is given up: a change takes milliseconds, so a process
/// that holds the lock for that long is stopped, or its storage hangs.
const IDENTITY_LOCK_NOTICE: Duration = Duration::from_secs(1);
const IDENTITY_LOCK_LIMIT: Duration = Duration::from_secs(30);

/// Why the lock was not acquired.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another process holds it and does not release it.
    #[error(
        "cannot choose or change a VM's identity: {} has held the lock `{}` for {} s",
        process(*.pid), .path.display(), .waited.as_secs()
    )]
    Held {
        /// The lock.
        path: PathBuf,
        /// The process, where that is known.
        pid: Option<u32>,
        /// How long it was waited for.
        waited: Duration,
    },
    /// The wait was canceled.
    #[error("canceled")]
    Canceled,
    /// The lock cannot be opened.
    #[error(transparent)]
    Lock(lock::Error),
    /// Its directory cannot be made.
    #[error(transparent)]
    File(#[from] file::Error),
}

impl Explain for Error {
    fn wrapped(&self) -> Option<&dyn Explain> {
        match self {
            Self::Lock(error) => Some(error),
            Self::File(error) => Some(error),
            _ => None,
        }
    }

    fn own_hint(&self) -> Option<String> {
        match self {
            Self::Held { pid: Some(pid), .. } => Some(format!(
                "see what the process does with `ps -fp {pid}`, end it, and try again"
            )),
            Self::Held { path, pid: None, .. } => Some(format!(
                "`fuser -v {}` shows the process; end it, and try again",
                path.display()
            )),
            _ => None,
        }
    }

    fn is_own_host_fault(&self) -> bool {
        matches!(self, Self::Held { .. })
    }
}

fn process(pid: Option<u32>) -> String {
    pid.map_or_else(|| "another process".to_owned(), |pid| format!("process {pid}"))
}

/// Who waits for the lock.
#[derive(Clone, Copy)]
pub struct Waiter<'a> {
    /// Ends the wait.
    pub cancel: &'a Cancel,
    /// Gets a line for the operator when the wait takes more than a second.
    pub say: &'a dyn Fn(String),
}

/// The lock, held until this is dropped.
#[derive(Debug)]
pub struct IdentityLock {
    _lock: Lock,
}

impl IdentityLock {
    /// Acquires the lock, for which it waits for at most 30 s. Blocks the thread.
    ///
    /// # Errors
    /// Another process holds it for longer, the wait is canceled, or the lock file cannot be opened.
    pub fn acquire(layout: &Layout, waiter: Waiter<'_>) -> Result<Self, Error> {
        file::make_dir(&layout.state)?;
        Self::acquire_within(&layout.identities_lock(), IDENTITY_LOCK_LIMIT, waiter)
    }

    fn acquire_within(path: &Path, limit: Duration, waiter: Waiter<'_>) -> Result<Self, Error> {
        let (begun, mut told) = (Instant::now(), false);
        loop {
            if waiter.cancel.is_set() {
                return Err(Error::Canceled);
            }
            match Lock::acquire(path) {
                Ok(lock) => return Ok(Self { _lock: lock }),
                Err(lock::Error::Taken { pid }) => {
                    // What the kernel says counts: a holder of an earlier version leaves no pid in the file.
                    let pid = || lock::holding_process(path).or(pid);
                    let waited = begun.elapsed();
                    if waited >= limit {
                        return Err(Error::Held { path: path.to_owned(), pid: pid(), waited });
                    }
                    if waited >= IDENTITY_LOCK_NOTICE && !told {
                        told = true;
                        let (who, path) = (process(pid()), path.display());
                        (waiter.say)(format!("waiting for {who}, which holds the lock `{path}`"));
                    }
                }
                Err(error) => return Err(Error::Lock(error)),
            }
            thread::sleep(IDENTITY_LOCK_POLL);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    fn silent(_: String) {}

    #[test]
    fn a_held_lock_is_given_up_and_its_holder_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("uids.lock");
        // As an earlier version holds it: no pid is written.
        let held = std::fs::File::create(&path).unwrap();
        assert!(crate::sys::flock::try_exclusive(&held).unwrap());
        let (cancel, said) = (Cancel::default(), Mutex::new(vec![]));
        let say = |text| said.lock().unwrap().push(text);
        let waiter = Waiter { cancel: &cancel, say: &say };
        let limit = IDENTITY_LOCK_NOTICE + Duration::from_millis(50);
        let error = IdentityLock::acquire_within(&path, limit, waiter).unwrap_err();
        let own = format!("process {}", std::process::id());
        assert!(error.is_host_fault() && error.to_string().contains(&own), "{error}");
        assert!(error.hint().unwrap().contains(&std::process::id().to_string()));
        assert!(said.lock().unwrap()[0].contains(&own) && said.lock().unwrap().len() == 1);
        drop(held);
        IdentityLock::acquire_within(&path, limit, waiter).unwrap();
    }

    #[test]
    fn a_canceled_wait_ends() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("uids.lock");
        let _held = Lock::acquire(&path).unwrap();
        let cancel = Cancel::default();
        let begun = Instant::now();
        std::thread::scope(|scope| {
            let limit = Duration::from_secs(600);
            let waiter = || Waiter { cancel: &cancel, say: &silent };
            let waits = scope.spawn(move || IdentityLock::acquire_within(&path, limit, waiter()));
            cancel.set();
            assert!(matches!(waits.join().unwrap(), Err(Error::Canceled)));
        });
        assert!(begun.elapsed() < Duration::from_secs(300));
    }
}
