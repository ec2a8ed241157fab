//! Taking out of the image cache what nobody needs.

use std::{
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use serde::Serialize;

use super::lock::{Hold, Tried};
use super::{
    entries::{Needs, entry, keys, lock, named, overlays, path, stands_on},
    error::Error,
};
use crate::{image::reference, sys::file};

/// Takes out the image that is called `name`: by its digest with or without `sha256:`, at least 8 digits of it, its
/// address, or the name of its file. Says which file that was.
///
/// # Errors
/// There is none or more than one, it is in use, or an overlay stands on it.
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
    // Only now: while somebody made an overlay on it, the lock was not to be had.
    let disks: Vec<PathBuf> =
        overlays(needs)?.into_iter().filter(|o| stands_on(o, key)).map(|o| o.disk).collect();
    if !disks.is_empty() {
        return Err(Error::Base { what, disks });
    }
    for file in files {
        file::remove(file)?;
    }
    Ok(file::sync_dir(&path(cache, key, "json"))?)
}

/// What [`prune`] took out, or would have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Pruned {
    /// The files.
    pub files: Vec<PathBuf>,
    /// Where the image came from, where that is known.
    pub origin: Option<String>,
    /// How much room that gives, in bytes.
    pub freed_bytes: u64,
}

/// Takes out every image, partial download and remembered checksum that no VM file names and no overlay needs. One
/// that is in use at this moment stays.
///
/// # Errors
/// The cache or a disk cannot be read; what was taken out until then is gone.
pub fn prune(cache: &Path, needs: &Needs<'_>, dry_run: bool) -> Result<Vec<Pruned>, Error> {
    let (named, overlays) = (named(cache, needs.vms)?, overlays(needs)?);
    let mut pruned = Vec::new();
    for (key, files) in keys(cache)? {
        if named.contains_key(&key) || overlays.iter().any(|o| stands_on(o, &key)) {
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
