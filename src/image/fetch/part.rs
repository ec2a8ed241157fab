//! The files of a download that is not finished.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::sys::file;

/// `KEY.part.json`: what the bytes in `KEY.part` are the beginning of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Part {
    pub(crate) url: String,
    pub(crate) validator: Option<String>,
    pub(crate) total: Option<u64>,
}

/// `KEY.part.json`.
pub(crate) fn about_path(part: &Path) -> PathBuf {
    part.with_extension("part.json")
}

/// Removes what there is of a download.
pub(crate) fn forget(part: &Path) -> Result<(), file::Error> {
    file::remove(&about_path(part))?;
    file::remove(part)
}
