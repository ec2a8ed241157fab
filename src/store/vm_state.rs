//! The state of a stopped VM: its files, their sizes, and their removal.

use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use super::layout::{Layout, VmPaths};
use super::{
    liveness::{self, Liveness},
    running::{self, PreviousQemu},
    saved_state,
};
use crate::{
    sys::{
        file,
        lock::{self, Lock},
    },
    value::{ErrorCode, Explain, VmName},
};

/// Why the state cannot be changed or removed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A supervisor holds the lock.
    #[error(transparent)]
    Lock(#[from] lock::Error),
    /// Cannot determine whether QEMU is running.
    #[error(transparent)]
    Unknown(#[from] running::Unknown),
    /// The liveness locks cannot be acquired.
    #[error(transparent)]
    Liveness(#[from] liveness::Error),
    /// Its QEMU runs, though no supervisor does, and writes to its disks.
    #[error("its QEMU process (pid {0}) runs without a supervisor")]
    Alone(u32),
    /// A file operation failed.
    #[error(transparent)]
    File(#[from] file::Error),
    /// Another VM uses its disks by a symbolic link, as after an interrupted rename.
    #[error("`{}` is a symbolic link into the VM's state directory", .0.display())]
    Linked(PathBuf),
    /// The saved state cannot be removed.
    #[error(transparent)]
    Saved(#[from] saved_state::Error),
    /// A path cannot be listed or removed.
    #[error("cannot {doing} `{}`", path.display())]
    Io {
        /// `list` or `remove`.
        doing: &'static str,
        /// The path.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
}

impl Explain for Error {
    fn wrapped(&self) -> Option<&dyn Explain> {
        match self {
            Self::Lock(error) => Some(error),
            Self::File(error) => Some(error),
            Self::Unknown(error) => Some(error),
            Self::Liveness(error) => Some(error),
            _ => None,
        }
    }

    fn own_code(&self) -> Option<ErrorCode> {
        Some(match self {
            Self::Alone(..) => ErrorCode::NoSupervisor,
            Self::Linked(..) => ErrorCode::StateDirLinked,
            Self::Saved(error) => error.code(),
            Self::Io { source, .. } => ErrorCode::of_io(source),
            Self::Lock(..) | Self::Unknown(..) | Self::Liveness(..) | Self::File(..) => {
                return None;
            }
        })
    }

    fn own_hint(&self) -> Option<String> {
        match self {
            Self::Linked(_) => Some(
                "repeat `qvm rename` with the same names to complete an interrupted \
                    rename"
                    .into(),
            ),
            _ => None,
        }
    }

    fn is_own_host_fault(&self) -> bool {
        matches!(self, Self::Unknown(_) | Self::Liveness(_))
    }
}

/// Returns the files of a VM in the state directory with the disk space that each uses; links are
/// not followed. Includes leftovers of an interrupted removal, excludes the liveness locks.
///
/// # Errors
/// A directory cannot be read.
pub fn files(paths: &VmPaths) -> Result<Vec<(PathBuf, u64)>, Error> {
    let mut found = Vec::new();
    for path in [paths.state.clone(), paths.state_being_removed()] {
        collect(&path, &mut found).map_err(|source| Error::Io { doing: "list", path, source })?;
    }
    Ok(found)
}

fn collect(path: &Path, found: &mut Vec<(PathBuf, u64)>) -> io::Result<()> {
    let meta = match path.symlink_metadata() {
        Ok(meta) => meta,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    if VmPaths::is_qemu_state_lock(path) {
        return Ok(());
    }
    found.push((path.to_owned(), meta.blocks() * 512));
    if meta.is_dir() {
        let mut entries = fs::read_dir(path)?.collect::<Result<Vec<_>, _>>()?;
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            collect(&entry.path(), found)?;
        }
    }
    Ok(())
}

/// A stopped VM that cannot be started while this is held.
#[derive(Debug)]
pub struct Held<'a> {
    paths: &'a VmPaths,
    _locks: Locks,
}

/// All locks of a stopped VM.
#[derive(Debug)]
pub struct Locks {
    _supervisor: Lock,
    _qemu: Option<Liveness>,
}

/// Locks a stopped VM.
///
/// # Errors
/// The VM is running.
pub fn hold(paths: &VmPaths) -> Result<Held<'_>, Error> {
    Ok(Held { paths, _locks: down(paths)? })
}

/// Acquires the locks of a stopped VM, which prevents its start.
///
/// # Errors
/// The VM is running, or this cannot be determined.
pub fn down(paths: &VmPaths) -> Result<Locks, Error> {
    file::make_dir(&paths.runtime)?;
    let supervisor = Lock::acquire(&paths.lock())?;
    not_running(paths)?;
    let qemu = Liveness::for_verb(paths)?;
    Ok(Locks { _supervisor: supervisor, _qemu: Some(qemu) })
}

/// Acquires the locks of two names. If the second is a symbolic link to the state of the first, it
/// shares its locks.
///
/// # Errors
/// As for [`down`], with the name that failed: false for the first.
pub fn both_down(first: &VmPaths, second: &VmPaths) -> Result<(Locks, Locks), (bool, Error)> {
    let locks = down(first).map_err(|error| (false, error))?;
    let led = |state: &Path| fs::canonicalize(state).ok();
    let (one, other) = (led(&first.state), led(&second.state));
    let of_second = match one.is_some() && one == other {
        false => down(second),
        true => supervisor_lock(second),
    };
    Ok((locks, of_second.map_err(|error| (true, error))?))
}

fn supervisor_lock(paths: &VmPaths) -> Result<Locks, Error> {
    file::make_dir(&paths.runtime)?;
    let supervisor = Lock::acquire(&paths.lock())?;
    not_running(paths)?;
    Ok(Locks { _supervisor: supervisor, _qemu: None })
}

fn not_running(paths: &VmPaths) -> Result<(), Error> {
    match running::find(paths)? {
        PreviousQemu::Running(qemu, _) => Err(Error::Alone(qemu.pid())),
        PreviousQemu::Exited | PreviousQemu::NeverExecuted | PreviousQemu::None => Ok(()),
    }
}

impl Held<'_> {
    /// Removes the saved state of the guest, if there is one.
    ///
    /// # Errors
    /// It stays.
    pub fn discard_state(&self) -> Result<(), Error> {
        Ok(saved_state::remove(&self.paths.saved())?)
    }

    /// Removes the state atomically by renaming it first, so that a crash leaves no disk without
    /// its identity. The run directory remains, as after a stop: a process that waits for the lock
    /// must not lock a removed file.
    ///
    /// # Errors
    /// The state cannot be removed.
    pub fn remove(self) -> Result<(), Error> {
        let state = &self.paths.state;
        if let Some(link) = link_to(state)? {
            return Err(Error::Linked(link));
        }
        let on = |source| Error::Io { doing: "remove", path: state.clone(), source };
        // The leftover of an earlier removal would prevent the rename.
        let going = self.paths.state_being_removed();
        file::remove_tree(&going)?;
        match state.symlink_metadata() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(on(error)),
            Ok(meta) if meta.is_dir() => match fs::rename(state, &going) {
                Ok(()) => file::sync_dir(state)?,
                // The state directory is a mount point.
                Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
                    fs::remove_dir_all(state).map_err(on)?;
                }
                Err(error) => return Err(on(error)),
            },
            // Only the link itself.
            Ok(_) => fs::remove_file(state).map_err(on)?,
        }
        file::remove_tree(&going)?;
        Ok(file::sync_dir(state)?)
    }
}

/// Removes leftovers of crashes from VMs being created or removed, except `own`. Errors are
/// ignored: such files are in use or harmless.
pub fn sweep(layout: &Layout, own: Option<&VmName>) {
    for dir in file::list(&layout.vm_states()).unwrap_or_default() {
        // A link is not a draft: it may be the only reference to the disks of a VM being renamed.
        let name = Layout::drafted(&dir).filter(|name| Some(name) != own && !dir.is_symlink());
        if let Some(name) = name
            && let Ok(_lock) = down(&layout.draft(&name))
        {
            let _ = fs::remove_dir_all(&dir);
        }
    }
}

/// Returns a link beside a directory that refers to it.
fn link_to(state: &Path) -> Result<Option<PathBuf>, file::Error> {
    let Ok(real) = fs::canonicalize(state) else { return Ok(None) };
    let beside = file::list(state.parent().unwrap_or(Path::new("/")))?;
    Ok(beside.into_iter().find(|link| {
        link != state && link.is_symlink() && fs::canonicalize(link).is_ok_and(|led| led == real)
    }))
}
