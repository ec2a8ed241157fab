//! Snapshots of a VM's disks: creates, lists, removes them, and returns to them.
//!
//! Each change of the present is written to `snapshots.toml` before the first file is changed, and
//! each step is synced, so that the next verb or start completes or undoes an interrupted one.

pub mod create;
pub mod error;
pub(crate) mod facts;
pub mod kind;
pub mod list;
pub(crate) mod merged;
pub mod remove;
pub mod rollback;
pub mod settle;
pub mod stopped;
pub(crate) mod switch;
pub mod tree;

pub use self::error::Error;
pub use self::settle::settle;
pub use self::stopped::StoppedVm;
