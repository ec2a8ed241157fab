//! Finds images in the cache: whether another process works on them, and whether they are intact.

use std::{
    fs::File,
    io::{self, Read},
    os::unix::fs::MetadataExt,
    path::Path,
    sync::Arc,
};

use super::{
    cache::{
        self, Entry,
        lock::{Hold, Lock, Tried},
        look_up, path,
    },
    download, qcow2,
};
use super::{
    ensure::{Cached, DamagedFile, Work},
    error::Error,
};
use crate::{
    spec::Format,
    sys::{digest::Digesting, file, progress::Doing},
    value::{Algorithm, Digest},
};

/// The read size in bytes.
const CHUNK: usize = 1 << 20;

/// Returns true for a qcow2 file that is marked as corrupt.
fn is_marked_corrupt(path: &Path) -> Result<bool, Error> {
    let head = file::read_at(path, 0, qcow2::HEAD)?;
    Ok(qcow2::Header::parse(&head).is_ok_and(|header| header.corrupt))
}

impl Work<'_> {
    /// Returns the image if it is in the cache and no process works on it.
    pub(crate) fn cached(&mut self, key: &str) -> Result<Option<Cached>, Error> {
        if look_up(self.cache, key)?.is_none() {
            return Ok(None);
        }
        match cache::lock(self.cache, key, Hold::Shared)? {
            Tried::Busy(_) => Ok(None),
            Tried::Held(lock) => Ok(self.found(key, lock)?.ok()),
        }
    }

    fn found(&mut self, key: &str, lock: Lock) -> Result<Result<Cached, Lock>, Error> {
        let Some((entry, path)) = look_up(self.cache, key)? else { return Ok(Err(lock)) };
        if !self.is_whole(&entry, &path)? {
            return Ok(Err(lock));
        }
        // Earlier versions accepted it.
        if is_marked_corrupt(&path)? {
            return Err(Error::MarkedCorrupt { image: self.name.clone() });
        }
        // The downloading process may have died before this. The file may belong to another user.
        let _ = cache::make_read_only(&path);
        let Entry { format, virtual_size, digest, .. } = entry;
        Ok(Ok(Cached { path, format, virtual_size, digest, found: true, _held: Some(lock) }))
    }

    /// Verifies that the cached file is unchanged: disks decay without a change of size or time.
    fn is_whole(&mut self, entry: &Entry, path: &Path) -> Result<bool, Error> {
        let Some(expected) = &entry.content else { return Ok(true) };
        let id =
            path.metadata().map(|found| found.ino()).map_err(file::Error::on("examine", path))?;
        if self.spoilt.as_ref().is_some_and(|spoilt| spoilt.id == id) {
            return Ok(false);
        }
        let found = self.digest_of(path, expected.algorithm(), entry.format)?;
        if found == *expected {
            if let Some(content) = &mut self.content {
                content.end();
            }
            self.spoilt = None;
            return Ok(true);
        }
        let (image, path) = (self.name.clone(), path.to_owned());
        let expected = expected.clone();
        let error = Error::DamagedFile { image, path, expected, found, source: None };
        // Without a checksum a new download could be another image, but disks may have this one as
        // base.
        if entry.digest.is_none() {
            return Err(error);
        }
        self.progress.note(&format!("{error}; downloading it again"));
        self.spoilt = Some(DamagedFile { id, error });
        Ok(false)
    }

    fn digest_of(
        &mut self,
        path: &Path,
        algorithm: Algorithm,
        format: Format,
    ) -> Result<Digest, Error> {
        let on = |source| Error::File(file::Error::on("read", path)(source));
        let mut from = File::open(path).map_err(on)?;
        let total = from.metadata().map_err(on)?.len();
        let digesting = Digesting::begin(algorithm).map_err(on)?;
        if let Some(content) = &mut self.content {
            content.begin(&from, format);
        }
        let mut done = 0;
        loop {
            self.go_on(Doing::Verifying, done, Some(total))?;
            let mut chunk = Vec::with_capacity(CHUNK);
            let read = (&mut from).take(CHUNK as u64).read_to_end(&mut chunk).map_err(on)?;
            if read == 0 {
                break;
            }
            done += read as u64;
            let chunk = Arc::new(chunk);
            digesting.take(&chunk);
            if let Some(content) = &mut self.content {
                content.write(&chunk);
            }
        }
        digesting.end().ok_or_else(|| on(io::Error::other("the digest thread panicked")))
    }

    /// Returns the error of a damaged image that cannot be downloaded again.
    pub(crate) fn still_damaged(&mut self, error: Error) -> Error {
        if error.is_canceled() {
            return error;
        }
        match self.spoilt.take().map(|spoilt| spoilt.error) {
            Some(Error::DamagedFile { image, path, expected, found, .. }) => {
                Error::DamagedFile { image, path, expected, found, source: Some(Box::new(error)) }
            }
            _ => error,
        }
    }

    /// Returns the image if another process has added it in the meantime; else the lock for adding
    /// it.
    pub(crate) fn locked(&mut self, key: &str) -> Result<Result<Cached, Lock>, Error> {
        let mut reported = false;
        loop {
            match cache::lock(self.cache, key, Hold::Alone)? {
                Tried::Held(lock) => {
                    let found = self.found(key, lock)?;
                    if let Ok(cached) = &found
                        && let Some(lock) = &cached._held
                    {
                        lock.share().map_err(|source| cache::Error::Lock {
                            path: path(self.cache, key, "lock"),
                            source,
                        })?;
                    }
                    return Ok(found);
                }
                Tried::Busy(pid) => {
                    if !std::mem::replace(&mut reported, true) {
                        let by = pid.map_or("another process".into(), |p| format!("process {p}"));
                        let text = format!("waiting for {by}, which is downloading {}", self.name);
                        self.progress.note(&text);
                    }
                    // Other processes may already share it.
                    if let Some(cached) = self.cached(key)? {
                        return Ok(Ok(cached));
                    }
                }
            }
            self.go_on(Doing::Waiting, 0, None)?;
            std::thread::sleep(download::POLL_INTERVAL);
        }
    }
}
