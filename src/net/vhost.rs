//! The kernel's virtio-net back end.

use std::{fs::OpenOptions, io, os::fd::OwnedFd};

/// Opens /dev/vhost-net.
///
/// # Errors
/// The device does not exist or may not be opened.
pub fn open() -> io::Result<OwnedFd> {
    OpenOptions::new().read(true).write(true).open("/dev/vhost-net").map(OwnedFd::from)
}
