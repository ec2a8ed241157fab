//! An image, ready to make a disk from: found in the cache, used where it lies, or fetched.
//!
//! An image given by `path` that is not compressed is used in place: a second copy of it in the cache would only cost
//! room. One that an overlay is to stand on is taken into the cache all the same (a reflink, where the
//! file system can): an operator's file may be replaced or go away, and every overlay on it would be lost.
//!
//! Whatever the source, nothing is trusted before it was looked into: the digest, the format by its magic, no
//! reference to other files (a qcow2 that names `/etc/shadow` as its backing file would hand it to the guest),
//! and the consistency of a qcow2's tables, which also tells a truncated one.

pub mod cache;
pub(crate) mod checksum;
pub mod checksum_file;
pub mod decompress;
pub mod download;
pub(crate) mod ensure;
pub(crate) mod error;
pub mod fetch;
pub(crate) mod found;
pub(crate) mod inspect;
pub mod qcow2;
#[allow(unsafe_code)]
pub mod qemu_img;
pub mod reference;
pub(crate) mod writer;

pub use self::ensure::{Cached, Purpose, Tools, VerifiedContent, ensure, ensure_copied};
pub use self::error::Error;
pub use self::fetch::Patience;
