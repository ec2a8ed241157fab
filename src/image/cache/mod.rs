//! The image cache: its files, the VMs that use them, and the removal of unused ones.
//!
//! ```text
//! sha256-HEX.qcow2           an image, 0440, named by the digest of the downloaded bytes
//! sha256-HEX.json            its origin and size; without this file the image is not trusted
//! sha256-HEX.part{,.json}    a partial download, to be resumed
//! sha256-HEX.lock            exclusive for a download, shared for creating a disk from the image
//! unverified-url-HASH.…      the same without a digest: named by its origin
//! sums-HASH.json             the digest from a SUMS file, so that a cached image needs no network
//! ```

pub(crate) mod entries;
pub(crate) mod error;
pub mod lock;
pub(crate) mod remove;

pub use self::entries::{Entry, Listed, Needs, Overlay, list, overlays};
pub(crate) use self::entries::{
    backing_of, key, lock, look_up, make_read_only, path, remember, resolved,
};
pub use self::error::Error;
pub use self::remove::{Pruned, prune, remove};
