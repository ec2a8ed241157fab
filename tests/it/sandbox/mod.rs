//! The isolation of QEMU.

mod hostile;
mod operators;
mod uids;
