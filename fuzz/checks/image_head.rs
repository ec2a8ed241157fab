//! Any bytes as the first bytes of an image: an accepted qcow2 file is one, its external files are
//! reported, and no file has two formats.

use qvm::image::{
    qcow2::{self, Header},
    reference::{Compression, Foreign},
};

/// A number as in docs/interop/qcow2.rst.
fn number(bytes: &[u8], at: usize, length: usize) -> u64 {
    bytes[at..][..length].iter().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

pub fn check(bytes: &[u8]) {
    let (compression, foreign) = (Compression::of(bytes), Foreign::of(bytes));
    match Header::parse(bytes) {
        Ok(header) => {
            assert!(bytes.starts_with(&qcow2::MAGIC) && compression.is_none(), "{header:?}");
            let (offset, length) = (number(bytes, 8, 8), number(bytes, 16, 4));
            match header.backing_span {
                Some(span) => {
                    assert_eq!((span.0, u64::from(span.1)), (offset, length));
                    assert!(span.0 >= 72 && (1..1023).contains(&span.1), "{span:?}");
                }
                None => assert!(offset == 0 || length == 0, "a backing file is passed over"),
            }
            assert_eq!(u64::from(header.version), number(bytes, 4, 4));
            assert_eq!(header.virtual_size, number(bytes, 24, 8));
            assert_eq!(header.encrypted, number(bytes, 32, 4) != 0);
            let external = header.version == 3 && number(bytes, 72, 8) & 4 != 0;
            assert_eq!(header.external_data, external);
            // Bytes after the header do not change the result.
            let end = bytes.len().min(104);
            assert_eq!(Header::parse(&bytes[..end]).as_ref(), Ok(&header));
        }
        Err(error) => super::is_tame(&error.to_string()),
    }
    if let Some(foreign) = foreign {
        super::is_tame(foreign.what);
    }
    // More bytes of a file must not change its format.
    let head = &bytes[..bytes.len().min(qvm::image::reference::HEAD)];
    assert_eq!(Compression::of(head), compression);
    if head.len() < bytes.len() {
        // A text may begin with a byte order mark and spaces.
        let bare = head.strip_prefix(b"\xef\xbb\xbf").unwrap_or(head);
        let begins = bare.trim_ascii_start().len() >= 32;
        assert!(!begins || Foreign::of(head) == foreign, "{foreign:?}");
    }
}
