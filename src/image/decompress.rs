//! Decompresses streams.
//!
//! Streams can be concatenated, as gzip(1), xz(1) and zstd(1) allow. Trailing bytes are handled
//! like in these programs: zeros are padding and ignored; other bytes are ignored after gzip, where
//! OpenWrt and others append metadata, and are an error after xz and zstd.

use std::io::{self, BufRead, BufReader, Read};

use liblzma::stream::Stream;
use zstd::zstd_safe::{get_error_name, zstd_sys::ZSTD_ErrorCode};

use super::reference::Compression;

/// The memory limit of decompression as a power of two: 256 MiB. A stream specifies its
/// requirement, up to 4 GiB: 65 MiB for `xz -9`, 128 MiB for `zstd --ultra -22`, 2 GiB for `zstd
/// --long=31`.
const MOST_MEMORY_LOG: u32 = 28;

/// Errors besides those of the decoders: the payload of an [`io::Error`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The stream requires too much memory.
    #[error("the stream requires more than {} MiB of memory", 1_u64 << (MOST_MEMORY_LOG - 20))]
    Memory,
    /// Other bytes follow the stream.
    #[error("other bytes follow the {} stream", .0.name())]
    Tail(Compression),
}

impl Refused {
    /// Returns the error if it is one of these.
    pub fn of(error: &io::Error) -> Option<Self> {
        error.get_ref()?.downcast_ref().copied()
    }
}

/// The decompressed bytes of a file. An end within a stream is an error.
pub struct Unpacked<R> {
    kind: Compression,
    stage: Stage<R>,
    tail: u64,
}

enum Stage<R> {
    Gzip(flate2::bufread::GzDecoder<Source<R>>),
    Xz(liblzma::bufread::XzDecoder<Source<R>>),
    Zstd(zstd::stream::read::Decoder<'static, Source<R>>),
    Ended,
}

impl<R: Read> Unpacked<R> {
    /// Starts the decoder of the first stream of `from`.
    ///
    /// # Errors
    /// The decoder cannot be set up.
    pub fn begin(kind: Compression, from: R) -> io::Result<Self> {
        let from = BufReader::with_capacity(128 << 10, from);
        let stage = Stage::begin(kind, Source { from, head: Vec::new() })?;
        Ok(Self { kind, stage, tail: 0 })
    }

    /// Returns the number of ignored bytes after the last stream, after all data was read.
    pub fn tail(&self) -> u64 {
        self.tail
    }

    /// At the end of a stream: starts the next one, or handles trailing bytes.
    fn go_on(&mut self) -> io::Result<()> {
        let mut from = match std::mem::replace(&mut self.stage, Stage::Ended) {
            Stage::Gzip(decoder) => decoder.into_inner(),
            Stage::Xz(decoder) => decoder.into_inner(),
            Stage::Zstd(decoder) => decoder.finish(),
            Stage::Ended => return Ok(()),
        };
        let zeros = from.skip_zeros()?;
        let head = from.peek()?;
        // A truncated header is a truncated stream.
        let begins = !head.is_empty()
            && match self.kind {
                Compression::Gzip => head.starts_with(&[0x1f, 0x8b]) || head == [0x1f],
                kind => Compression::of(head) == Some(kind) || kind.begins_with(head),
            };
        // gzip(1) reads nothing after zeros; xz(1) pads streams to multiples of four bytes.
        let goes_on = match self.kind {
            Compression::Gzip | Compression::Zstd => zeros == 0,
            Compression::Xz => zeros % 4 == 0,
        };
        if begins && goes_on {
            self.stage = Stage::begin(self.kind, from)?;
            return Ok(());
        }
        if !head.is_empty() && self.kind != Compression::Gzip {
            return Err(io::Error::new(io::ErrorKind::InvalidData, Refused::Tail(self.kind)));
        }
        self.tail = zeros + io::copy(&mut from, &mut io::sink())?;
        Ok(())
    }
}

impl<R: Read> Stage<R> {
    fn begin(kind: Compression, from: Source<R>) -> io::Result<Self> {
        Ok(match kind {
            Compression::Gzip => Self::Gzip(flate2::bufread::GzDecoder::new(from)),
            Compression::Xz => {
                let stream = Stream::new_stream_decoder(1 << MOST_MEMORY_LOG, 0)?;
                Self::Xz(liblzma::bufread::XzDecoder::new_stream(from, stream))
            }
            Compression::Zstd => {
                let mut decoder = zstd::stream::read::Decoder::with_buffer(from)?.single_frame();
                decoder.window_log_max(MOST_MEMORY_LOG)?;
                Self::Zstd(decoder)
            }
        })
    }
}

impl<R: Read> Read for Unpacked<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let read = match &mut self.stage {
                Stage::Gzip(decoder) => decoder.read(buffer),
                Stage::Xz(decoder) => decoder.read(buffer),
                Stage::Zstd(decoder) => decoder.read(buffer),
                Stage::Ended => return Ok(0),
            };
            match read.map_err(explained)? {
                0 if !buffer.is_empty() => self.go_on()?,
                read => return Ok(read),
            }
        }
    }
}

