//! The copy of a cached image that is written while the image is verified: one pass over its bytes.

use std::{
    fs::File,
    io,
    os::unix::fs::{FileExt, MetadataExt},
    path::Path,
};

use crate::{
    image::VerifiedContent,
    spec::Format,
    sys::{file, reflink, writeback::WriteBack},
};

/// A block of zeros of this size, in bytes, becomes a hole.
const BLOCK: usize = 64 << 10;

/// A file that receives a cached image's content. A copy that fails is given up: the ordinary copy
/// follows and reports why.
pub(super) struct VerifiedCopy<'a> {
    to: &'a Path,
    /// The format of the disk. An image in another format is converted, not copied.
    format: Format,
    copying: Option<Copying>,
    is_complete: bool,
}

enum Copying {
    /// The file system shares the blocks.
    Reflink,
    Bytes {
        target: File,
        back: WriteBack,
        /// How many bytes have been received.
        at: u64,
        /// The length of the image in bytes.
        length: u64,
    },
}

impl<'a> VerifiedCopy<'a> {
    /// Creates the copy for a disk in this format; `to` is created when content follows.
    pub(super) fn new(to: &'a Path, format: Format) -> Self {
        Self { to, format, copying: None, is_complete: false }
    }

    /// Whether the file has all bytes of the image, which were verified. The caller syncs it.
    pub(super) fn is_complete(&self) -> bool {
        self.is_complete
    }
}

impl VerifiedContent for VerifiedCopy<'_> {
    fn begin(&mut self, source: &File, format: Format) {
        self.is_complete = false;
        self.copying = match format == self.format {
            true => Copying::begin(source, self.to).unwrap_or_default(),
            false => None,
        };
    }

    fn write(&mut self, bytes: &[u8]) {
        if self.copying.as_mut().is_some_and(|copying| copying.write(bytes).is_err()) {
            self.copying = None;
        }
    }

    fn end(&mut self) {
        let copying = self.copying.take();
        self.is_complete = copying.is_some_and(|copying| copying.end().unwrap_or(false));
    }
}

impl Copying {
    /// `None` where there is no room.
    fn begin(source: &File, to: &Path) -> io::Result<Option<Self>> {
        let target = file::create(to).map_err(file::Error::into_io)?;
        if reflink::reflink(source, &target)? {
            return Ok(Some(Self::Reflink));
        }
        let metadata = source.metadata()?;
        let free = file::available(to.parent().unwrap_or(Path::new("/")));
        if metadata.blocks() * 512 > free.map_err(file::Error::into_io)? {
            return Ok(None);
        }
        target.set_len(metadata.len())?;
        let back = WriteBack::of(&target)?;
        Ok(Some(Self::Bytes { target, back, at: 0, length: metadata.len() }))
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let Self::Bytes { target, back, at, length } = self else { return Ok(()) };
        for block in bytes.chunks(BLOCK) {
            // The target may have no more bytes than the source had at first.
            if *at + block.len() as u64 > *length {
                return Err(io::ErrorKind::InvalidData.into());
            }
            if block.iter().any(|byte| *byte != 0) {
                target.write_all_at(block, *at)?;
            }
            *at += block.len() as u64;
        }
        back.wrote(*at);
        Ok(())
    }

    /// Returns whether the copy has all bytes.
    fn end(self) -> io::Result<bool> {
        match self {
            Self::Reflink => Ok(true),
            Self::Bytes { back, at, length, .. } => back.end().map(|()| at == length),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(dir: &Path, bytes: &[u8]) -> File {
        let path = dir.join("image");
        std::fs::write(&path, bytes).unwrap();
        File::open(path).unwrap()
    }

    fn bytes() -> Vec<u8> {
        let mut bytes = vec![0; 3 * BLOCK + 100];
        bytes[10] = 1;
        bytes[3 * BLOCK + 50] = 2;
        bytes
    }

    #[test]
    fn copy_equals_source_after_end() {
        let dir = tempfile::tempdir().unwrap();
        let (bytes, to) = (bytes(), dir.path().join("to"));
        let from = source(dir.path(), &bytes);
        let mut copy = VerifiedCopy::new(&to, Format::Raw);
        assert!(!copy.is_complete());
        // The second pass replaces the first, which did not end.
        for _ in 0..2 {
            copy.begin(&from, Format::Raw);
            for chunk in bytes.chunks(BLOCK + 1) {
                copy.write(chunk);
            }
            assert!(!copy.is_complete());
        }
        copy.end();
        assert!(copy.is_complete());
        assert!(std::fs::read(&to).unwrap() == bytes);
    }

    #[test]
    fn other_length_is_incomplete() {
        let dir = tempfile::tempdir().unwrap();
        let (bytes, to) = (bytes(), dir.path().join("to"));
        let from = source(dir.path(), &bytes);
        if reflink::reflink(&from, &tempfile::tempfile_in(dir.path()).unwrap()).unwrap() {
            return println!("skipped: reflinks");
        }
        let longer = [bytes.clone(), vec![1]].concat();
        for received in [&bytes[..100], &longer] {
            let mut copy = VerifiedCopy::new(&to, Format::Raw);
            copy.begin(&from, Format::Raw);
            copy.write(received);
            copy.end();
            assert!(!copy.is_complete());
        }
    }

    #[test]
    fn other_format_is_not_copied() {
        let dir = tempfile::tempdir().unwrap();
        let to = dir.path().join("to");
        let from = source(dir.path(), b"bytes");
        let mut copy = VerifiedCopy::new(&to, Format::Qcow2);
        copy.begin(&from, Format::Raw);
        copy.write(b"bytes");
        copy.end();
        assert!(!copy.is_complete() && !to.exists());
    }
}
