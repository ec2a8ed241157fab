//! The disks of a VM: created once, grown if `size` grew, never re-created or shrunk.

pub(crate) mod backing;
pub mod check;
pub(crate) mod copy;
pub(crate) mod ensure;
pub(crate) mod error;
pub mod existing;
pub(crate) mod frozen;
pub mod listing;
pub(crate) mod origin;
pub(crate) mod own;
pub mod plan;
pub(crate) mod ready;
pub mod sector_size;
mod verified_copy;

pub use self::backing::backing;
pub use self::copy::copy;
pub use self::ensure::{ensure, notes, remove_leftovers};
pub use self::error::Error;
pub use self::frozen::frozen;
pub use self::origin::{made, origin_path};
pub use self::ready::Ready;
