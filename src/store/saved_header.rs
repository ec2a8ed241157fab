//! The header of a saved state: the configuration that must match when QEMU restores the guest's
//! memory, stored before QEMU's data.
//!
//! ```text
//! 8 bytes "qvmstate", 4 bytes version, 4 bytes length (big endian), JSON of that length,
//! QEMU's migration stream
//! ```
//!
//! One file, so that a crash cannot leave half of a pair.

use serde::{Deserialize, Serialize};

const MAGIC: &[u8; 8] = b"qvmstate";
const VERSION: u32 = 1;
/// The number of bytes before the JSON.
pub const PREFIX: usize = 16;
/// The maximum length of the JSON: a VM file has at most half of it, and escaping can double that.
const MAX: u32 = 4 << 20;

/// The configuration stored with the memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Saved {
    /// The VM file that QEMU was started from.
    pub vm_file: String,
    /// When it was saved, RFC 3339.
    pub at: String,
    /// The version of the QEMU that saved it.
    pub qemu_version: String,
    /// An operator had paused the guest, so the vCPUs remain stopped after the restore.
    pub held: bool,
    /// The guest was ready, or was no longer waited for.
    pub ready: bool,
}

/// Why a file is not a usable saved state.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The file has another format.
    #[error("the file is not a saved state")]
    Foreign,
    /// The file is of another version of qvm.
    #[error("the saved state has version {0}; this qvm supports version {VERSION}")]
    Version(u32),
    /// The JSON is invalid.
    #[error("the header is damaged: {0}")]
    Damaged(String),
}

impl Saved {
    /// Returns the bytes before QEMU's data.
    pub fn head(&self) -> Vec<u8> {
        let json = serde_json::json!(self).to_string();
        let mut bytes = MAGIC.to_vec();
        bytes.extend(VERSION.to_be_bytes());
        bytes.extend(u32::try_from(json.len()).unwrap_or(u32::MAX).to_be_bytes());
        bytes.extend(json.bytes());
        bytes
    }

    /// Returns the length of the JSON after this prefix.
    ///
    /// # Errors
    /// The prefix is not that of a saved state.
    pub fn length(prefix: &[u8]) -> Result<usize, Error> {
        let number = |at: usize| -> Option<u32> {
            Some(u32::from_be_bytes(prefix.get(at..at + 4)?.try_into().ok()?))
        };
        let (Some(version), Some(length)) = (number(8), number(12)) else {
            return Err(Error::Foreign);
        };
        match (prefix.starts_with(MAGIC), version) {
            (false, _) => Err(Error::Foreign),
            (true, VERSION) if length > MAX => {
                Err(Error::Damaged(format!("length of {length} bytes")))
            }
            (true, VERSION) => Ok(length as usize),
            (true, version) => Err(Error::Version(version)),
        }
    }

    /// Parses the JSON.
    ///
    /// # Errors
    /// The JSON is invalid.
    pub fn parse(json: &[u8]) -> Result<Self, Error> {
        serde_json::from_slice(json).map_err(|error| Error::Damaged(error.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn saved() -> Saved {
        Saved {
            vm_file: "vcpu = 2\n# ü\n".into(),
            at: "2026-01-01T00:00:00Z".into(),
            qemu_version: "10.0.2".into(),
            held: false,
            ready: true,
        }
    }

    #[test]
    fn header_round_trips() {
        let head = saved().head();
        let length = Saved::length(&head[..PREFIX]).unwrap();
        assert_eq!(head.len(), PREFIX + length);
        assert_eq!(Saved::parse(&head[PREFIX..]), Ok(saved()));
    }

    #[test]
    fn other_files_are_refused() {
        let head = saved().head();
        let with = |at: usize, byte: u8| {
            let mut head = head.clone();
            head[at] = byte;
            Saved::length(&head[..PREFIX])
        };
        assert_eq!(with(0, b'Q'), Err(Error::Foreign));
        assert_eq!(with(11, 2), Err(Error::Version(2)));
        assert!(matches!(with(12, 0xff), Err(Error::Damaged(_))));
        assert_eq!(Saved::length(b"qvmstate"), Err(Error::Foreign));
        assert!(matches!(Saved::parse(b"{}"), Err(Error::Damaged(_))));
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = Saved::length(&bytes);
            let _ = Saved::parse(&bytes);
        }
    }
}
