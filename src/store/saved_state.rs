//! A guest's saved state on disk: written atomically, used by the next start.

use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

use super::saved_header::{self, PREFIX, Saved};
use crate::{
    sys::file,
    value::{ErrorCode, Explain},
};

/// Why a state cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file operation failed.
    #[error(transparent)]
    File(#[from] file::Error),
    /// The file is not a saved state.
    #[error("cannot use `{}`", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// The cause.
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

    fn own_code(&self) -> Option<ErrorCode> {
        Some(match self {
            Self::Content { .. } => ErrorCode::SavedStateUnusable,
            Self::File(..) => return None,
        })
    }
}

/// A state being written; removed on drop unless committed.
#[derive(Debug)]
pub struct Writing {
    temporary: file::Temporary,
    path: PathBuf,
}

impl Writing {
    /// Starts a file for `path` and writes its header.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn begin(path: &Path, head: &Saved) -> Result<(Self, File), Error> {
        let temporary = file::Temporary::for_target(path)?;
        temporary.fill(path, &head.head())?;
        let to = temporary.file().try_clone().map_err(file::Error::on("write", path))?;
        Ok((Self { temporary, path: path.to_owned() }, to))
    }

    /// Renames the complete file to its final name.
    ///
    /// # Errors
    /// The file cannot be renamed.
    pub fn commit(self) -> Result<(), Error> {
        Ok(self.temporary.replace(&self.path, 0o600)?)
    }
}

/// Returns the state, if there is one: its header, and the file positioned at QEMU's data.
///
/// # Errors
/// The state exists and cannot be used.
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

/// Removes a state durably, so that it is never restored a second time with changed disks.
///
/// # Errors
/// The file cannot be removed.
pub fn remove(path: &Path) -> Result<(), Error> {
    if file::exists(path)? {
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
    fn state_is_complete_or_missing() {
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
