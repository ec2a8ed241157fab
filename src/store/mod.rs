//! The paths and records of qvm.

pub mod identity;
mod identity_error;
pub mod identity_lock;
pub mod identity_store;
pub mod identity_uuid;
pub(crate) mod intended_end;
pub mod intention;
pub mod layout;
pub mod liveness;
pub mod record;
pub(crate) mod record_writer;
pub(crate) mod reservation;
pub mod running;
pub mod saved_header;
pub mod saved_state;
pub mod sector_sizes;
pub mod snapshot_record;
pub mod snapshots;
pub mod vm_file_copies;
pub mod vm_state;
