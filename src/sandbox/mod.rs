//! What QEMU is kept from.

pub mod capabilities;
#[allow(unsafe_code)]
pub mod confine;
#[allow(unsafe_code)]
pub mod spawn;

