//! Images: the cache, downloads and verification.

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
