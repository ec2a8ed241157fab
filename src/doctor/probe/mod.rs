//! The probes of the host.

pub mod br_netfilter;
pub mod bridge;
pub mod file_system;
pub mod kernel_module;
pub mod kvm_module;
