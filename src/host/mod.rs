//! Floor 3: everything that touches the machine, one file a thing. Files of this floor never import each other.

pub mod account;
pub mod affinity;
pub mod anti_spoof;
pub mod br_netfilter;
pub mod bridge;
pub mod cache_lock;
pub mod capabilities;
pub mod cgroup;
#[allow(unsafe_code)]
pub mod child;
pub mod clone;
#[allow(unsafe_code)]
pub mod confine;
pub mod digest;
pub mod download;
pub mod editor;
pub mod file;
pub mod file_system;
pub mod filesystem;
pub mod firmware;
pub mod journal;
pub mod kernel_module;
pub mod kvm_module;
pub mod link;
#[allow(unsafe_code)]
pub mod link_watch;
pub mod liveness_lock;
#[allow(unsafe_code)]
pub mod lock;
pub mod log_file;
pub mod log_reader;
pub mod machine_id;
pub mod machined;
pub mod meminfo;
#[allow(unsafe_code)]
pub mod memory;
pub mod neighbour;
#[allow(unsafe_code)]
pub mod network;
pub mod oom_score;
#[allow(unsafe_code)]
pub mod peer;
#[allow(unsafe_code)]
pub mod pidfd;
pub mod port;
pub mod pressure;
pub mod probe;
pub mod process_time;
#[allow(unsafe_code)]
pub mod qemu_img;
pub mod qemu_processes;
pub mod receive;
pub mod rename;
pub mod session;
pub mod signal;
#[allow(unsafe_code)]
pub mod slept;
pub mod socket;
pub mod systemd;
#[allow(unsafe_code)]
pub mod tap;
pub mod terminal;
pub mod unpack;
pub mod user_runtime_dir;
pub mod vhost;
#[allow(unsafe_code)]
pub mod watch;
pub mod write_back;
