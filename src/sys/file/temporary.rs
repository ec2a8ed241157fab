//! The atomic writer: content goes to a unique temporary file beside its target and gets the target's name when it is whole.
//!
//! A temporary is called `.qvm-tmp_` and sixteen random hexadecimal digits: no other writer shares it, and it has no suffix that
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
    fs::{CWD, RenameFlags, renameat_with},
    io::Errno,
};

use super::{
    directory::{dir_of, list, sync_dir},
    error::Error,
};
use crate::sys::flock;

/// What the name of a temporary begins with. No VM has a name with `_`, so this is never the draft of a VM.
const PREFIX: &str = ".qvm-tmp_";
/// How many random digits follow.
const RANDOM: usize = 16;
/// After how many files that another process removed before they were locked the next one is used whatever became of it: on a file
/// system whose inode numbers are not stable, each looks removed.
const ATTEMPTS: u32 = 8;

/// A file that is being written and has no name of its own yet. Dropped, it leaves nothing.
#[derive(Debug)]
pub struct Temporary {
    path: PathBuf,
    file: File,
    /// It has its target's name.
    is_named: bool,
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // While the lock is held: the file is not closed yet.
        if !self.is_named {
            let _ = fs::remove_file(&self.path);
        }
    }
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
            // Between the creation and the lock the file looks abandoned, and another process may remove it.
            let is_ours = !matches!(lock(&file), Lock::Busy) && is_at(&file, &path);
            if is_ours || attempts > ATTEMPTS {
                return Ok(Self { path, file, is_named: false });
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
    pub fn replace(mut self, target: &Path, mode: u32) -> Result<(), Error> {
        self.set_mode(target, mode)?;
        self.file.sync_all().map_err(Error::on("sync", target))?;
        self.rename(target)?;
        sync_dir(target)
    }

    /// As [`Self::replace`], and syncs nothing.
    ///
    /// # Errors
    /// Any step; the target is then as it was.
    pub fn replace_volatile(mut self, target: &Path, mode: u32) -> Result<(), Error> {
        self.set_mode(target, mode)?;
        self.rename(target)
    }

    /// As [`Self::replace`], for a name that nothing has: of two writers at once, one succeeds.
    ///
    /// # Errors
    /// [`io::ErrorKind::AlreadyExists`] where something has that name; or any step.
    pub fn create(mut self, target: &Path, mode: u32) -> Result<(), Error> {
        self.set_mode(target, mode)?;
        self.file.sync_all().map_err(Error::on("sync", target))?;
        match renameat_with(CWD, &self.path, CWD, target, RenameFlags::NOREPLACE) {
            Ok(()) => self.is_named = true,
            // The file system lacks the flag. link(2) replaces nothing either; the temporary name goes when this is dropped.
            Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => self.link(target)?,
            Err(error) => return Err(Error::on("create", target)(error.into())),
        }
        sync_dir(target)
    }

    fn link(&mut self, target: &Path) -> Result<(), Error> {
        match fs::hard_link(&self.path, target) {
            // Nor has it links: there is an instant between the two calls at which another's file would be replaced.
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

    /// By descriptor: exact whatever the umask is, and of this file alone.
    fn set_mode(&self, target: &Path, mode: u32) -> Result<(), Error> {
        let permissions = fs::Permissions::from_mode(mode);
        self.file.set_permissions(permissions).map_err(Error::on("set the mode of", target))
    }

    fn rename(&mut self, target: &Path) -> Result<(), Error> {
        fs::rename(&self.path, target).map_err(Error::on("replace", target))?;
        self.is_named = true;
        Ok(())
    }

    /// Writes all of it.
    ///
    /// # Errors
    /// No space, and the like; named after `target`.
    pub fn fill(&self, target: &Path, content: &[u8]) -> Result<(), Error> {
        (&self.file).write_all(content).map_err(Error::on("write", target))
    }
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

/// Whether a path has the name of a [`Temporary`].
pub(crate) fn is_temporary(path: &Path) -> bool {
    let random = path.file_name().and_then(|n| n.to_str()).and_then(|n| n.strip_prefix(PREFIX));
    random.is_some_and(|r| r.len() == RANDOM && r.bytes().all(|b| b.is_ascii_hexdigit()))
}

/// Removes a temporary whose writer is gone. One whose writer lives stays, and so does one that cannot be locked or opened.
///
/// # Errors
/// It was abandoned and cannot be removed.
pub(crate) fn remove_if_abandoned(path: &Path) -> Result<(), Error> {
    // Opened for writing: an NFS server takes no exclusive lock otherwise (flock(2)).
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
