//! The kernel's own virtio-net back end, as a descriptor for QEMU.

use std::{fs::OpenOptions, io, os::fd::OwnedFd};

/// Opens /dev/vhost-net.
///
/// # Errors
/// It is not there, or may not be opened.
pub fn open() -> io::Result<OwnedFd> {
    OpenOptions::new().read(true).write(true).open("/dev/vhost-net").map(OwnedFd::from)
}
