//! What qvm keeps of a VM that is down: which files, how large, and taking them away.

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
    value::{Explain, VmName},
};

/// Why it stays.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A supervisor holds it.
    #[error(transparent)]
    Lock(#[from] lock::Error),
    /// It is not known whether its QEMU runs.
    #[error(transparent)]
    Unknown(#[from] running::Unknown),
    /// The liveness locks.
    #[error(transparent)]
    Liveness(#[from] liveness::Error),
    /// Its QEMU runs, though no supervisor does, and writes to its disks.
    #[error("its QEMU process (pid {0}) runs without a supervisor")]
    Alone(u32),
    /// A file or directory.
    #[error(transparent)]
    File(#[from] file::Error),
    /// Another VM has its disks by a link, as when a rename was cut short.
    #[error("`{}` is a symbolic link into the VM's state directory", .0.display())]
    Linked(PathBuf),
    /// A saved state.
    #[error(transparent)]
    Saved(#[from] saved_state::Error),
    /// It cannot be listed or removed.
    #[error("cannot {doing} `{}`", path.display())]
    Io {
        /// `list` or `remove`.
        doing: &'static str,
        /// What.
        path: PathBuf,
        /// Why.
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

    fn own_hint(&self) -> Option<String> {
        match self {
            Self::Linked(_) => {
                Some("`qvm rename` with the same names goes on with one that was cut short".into())
            }
            _ => None,
        }
    }

    fn is_own_host_fault(&self) -> bool {
        matches!(self, Self::Unknown(_) | Self::Liveness(_))
    }
}

/// Everything of a VM in the state directory, each with the bytes it takes on the disk; links are not followed. With what is left of a
/// removal that was cut short, and without the liveness locks, which say nothing to an operator.
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

/// A VM that is down, and that nobody starts as long as this is held.
#[derive(Debug)]
pub struct Held<'a> {
    paths: &'a VmPaths,
    _locks: Locks,
}

/// All locks of a VM that is down.
#[derive(Debug)]
pub struct Locks {
    _supervisor: Lock,
    _qemu: Option<Liveness>,
}

/// Holds a VM that is down.
///
/// # Errors
/// It runs.
pub fn hold(paths: &VmPaths) -> Result<Held<'_>, Error> {
    Ok(Held { paths, _locks: down(paths)? })
}

/// The locks of a VM that is down: nobody starts it as long as they are held.
///
/// # Errors
/// It runs, or it is not known whether it does.
pub fn down(paths: &VmPaths) -> Result<Locks, Error> {
    file::make_dir(&paths.runtime)?;
    let supervisor = Lock::acquire(&paths.lock())?;
    not_running(paths)?;
    let qemu = Liveness::for_verb(paths)?;
    Ok(Locks { _supervisor: supervisor, _qemu: Some(qemu) })
}

/// The locks of two names, of which the second may lead to the state of the first by a link: that has its locks then.
///
/// # Errors
/// As of [`down`], with which of them it is: false for the first.
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
    /// Throws a saved state of its guest away, if there is one.
    ///
    /// # Errors
    /// It stays.
    pub fn discard_state(&self) -> Result<(), Error> {
        Ok(saved_state::remove(&self.paths.saved())?)
    }

    /// Removes what is kept of it: all at once, by another name, so that a crash leaves no disk without its identity. The runtime
    /// directory stays, as after a stop: who waits for the lock must not come to hold a file that nobody else will find.
    ///
    /// # Errors
    /// It cannot be removed.
    pub fn remove(self) -> Result<(), Error> {
        let state = &self.paths.state;
        if let Some(link) = link_to(state)? {
            return Err(Error::Linked(link));
        }
        let on = |source| Error::Io { doing: "remove", path: state.clone(), source };
        // What an earlier removal has left would be in the way.
        let going = self.paths.state_being_removed();
        file::remove_tree(&going)?;
        match state.symlink_metadata() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(on(error)),
            Ok(meta) if meta.is_dir() => match fs::rename(state, &going) {
                Ok(()) => file::sync_dir(state)?,
                // A file system of its own is mounted there.
                Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
                    fs::remove_dir_all(state).map_err(on)?;
                }
                Err(error) => return Err(on(error)),
            },
            // The link, not what it leads to.
            Ok(_) => fs::remove_file(state).map_err(on)?,
        }
        file::remove_tree(&going)?;
        Ok(file::sync_dir(state)?)
    }
}

/// Removes what crashes have left of VMs that were being made or removed, but of `own`. Whatever cannot be removed now is in
/// somebody's use, or in nobody's way.
pub fn sweep(layout: &Layout, own: Option<&VmName>) {
    for dir in file::list(&layout.vm_states()).unwrap_or_default() {
        // A link is no draft: the only way to the disks of a VM that was being renamed may be one.
        let name = Layout::drafted(&dir).filter(|name| Some(name) != own && !dir.is_symlink());
        if let Some(name) = name
            && let Ok(_lock) = down(&layout.draft(&name))
        {
            let _ = fs::remove_dir_all(&dir);
        }
    }
}

/// A link beside a directory that leads to it.
fn link_to(state: &Path) -> Result<Option<PathBuf>, file::Error> {
    let Ok(real) = fs::canonicalize(state) else { return Ok(None) };
    let beside = file::list(state.parent().unwrap_or(Path::new("/")))?;
    Ok(beside.into_iter().find(|link| {
        link != state && link.is_symlink() && fs::canonicalize(link).is_ok_and(|led| led == real)
    }))
}