/// Maps the decoder's error to [`Refused::Memory`] if applicable.
fn explained(error: io::Error) -> io::Error {
    let too_large = ZSTD_ErrorCode::ZSTD_error_frameParameter_windowTooLarge as usize;
    let too_large = get_error_name(0_usize.wrapping_sub(too_large));
    let inner = error.get_ref();
    let xz = inner.and_then(|inner| inner.downcast_ref::<liblzma::stream::Error>());
    let memory = match xz {
        Some(xz) => *xz == liblzma::stream::Error::MemLimit,
        None => inner.is_some_and(|inner| inner.to_string() == too_large),
    };
    if memory { io::Error::other(Refused::Memory) } else { error }
}

/// The compressed bytes, with lookahead.
struct Source<R> {
    from: BufReader<R>,
    /// Lookahead bytes that are not consumed.
    head: Vec<u8>,
}

impl<R: Read> Source<R> {
    /// Returns the next bytes without consuming them, up to the length of a magic number; fewer at
    /// the end of the file.
    fn peek(&mut self) -> io::Result<&[u8]> {
        let missing = Compression::MAGIC.saturating_sub(self.head.len());
        (&mut self.from).take(missing as u64).read_to_end(&mut self.head)?;
        Ok(&self.head)
    }

    /// Skips zeros and returns their number.
    fn skip_zeros(&mut self) -> io::Result<u64> {
        let mut all = 0;
        loop {
            let bytes = self.fill_buf()?;
            let length = bytes.len();
            let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
            self.consume(zeros);
            all += zeros as u64;
            if length == 0 || zeros < length {
                return Ok(all);
            }
        }
    }
}

impl<R: Read> Read for Source<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut bytes = self.fill_buf()?;
        let read = bytes.read(buffer)?;
        self.consume(read);
        Ok(read)
    }
}

