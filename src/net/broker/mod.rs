//! Descriptors of the host's network. A supervisor whose unit has a network namespace of its own (`PrivateNetwork=`, systemd.exec(5))
//! borrows them of `qvm network-broker`, which is in the host's: a descriptor works on the namespace that it was opened in
//! (network_namespaces(7)). What may be done with it the kernel asks of whoever uses it as well (netlink(7), tuntap.rst).

pub(crate) mod network;
pub(crate) mod server;

pub use self::network::{Network, TUN, tun};
pub use self::server::{lend, listener};
