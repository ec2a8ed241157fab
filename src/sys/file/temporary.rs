//! The atomic file writer: content is written to a unique temporary file in the target's directory
//! and renamed when complete.
//!
//! A temporary file is named `.qvm-tmp_` and 16 random hexadecimal digits: it is unique and has no
//! suffix that another program processes. Its writer holds an exclusive flock(2) until the file is
//! renamed or removed. The kernel releases the lock when the writer ends, so a file that can be
//! locked is abandoned, in whichever PID namespace or host its writer ran; see
//! [`remove_abandoned`].

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{CWD, RenameFlags, renameat_with},
    io::Errno,
};

use super::{
    directory::{dir_of, list, sync_dir},
    error::Error,
};
use crate::sys::flock;

/// The name prefix. VM names contain no `_`, so this is never the draft of a VM.
const PREFIX: &str = ".qvm-tmp_";
/// The number of random digits.
const RANDOM: usize = 16;
/// The number of attempts if another process removes the file before it is locked. The last file is
/// used in any case: on a file system without stable inode numbers each file appears removed.
const ATTEMPTS: u32 = 8;

/// An unfinished file without its final name. Removed on drop.
#[derive(Debug)]
pub struct Temporary {
    path: PathBuf,
    file: File,
    /// The file has its final name.
    is_named: bool,
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // Before the file is closed, which releases the lock.
        if !self.is_named {
            let _ = fs::remove_file(&self.path);
        }
    }
}

impl Temporary {
    /// Creates an empty file with mode 0600 in the directory of `target`.
    ///
    /// # Errors
    /// The directory is not writable.
    pub fn for_target(target: &Path) -> Result<Self, Error> {
        let on = Error::on("create a temporary file for", target);
        Self::in_dir(dir_of(target)).map_err(on)
    }

    fn in_dir(dir: &Path) -> io::Result<Self> {
        let mut attempts = 0;
        loop {
            let random = uuid::Uuid::new_v4().simple().to_string();
            let path = dir.join(format!("{PREFIX}{}", &random[..RANDOM]));
            let mut options = OpenOptions::new();
            let made = options.read(true).write(true).create_new(true).mode(0o600).open(&path);
            let file = match made {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
                made => made?,
            };
            attempts += 1;
            // Until it is locked, the file looks abandoned and another process may remove it.
            let is_ours = !matches!(lock(&file), Lock::Busy) && is_at(&file, &path);
            if is_ours || attempts > ATTEMPTS {
                return Ok(Self { path, file, is_named: false });
            }
        }
    }

    /// Returns the open file, readable and writable.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Returns the temporary path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Syncs the file, sets its mode, renames it to `target` (replacing it) and syncs the
    /// directory.
    ///
    /// # Errors
    /// Any step fails; before the rename the target is unchanged.
    pub fn replace(mut self, target: &Path, mode: u32) -> Result<(), Error> {
        self.set_mode(target, mode)?;
        self.file.sync_all().map_err(Error::on("sync", target))?;
        self.rename(target)?;
        sync_dir(target)
    }

    /// As [`Self::replace`], without syncing.
    ///
    /// # Errors
    /// Any step fails; the target is unchanged.
    pub fn replace_volatile(mut self, target: &Path, mode: u32) -> Result<(), Error> {
        self.set_mode(target, mode)?;
        self.rename(target)
    }

    /// As [`Self::replace`], but never replaces: of two concurrent writers one succeeds.
    ///
    /// # Errors
    /// [`io::ErrorKind::AlreadyExists`] if the target exists; or any step fails.
    pub fn create(mut self, target: &Path, mode: u32) -> Result<(), Error> {
        self.set_mode(target, mode)?;
        self.file.sync_all().map_err(Error::on("sync", target))?;
        match renameat_with(CWD, &self.path, CWD, target, RenameFlags::NOREPLACE) {
            Ok(()) => self.is_named = true,
            // The file system does not support RENAME_NOREPLACE. link(2) does not replace either;
            // the temporary name is removed on drop.
            Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => self.link(target)?,
            Err(error) => return Err(Error::on("create", target)(error.into())),
        }
        sync_dir(target)
    }

