//! The two locks by which QEMU itself proves that it lives: one in the runtime directory, one beside the disks.

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
use crate::{sys::progress::Cancel, value::Explain};

/// How long the locks of a QEMU process that has just exited may stay held.
const RELEASED_WITHIN: Duration = Duration::from_secs(5);
/// Between two attempts to acquire them.
const RETRY: Duration = Duration::from_millis(5);

/// Why the locks of a VM are not held, or cannot be probed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A lock.
    #[error(transparent)]
    Lock(#[from] liveness_lock::Error),
    /// A lock cannot be probed.
    #[error("cannot determine whether `{}` is locked", path.display())]
    Probe {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The host's machine id, which is a part of a lock's name.
    #[error("cannot read /etc/machine-id")]
    MachineId(#[source] io::Error),
}

impl Explain for Error {
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
                    "`{}` must be on a file system that can be written",
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
    /// A verb has none where the file does not exist, or is on a read-only file system.
    state: Option<LivenessLock>,
}

/// The files of both locks; only the first where there is no state directory.
///
/// # Errors
/// The machine id of this host cannot be read, or the state directory cannot be reached.
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
        // A rename that was cut short leaves a link to itself under the old name.
        Err(error) if error.raw_os_error() == Some(Errno::LOOP.raw_os_error()) => Ok(false),
        Err(source) => Err(Error::Probe { path: paths.state.clone(), source }),
    }
}

impl Liveness {
    /// Acquires both locks for a QEMU process that is about to be started. Both directories exist.
    ///
    /// # Errors
    /// Another process holds a lock, or a lock cannot be acquired.
    pub fn for_qemu(paths: &VmPaths) -> Result<Self, Error> {
        let runtime = LivenessLock::acquire(&paths.qemu_lock())?;
        let state = LivenessLock::acquire(&state_lock(paths)?)?;
        Ok(Self { runtime, state: Some(state) })
    }

    /// The same for a start: an earlier QEMU process that is ending may hold the locks for a moment. Blocks, until `cancel` is set.
    ///
    /// # Errors
    /// As of [`Liveness::for_qemu`].
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

    /// Acquires both locks for a verb: nobody starts QEMU as long as they are held. The runtime directory exists.
    ///
    /// # Errors
    /// Another process holds a lock, or a lock cannot be acquired.
    pub fn for_verb(paths: &VmPaths) -> Result<Self, Error> {
        let runtime = LivenessLock::acquire(&paths.qemu_lock())?;
        // No QEMU has run there where the file does not exist, and a verb that is refused leaves everything as it is.
        let there = has_state(paths)?.then(|| state_lock(paths)).transpose()?;
        let Some(path) = there.filter(|path| path.symlink_metadata().is_ok()) else {
            return Ok(Self { runtime, state: None });
        };
        let state = match LivenessLock::acquire(&path) {
            Ok(lock) => Some(lock),
            // No QEMU can be started there.
            Err(liveness_lock::Error::Io { source, .. })
                if source.kind() == io::ErrorKind::ReadOnlyFilesystem && !is_held(&path)? =>
            {
                None
            }
            Err(error) => return Err(error.into()),
        };
        Ok(Self { runtime, state })
    }

    /// Turns the locks into QEMU's: their descriptors, with the numbers that they get in QEMU:
    /// of the lock in the runtime directory, and of the lock beside the disks.
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

/// The lock in the runtime directory, where QEMU holds it. Acquires nothing.
///
/// # Errors
/// It is not known whether the lock is held.
pub fn held_runtime_lock(paths: &VmPaths) -> Result<Option<PathBuf>, Error> {
    let path = paths.qemu_lock();
    Ok(is_held(&path)?.then_some(path))
}

/// The first lock of a VM that QEMU holds. Acquires nothing.
///
/// # Errors
/// It is not known whether a lock is held.
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
