//! The files of a partial download.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::sys::file;

/// `KEY.part.json`: the download to which `KEY.part` belongs.
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

/// Removes a partial download.
pub(crate) fn forget(part: &Path) -> Result<(), file::Error> {
    file::remove(&about_path(part))?;
    file::remove(part)
}
