//! Any bytes as a compressed image: decompression ends, memory is bounded, and the result does not
//! depend on the read size.

use std::io::{Read, Write};

use qvm::image::{decompress::Unpacked, reference::Compression};

/// The maximum output of an endless stream, in bytes.
const MOST: u64 = 1 << 20;

pub fn check(bytes: &[u8]) {
    if let Some(kind) = Compression::of(bytes) {
        let (at_once, slowly) = (read(kind, bytes, 64 << 10), read(kind, bytes, 1021));
        assert_eq!(at_once.1, slowly.1, "{kind:?}");
        // The output before an error depends on the decoder.
        let broken =
            !at_once.1 && (slowly.0.starts_with(&at_once.0) || at_once.0.starts_with(&slowly.0));
        assert!(broken || at_once.0 == slowly.0, "{kind:?}");
    }
    // Bytes compressed by another program are unchanged.
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(bytes).expect("memory");
    let gzip = gzip.finish().expect("memory");
    let zstd = zstd::stream::encode_all(bytes, 1).expect("memory");
    for (kind, packed) in [(Compression::Gzip, gzip), (Compression::Zstd, zstd)] {
        assert_eq!(Compression::of(&packed), Some(kind));
        assert_eq!(read(kind, &packed, 4096), (bytes.to_vec(), true), "{kind:?}");
        // Padding to a block has no effect.
        let padded = [&packed[..], &[0; 512]].concat();
        assert_eq!(read(kind, &padded, 4096), (bytes.to_vec(), true), "{kind:?}");
        // A truncated second stream is an error, never an ignored tail.
        let cut = 1 + bytes.len() % (packed.len() - 1);
        let two = [&packed[..], &packed[..cut]].concat();
        assert!(!read(kind, &two, 4096).1, "{kind:?} cut at {cut}");
    }
}

/// Returns the output, and whether it ended without error.
fn read(kind: Compression, bytes: &[u8], step: usize) -> (Vec<u8>, bool) {
    let mut from = Unpacked::begin(kind, bytes).expect("a decoder").take(MOST);
    let (mut all, mut buffer) = (Vec::new(), vec![0; step]);
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return (all, true),
            Ok(count) => all.extend_from_slice(&buffer[..count]),
            Err(error) => {
                super::is_tame(&error.to_string());
                return (all, false);
            }
        }
    }
}
