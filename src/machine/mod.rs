//! From a VM file to a QEMU command line.

pub mod argv;
pub mod device;
pub mod disk_file;
pub mod facets;
pub mod facts;
pub mod fd;
pub mod fdset;
pub mod firmware;
pub mod live;
pub mod pending;
pub mod probe;
pub mod resources;
pub mod user_network;
