//! What QEMU is kept from.

pub mod capabilities;
#[allow(unsafe_code)]
pub mod confine;
pub mod file_access;
#[allow(unsafe_code)]
pub mod spawn;
