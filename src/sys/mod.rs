//! System calls and processes.

pub mod account;
pub mod affinity;
pub mod bpf;
pub mod capabilities;
pub mod cgroup;
pub mod descriptors;
pub mod digest;
#[allow(unsafe_code)]
pub mod extents;
pub mod file;
pub mod file_system;
pub mod file_watch;
pub(crate) mod flock;
pub(crate) mod lane;
pub mod liveness_lock;
#[allow(unsafe_code)]
pub mod lock;
pub mod log;
pub mod machine_id;
pub mod meminfo;
#[allow(unsafe_code)]
pub mod memory;
pub mod mount;
pub mod oom_score;
#[allow(unsafe_code)]
pub mod peer;
#[allow(unsafe_code)]
pub mod pidfd;
pub mod pipe_to_file;
pub mod pressure;
pub mod process_time;
#[allow(unsafe_code)]
pub mod program;
pub mod progress;
pub mod qemu_processes;
#[allow(unsafe_code)]
pub(crate) mod readable_fd;
pub mod reflink;
pub mod rename;
pub mod session;
pub mod signal;
pub mod socket;
pub mod storage_reader;
pub mod suspend_watch;
pub(crate) mod tasks;
pub mod terminal;
pub mod user_runtime_dir;
pub mod writeback;
