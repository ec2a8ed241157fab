//! Why a file operation failed.

use std::{
    io::{self},
    path::{Path, PathBuf},
};

use crate::value::{Explain, is_host_fault};

/// What was tried, on which file.
#[derive(Debug, thiserror::Error)]
#[error("cannot {doing} `{}`", .path.display())]
pub struct Error {
    doing: &'static str,
    path: PathBuf,
    source: io::Error,
}

impl Error {
    /// For `map_err`: what was tried on `path`.
    pub fn on(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self { doing, path: path.to_owned(), source }
    }

    /// The cause alone.
    pub fn into_io(self) -> io::Error {
        self.source
    }

    /// The kind of the cause.
    pub fn kind(&self) -> io::ErrorKind {
        self.source.kind()
    }
}

impl Explain for Error {
    fn own_hint(&self) -> Option<String> {
        let place = self.path.parent().unwrap_or(&self.path).display();
        match self.source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Some(format!(
                "make room on the file system of `{place}`; `qvm image prune` removes images that no VM needs"
            )),
            io::ErrorKind::FileTooLarge => Some(format!(
                "the file system of `{place}`, or a limit (`ulimit -f`), allows no file of that size"
            )),
            io::ErrorKind::PermissionDenied => {
                Some(format!("run as the user who owns `{place}`, or as root"))
            }
            io::ErrorKind::ReadOnlyFilesystem => {
                Some(format!("`{place}` must be on a file system that can be written"))
            }
            _ => None,
        }
    }

    fn is_own_host_fault(&self) -> bool {
        is_host_fault(self)
    }
}
