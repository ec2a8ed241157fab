//! A compressed stream, unpacked as it comes.

use std::io::{self, BufReader, Read};

use crate::plan::image::Compression;

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
        Compression::Xz => Box::new(liblzma::bufread::XzDecoder::new_multi_decoder(from)),
        Compression::Zstd => Box::new(zstd::stream::read::Decoder::with_buffer(from)?),
    })
}

#[cfg(test)]
mod tests {
    use std::io::Write;

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
