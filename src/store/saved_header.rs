//! The head of a saved state: what must be as it was when QEMU takes up the guest's memory again, before QEMU's own bytes.
//!
//! ```text
//! 8 bytes "qvmstate", 4 bytes version, 4 bytes length (big endian), JSON of that length, QEMU's migration stream
//! ```
//!
//! One file, so that no crash can leave half of a pair.

use serde::{Deserialize, Serialize};

const MAGIC: &[u8; 8] = b"qvmstate";
const VERSION: u32 = 1;
/// How many bytes come before the JSON.
pub const PREFIX: usize = 16;
/// The longest JSON: a VM file has at most half of it, and escaping may double that.
const MAX: u32 = 4 << 20;

/// What is kept beside the memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Saved {
    /// The VM file that QEMU was started from.
    pub vm_file: String,
    /// When it was saved, RFC 3339.
    pub at: String,
    /// The QEMU that saved it.
    pub qemu_version: String,
    /// The vCPUs were held by wish, and shall be again.
    pub held: bool,
    /// The guest was ready, or was not waited for any more.
    pub ready: bool,
}

/// Why a file is no saved state.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// It begins otherwise.
    #[error("it is no saved state")]
    Foreign,
    /// It is of another version of qvm.
    #[error("it is a saved state of version {0}, and this qvm knows version {VERSION}")]
    Version(u32),
    /// The JSON.
    #[error("its head is damaged: {0}")]
    Damaged(String),
}

impl Saved {
    /// The bytes before QEMU's.
    pub fn head(&self) -> Vec<u8> {
        let json = serde_json::json!(self).to_string();
        let mut bytes = MAGIC.to_vec();
        bytes.extend(VERSION.to_be_bytes());
        bytes.extend(u32::try_from(json.len()).unwrap_or(u32::MAX).to_be_bytes());
        bytes.extend(json.bytes());
        bytes
    }

    /// How long the JSON behind this prefix is.
    ///
    /// # Errors
    /// It is not the beginning of a saved state.
    pub fn length(prefix: &[u8]) -> Result<usize, Error> {
        let number = |at: usize| -> Option<u32> {
            Some(u32::from_be_bytes(prefix.get(at..at + 4)?.try_into().ok()?))
        };
        let (Some(version), Some(length)) = (number(8), number(12)) else {
            return Err(Error::Foreign);
        };
        match (prefix.starts_with(MAGIC), version) {
            (false, _) => Err(Error::Foreign),
            (true, VERSION) if length > MAX => Err(Error::Damaged(format!("{length} bytes of it"))),
            (true, VERSION) => Ok(length as usize),
            (true, version) => Err(Error::Version(version)),
        }
    }

    /// Reads the JSON.
    ///
    /// # Errors
    /// It is none.
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
    fn a_head_is_read_as_it_was_written() {
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
