//! Provides an image to create a disk from: from the cache, in place, or downloaded.
//!
//! An uncompressed image with `path` is used in place, since a copy in the cache would waste space.
//! The base of an overlay is always copied to the cache (by reflink if possible): an operator's
//! file may be replaced or removed, which would destroy all overlays.
//!
//! Every image is verified: its digest, its format by magic number, no references to other files (a
//! qcow2 with the backing file `/etc/shadow` would pass it to the guest), and the consistency of
//! qcow2 tables, which also detects truncation.

use super::cache;
use super::error::Error;
use super::fetch;
use super::fetch::Patience;
use super::writer;
use std::{
    fs::File,
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use jiff::Timestamp;

use super::{
    cache::lock::Lock,
    qemu_img::QemuImg,
    reference::{Compression, shown, written_digest},
};
use super::{
    cache::{Entry, key, path},
    fetch::{Fetched, Job},
    writer::{ImageWriter, UnpackedFile},
};
use crate::sys::progress::{At, Cancel, Doing, Progress};
use crate::{
    spec::{Checksum, Format, Image, Origin},
    sys::{file, reflink},
    value::{Algorithm, Digest},
};

/// The tools to create images and disks.
#[derive(Debug, Clone)]
pub struct Tools {
    /// The program qemu-img.
    pub qemu_img: QemuImg,
    /// Timeouts and retries of downloads.
    pub patience: Patience,
    /// The current time, for records.
    pub now: Timestamp,
}

/// The purpose of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Copy it once; it may be used in place.
    Copy,
    /// Use it as base of an overlay; it must be in the cache.
    Base,
    /// Like `Base`, but also read the list of checksums again: `qvm image pull`.
    Refresh,
}

/// A verified image. While this exists, `qvm image rm` does not remove it.
#[derive(Debug)]
pub struct Cached {
    /// The file.
    pub path: PathBuf,
    /// Its format.
    pub format: Format,
    /// The virtual size in bytes.
    pub virtual_size: u64,
    /// The digest, if verified.
    pub digest: Option<Digest>,
    /// The image was already in the cache.
    pub found: bool,
    pub(super) _held: Option<Lock>,
}

/// A new image, not yet in the cache.
struct NewImage {
    file: PathBuf,
    /// The digest of the received bytes, if verified.
    digest: Option<Digest>,
    /// The digest of the file itself, if computed.
    content: Option<Digest>,
}

/// A damaged file of the cache.
pub(super) struct DamagedFile {
    /// Its inode: another file with the same name is checked again.
    pub(super) id: u64,
    pub(super) error: Error,
}

/// Receives the content of a cached image while the image is verified, so that a copy of the image
/// needs no second pass over its bytes.
pub trait VerifiedContent {
    /// The content of `source`, an image in this format, follows from its start. Content of an
    /// earlier pass is void.
    fn begin(&mut self, source: &File, format: Format);
    /// Receives the next bytes.
    fn write(&mut self, bytes: &[u8]);
    /// The content since `begin` is complete, and is what was put into the cache.
    fn end(&mut self);
}

pub(super) struct Work<'a> {
    pub(super) image: &'a Image,
    pub(super) name: String,
    pub(super) cache: &'a Path,
    pub(super) tools: &'a Tools,
    pub(super) progress: &'a mut dyn Progress,
    pub(super) cancel: &'a Cancel,
    /// Receives the content of the image that is in the cache.
    pub(super) content: Option<&'a mut dyn VerifiedContent>,
    /// The damaged file of the cache.
    pub(super) spoilt: Option<DamagedFile>,
}

/// Returns the image for a purpose. Blocks the thread.
///
/// # Errors
/// See [`Error`]. Only the beginning of a resumable download remains in the cache.
pub fn ensure(
    image: &Image,
    cache: &Path,
    purpose: Purpose,
    tools: &Tools,
    progress: &mut dyn Progress,
    cancel: &Cancel,
) -> Result<Cached, Error> {
    let name = shown(&image.origin);
    Work { image, name, cache, tools, progress, cancel, content: None, spoilt: None }
        .ensure(purpose)
}

/// The same for a copy: `content` receives the content of an image that is in the cache already,
/// while the image is verified.
///
/// # Errors
/// As of [`ensure`].
pub fn ensure_copied(
    image: &Image,
    cache: &Path,
    content: &mut dyn VerifiedContent,
    tools: &Tools,
    progress: &mut dyn Progress,
    cancel: &Cancel,
) -> Result<Cached, Error> {
    let name = shown(&image.origin);
    Work { image, name, cache, tools, progress, cancel, content: Some(content), spoilt: None }
        .ensure(Purpose::Copy)
}

