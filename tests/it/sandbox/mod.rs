//! What QEMU is kept from.

mod hostile;
mod operators;
mod uids;
