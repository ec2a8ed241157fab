//! Where an image's bytes go as they come, in one pass: the partial file, the digest, the unpacked image.
//!
//! ```text
//! network ─▶ chunk ─┬─▶ KEY.part            as downloaded: what a later run resumes from
//!                   ├─▶ digest              a thread: of the bytes as downloaded
//!                   └─▶ unpacker ─▶ .qvm-…  a thread, only where they are compressed: the image
//! ```
//!
//! Resuming. A decompressor's state cannot be kept across processes, so what is kept is the bytes as they were
//! downloaded, and on a resume they are read back through the digest and the unpacker: that costs a read of what is
//! there, at disk speed, instead of a download of it. For an image that is not compressed (most are
//! qcow2) the partial file *is* the image, and nothing is written twice. A compressed one costs the space of its
//! compressed bytes until it is done.

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
    value::{Algorithm, Digest, Explain},
};

/// How much is read back at a time.
const CHUNK: usize = 1 << 20;

/// How many bytes must have come before it can be told how they are compressed.
const MAGIC: usize = 8;

/// Why the bytes could not be taken.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file could not be written or read.
    #[error(transparent)]
    File(#[from] file::Error),
    /// The kernel gives no thread.
    #[error("cannot start a thread")]
    Thread(#[source] io::Error),
    /// The compressed bytes are damaged or end too early.
    #[error("it cannot be unpacked: its {} stream is damaged or incomplete", .kind.name())]
    Unpack {
        /// How it is compressed.
        kind: Compression,
        /// What the decoder says.
        source: io::Error,
    },
    /// Unpacking takes too much memory.
    #[error("its {} stream cannot be unpacked", .kind.name())]
    Memory {
        /// How it is compressed.
        kind: Compression,
        /// How much there is for it.
        source: io::Error,
    },
    /// The digest's thread is gone.
    #[error("the digest was lost")]
    Lost,
}

impl Explain for Error {
    fn wrapped(&self) -> Option<&dyn Explain> {
        match self {
            Self::File(error) => Some(error),
            _ => None,
        }
    }

    fn is_own_host_fault(&self) -> bool {
        matches!(self, Self::Thread(_))
    }
}

/// One pass over an image's bytes.
pub(crate) struct Intake {
    digest: Digesting,
    unpacking: Option<Unpacking>,
    /// What came before the compression was known.
    head: Option<Vec<u8>>,
    /// Where compressed bytes are unpacked to; nowhere where only the digest is asked for.
    unpacked: Option<PathBuf>,
}

/// What a pass gave.
pub(crate) struct Taken {
    pub(crate) digest: Digest,
    /// The unpacked file, where the bytes were compressed.
    pub(crate) unpacked: Result<Option<UnpackedFile>, Error>,
}

/// A file that was unpacked.
pub(crate) struct UnpackedFile {
    pub(crate) path: PathBuf,
    /// Its own SHA-256.
    pub(crate) content: Digest,
    /// How its bytes were compressed.
    pub(crate) kind: Compression,
    /// How many bytes behind the compressed stream were ignored.
    pub(crate) tail: u64,
}

impl Intake {
    /// Begins; the digest is by `algorithm`, unpacked bytes go to `unpacked`, which nobody else writes: the caller holds the
    /// image's lock.
    pub(crate) fn begin(algorithm: Algorithm, unpacked: Option<PathBuf>) -> Result<Self, Error> {
        let digest = Digesting::begin(algorithm).map_err(Error::Thread)?;
        Ok(Self { digest, unpacking: None, head: Some(Vec::new()), unpacked })
    }

    /// Takes the next bytes, and writes them to `keep` where that is wanted.
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

    /// Reads back what an earlier run has downloaded.
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

    /// All bytes have been taken.
    pub(crate) fn end(mut self) -> Result<Taken, Error> {
        if self.head.is_some() {
            self.decide()?;
        }
        let unpacked = match self.unpacking.take() {
            None => Ok(None),
            Some(unpacking) => unpacking.end().map(Some),
        };
        let digest = self.digest.end().ok_or(Error::Lost)?;
        Ok(Taken { digest, unpacked })
    }
}

/// The digest of what was unpacked, unless it was lost, and how many bytes behind it were ignored.
type Written = (Option<Digest>, u64);

/// The thread that unpacks. Dropped before its end, it leaves no file behind.
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

    /// A thread that gave up takes nothing more; its reason comes out at the end.
    fn take(&self, chunk: Arc<Vec<u8>>) {
        let _ = self.chunks.as_ref().map(|c| c.send(chunk));
    }

    fn end(mut self) -> Result<UnpackedFile, Error> {
        self.chunks = None;
        let Some(thread) = self.thread.take() else { return Err(Error::Lost) };
        let written = thread.join().unwrap_or_else(|_| Err(io::Error::other("it panicked")));
        let e = match written {
            Ok((content, tail)) => {
                let content = content.ok_or(Error::Lost)?;
                let path = std::mem::take(&mut self.path);
                return Ok(UnpackedFile { path, content, kind: self.kind, tail });
            }
            Err(e) => e,
        };
        let _ = file::remove(&self.path);
        // What the decoder says of its input is of these kinds; the rest is the system's on the output.
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

/// Ends at once when told to, though a few compressed bytes may unpack to gigabytes.
struct Stoppable<R> {
    from: R,
    stop: Arc<AtomicBool>,
    /// Of what came out.
    digest: Digesting,
}

impl<R: Read> Read for Stoppable<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.stop.load(Ordering::Acquire) {
            return Err(io::Error::other("it was called off"));
        }
        let read = self.from.read(buffer)?;
        self.digest.take(&Arc::new(buffer[..read].to_vec()));
        Ok(read)
    }
}

/// Opens the partial file so that writing goes on behind what is there.
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
