//! The image cache: what is in it, who needs it, and taking out what nobody needs.
//!
//! ```text
//! sha256-HEX.qcow2           an image, 0440, called by the digest of the bytes as they were downloaded
//! sha256-HEX.json            where it came from, how large it must be; without it the image is not trusted
//! sha256-HEX.part{,.json}    the beginning of a download, for a later run to resume from
//! sha256-HEX.lock            held alone by who fetches it, shared by who makes a disk from it
//! unverified-url-HASH.…      the same without a digest: called by its address
//! sums-HASH.json             what digest a SUMS file gave; so that a cached image needs no network
//! ```

pub(crate) mod entries;
pub(crate) mod error;
pub mod lock;
pub(crate) mod remove;

pub use self::entries::{Entry, Listed, Needs, Overlay, list, overlays};
pub(crate) use self::entries::{backing_of, close, key, lock, look_up, path, remember, resolved};
pub use self::error::Error;
pub use self::remove::{Pruned, prune, remove};
