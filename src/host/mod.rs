//! Floor 3: everything that touches the machine, one file a thing. Files of this floor never import each other.

pub mod cache_lock;
pub mod cgroup;
pub mod clone;
pub mod digest;
pub mod download;
pub mod file;
pub mod firmware;
pub mod lock;
pub mod log_file;
pub mod probe;
pub mod qemu_img;
pub mod terminal;
pub mod unpack;
pub mod write_back;
