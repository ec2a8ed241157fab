//! Floor 3: everything that touches the machine, one file a thing. Files of this floor never import each other.

pub mod log_file;
pub mod cgroup;
pub mod firmware;
pub mod probe;
