//! What is in the cache already: whether anybody is at work on it, and whether it is still what was put there.

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
    ensure::{Cached, Spoilt, Work},
    error::Error,
};
use crate::{
    spec::Format,
    sys::{digest::Digesting, file, progress::Doing},
    value::{Algorithm, Digest},
};

/// How much is read at a time.
const CHUNK: usize = 1 << 20;

/// Whether a file is qcow2 and marked as corrupt.
fn is_marked_corrupt(path: &Path) -> Result<bool, Error> {
    let head = file::read_at(path, 0, qcow2::HEAD)?;
    Ok(qcow2::Header::read(&head).is_ok_and(|header| header.corrupt))
}

impl Work<'_> {
    /// The image, if it is in the cache and nobody is at work on it.
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
        // An earlier version took it.
        if is_marked_corrupt(&path)? {
            return Err(Error::MarkedCorrupt { image: self.name.clone() });
        }
        // Who brought it may have died before this. Another user's is that one's to close.
        let _ = cache::close(&path);
        let Entry { format, virtual_size, digest, .. } = entry;
        Ok(Ok(Cached { path, format, virtual_size, digest, found: true, _held: Some(lock) }))
    }

    /// Whether the file is still what was put there: disks rot, and neither its size nor its time tells.
    fn is_whole(&mut self, entry: &Entry, path: &Path) -> Result<bool, Error> {
        let Some(expected) = &entry.content else { return Ok(true) };
        let id =
            path.metadata().map(|found| found.ino()).map_err(file::Error::on("look at", path))?;
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
        let error = Error::Spoilt { image, path, expected, found, source: None };
        // What no checksum tells to be the same might be another, and disks may stand on the one that is there.
        if entry.digest.is_none() {
            return Err(error);
        }
        self.progress.note(&format!("{error}; it is brought anew"));
        self.spoilt = Some(Spoilt { id, error });
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
        digesting.end().ok_or_else(|| on(io::Error::other("its digest was lost")))
    }

    /// The image in the cache is damaged, and cannot be brought anew.
    pub(crate) fn still_spoilt(&mut self, error: Error) -> Error {
        if error.is_called_off() {
            return error;
        }
        match self.spoilt.take().map(|spoilt| spoilt.error) {
            Some(Error::Spoilt { image, path, expected, found, .. }) => {
                Error::Spoilt { image, path, expected, found, source: Some(Box::new(error)) }
            }
            _ => error,
        }
    }

    /// The image, if another process has brought it meanwhile; else the right to bring it.
    pub(crate) fn locked(&mut self, key: &str) -> Result<Result<Cached, Lock>, Error> {
        let mut told = false;
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
                    if !std::mem::replace(&mut told, true) {
                        let by = pid.map_or("another process".into(), |p| format!("process {p}"));
                        let text = format!("waiting for {by}, which fetches {}", self.name);
                        self.progress.note(&text);
                    }
                    // Others may share it already.
                    if let Some(cached) = self.cached(key)? {
                        return Ok(Ok(cached));
                    }
                }
            }
            self.go_on(Doing::Waiting, 0, None)?;
            std::thread::sleep(download::LOOK);
        }
    }
}
