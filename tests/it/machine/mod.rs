//! The QEMU command line.

mod argv;
mod block_device;
mod foreign_error;
mod old_qemu;
mod probe;
mod vm_diff;
