//! The sandbox of QEMU: capabilities, namespaces, Landlock, seccomp and process creation.

pub mod capabilities;
#[allow(unsafe_code)]
pub mod confine;
pub mod file_access;
#[allow(unsafe_code)]
pub mod spawn;
