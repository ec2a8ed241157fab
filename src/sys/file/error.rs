//! The error of file operations.

use std::{
    io::{self},
    path::{Path, PathBuf},
};

use crate::value::{ErrorCode, Explain, is_host_fault};

/// The failed operation and its file.
#[derive(Debug, thiserror::Error)]
#[error("cannot {doing} `{}`", .path.display())]
pub struct Error {
    doing: &'static str,
    path: PathBuf,
    source: io::Error,
}

impl Error {
    /// Returns a function for `map_err` that names the operation and its file.
    pub fn on(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self { doing, path: path.to_owned(), source }
    }

    /// Returns only the cause.
    pub fn into_io(self) -> io::Error {
        self.source
    }

    /// Returns the kind of the cause.
    pub fn kind(&self) -> io::ErrorKind {
        self.source.kind()
    }
}

impl Explain for Error {
    fn own_code(&self) -> Option<ErrorCode> {
        Some(ErrorCode::of_io(&self.source))
    }

    fn own_hint(&self) -> Option<String> {
        let place = self.path.parent().unwrap_or(&self.path).display();
        match self.source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Some(format!(
                "free space on the file system of `{place}`; `qvm image prune` removes unused \
                 images"
            )),
            io::ErrorKind::FileTooLarge => Some(format!(
                "the file system of `{place}` or a limit (`ulimit -f`) does not allow files of \
                 this size"
            )),
            io::ErrorKind::PermissionDenied => {
                Some(format!("run as the user who owns `{place}`, or as root"))
            }
            io::ErrorKind::ReadOnlyFilesystem => {
                Some(format!("`{place}` must be on a writable file system"))
            }
            _ => None,
        }
    }

    fn is_own_host_fault(&self) -> bool {
        is_host_fault(self)
    }
}
