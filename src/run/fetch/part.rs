//! The files of a download that is not finished.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::host::file;

/// `KEY.part.json`: what the bytes in `KEY.part` are the beginning of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Part {
    pub(super) url: String,
    pub(super) validator: Option<String>,
    pub(super) total: Option<u64>,
}

/// `KEY.part.json`.
pub(super) fn about_path(part: &Path) -> PathBuf {
    part.with_extension("part.json")
}

/// Removes what there is of a download.
pub(in crate::run) fn forget(part: &Path) -> Result<(), file::Error> {
    file::remove(&about_path(part))?;
    file::remove(part)
}
