//! The QEMU command line of a VM file, and the typed difference between two VM files.

pub mod argv;
mod block_nodes;
pub mod device;
pub mod diff;
pub mod disk_file;
pub mod facts;
pub mod fd;
pub mod fdset;
pub mod firmware;
pub mod probe;
pub mod resources;
pub mod user_network;
