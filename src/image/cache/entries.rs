//! The files of the image cache, and the VMs that use them.

use super::error::Error;
use std::{
    collections::{BTreeMap, BTreeSet},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::super::{qcow2, reference};
use super::lock::{Hold, Tried};
use crate::{
    spec::{self, Checksum, Format, Image, Origin, Source},
    sys::{digest, file},
    value::Digest,
};

/// `KEY.json`: an image of the cache.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Entry {
    /// The URL or path of the origin.
    pub origin: String,
    /// The digest of the bytes at the origin, if verified.
    pub digest: Option<Digest>,
    /// The digest of the cached file; absent if never computed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content: Option<Digest>,
    /// The format of the cached file.
    pub format: Format,
    /// The size of the file in bytes.
    pub size: u64,
    /// The virtual size in bytes.
    pub virtual_size: u64,
    /// The time of the download, RFC 3339.
    pub fetched_at: String,
}

/// `sums-HASH.json`: the digest from a SUMS file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Resolved {
    pub(crate) origin: String,
    pub(crate) checksums: String,
    pub(crate) digest: Digest,
}

/// An image in the output of `qvm image list`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Listed {
    /// The file in the cache.
    pub file: PathBuf,
    /// The URL or path of the origin.
    pub origin: String,
    /// The digest, if verified.
    pub digest: Option<Digest>,
    /// The digest was compared with a checksum.
    pub verified: bool,
    /// `qcow2` or `raw`.
    pub format: Format,
    /// The disk space used, in bytes.
    pub size_bytes: u64,
    /// The virtual size in bytes.
    pub virtual_size_bytes: u64,
    /// The time of the download, RFC 3339.
    pub fetched_at: String,
    /// The VMs whose VM files name the image.
    pub named_by: Vec<String>,
    /// The VMs with an overlay on the image.
    pub used_by: Vec<String>,
}

/// A disk with a backing file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Overlay {
    /// The directory of the disk: for a disk created by qvm, the VM name.
    pub vm: String,
    /// The disk.
    pub disk: PathBuf,
    /// The backing file as in its header.
    pub backing: String,
}

/// The VMs whose images are required. The operator's own disks of readable VM files are included.
pub struct Needs<'a> {
    /// The directory of all VM states, including VMs without a VM file.
    pub vm_states: &'a Path,
    /// The VMs.
    pub vms: &'a [spec::Vm],
}

/// Returns the path of `KEY.suffix` in the cache.
pub(crate) fn path(cache: &Path, key: &str, suffix: &str) -> PathBuf {
    cache.join(format!("{key}.{suffix}"))
}

/// Tries to acquire the lock of an image.
pub(crate) fn lock(cache: &Path, key: &str, hold: Hold) -> Result<Tried, Error> {
    let path = path(cache, key, "lock");
    super::lock::try_lock(&path, hold).map_err(|source| Error::Lock { path, source })
}

/// Returns the image with this key, if it exists with the size at its verification.
pub(crate) fn look_up(cache: &Path, key: &str) -> Result<Option<(Entry, PathBuf)>, Error> {
    let Some(entry) = entry(cache, key)? else { return Ok(None) };
    let file = path(cache, key, entry.format.name());
    let whole = file::metadata(&file)?.is_some_and(|m| m.is_file() && m.len() == entry.size);
    Ok(whole.then_some((entry, file)))
}

pub(super) fn entry(cache: &Path, key: &str) -> Result<Option<Entry>, Error> {
    let json = file::read(&path(cache, key, "json"))?;
    Ok(json.and_then(|j| serde_json::from_slice(&j).ok()))
}

fn resolved_path(cache: &Path, image: &Image, checksums: &str) -> PathBuf {
    let origin = reference::shown(&image.origin);
    path(cache, &format!("sums-{}", digest::of_text(&format!("{origin}\n{checksums}"))), "json")
}

/// Returns the digest from the last read of the image's SUMS file.
pub(crate) fn resolved(cache: &Path, image: &Image) -> Result<Option<Digest>, Error> {
    let Checksum::Sums(checksums) = &image.checksum else { return Ok(None) };
    let json = file::read(&resolved_path(cache, image, checksums))?;
    Ok(json.and_then(|j| serde_json::from_slice::<Resolved>(&j).ok()).map(|r| r.digest))
}

/// Stores the digest from a SUMS file.
pub(crate) fn remember(cache: &Path, image: &Image, digest: &Digest) -> Result<(), Error> {
    let Checksum::Sums(checksums) = &image.checksum else { return Ok(()) };
    let resolved = Resolved {
        origin: reference::shown(&image.origin),
        checksums: reference::without_password(checksums),
        digest: digest.clone(),
    };
    let json = serde_json::to_vec(&resolved).unwrap_or_default();
    Ok(file::write(&resolved_path(cache, image, checksums), &json, 0o640)?)
}

/// Returns the key of an image: by its digest, or by its origin.
pub(crate) fn key(image: &Image, digest: Option<&Digest>) -> Result<String, Error> {
    let place = match &image.origin {
        _ if digest.is_some() => String::new(),
        Origin::Http(url) => url.clone(),
        // Another file with the same path is another image.
        Origin::Path(path) => {
            let known = file::metadata(path)?;
            let known = known.map(|m| (m.dev(), m.ino(), m.len(), m.mtime(), m.mtime_nsec()));
            format!("{} {known:?}", path.display())
        }
    };
    Ok(reference::key(digest, image, || digest::of_text(&place)))
}