    fn link(&mut self, target: &Path) -> Result<(), Error> {
        match fs::hard_link(&self.path, target) {
            // Without hard links there is an instant between two calls in which another writer's
            // file would be replaced.
            Err(error)
                if error.kind() != io::ErrorKind::AlreadyExists
                    && target
                        .symlink_metadata()
                        .is_err_and(|e| e.kind() == io::ErrorKind::NotFound) =>
            {
                self.rename(target)
            }
            linked => linked.map_err(Error::on("create", target)),
        }
    }

    /// By descriptor: independent of the umask, and certain to be this file.
    fn set_mode(&self, target: &Path, mode: u32) -> Result<(), Error> {
        let permissions = fs::Permissions::from_mode(mode);
        self.file.set_permissions(permissions).map_err(Error::on("set the mode of", target))
    }

    fn rename(&mut self, target: &Path) -> Result<(), Error> {
        fs::rename(&self.path, target).map_err(Error::on("replace", target))?;
        self.is_named = true;
        Ok(())
    }

    /// Writes the whole content.
    ///
    /// # Errors
    /// The write fails, for example without disk space. The error names `target`.
    pub fn fill(&self, target: &Path, content: &[u8]) -> Result<(), Error> {
        (&self.file).write_all(content).map_err(Error::on("write", target))
    }
}

/// The result of locking a temporary file.
enum Lock {
    Held,
    /// Another process holds the lock.
    Busy,
    /// The file system has no locks: it cannot be proven that a file is abandoned, so none is
    /// removed.
    Unsupported,
}

fn lock(file: &File) -> Lock {
    match flock::try_exclusive(file) {
        Ok(true) => Lock::Held,
        Ok(false) => Lock::Busy,
        Err(_) => Lock::Unsupported,
    }
}

fn is_at(file: &File, path: &Path) -> bool {
    let (Ok(open), Ok(named)) = (file.metadata(), path.symlink_metadata()) else { return false };
    (open.dev(), open.ino()) == (named.dev(), named.ino())
}

/// Returns true if the path has the name of a [`Temporary`].
pub(crate) fn is_temporary(path: &Path) -> bool {
    let random = path.file_name().and_then(|n| n.to_str()).and_then(|n| n.strip_prefix(PREFIX));
    random.is_some_and(|r| r.len() == RANDOM && r.bytes().all(|b| b.is_ascii_hexdigit()))
}

/// Removes a temporary file whose writer has ended. A file that cannot be opened or locked is kept.
///
/// # Errors
/// The abandoned file cannot be removed.
pub(crate) fn remove_if_abandoned(path: &Path) -> Result<(), Error> {
    // Opened for writing: NFS requires it for exclusive locks (flock(2)).
    let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
    let mut options = OpenOptions::new();
    options.read(true).write(true).custom_flags(flags.bits().cast_signed());
    let Ok(file) = options.open(path) else { return Ok(()) };
    let is_file = file.metadata().is_ok_and(|found| found.is_file());
    if is_file && matches!(lock(&file), Lock::Held) && is_at(&file, path) {
        return super::directory::remove(path);
    }
    Ok(())
}

/// Removes the temporary files of ended writers from a directory.
///
/// # Errors
/// The directory cannot be read, or a file cannot be removed.
pub fn remove_abandoned(dir: &Path) -> Result<(), Error> {
    list(dir)?
        .iter()
        .filter(|path| is_temporary(path))
        .try_for_each(|path| remove_if_abandoned(path))
}

/// [`remove_abandoned`] for the directory of `target`; errors are only logged, because the caller's
/// write matters more.
pub fn remove_abandoned_beside(target: &Path) {
    let dir: PathBuf = dir_of(target).to_owned();
    if let Err(error) = remove_abandoned(&dir) {
        tracing::debug!(
            "cannot remove an abandoned temporary file in `{}`: \
            {error}",
            dir.display()
        );
    }
}
