//! A compressed stream, unpacked as it comes.

use std::io::{self, BufReader, Read};

use liblzma::stream::{CONCATENATED, Stream};

use crate::plan::image::Compression;

/// The most memory that unpacking may take, in bytes. A stream says itself how much it wants, up to 4 GiB for .xz; `xz -9` makes such
/// as want 65 MiB. For Zstandard the library has a bound of its own, 128 MiB (`ZSTD_WINDOWLOG_LIMIT_DEFAULT`).
const MOST_MEMORY: u64 = 256 << 20;

/// The unpacked bytes of `from`. Streams may follow each other, as gzip(1), xz(1) and zstd(1) allow; an end in the
/// middle of one is an error, and so is anything behind the last.
///
/// # Errors
/// The decoder cannot be set up.
pub fn unpacked<'a>(
    kind: Compression,
    from: impl Read + Send + 'a,
) -> io::Result<Box<dyn Read + Send + 'a>> {
    let from = BufReader::with_capacity(128 << 10, from);
    Ok(match kind {
        Compression::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(from)),
        Compression::Xz => {
            let stream = Stream::new_stream_decoder(MOST_MEMORY, CONCATENATED)?;
            Box::new(liblzma::bufread::XzDecoder::new_stream(from, stream))
        }
        Compression::Zstd => Box::new(zstd::stream::read::Decoder::with_buffer(from)?),
    })
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
        unpacked(kind, bytes)?.read_to_end(&mut all)?;
        Ok(all)
    }

    const KINDS: [Compression; 3] = [Compression::Gzip, Compression::Xz, Compression::Zstd];

    #[test]
    fn each_kind_comes_back() {
        for kind in KINDS {
            let (one, two) = (packed(kind, b"one"), packed(kind, b"two"));
            assert_eq!(Compression::of(&one), Some(kind));
            assert_eq!(unpack(kind, &one).unwrap(), b"one");
            assert_eq!(unpack(kind, &[one, two].concat()).unwrap(), b"onetwo", "{kind:?}");
        }
    }

    /// A stream of a few bytes that wants a dictionary of 4 GiB.
    #[test]
    fn a_stream_gets_no_more_memory_than_there_is_for_it() {
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
        assert_eq!(refused.to_string(), "memory limit reached");
        // Of Zstandard's frames the header says it: a window of 2 GiB, and an empty last block that is raw.
        let frame = [0x28, 0xb5, 0x2f, 0xfd, 0, 21 << 3, 1, 0, 0];
        assert!(unpack(Compression::Zstd, &frame).is_err());
        let small = [0x28, 0xb5, 0x2f, 0xfd, 0, 0, 1, 0, 0];
        assert_eq!(unpack(Compression::Zstd, &small).unwrap(), b"");
    }

    #[test]
    fn a_cut_or_damaged_stream_is_an_error() {
        let bytes: Vec<u8> = (0..100_000u32).flat_map(|n| n.to_le_bytes()).collect();
        for kind in KINDS {
            let whole = packed(kind, &bytes);
            for cut in [whole.len() - 1, whole.len() / 2, 12] {
                assert!(unpack(kind, &whole[..cut]).is_err(), "{kind:?} cut at {cut} was taken");
            }
            let mut damaged = whole.clone();
            damaged[whole.len() / 2] ^= 0x55;
            let taken = unpack(kind, &damaged);
            // A zstd frame need not carry a checksum; the image's own digest is there for that.
            assert!(kind == Compression::Zstd || taken.is_err(), "{kind:?} damaged was taken");
        }
    }
}
