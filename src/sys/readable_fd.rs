//! Waits for readable descriptors.

use std::{io, os::fd::OwnedFd, sync::Arc};

use tokio::io::{Interest, unix::AsyncFd};

/// Registers a descriptor with the runtime, for readability only. Requires a runtime.
///
/// # Errors
/// The descriptor does not support epoll(7), or the process has no free descriptor.
pub(crate) fn readable(fd: Arc<OwnedFd>) -> io::Result<AsyncFd<Arc<OwnedFd>>> {
    // SAFETY: the `AsyncFd` shares the `OwnedFd`, which keeps the descriptor open until it is
    // dropped.
    Ok(unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }?)
}
