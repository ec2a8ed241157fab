//! A guest's saved state on the disk: written whole or not at all, found by the next start.

use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

use super::saved_header::{self, PREFIX, Saved};
use crate::{sys::file, value::Explain};

/// Why a state cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file.
    #[error(transparent)]
    File(#[from] file::Error),
    /// It is not one.
    #[error("cannot use `{}`", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// Why.
        source: saved_header::Error,
    },
}

impl Explain for Error {
    fn wrapped(&self) -> Option<&dyn Explain> {
        match self {
            Self::File(error) => Some(error),
            Self::Content { .. } => None,
        }
    }
}

/// A state that is being written. Dropped before its end, it leaves nothing.
#[derive(Debug)]
pub struct Writing {
    temporary: file::Temporary,
    path: PathBuf,
}

impl Writing {
    /// Begins the file that will be `path`, with its head.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn begin(path: &Path, head: &Saved) -> Result<(Self, File), Error> {
        let temporary = file::Temporary::beside(path)?;
        temporary.fill(path, &head.head())?;
        let to = temporary.file().try_clone().map_err(file::Error::on("write", path))?;
        Ok((Self { temporary, path: path.to_owned() }, to))
    }

    /// What is written counts from now on.
    ///
    /// # Errors
    /// It cannot be renamed.
    pub fn commit(self) -> Result<(), Error> {
        Ok(self.temporary.replace(&self.path, 0o600)?)
    }
}

/// The state, if there is one: its head, and the file where QEMU's bytes begin.
///
/// # Errors
/// There is one that cannot be used.
pub fn open(path: &Path) -> Result<Option<(Saved, File)>, Error> {
    let mut from = match File::open(path) {
        Ok(from) => from,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(file::Error::on("open", path)(error).into()),
    };
    let content = |source| Error::Content { path: path.to_owned(), source };
    let mut read = |length: usize| {
        let mut bytes = Vec::with_capacity(length);
        let read = (&mut from).take(length as u64).read_to_end(&mut bytes);
        read.map(|_| bytes).map_err(file::Error::on("read", path))
    };
    let length = Saved::length(&read(PREFIX)?).map_err(content)?;
    let head = Saved::parse(&read(length)?).map_err(content)?;
    Ok(Some((head, from)))
}

/// Removes a state for good, so that it cannot be used a second time, on other disks than it was made with.
///
/// # Errors
/// It stays.
pub fn remove(path: &Path) -> Result<(), Error> {
    if path.symlink_metadata().is_ok() {
        file::remove(path)?;
        file::sync_dir(path)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_state_is_whole_or_not_there() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        let head = Saved {
            vm_file: "x".into(),
            at: "t".into(),
            qemu_version: "10.0.2".into(),
            held: true,
            ready: true,
        };
        let (writing, _) = Writing::begin(&path, &head).unwrap();
        drop(writing);
        assert!(open(&path).unwrap().is_none());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);

        let (writing, to) = Writing::begin(&path, &head).unwrap();
        { to }.write_all(b"memory").unwrap();
        writing.commit().unwrap();
        let (found, mut rest) = open(&path).unwrap().unwrap();
        let mut memory = String::new();
        rest.read_to_string(&mut memory).unwrap();
        assert_eq!((found, memory.as_str()), (head, "memory"));
        remove(&path).unwrap();
        remove(&path).unwrap();
        assert!(open(&path).unwrap().is_none());

        std::fs::write(&path, "something else, of more bytes").unwrap();
        let error = open(&path).unwrap_err();
        assert_eq!(error.to_string(), format!("cannot use `{}`", path.display()));
    }
}