/// Returns the keys of images in VM files, each with its VMs.
pub(super) fn named(
    cache: &Path,
    vms: &[spec::Vm],
) -> Result<BTreeMap<String, BTreeSet<String>>, Error> {
    let mut named: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for vm in vms {
        for disk in &vm.disks {
            let Source::Image(image) = &disk.source else { continue };
            let mut keys = Vec::new();
            let mut digest = reference::written_digest(image).cloned();
            if let Checksum::Sums(checksums) = &image.checksum {
                digest = resolved(cache, image)?;
                let path = resolved_path(cache, image, checksums);
                keys.extend(path.file_stem().and_then(|s| s.to_str()).map(str::to_owned));
            }
            if digest.is_some() || !matches!(image.checksum, Checksum::Sums(_)) {
                keys.push(key(image, digest.as_ref())?);
            }
            for key in keys {
                named.entry(key).or_default().insert(vm.name.to_string());
            }
        }
    }
    Ok(named)
}

/// Returns every disk with a backing file below the state directory or in a VM file.
///
/// # Errors
/// A disk cannot be read, so no image is known to be unused.
pub fn overlays(needs: &Needs<'_>) -> Result<Vec<Overlay>, Error> {
    let mut disks = Vec::new();
    for dir in file::list(needs.vm_states)? {
        if dir.is_dir() {
            let vm = dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
            disks.extend(file::list(&dir)?.into_iter().map(|disk| (vm.clone(), disk)));
        }
    }
    for vm in needs.vms {
        let own = vm.disks.iter().filter_map(|d| match &d.source {
            Source::File(path) => Some((vm.name.to_string(), path.clone())),
            _ => None,
        });
        disks.extend(own);
    }
    let mut overlays = Vec::new();
    for (vm, disk) in disks {
        if let Some(backing) = backing_of(&disk)? {
            overlays.push(Overlay { vm, disk, backing });
        }
    }
    Ok(overlays)
}

/// Returns the backing file in a disk's header; `None` if it has none, is not qcow2, or does not
/// exist.
pub(crate) fn backing_of(disk: &Path) -> Result<Option<String>, Error> {
    if !file::metadata(disk)?.is_some_and(|m| m.is_file()) {
        return Ok(None);
    }
    let head = file::read_at(disk, 0, qcow2::HEAD)?;
    let Ok(header) = qcow2::Header::parse(&head) else { return Ok(None) };
    let Some((offset, length)) = header.backing_span else { return Ok(None) };
    let name = file::read_at(disk, offset, length as usize)?;
    Ok(Some(String::from_utf8_lossy(&name).into_owned()))
}

/// Returns true if the image with this key is a backing file of `overlay`. The unique name is
/// searched anywhere in the backing file's name (also in `json:{…}`): a false match only keeps an
/// image.
pub(super) fn is_overlay_of(overlay: &Overlay, key: &str) -> bool {
    overlay.backing.contains(&format!("{key}."))
}

/// Returns all images, the newest first.
///
/// # Errors
/// The cache or a disk cannot be read.
pub fn list(cache: &Path, needs: &Needs<'_>) -> Result<Vec<Listed>, Error> {
    let (named, overlays) = (named(cache, needs.vms)?, overlays(needs)?);
    let mut all = Vec::new();
    for key in keys(cache)?.keys() {
        let Some((entry, file)) = look_up(cache, key)? else { continue };
        let used: BTreeSet<String> =
            overlays.iter().filter(|o| is_overlay_of(o, key)).map(|o| o.vm.clone()).collect();
        all.push(Listed {
            size_bytes: file::metadata(&file)?.map_or(0, |m| m.blocks() * 512),
            file,
            origin: entry.origin,
            verified: entry.digest.is_some(),
            digest: entry.digest,
            format: entry.format,
            virtual_size_bytes: entry.virtual_size,
            fetched_at: entry.fetched_at,
            named_by: named.get(key).into_iter().flatten().cloned().collect(),
            used_by: used.into_iter().collect(),
        });
    }
    all.sort_by(|a, b| b.fetched_at.cmp(&a.fetched_at).then(a.file.cmp(&b.file)));
    Ok(all)
}

/// Makes an image read-only: the base of an overlay must never change.
pub(crate) fn make_read_only(path: &Path) -> Result<(), file::Error> {
    use std::os::unix::fs::PermissionsExt;
    const CLOSED: u32 = 0o440;
    match file::metadata(path)? {
        Some(found) if found.permissions().mode() & 0o777 == CLOSED => Ok(()),
        _ => file::set_mode(path, CLOSED),
    }
}

/// Returns the files of the cache by key; other files are ignored.
pub(super) fn keys(cache: &Path) -> Result<BTreeMap<String, Vec<PathBuf>>, Error> {
    let mut keys: BTreeMap<String, Vec<PathBuf>> = BTreeMap::new();
    for file in file::list(cache)? {
        let Some(name) = file.file_name().and_then(|n| n.to_str()) else { continue };
        let name = name.strip_prefix(".qvm-").unwrap_or(name);
        let Some((key, suffix)) = name.split_once('.') else { continue };
        let ours = ["sha256-", "sha512-", "unverified-url-", "unverified-path-", "sums-"];
        if suffix != "lock" && ours.iter().any(|p| key.starts_with(p)) {
            keys.entry(key.to_owned()).or_default().push(file);
        }
    }
    Ok(keys)
}
