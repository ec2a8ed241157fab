//! The QEMU command line.

mod argv;
mod block_device;
mod old_qemu;
mod probe;
mod vm_diff;
