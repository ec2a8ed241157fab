//! Disks.

mod corrupt;
mod create;
mod limits;
mod verbs;