impl Work<'_> {
    fn ensure(&mut self, purpose: Purpose) -> Result<Cached, Error> {
        match &self.image.origin {
            Origin::Path(path) if purpose == Purpose::Copy => match self.compression(path) {
                Ok(None) => self.in_place(path),
                // The image may already be in the cache and removed from its origin.
                Ok(Some(_)) | Err(_) => self.in_cache(purpose),
            },
            _ => self.in_cache(purpose),
        }
    }

    fn compression(&self, path: &Path) -> Result<Option<Compression>, Error> {
        Ok(Compression::of(&file::read_at(path, 0, 16)?))
    }

    fn in_place(&mut self, path: &Path) -> Result<Cached, Error> {
        let digest = match self.expected(false)? {
            None => None,
            Some(expected) => {
                let taken = self.pass_over(path, None, expected.algorithm())?;
                Some(self.compare(expected, taken.digest)?)
            }
        };
        let (format, virtual_size) = self.inspect(path)?;
        let path = path.to_owned();
        Ok(Cached { path, format, virtual_size, digest, found: true, _held: None })
    }

    fn in_cache(&mut self, purpose: Purpose) -> Result<Cached, Error> {
        let refresh = purpose == Purpose::Refresh;
        file::make_dir(self.cache)?;
        // With a configured or stored digest, a cached image needs no network.
        let mut known = written_digest(self.image).cloned();
        if known.is_none() && !refresh {
            known = cache::resolved(self.cache, self.image)?;
        }
        let keyed = known.is_some() || self.image.checksum == Checksum::None;
        if keyed && let Some(cached) = self.cached(&key(self.image, known.as_ref())?)? {
            return Ok(cached);
        }
        if let Err(error) = file::remove_abandoned(self.cache) {
            tracing::debug!(
                "cannot remove an abandoned temporary file of the image cache: {error}"
            );
        }
        let expected = self.expected(true)?;
        let key = key(self.image, expected.as_ref())?;
        let lock = match self.locked(&key)? {
            Ok(cached) => return Ok(cached),
            Err(lock) => lock,
        };
        let entry = self.add_to_cache(&key, expected).map_err(|error| self.still_damaged(error))?;
        lock.share().map_err(|source| cache::Error::Lock {
            path: path(self.cache, &key, "lock"),
            source,
        })?;
        let path = path(self.cache, &key, entry.format.name());
        Ok(Cached {
            path,
            format: entry.format,
            virtual_size: entry.virtual_size,
            digest: entry.digest,
            found: false,
            _held: Some(lock),
        })
    }

    pub(super) fn go_on(
        &mut self,
        doing: Doing,
        done: u64,
        total: Option<u64>,
    ) -> Result<(), Error> {
        self.progress.at(&At { doing, what: &self.name, done, total });
        if self.cancel.is_set() { Err(Error::Canceled) } else { Ok(()) }
    }

    /// Adds the image to the cache; the lock is held.
    fn add_to_cache(&mut self, key: &str, expected: Option<Digest>) -> Result<Entry, Error> {
        let unpacked = file::temporary_under_lock(&path(self.cache, key, "image"));
        let part = path(self.cache, key, "part");
        let brought = match &self.image.origin {
            Origin::Http(url) => self.download(url, &part, &unpacked, expected),
            Origin::Path(from) => self.copy_in(from, &unpacked, expected),
        };
        let accepted = brought.and_then(|brought| self.accept(key, brought));
        if accepted.is_err() {
            let _ = file::remove(&unpacked);
        }
        let downloading = matches!(accepted, Err(Error::Fetch(_)));
        // An accepted or invalid download cannot be resumed.
        if !downloading {
            fetch::forget(&part)?;
        }
        accepted
    }

    fn download(
        &mut self,
        url: &str,
        part: &Path,
        unpacked: &Path,
        expected: Option<Digest>,
    ) -> Result<NewImage, Error> {
        let algorithm = expected.as_ref().map_or(Algorithm::Sha256, Digest::algorithm);
        let known = expected.is_some();
        let patience = self.tools.patience;
        let job = Job { url, part, unpacked, algorithm, known, patience };
        let mut fetched = fetch::fetch(&job, self.progress, self.cancel)?;
        // The beginning may be damaged by a crash of the host, so try once without it.
        let fits = |f: &Fetched| expected.as_ref().is_none_or(|e| *e == f.taken.digest);
        if fetched.resumed && !fits(&fetched) {
            let text = format!("{}: the partial download is damaged; restarting", self.name);
            self.progress.note(&text);
            fetch::forget(part)?;
            fetched = fetch::fetch(&job, self.progress, self.cancel)?;
        }
        let whole = fetched.taken.digest.clone();
        let digest = expected.map(|e| self.compare(e, fetched.taken.digest)).transpose()?;
        match fetched.taken.unpacked {
            Ok(None) => Ok(NewImage { file: part.to_owned(), digest, content: Some(whole) }),
            Ok(Some(unpacked)) => Ok(self.unpacked(unpacked, digest)),
            Err(source) => Err(self.damaged(source, digest.is_some())),
        }
    }

    fn unpacked(&mut self, unpacked: UnpackedFile, digest: Option<Digest>) -> NewImage {
        let UnpackedFile { path, content, kind, tail } = unpacked;
        if tail > 0 {
            let kind = kind.name();
            let text = format!("{}: {tail} bytes after the {kind} stream are ignored", self.name);
            self.progress.note(&text);
        }
        NewImage { file: path, digest, content: Some(content) }
    }

    fn damaged(&self, source: writer::Error, verified: bool) -> Error {
        match source {
            writer::Error::File(e) => e.into(),
            writer::Error::Memory { kind, .. } => {
                Error::Memory { image: self.name.clone(), kind, source }
            }
            source => Error::Damaged { image: self.name.clone(), verified, source },
        }
    }

    /// Reads a whole file: computes its digest and decompresses it to `unpacked`, if set.
    fn pass_over(
        &mut self,
        from: &Path,
        unpacked: Option<PathBuf>,
        algorithm: Algorithm,
    ) -> Result<writer::WrittenImage, Error> {
        let read = |source| Error::Read { path: from.to_owned(), source };
        let total = file::metadata(from)?.map(|m| m.len());
        let mut intake = ImageWriter::begin(algorithm, unpacked).map_err(read)?;
        let taken =
            intake.take_back(from, |done| self.go_on(Doing::Verifying, done, total).is_ok());
        taken.map_err(read)?;
        if self.cancel.is_set() {
            return Err(Error::Canceled);
        }
        intake.end().map_err(read)
    }

    /// Copies a file to the cache and decompresses it if necessary.
    fn copy_in(
        &mut self,
        from: &Path,
        to: &Path,
        expected: Option<Digest>,
    ) -> Result<NewImage, Error> {
        let (mut digest, mut content) = (None, None);
        if expected.is_some() || self.compression(from)?.is_some() {
            let algorithm = expected.as_ref().map_or(Algorithm::Sha256, Digest::algorithm);
            let taken = self.pass_over(from, Some(to.to_owned()), algorithm)?;
            content = Some(taken.digest.clone());
            digest = expected.map(|e| self.compare(e, taken.digest)).transpose()?;
            let unpacked = taken.unpacked.map_err(|e| self.damaged(e, digest.is_some()))?;
            if let Some(unpacked) = unpacked {
                return Ok(self.unpacked(unpacked, digest));
            }
        }
        let source = File::open(from).map_err(file::Error::on("open", from))?;
        let target = file::create(to)?;
        if !reflink::reflink(&source, &target).map_err(file::Error::on("write", to))? {
            let metadata = source.metadata().map_err(file::Error::on("read", from))?;
            let (total, needed) = (metadata.len(), metadata.blocks() * 512);
            let free = file::available(self.cache)?;
            if needed > free {
                let (url, dir) = (self.name.clone(), self.cache.to_owned());
                return Err(fetch::Error::NoRoom { url, needed, free, dir }.into());
            }
            let copied = reflink::copy(&source, &target, &mut |done| {
                self.go_on(Doing::Copying, done, Some(total)).is_ok()
            });
            match copied {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => return Err(Error::Canceled),
                copied => copied.map_err(file::Error::on("write", to))?,
            };
        }
        Ok(NewImage { file: to.to_owned(), digest, content })
    }

    /// Verifies the file and moves it to its final path. The rename is last, because it makes the
    /// image valid.
    fn accept(&mut self, key: &str, brought: NewImage) -> Result<Entry, Error> {
        let NewImage { file: from, digest, content } = brought;
        let (format, virtual_size) = self.inspect(&from)?;
        let entry = Entry {
            origin: self.name.clone(),
            digest,
            content,
            format,
            size: file::metadata(&from)?.map_or(0, |m| m.len()),
            virtual_size,
            fetched_at: self.tools.now.to_string(),
        };
        let json = serde_json::to_vec_pretty(&entry).unwrap_or_default();
        file::write(&path(self.cache, key, "json"), &json, 0o640)?;
        let place = path(self.cache, key, format.name());
        file::commit(&from, &place)?;
        // Not earlier: after a crash the next run must be able to write to a partial file.
        cache::make_read_only(&place)?;
        Ok(entry)
    }
}
