//! Processes the bytes of an image in one pass: the partial file, the digest, the decompressed
//! image.
//!
//! ```text
//! network ─▶ chunk ─┬─▶ KEY.part            as downloaded: what a later run resumes from
//!                   ├─▶ digest              a thread: of the bytes as downloaded
//!                   └─▶ unpacker ─▶ .qvm-…  a thread, only where they are compressed: the image
//! ```
//!
//! Resuming: the state of a decompressor cannot be stored, so the received bytes are stored, and a
//! resume reads them again through the digest and the decompressor, at disk speed. For an
//! uncompressed image (most are qcow2) the partial file is the image itself, and nothing is written
//! twice. A compressed image needs additional space for its compressed bytes until it is complete.

use std::{
    fs::File,
    io::{self, Read, Seek, Write},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread::JoinHandle,
};

use super::{
    decompress::{Refused, Unpacked},
    reference::Compression,
};
use crate::{
    sys::{digest::Digesting, file, reflink},
    value::{Algorithm, Digest, ErrorCode, Explain},
};

/// The read size in bytes.
const CHUNK: usize = 1 << 20;

/// The number of bytes needed to detect the compression.
const MAGIC: usize = 8;

/// Why the bytes cannot be processed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file cannot be written or read.
    #[error(transparent)]
    File(#[from] file::Error),
    /// No thread can be started.
    #[error("cannot start a thread")]
    Thread(#[source] io::Error),
    /// The compressed stream is damaged or incomplete.
    #[error("the {} stream is damaged or incomplete", .kind.name())]
    Unpack {
        /// The compression.
        kind: Compression,
        /// The error of the decoder.
        source: io::Error,
    },
    /// Decompression requires too much memory.
    #[error("cannot decompress the {} stream", .kind.name())]
    Memory {
        /// The compression.
        kind: Compression,
        /// The memory limit.
        source: io::Error,
    },
    /// The digest thread panicked.
    #[error("the digest thread panicked")]
    Lost,
}

impl Explain for Error {
    fn wrapped(&self) -> Option<&dyn Explain> {
        match self {
            Self::File(error) => Some(error),
            _ => None,
        }
    }

    fn own_code(&self) -> Option<ErrorCode> {
        Some(match self {
            Self::Thread(..) => ErrorCode::OutOfResources,
            Self::Unpack { .. } => ErrorCode::ImageDamaged,
            Self::Memory { .. } => ErrorCode::ImageTooDemanding,
            Self::Lost => ErrorCode::InternalError,
            Self::File(..) => return None,
        })
    }

    fn is_own_host_fault(&self) -> bool {
        matches!(self, Self::Thread(_))
    }
}

/// One pass over an image's bytes.
pub(crate) struct ImageWriter {
    digest: Digesting,
    unpacking: Option<Unpacking>,
    /// Bytes received before the compression is known.
    head: Option<Vec<u8>>,
    /// The path of the decompressed file; `None` if only the digest is needed.
    unpacked: Option<PathBuf>,
}

/// The result of a pass.
pub(crate) struct WrittenImage {
    pub(crate) digest: Digest,
    /// The decompressed file, if the bytes were compressed.
    pub(crate) unpacked: Result<Option<UnpackedFile>, Error>,
}

/// A decompressed file.
pub(crate) struct UnpackedFile {
    pub(crate) path: PathBuf,
    /// Its SHA-256.
    pub(crate) content: Digest,
    /// The compression.
    pub(crate) kind: Compression,
    /// The number of ignored bytes after the compressed stream.
    pub(crate) tail: u64,
}

impl ImageWriter {
    /// Starts a pass. The digest uses `algorithm`; decompressed bytes are written to `unpacked`,
    /// which only the holder of the image's lock writes.
    pub(crate) fn begin(algorithm: Algorithm, unpacked: Option<PathBuf>) -> Result<Self, Error> {
        let digest = Digesting::begin(algorithm).map_err(Error::Thread)?;
        Ok(Self { digest, unpacking: None, head: Some(Vec::new()), unpacked })
    }

    /// Processes the next bytes, and writes them to `keep` if set.
    pub(crate) fn take(
        &mut self,
        chunk: Vec<u8>,
        keep: Option<(&File, &Path)>,
    ) -> Result<(), Error> {
        let chunk = Arc::new(chunk);
        self.digest.take(&chunk);
        if let Some((mut to, path)) = keep {
            to.write_all(&chunk).map_err(file::Error::on("write", path))?;
        }
        match (&mut self.head, &self.unpacking) {
            (Some(head), _) => {
                head.extend_from_slice(&chunk);
                if head.len() >= MAGIC {
                    self.decide()?;
                }
            }
            (None, Some(unpacking)) => unpacking.take(chunk),
            (None, None) => {}
        }
        Ok(())
    }

    /// Processes the partial file of an earlier run.
    pub(crate) fn take_back(
        &mut self,
        path: &Path,
        mut goes_on: impl FnMut(u64) -> bool,
    ) -> Result<u64, Error> {
        let mut from = File::open(path).map_err(file::Error::on("open", path))?;
        let mut all = 0;
        loop {
            let mut chunk = Vec::with_capacity(CHUNK);
            let read = (&mut from).take(CHUNK as u64).read_to_end(&mut chunk);
            let read = read.map_err(file::Error::on("read", path))? as u64;
            if read == 0 || !goes_on(all) {
                return Ok(all);
            }
            all += read;
            self.take(chunk, None)?;
        }
    }

    fn decide(&mut self) -> Result<(), Error> {
        let head = self.head.take().unwrap_or_default();
        if let Some(kind) = Compression::of(&head)
            && let Some(unpacked) = &self.unpacked
        {
            let unpacking = Unpacking::begin(kind, unpacked)?;
            unpacking.take(Arc::new(head));
            self.unpacking = Some(unpacking);
        }
        Ok(())
    }

    /// Completes the pass.
    pub(crate) fn end(mut self) -> Result<WrittenImage, Error> {
        if self.head.is_some() {
            self.decide()?;
        }
        let unpacked = match self.unpacking.take() {
            None => Ok(None),
            Some(unpacking) => unpacking.end().map(Some),
        };
        let digest = self.digest.end().ok_or(Error::Lost)?;
        Ok(WrittenImage { digest, unpacked })
    }
}

/// The digest of the decompressed bytes, unless its thread panicked, and the number of ignored
/// trailing bytes.
type Written = (Option<Digest>, u64);

/// The decompression thread. Dropping it early removes its file.
struct Unpacking {
    kind: Compression,
    path: PathBuf,
    chunks: Option<SyncSender<Arc<Vec<u8>>>>,
    thread: Option<JoinHandle<io::Result<Written>>>,
    stop: Arc<AtomicBool>,
}

impl Unpacking {
    fn begin(kind: Compression, path: &Path) -> Result<Self, Error> {
        let to = file::create(path)?;
        let (chunks, received) = sync_channel(16);
        let stop = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&stop);
        let thread = std::thread::Builder::new().name("unpack".into()).spawn(move || {
            let mut from = Stoppable {
                from: Unpacked::begin(kind, Chunks { received, current: io::Cursor::default() })?,
                stop: seen,
                digest: Digesting::begin(Algorithm::Sha256)?,
            };
            reflink::write_sparse(&mut from, &to)?;
            Ok((from.digest.end(), from.from.tail()))
        });
        let thread = thread.map_err(Error::Thread)?;
        Ok(Self { kind, path: path.to_owned(), chunks: Some(chunks), thread: Some(thread), stop })
    }

    /// A failed thread receives no more bytes; `end` returns its error.
    fn take(&self, chunk: Arc<Vec<u8>>) {
        let _ = self.chunks.as_ref().map(|c| c.send(chunk));
    }

    fn end(mut self) -> Result<UnpackedFile, Error> {
        self.chunks = None;
        let Some(thread) = self.thread.take() else { return Err(Error::Lost) };
        let written =
            thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread panicked")));
        let e = match written {
            Ok((content, tail)) => {
                let content = content.ok_or(Error::Lost)?;
                let path = std::mem::take(&mut self.path);
                return Ok(UnpackedFile { path, content, kind: self.kind, tail });
            }
            Err(e) => e,
        };
        let _ = file::remove(&self.path);
        // Decoder errors have no errno; errors of writing the output do.
        let io = e.raw_os_error().is_some();
        if io {
            return Err(file::Error::on("write", &self.path)(e).into());
        }
        Err(match Refused::of(&e) {
            Some(Refused::Memory) => Error::Memory { kind: self.kind, source: e },
            _ => Error::Unpack { kind: self.kind, source: e },
        })
    }
}

