//! The atomic writer: content goes to a unique temporary file beside its target and gets the target's name when it is whole.
//!
//! A temporary is called `.qvm-tmp_` and ten random letters and digits: no other writer shares it, and it has no suffix that
//! another program looks for. Its writer holds an exclusive flock(2) on it until it has another name or is removed. The kernel
//! drops that lock with the writer, so a temporary that can be locked was abandoned, whatever pid namespace or host its writer
//! ran in; see [`remove_abandoned`].

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{FlockOperation, flock},
    io::Errno,
};
use tempfile::TempPath;

use super::{Error, dir_of, list, sync_dir};

/// What the name of a temporary begins with. No VM has a name with `_`, so this is never the draft of a VM.
const PREFIX: &str = ".qvm-tmp_";
/// How many random letters and digits follow.
const RANDOM: usize = 10;

/// A file that is being written and has no name of its own yet. Dropped, it leaves nothing.
#[derive(Debug)]
pub struct Temporary {
    // Dropped first: the file is removed while its lock is held.
    path: TempPath,
    file: File,
}

impl Temporary {
    /// Creates an empty file with mode 0600 in the directory of `target`.
    ///
    /// # Errors
    /// The directory cannot be written.
    pub fn beside(target: &Path) -> Result<Self, Error> {
        let on = Error::on("create a temporary file beside", target);
        Self::in_dir(dir_of(target)).map_err(on)
    }

    fn in_dir(dir: &Path) -> io::Result<Self> {
        loop {
            let made =
                tempfile::Builder::new().prefix(PREFIX).rand_bytes(RANDOM).tempfile_in(dir)?;
            let (file, path) = made.into_parts();
            // Between the creation and the lock the file looks abandoned, and another process may remove it.
            match lock(&file) {
                Lock::Busy => {}
                Lock::Held | Lock::Unsupported if is_at(&file, &path) => {
                    return Ok(Self { path, file });
                }
                Lock::Held | Lock::Unsupported => {}
            }
        }
    }

    /// The open file, for reading and writing.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Where the content is until it has its name.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Gives the file the name and the mode, in the place of what has that name, and syncs the content before and the
    /// directory after that.
    ///
    /// # Errors
    /// Any step; before the rename the target is as it was.
    pub fn replace(self, target: &Path, mode: u32) -> Result<(), Error> {
        self.set_mode(target, mode)?;
        self.file.sync_all().map_err(Error::on("sync", target))?;
        self.rename(target)?;
        sync_dir(target)
    }

    /// As [`Self::replace`], and syncs nothing.
    ///
    /// # Errors
    /// Any step; the target is then as it was.
    pub fn replace_volatile(self, target: &Path, mode: u32) -> Result<(), Error> {
        self.set_mode(target, mode)?;
        self.rename(target)
    }

    /// As [`Self::replace`], for a name that nothing has: of two writers at once, one succeeds.
    ///
    /// # Errors
    /// [`io::ErrorKind::AlreadyExists`] where something has that name; or any step.
    pub fn create(self, target: &Path, mode: u32) -> Result<(), Error> {
        self.set_mode(target, mode)?;
        self.file.sync_all().map_err(Error::on("sync", target))?;
        let on = Error::on("create", target);
        // renameat2(2) with RENAME_NOREPLACE, or link(2) where the file system lacks that.
        if let Err(refused) = self.path.persist_noclobber(target) {
            let known = refused.error.raw_os_error().map(Errno::from_raw_os_error);
            let lacks_both =
                matches!(known, Some(Errno::PERM | Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL));
            // The caller holds a lock of its own, or accepts the instant between the two calls on such a file system.
            match lacks_both && target.symlink_metadata().is_err_and(is_absent) {
                true => refused.path.persist(target).map_err(|e| on(e.error))?,
                false => return Err(on(refused.error)),
            }
        }
        sync_dir(target)
    }

    /// By descriptor: exact whatever the umask is, and of this file alone.
    fn set_mode(&self, target: &Path, mode: u32) -> Result<(), Error> {
        let permissions = fs::Permissions::from_mode(mode);
        self.file.set_permissions(permissions).map_err(Error::on("set the mode of", target))
    }

    fn rename(self, target: &Path) -> Result<(), Error> {
        let on = Error::on("replace", target);
        self.path.persist(target).map_err(|refused| on(refused.error))
    }

    /// Writes all of it.
    ///
    /// # Errors
    /// No space, and the like; named after `target`.
    pub fn fill(&self, target: &Path, content: &[u8]) -> Result<(), Error> {
        (&self.file).write_all(content).map_err(Error::on("write", target))
    }
}

fn is_absent(error: io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound
}

/// What an attempt to lock a temporary came to.
enum Lock {
    Held,
    /// Another process holds it.
    Busy,
    /// The file system has no locks: nothing proves that a temporary on it was abandoned, so none is removed.
    Unsupported,
}

fn lock(file: &File) -> Lock {
    loop {
        match flock(file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Lock::Held,
            Err(Errno::WOULDBLOCK) => return Lock::Busy,
            Err(Errno::INTR) => {}
            Err(_) => return Lock::Unsupported,
        }
    }
}

fn is_at(file: &File, path: &Path) -> bool {
    let (Ok(open), Ok(named)) = (file.metadata(), path.symlink_metadata()) else { return false };
    (open.dev(), open.ino()) == (named.dev(), named.ino())
}

/// Whether a path has the name of a [`Temporary`].
pub(super) fn is_temporary(path: &Path) -> bool {
    let random = path.file_name().and_then(|n| n.to_str()).and_then(|n| n.strip_prefix(PREFIX));
    random.is_some_and(|r| r.len() == RANDOM && r.bytes().all(|b| b.is_ascii_alphanumeric()))
}

/// Removes a temporary whose writer is gone. One whose writer lives stays, and so does one that cannot be locked or opened.
///
/// # Errors
/// It was abandoned and cannot be removed.
pub(super) fn remove_if_abandoned(path: &Path) -> Result<(), Error> {
    // Opened for writing: an NFS server takes no exclusive lock otherwise (flock(2)).
    let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
    let mut options = OpenOptions::new();
    options.read(true).write(true).custom_flags(flags.bits().cast_signed());
    let Ok(file) = options.open(path) else { return Ok(()) };
    let is_file = file.metadata().is_ok_and(|found| found.is_file());
    if is_file && matches!(lock(&file), Lock::Held) && is_at(&file, path) {
        return super::remove(path);
    }
    Ok(())
}

/// Removes the temporaries of writers that are gone from a directory.
///
/// # Errors
/// The directory cannot be read, or a file cannot be removed.
pub fn remove_abandoned(dir: &Path) -> Result<(), Error> {
    list(dir)?
        .iter()
        .filter(|path| is_temporary(path))
        .try_for_each(|path| remove_if_abandoned(path))
}

/// [`remove_abandoned`] for the directory of `target`, where a write is what matters: what cannot be removed stays.
pub fn remove_abandoned_beside(target: &Path) {
    let dir: PathBuf = dir_of(target).to_owned();
    if let Err(error) = remove_abandoned(&dir) {
        tracing::debug!("an abandoned temporary file stays in `{}`: {error}", dir.display());
    }
}
