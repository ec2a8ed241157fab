//! The two locks that prove that QEMU is running: one in the run directory, one beside the disks.

use std::{
    fs, io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use rustix::io::Errno;

use super::layout::VmPaths;
use crate::sys::{
    liveness_lock::{self, LivenessLock, LockState},
    machine_id,
};
use crate::{
    sys::progress::Cancel,
    value::{ErrorCode, Explain},
};

/// The maximum time that the locks of an exiting QEMU process remain held.
const RELEASED_WITHIN: Duration = Duration::from_secs(5);
/// The interval between two attempts.
const RETRY: Duration = Duration::from_millis(5);

/// Why the locks of a VM cannot be acquired or probed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A lock cannot be acquired.
    #[error(transparent)]
    Lock(#[from] liveness_lock::Error),
    /// A lock cannot be probed.
    #[error("cannot determine whether `{}` is locked", path.display())]
    Probe {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The machine ID, which is part of a lock's name, cannot be read.
    #[error("cannot read /etc/machine-id")]
    MachineId(#[source] io::Error),
}

impl Explain for Error {
    fn own_code(&self) -> Option<ErrorCode> {
        Some(match self {
            Self::Lock(error) => error.code(),
            Self::Probe { .. } => ErrorCode::StateUnknown,
            Self::MachineId(..) => ErrorCode::MachineIdMissing,
        })
    }

    fn own_hint(&self) -> Option<String> {
        match self {
            Self::Lock(liveness_lock::Error::Held(_)) => {
                Some("`qvm status NAME` shows the state of the VM".into())
            }
            Self::Lock(liveness_lock::Error::Io { path, source }) => match source.kind() {
                io::ErrorKind::PermissionDenied => {
                    Some("run as the user who owns the VM, or as root".into())
                }
                io::ErrorKind::ReadOnlyFilesystem => Some(format!(
                    "`{}` must be on a writable file system",
                    path.parent().unwrap_or(path).display()
                )),
                io::ErrorKind::StorageFull => Some(format!(
                    "free space on the file system of `{}`",
                    path.parent().unwrap_or(path).display()
                )),
                _ => None,
            },
            Self::Probe { .. } => Some("run `qvm status NAME` as root".into()),
            Self::MachineId(_) => None,
        }
    }
}

/// Both locks of a VM, held by this process.
#[derive(Debug)]
pub struct Liveness {
    runtime: LivenessLock,
    /// `None` for a verb if the file does not exist, or is on a read-only file system.
    state: Option<LivenessLock>,
}

/// Returns the files of both locks; only the first one without a state directory.
///
/// # Errors
/// The machine ID cannot be read, or the state directory cannot be accessed.
pub fn files(paths: &VmPaths) -> Result<Vec<PathBuf>, Error> {
    let mut files = vec![paths.qemu_lock()];
    if has_state(paths)? {
        files.push(state_lock(paths)?);
    }
    Ok(files)
}

fn state_lock(paths: &VmPaths) -> Result<PathBuf, Error> {
    let id = machine_id::known().map_err(Error::MachineId)?;
    Ok(paths.qemu_state_lock(id))
}

fn has_state(paths: &VmPaths) -> Result<bool, Error> {
    match fs::metadata(&paths.state) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        // An interrupted rename leaves a symbolic link to itself under the old name.
        Err(error) if error.raw_os_error() == Some(Errno::LOOP.raw_os_error()) => Ok(false),
        Err(source) => Err(Error::Probe { path: paths.state.clone(), source }),
    }
}

impl Liveness {
    /// Acquires both locks for a QEMU process that is about to start. Both directories must exist.
    ///
    /// # Errors
    /// Another process holds a lock, or a lock cannot be acquired.
    pub fn for_qemu(paths: &VmPaths) -> Result<Self, Error> {
        let runtime = LivenessLock::acquire(&paths.qemu_lock())?;
        let state = LivenessLock::acquire(&state_lock(paths)?)?;
        Ok(Self { runtime, state: Some(state) })
    }

    /// Like [`Liveness::for_qemu`], but waits for an exiting QEMU process. Blocks the thread until
    /// `cancel` is set.
    ///
    /// # Errors
    /// As for [`Liveness::for_qemu`].
    pub fn for_start(paths: &VmPaths, cancel: &Cancel) -> Result<Self, Error> {
        let begun = Instant::now();
        loop {
            match Self::for_qemu(paths) {
                Err(Error::Lock(liveness_lock::Error::Held(_)))
                    if begun.elapsed() < RELEASED_WITHIN && !cancel.is_set() => {}
                done => return done,
            }
            std::thread::sleep(RETRY);
        }
    }

    /// Acquires both locks for a verb, which prevents a start of QEMU. The run directory must
    /// exist.
    ///
    /// # Errors
    /// Another process holds a lock, or a lock cannot be acquired.
    pub fn for_verb(paths: &VmPaths) -> Result<Self, Error> {
        let runtime = LivenessLock::acquire(&paths.qemu_lock())?;
        // Without the file no QEMU has run there, and a refused verb changes nothing.
        let there = has_state(paths)?.then(|| state_lock(paths)).transpose()?;
        let Some(path) = there.filter(|path| path.symlink_metadata().is_ok()) else {
            return Ok(Self { runtime, state: None });
        };
        let state = match LivenessLock::acquire(&path) {
            Ok(lock) => Some(lock),
            // QEMU cannot be started there.
            Err(liveness_lock::Error::Io { source, .. })
                if source.kind() == io::ErrorKind::ReadOnlyFilesystem && !is_held(&path)? =>
            {
                None
            }
            Err(error) => return Err(error.into()),
        };
        Ok(Self { runtime, state })
    }

    /// Passes the locks to QEMU: returns their descriptors with the numbers that they get in QEMU,
    /// for the lock in the run directory and the lock beside the disks.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn into_fds(self, [runtime, state]: [i32; 2]) -> io::Result<Vec<(OwnedFd, i32)>> {
        let mut fds = vec![(self.runtime.into_qemu_fd()?, runtime)];
        if let Some(lock) = self.state {
            fds.push((lock.into_qemu_fd()?, state));
        }
        Ok(fds)
    }
}

fn is_held(path: &Path) -> Result<bool, Error> {
    let probed = liveness_lock::probe(path);
    let state = probed.map_err(|source| Error::Probe { path: path.to_owned(), source })?;
    Ok(state == LockState::HeldByQemu)
}

/// Returns the lock in the run directory if QEMU holds it. Acquires nothing.
///
/// # Errors
/// Cannot determine whether the lock is held.
pub fn held_runtime_lock(paths: &VmPaths) -> Result<Option<PathBuf>, Error> {
    let path = paths.qemu_lock();
    Ok(is_held(&path)?.then_some(path))
}

/// Returns the first lock of a VM that QEMU holds. Acquires nothing.
///
/// # Errors
/// Cannot determine whether a lock is held.
pub fn held_lock(paths: &VmPaths) -> Result<Option<PathBuf>, Error> {
    let mut unknown = None;
    for path in files(paths)? {
        match is_held(&path) {
            Ok(true) => return Ok(Some(path)),
            Ok(false) => {}
            Err(error) => unknown = Some(error),
        }
    }
    unknown.map_or(Ok(None), Err)
}