impl Drop for Unpacking {
    fn drop(&mut self) {
        if let Some(thread) = self.thread.take() {
            self.stop.store(true, Ordering::Release);
            self.chunks = None;
            let _ = thread.join();
            let _ = file::remove(&self.path);
        }
    }
}

/// The chunks as one stream.
struct Chunks {
    received: Receiver<Arc<Vec<u8>>>,
    current: io::Cursor<Shared>,
}

#[derive(Default)]
struct Shared(Arc<Vec<u8>>);

impl AsRef<[u8]> for Shared {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Read for Chunks {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.current.read(buffer)? {
                0 if !buffer.is_empty() => match self.received.recv() {
                    Ok(chunk) => self.current = io::Cursor::new(Shared(chunk)),
                    Err(_) => return Ok(0),
                },
                read => return Ok(read),
            }
        }
    }
}

/// Stops immediately on request, even if a few compressed bytes expand to gigabytes.
struct Stoppable<R> {
    from: R,
    stop: Arc<AtomicBool>,
    /// The digest of the output.
    digest: Digesting,
}

impl<R: Read> Read for Stoppable<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.stop.load(Ordering::Acquire) {
            return Err(io::Error::other("canceled"));
        }
        let read = self.from.read(buffer)?;
        self.digest.take(&Arc::new(buffer[..read].to_vec()));
        Ok(read)
    }
}

/// Opens the partial file for appending; returns its size in bytes.
pub(crate) fn open_part(path: &Path) -> Result<(File, u64), file::Error> {
    use std::os::unix::fs::OpenOptionsExt;
    let mut options = File::options();
    let opened = options.create(true).truncate(false).write(true).mode(0o600).open(path);
    let open = opened.and_then(|mut file| {
        let length = file.seek(io::SeekFrom::End(0))?;
        Ok((file, length))
    });
    open.map_err(file::Error::on("open", path))
}
