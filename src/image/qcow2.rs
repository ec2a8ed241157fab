//! Parses the header of a qcow2 file without qemu-img.
//!
//! The format is specified in QEMU's `docs/interop/qcow2.rst`. All numbers are big-endian. Only the
//! required fields are parsed: the virtual size, and every dependency on other files.

/// The number of bytes for [`Header::parse`]: the header, its extensions and the backing file's
/// name are in the first cluster. 4096 bytes suffice for files of QEMU's tools; a name beyond that
/// requires [`Header::backing_span`].
pub const HEAD: usize = 4096;

/// The first four bytes.
pub const MAGIC: [u8; 4] = *b"QFI\xfb";

/// QEMU's limit for the length of a backing file's name.
const LONGEST_NAME: u32 = 1023;

/// The fields of a qcow2 header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// The version, 2 or 3.
    pub version: u32,
    /// The virtual size in bytes.
    pub virtual_size: u64,
    /// The position of the backing file's name: offset and length in bytes.
    pub backing_span: Option<(u64, u32)>,
    /// The clusters are encrypted.
    pub encrypted: bool,
    /// The guest's data is in another file.
    pub external_data: bool,
    /// QEMU found inconsistent metadata and marked the file: it can only be opened read-only until
    /// repaired.
    ///
    /// The other such bit, "dirty", is not damage: with `lazy_refcounts` it remains after a power
    /// failure, and QEMU rebuilds the reference counts when it opens the file for writing.
    pub corrupt: bool,
}

/// Why the bytes are not a usable qcow2 header.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The magic is missing.
    #[error("the file is not qcow2")]
    NotQcow2,
    /// The file ends within the header.
    #[error("the file ends within the qcow2 header")]
    Short,
    /// A version that is not 2 or 3.
    #[error("qcow2 version {0} is not supported; versions 2 and 3 are")]
    Version(u32),
    /// The backing file's name is too long, or overlaps the header.
    #[error("the position of the backing file's name is not valid")]
    Backing,
}

impl Header {
    /// Parses the first bytes of a file, at least 104 of them unless the file is shorter.
    ///
    /// # Errors
    /// The bytes are not the beginning of a qcow2 file of version 2 or 3.
    pub fn parse(head: &[u8]) -> Result<Self, Error> {
        if head.get(..4) != Some(&MAGIC) {
            return Err(Error::NotQcow2);
        }
        let u32_at = |at: usize| -> Result<u32, Error> {
            let bytes = head.get(at..at + 4).and_then(|b| b.try_into().ok());
            bytes.map(u32::from_be_bytes).ok_or(Error::Short)
        };
        let u64_at = |at: usize| -> Result<u64, Error> {
            let bytes = head.get(at..at + 8).and_then(|b| b.try_into().ok());
            bytes.map(u64::from_be_bytes).ok_or(Error::Short)
        };
        let version = u32_at(4)?;
        if !matches!(version, 2 | 3) {
            return Err(Error::Version(version));
        }
        // Bits of `incompatible_features`: 0 dirty, 1 corrupt, 2 external data file.
        let features = if version == 3 { u64_at(72)? } else { 0 };
        let (offset, length) = (u64_at(8)?, u32_at(16)?);
        let backing_span = match (offset, length) {
            (0, _) => None,
            (_, 0) => None,
            (..72, _) | (_, LONGEST_NAME..) => return Err(Error::Backing),
            span => Some(span),
        };
        Ok(Self {
            version,
            virtual_size: u64_at(24)?,
            backing_span,
            encrypted: u32_at(32)? != 0,
            external_data: features & 4 != 0,
            corrupt: features & 2 != 0,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn header(version: u32) -> Vec<u8> {
        let mut head = vec![0; 104];
        head[..4].copy_from_slice(&MAGIC);
        head[4..8].copy_from_slice(&version.to_be_bytes());
        head[24..32].copy_from_slice(&(5u64 << 30).to_be_bytes());
        head
    }

    #[test]
    fn both_versions_are_parsed() {
        for version in [2, 3] {
            let read = Header::parse(&header(version)).unwrap();
            assert_eq!((read.version, read.virtual_size), (version, 5 << 30));
            assert_eq!(
                (read.backing_span, read.encrypted, read.external_data),
                (None, false, false)
            );
        }
    }

    #[test]
    fn external_files_are_detected() {
        let mut head = header(3);
        head[8..16].copy_from_slice(&512u64.to_be_bytes());
        head[16..20].copy_from_slice(&11u32.to_be_bytes());
        head[35] = 2;
        head[79] = 0b110;
        let read = Header::parse(&head).unwrap();
        assert_eq!(read.backing_span, Some((512, 11)));
        assert!(read.encrypted && read.external_data && read.corrupt);
        // Version 2 has no feature bits at this offset.
        head[7] = 2;
        assert!(!Header::parse(&head).unwrap().external_data);
    }

    #[test]
    fn invalid_headers_are_refused() {
        assert_eq!(Header::parse(b""), Err(Error::NotQcow2));
        assert_eq!(Header::parse(b"KDMV\0\0\0\x01"), Err(Error::NotQcow2));
        assert_eq!(Header::parse(&header(1)), Err(Error::Version(1)));
        assert_eq!(Header::parse(&header(3)[..71]), Err(Error::Short));
        let mut head = header(3);
        head[8..16].copy_from_slice(&512u64.to_be_bytes());
        head[16..20].copy_from_slice(&70_000u32.to_be_bytes());
        assert_eq!(Header::parse(&head), Err(Error::Backing));
    }

    proptest! {
        #[test]
        fn no_bytes_panic(
            mut bytes in proptest::collection::vec(any::<u8>(), 0..200),
            qcow2: bool,
        ) {
            if qcow2 && bytes.len() >= 4 {
                bytes[..4].copy_from_slice(&MAGIC);
            }
            let _ = Header::parse(&bytes);
        }
    }
}
