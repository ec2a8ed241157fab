//! The network broker: a supervisor in a private network namespace (`PrivateNetwork=`,
//! systemd.exec(5)) gets descriptors of the host's network from `qvm network-broker`. A descriptor
//! refers to the namespace in which it was opened (network_namespaces(7)). The kernel also checks
//! the capabilities of the process that uses the descriptor (netlink(7), tuntap.rst).

pub(crate) mod network;
pub(crate) mod server;

pub use self::network::{Network, TUN, tun};
pub use self::server::{lend, listener};
