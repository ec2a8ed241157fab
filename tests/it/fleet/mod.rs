//! All VMs of a host.

mod gc;
