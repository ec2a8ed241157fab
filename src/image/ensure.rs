//! An image, ready to make a disk from: found in the cache, used where it lies, or fetched.
//!
//! An image given by `path` that is not compressed is used in place: a second copy of it in the cache would only cost
//! room. One that an overlay is to stand on is taken into the cache all the same (a reflink, where the
//! file system can): an operator's file may be replaced or go away, and every overlay on it would be lost.
//!
//! Whatever the source, nothing is trusted before it was looked into: the digest, the format by its magic, no
//! reference to other files (a qcow2 that names `/etc/shadow` as its backing file would hand it to the guest),
//! and the consistency of a qcow2's tables, which also tells a truncated one.

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
    writer::{Intake, UnpackedFile},
};
use crate::sys::progress::{At, Cancel, Doing, Progress};
use crate::{
    spec::{Checksum, Format, Image, Origin},
    sys::{file, reflink},
    value::{Algorithm, Digest},
};

/// What images and disks are made with.
#[derive(Debug, Clone)]
pub struct Tools {
    /// qemu-img.
    pub qemu_img: QemuImg,
    /// How much is borne of a network.
    pub patience: Patience,
    /// The time, for records.
    pub now: Timestamp,
}

/// What the image is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// To be read once; it may be used where it lies.
    Copy,
    /// To be the base of an overlay, for as long as that exists; it must be the cache's own.
    Base,
    /// As `Base`, and a remembered checksum is asked for again: `qvm image pull`.
    Refresh,
}

/// An image that was found to be the right one. As long as this lives, `qvm image rm` leaves it alone.
#[derive(Debug)]
pub struct Cached {
    /// The file.
    pub path: PathBuf,
    /// Its format.
    pub format: Format,
    /// What a guest would see, in bytes.
    pub virtual_size: u64,
    /// Its digest, where it was compared with one.
    pub digest: Option<Digest>,
    /// It was there already.
    pub found: bool,
    pub(super) _held: Option<Lock>,
}

/// An image's bytes that have just come.
struct Brought {
    file: PathBuf,
    /// Of the bytes as they came, where that was compared with one.
    digest: Option<Digest>,
    /// Of the file itself, where it was read on the way.
    content: Option<Digest>,
}

/// A file of the cache that is not what was put there.
pub(super) struct Spoilt {
    /// Its inode: another file of that name is looked at anew.
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
    /// What lies in the cache is not what was put there.
    pub(super) spoilt: Option<Spoilt>,
}

/// The image, ready for its purpose. Blocks; run it on a thread that may.
///
/// # Errors
/// As [`Error`]. Nothing stays behind but, in the cache, the beginning of a download that can be resumed.
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
                // It may have been unpacked into the cache long since, and be gone from where it was.
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
        // With a digest that is written or remembered, a cached image is found without the network.
        let mut known = written_digest(self.image).cloned();
        if known.is_none() && !refresh {
            known = cache::resolved(self.cache, self.image)?;
        }
        let keyed = known.is_some() || self.image.checksum == Checksum::None;
        if keyed && let Some(cached) = self.cached(&key(self.image, known.as_ref())?)? {
            return Ok(cached);
        }
        if let Err(error) = file::remove_abandoned(self.cache) {
            tracing::debug!("an abandoned temporary file stays in the image cache: {error}");
        }
        let expected = self.expected(true)?;
        let key = key(self.image, expected.as_ref())?;
        let lock = match self.locked(&key)? {
            Ok(cached) => return Ok(cached),
            Err(lock) => lock,
        };
        let entry = self.bring(&key, expected).map_err(|error| self.still_spoilt(error))?;
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
        if self.cancel.is_set() { Err(Error::CalledOff) } else { Ok(()) }
    }

    /// Brings the image into the cache; the lock is held.
    fn bring(&mut self, key: &str, expected: Option<Digest>) -> Result<Entry, Error> {
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
        // What was accepted, or found wrong, is nothing to resume from.
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
    ) -> Result<Brought, Error> {
        let algorithm = expected.as_ref().map_or(Algorithm::Sha256, Digest::algorithm);
        let known = expected.is_some();
        let patience = self.tools.patience;
        let job = Job { url, part, unpacked, algorithm, known, patience };
        let mut fetched = fetch::fetch(&job, self.progress, self.cancel)?;
        // The beginning may have been spoilt by a crash of the host: once more, without it.
        let fits = |f: &Fetched| expected.as_ref().is_none_or(|e| *e == f.taken.digest);
        if fetched.resumed && !fits(&fetched) {
            let text =
                format!("{}: what an earlier run has left is damaged; starting anew", self.name);
            self.progress.note(&text);
            fetch::forget(part)?;
            fetched = fetch::fetch(&job, self.progress, self.cancel)?;
        }
        let whole = fetched.taken.digest.clone();
        let digest = expected.map(|e| self.compare(e, fetched.taken.digest)).transpose()?;
        match fetched.taken.unpacked {
            Ok(None) => Ok(Brought { file: part.to_owned(), digest, content: Some(whole) }),
            Ok(Some(unpacked)) => Ok(self.unpacked(unpacked, digest)),
            Err(source) => Err(self.damaged(source, digest.is_some())),
        }
    }

    fn unpacked(&mut self, unpacked: UnpackedFile, digest: Option<Digest>) -> Brought {
        let UnpackedFile { path, content, kind, tail } = unpacked;
        if tail > 0 {
            let kind = kind.name();
            let text = format!("{}: {tail} bytes behind the {kind} stream are ignored", self.name);
            self.progress.note(&text);
        }
        Brought { file: path, digest, content: Some(content) }
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

    /// Reads a file whole: its digest, and what it unpacks to where `unpacked` says so.
    fn pass_over(
        &mut self,
        from: &Path,
        unpacked: Option<PathBuf>,
        algorithm: Algorithm,
    ) -> Result<writer::Taken, Error> {
        let read = |source| Error::Read { path: from.to_owned(), source };
        let total = file::metadata(from)?.map(|m| m.len());
        let mut intake = Intake::begin(algorithm, unpacked).map_err(read)?;
        let taken =
            intake.take_back(from, |done| self.go_on(Doing::Verifying, done, total).is_ok());
        taken.map_err(read)?;
        if self.cancel.is_set() {
            return Err(Error::CalledOff);
        }
        intake.end().map_err(read)
    }

    /// From a file into the cache, unpacked if need be.
    fn copy_in(
        &mut self,
        from: &Path,
        to: &Path,
        expected: Option<Digest>,
    ) -> Result<Brought, Error> {
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
                Err(e) if e.kind() == io::ErrorKind::Interrupted => return Err(Error::CalledOff),
                copied => copied.map_err(file::Error::on("write", to))?,
            };
        }
        Ok(Brought { file: to.to_owned(), digest, content })
    }

    /// Looks into the file, and gives it its place in the cache. The rename comes last: it is what counts.
    fn accept(&mut self, key: &str, brought: Brought) -> Result<Entry, Error> {
        let Brought { file: from, digest, content } = brought;
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
        // Only now, because a partial file that a crash leaves must be open to the run that resumes it.
        cache::close(&place)?;
        Ok(entry)
    }
}
