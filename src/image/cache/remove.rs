//! Removes unused images from the cache.

use std::{
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use serde::Serialize;

use super::lock::{Hold, Tried};
use super::{
    entries::{Needs, entry, is_overlay_of, keys, lock, named, overlays, path},
    error::Error,
};
use crate::{image::reference, sys::file};

/// Removes the image that `name` identifies: its digest with or without `sha256:`, at least 8
/// digits of it, its URL, or its file name. Returns the removed file.
///
/// # Errors
/// No image or more than one matches, it is in use, or an overlay uses it.
pub fn remove(cache: &Path, needs: &Needs<'_>, name: &str) -> Result<PathBuf, Error> {
    let mut matching = Vec::new();
    for (key, files) in keys(cache)? {
        let Some(entry) = entry(cache, &key)? else { continue };
        let image = path(cache, &key, entry.format.name());
        let hex = name.split_once(':').map_or(name, |(_, hex)| hex).to_ascii_lowercase();
        let by_digest =
            hex.len() >= 8 && entry.digest.as_ref().is_some_and(|d| d.hex().starts_with(&hex));
        let by_file = image.file_name().is_some_and(|f| f.to_str() == Some(name)) || key == name;
        if by_digest || by_file || entry.origin == reference::without_password(name) {
            matching.push((key, image, files));
        }
    }
    let (key, image, files) = match (matching.pop(), matching.is_empty()) {
        (None, _) => return Err(Error::Unknown(name.to_owned())),
        (Some(only), true) => only,
        (Some(_), false) => return Err(Error::Several(name.to_owned())),
    };
    take_out(cache, needs, &key, &image, &files)?;
    Ok(image)
}

fn take_out(
    cache: &Path,
    needs: &Needs<'_>,
    key: &str,
    what: &Path,
    files: &[PathBuf],
) -> Result<(), Error> {
    let what = what.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let _held = match lock(cache, key, Hold::Alone)? {
        Tried::Held(lock) => lock,
        Tried::Busy(pid) => return Err(Error::Busy { what, pid }),
    };
    // Checked under the lock, which a process creating an overlay also holds.
    let disks: Vec<PathBuf> =
        overlays(needs)?.into_iter().filter(|o| is_overlay_of(o, key)).map(|o| o.disk).collect();
    if !disks.is_empty() {
        return Err(Error::Base { what, disks });
    }
    for file in files {
        file::remove(file)?;
    }
    Ok(file::sync_dir(&path(cache, key, "json"))?)
}

/// An image that [`prune`] removed or would remove.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Pruned {
    /// The files.
    pub files: Vec<PathBuf>,
    /// The URL or path of the origin, if known.
    pub origin: Option<String>,
    /// The disk space freed, in bytes.
    pub freed_bytes: u64,
}

/// Removes every image, partial download and stored checksum that no VM file names and no overlay
/// uses. Files in use are kept.
///
/// # Errors
/// The cache or a disk cannot be read. Files removed before the error stay removed.
pub fn prune(cache: &Path, needs: &Needs<'_>, dry_run: bool) -> Result<Vec<Pruned>, Error> {
    let (named, overlays) = (named(cache, needs.vms)?, overlays(needs)?);
    let mut pruned = Vec::new();
    for (key, files) in keys(cache)? {
        if named.contains_key(&key) || overlays.iter().any(|o| is_overlay_of(o, &key)) {
            continue;
        }
        let origin = entry(cache, &key)?.map(|e| e.origin);
        let mut freed_bytes = 0;
        for file in &files {
            freed_bytes += file::metadata(file)?.map_or(0, |m| m.blocks() * 512);
        }
        let what = PathBuf::from(&key);
        if dry_run {
            match lock(cache, &key, Hold::Alone)? {
                Tried::Held(_) => {}
                Tried::Busy(_) => continue,
            }
        } else {
            match take_out(cache, needs, &key, &what, &files) {
                Ok(()) => {}
                Err(Error::Busy { .. } | Error::Base { .. }) => continue,
                Err(e) => return Err(e),
            }
        }
        pruned.push(Pruned { files, origin, freed_bytes });
    }
    Ok(pruned)
}
