//! A VM's disk, ready for QEMU: made once, grown when `size` grew, never made anew and never shrunk.
//!
//! A disk is made as `.qvm-NAME.FORMAT.tmp` beside its place, synced, and renamed last, so that a disk that has its
//! name is whole. The caller holds the VM's lock, and the VM is off.

pub(crate) mod backing;
pub mod check;
pub(crate) mod copy;
pub(crate) mod ensure;
pub(crate) mod error;
pub mod existing;
pub mod listing;
pub(crate) mod own;
pub mod plan;
pub(crate) mod ready;
pub mod sector_size;
mod verified_copy;

pub use self::backing::backing;
pub use self::copy::copy;
pub use self::ensure::{ensure, made, notes, origin_path, remove_leftovers};
pub use self::error::Error;
pub use self::ready::Ready;
