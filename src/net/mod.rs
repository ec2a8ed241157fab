//! The host side of guest networks.

pub mod anti_spoof;
#[allow(unsafe_code)]
pub mod broker;
pub mod link;
#[allow(unsafe_code)]
pub mod link_monitor;
pub mod neighbour;
pub mod port;
#[allow(unsafe_code)]
pub mod tap;
pub mod tap_spec;
pub mod vhost;
