//! Reads only the UUID of a VM: its identity may have keys of a later version.

use serde::de::Error as _;

use super::layout::VmPaths;
use crate::sys::file;

/// Why the UUID cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error(transparent)]
    File(#[from] file::Error),
    /// The file is not an identity.
    #[error("cannot read `{path}`")]
    Content {
        /// The file.
        path: String,
        /// The cause.
        source: Box<toml::de::Error>,
    },
}

/// Returns the UUID of a VM; `None` if it has no identity.
///
/// # Errors
/// The identity exists and cannot be read.
pub fn stored_uuid(paths: &VmPaths) -> Result<Option<String>, Error> {
    let path = paths.identity();
    let Some(text) = file::read(&path)? else { return Ok(None) };
    let wrong = |source| Error::Content { path: path.display().to_string(), source };
    let table: toml::Table = toml::from_str(&String::from_utf8_lossy(&text))
        .map_err(|source| wrong(Box::new(source)))?;
    let uuid = table.get("uuid").and_then(toml::Value::as_str).map(str::to_owned);
    uuid.map(Some).ok_or_else(|| wrong(Box::new(toml::de::Error::missing_field("uuid"))))
}