impl<R: Read> BufRead for Source<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.head.is_empty() { self.from.fill_buf() } else { Ok(&self.head) }
    }

    fn consume(&mut self, amount: usize) {
        let of_head = amount.min(self.head.len());
        self.head.drain(..of_head);
        self.from.consume(amount - of_head);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use liblzma::stream::{Check, Filters, LzmaOptions};

    use super::*;

    fn packed(kind: Compression, bytes: &[u8]) -> Vec<u8> {
        match kind {
            Compression::Gzip => {
                let mut to = flate2::write::GzEncoder::new(Vec::new(), Default::default());
                to.write_all(bytes).unwrap();
                to.finish().unwrap()
            }
            Compression::Xz => {
                let mut to = liblzma::write::XzEncoder::new(Vec::new(), 1);
                to.write_all(bytes).unwrap();
                to.finish().unwrap()
            }
            Compression::Zstd => zstd::stream::encode_all(bytes, 1).unwrap(),
        }
    }

    fn unpack(kind: Compression, bytes: &[u8]) -> io::Result<Vec<u8>> {
        let mut all = Vec::new();
        Unpacked::begin(kind, bytes)?.read_to_end(&mut all)?;
        Ok(all)
    }

    /// Returns the output and the number of ignored trailing bytes.
    fn with_tail(kind: Compression, bytes: &[u8]) -> io::Result<(Vec<u8>, u64)> {
        let (mut all, mut unpacked) = (Vec::new(), Unpacked::begin(kind, bytes)?);
        unpacked.read_to_end(&mut all)?;
        Ok((all, unpacked.tail()))
    }

    const KINDS: [Compression; 3] = [Compression::Gzip, Compression::Xz, Compression::Zstd];

    #[test]
    fn each_kind_round_trips() {
        for kind in KINDS {
            let (one, two) = (packed(kind, b"one"), packed(kind, b"two"));
            assert_eq!(Compression::of(&one), Some(kind));
            assert_eq!(unpack(kind, &one).unwrap(), b"one");
            assert_eq!(unpack(kind, &[one, two].concat()).unwrap(), b"onetwo", "{kind:?}");
        }
    }

    #[test]
    fn trailing_bytes_follow_each_program() {
        let metadata = b"\0\0\0\0\0\0\0\0{ \"metadata_version\": \"1.1\" }\nFWx0";
        for kind in KINDS {
            let stream = packed(kind, b"one");
            let with = |tail: &[u8]| with_tail(kind, &[&stream[..], tail].concat());
            for zeros in [1, 4, 4096, 300_000] {
                let (all, tail) = with(&vec![0; zeros]).unwrap();
                assert_eq!((all.as_slice(), tail), (&b"one"[..], zeros as u64), "{kind:?}");
            }
            for tail in [&metadata[..], b"x", &[0, 1], &[7; 70_000]] {
                match with(tail) {
                    Ok((all, ignored)) if kind == Compression::Gzip => {
                        assert_eq!((all.as_slice(), ignored), (&b"one"[..], tail.len() as u64));
                    }
                    Err(refused) if kind != Compression::Gzip => {
                        assert_eq!(Refused::of(&refused), Some(Refused::Tail(kind)));
                    }
                    other => panic!("{kind:?}: {other:?}"),
                }
            }
            // A truncated second stream is always an error.
            for cut in 1..stream.len() {
                assert!(with(&stream[..cut]).is_err(), "{kind:?} cut at {cut} was accepted");
            }
        }
        let xz = packed(Compression::Xz, b"x");
        let padded = |zeros| [&xz[..], &vec![0; zeros], &xz].concat();
        assert_eq!(unpack(Compression::Xz, &padded(8)).unwrap(), b"xx");
        assert!(unpack(Compression::Xz, &padded(3)).is_err());
    }

    /// A stream of a few bytes that requires a dictionary of 4 GiB.
    #[test]
    fn memory_is_limited() {
        let with = |dictionary: u32| {
            let mut options = LzmaOptions::new_preset(1).unwrap();
            options.dict_size(dictionary);
            let mut filters = Filters::new();
            filters.lzma2(&options);
            let stream = Stream::new_stream_encoder(&filters, Check::Crc32).unwrap();
            let mut to = liblzma::write::XzEncoder::new_stream(Vec::new(), stream);
            to.write_all(b"x").unwrap();
            to.finish().unwrap()
        };
        assert_eq!(unpack(Compression::Xz, &with(192 << 20)).unwrap(), b"x");
        let refused = unpack(Compression::Xz, &with(512 << 20)).unwrap_err();
        assert_eq!(Refused::of(&refused), Some(Refused::Memory));
        // A Zstandard frame whose header requires a window of 2 GiB, with an empty raw last block.
        let frame = [0x28, 0xb5, 0x2f, 0xfd, 0, 21 << 3, 1, 0, 0];
        let refused = unpack(Compression::Zstd, &frame).unwrap_err();
        assert_eq!(Refused::of(&refused), Some(Refused::Memory));
        let small = [0x28, 0xb5, 0x2f, 0xfd, 0, 0, 1, 0, 0];
        assert_eq!(unpack(Compression::Zstd, &small).unwrap(), b"");
    }

    #[test]
    fn truncated_or_damaged_stream_is_an_error() {
        let bytes: Vec<u8> = (0..100_000u32).flat_map(|n| n.to_le_bytes()).collect();
        for kind in KINDS {
            let whole = packed(kind, &bytes);
            for cut in [whole.len() - 1, whole.len() / 2, 12] {
                assert!(unpack(kind, &whole[..cut]).is_err(), "{kind:?} cut at {cut} was accepted");
            }
            let mut damaged = whole.clone();
            damaged[whole.len() / 2] ^= 0x55;
            let taken = unpack(kind, &damaged);
            // A zstd frame may have no checksum; the image digest detects damage then.
            assert!(kind == Compression::Zstd || taken.is_err(), "{kind:?} damaged was accepted");
        }
    }
}
