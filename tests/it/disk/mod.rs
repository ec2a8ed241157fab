//! Disks.

mod corrupt;
mod create;
