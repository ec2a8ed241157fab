//! Disks.

mod corrupt;
mod create;
mod verbs;
