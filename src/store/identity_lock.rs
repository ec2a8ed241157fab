//! The lock of all identities of a host: held by a process that changes an identity.toml, or
//! chooses a MAC address or UID that no other VM has, from the first read to the last write.
//!
//! The VM's own lock does not suffice: a running supervisor holds it, so `qvm reseed` and a NIC
//! hotplug could not exclude each other with it.

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
use crate::{
    sys::progress::Cancel,
    value::{ErrorCode, Explain},
};

/// The interval between two attempts.
const IDENTITY_LOCK_POLL: Duration = Duration::from_millis(5);
/// The time until the operator is notified, and the time limit. A change takes milliseconds, so a
/// process that holds the lock this long is stopped, or its storage hangs.
const IDENTITY_LOCK_NOTICE: Duration = Duration::from_secs(1);
const IDENTITY_LOCK_LIMIT: Duration = Duration::from_secs(30);

/// Why the lock was not acquired.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another process holds the lock for too long.
    #[error(
        "cannot choose or change a VM's identity: {} has held the lock `{}` for {} s",
        process(*.pid), .path.display(), .waited.as_secs()
    )]
    Held {
        /// The lock.
        path: PathBuf,
        /// The PID of the process, if known.
        pid: Option<u32>,
        /// The time waited.
        waited: Duration,
    },
    /// The wait was canceled.
    #[error("canceled")]
    Canceled,
    /// The lock cannot be opened.
    #[error(transparent)]
    Lock(lock::Error),
    /// The directory of the lock cannot be created.
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

    fn own_code(&self) -> Option<ErrorCode> {
        Some(match self {
            Self::Held { .. } => ErrorCode::IdentityLocked,
            Self::Canceled => ErrorCode::Canceled,
            Self::Lock(..) | Self::File(..) => return None,
        })
    }

    fn own_hint(&self) -> Option<String> {
        match self {
            Self::Held { pid: Some(pid), .. } => {
                Some(format!("examine the process with `ps -fp {pid}`, end it, and try again"))
            }
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

/// The waiting operation.
#[derive(Clone, Copy)]
pub struct Waiter<'a> {
    /// Cancels the wait.
    pub cancel: &'a Cancel,
    /// Called with a message for the operator if the wait takes more than a second.
    pub say: &'a dyn Fn(String),
}

/// The held lock.
#[derive(Debug)]
pub struct IdentityLock {
    _lock: Lock,
}

impl IdentityLock {
    /// Acquires the lock. Blocks the thread for at most 30 s.
    ///
    /// # Errors
    /// Another process holds the lock for longer, the wait is canceled, or the lock file cannot be
    /// opened.
    pub fn acquire(layout: &Layout, waiter: Waiter<'_>) -> Result<Self, Error> {
        file::make_dir(&layout.state)?;
        Self::acquire_within(&layout.identities_lock(), IDENTITY_LOCK_LIMIT, waiter)
    }

    fn acquire_within(path: &Path, limit: Duration, waiter: Waiter<'_>) -> Result<Self, Error> {
        let (begun, mut reported) = (Instant::now(), false);
        loop {
            if waiter.cancel.is_set() {
                return Err(Error::Canceled);
            }
            match Lock::acquire(path) {
                Ok(lock) => return Ok(Self { _lock: lock }),
                Err(lock::Error::Held { pid }) => {
                    // The PID of the kernel is preferred: a holder of an earlier version writes no
                    // PID into the file.
                    let pid = || lock::holding_process(path).or(pid);
                    let waited = begun.elapsed();
                    if waited >= limit {
                        return Err(Error::Held { path: path.to_owned(), pid: pid(), waited });
                    }
                    if waited >= IDENTITY_LOCK_NOTICE && !reported {
                        reported = true;
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
    fn timeout_names_the_holder() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("uids.lock");
        // An earlier version writes no PID.
        let held = std::fs::File::create(&path).unwrap();
        assert!(crate::sys::flock::try_exclusive(&held).unwrap());
        let (cancel, messages) = (Cancel::default(), Mutex::new(vec![]));
        let say = |text| messages.lock().unwrap().push(text);
        let waiter = Waiter { cancel: &cancel, say: &say };
        let limit = IDENTITY_LOCK_NOTICE + Duration::from_millis(50);
        let error = IdentityLock::acquire_within(&path, limit, waiter).unwrap_err();
        let own = format!("process {}", std::process::id());
        assert!(error.is_host_fault() && error.to_string().contains(&own), "{error}");
        assert!(error.hint().unwrap().contains(&std::process::id().to_string()));
        assert!(messages.lock().unwrap()[0].contains(&own) && messages.lock().unwrap().len() == 1);
        drop(held);
        IdentityLock::acquire_within(&path, limit, waiter).unwrap();
    }

    #[test]
    fn canceled_wait_ends() {
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
