//! `[nic.NAME]`, and the flat keys `mac`, `ip`, `gateway`, `dns` and `bridge` for the NIC `net`.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::value::{Cidr, Forward, IfName, Label, MacAddr};

/// One network card.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nic {
    /// `net`, or the name of the table.
    pub name: Label,
    /// `mac`: `None` is a stable one of qvm's choice.
    pub mac: Option<MacAddr>,
    /// `ip`: given to the guest by cloud-init; `None` is DHCP.
    pub ip: Option<Cidr>,
    /// `gateway`: within the net of `ip`.
    pub gateway: Option<IpAddr>,
    /// `dns`: the name servers, given to the guest by cloud-init.
    pub dns: Vec<IpAddr>,
    /// `mtu`: 576 to 65535 bytes; `None` is the bridge's own.
    pub mtu: Option<u16>,
    /// `model`: what the guest sees.
    pub model: Model,
    /// What the other end is.
    pub link: Link,
}

/// What a NIC is connected to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Link {
    /// `bridge`: by a tap device on this bridge of the host's.
    Bridge {
        /// The bridge.
        bridge: IfName,
        /// `tap`: the tap's name; otherwise `qvm-VM` for the NIC `net`, `qvm-VM_NIC` for others.
        tap: IfName,
    },
    /// QEMU's user-mode network: outgoing connections and these ports, without privileges.
    User {
        /// `forward`: ports of the host that lead into the guest.
        forward: Vec<Forward>,
    },
}

/// What the guest sees the NIC as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Model {
    /// virtio-net: the fastest, needs a driver that every Linux and BSD has.
    #[default]
    Virtio,
    /// Intel 82574L: for guests without virtio drivers, such as a Windows installer.
    E1000e,
}
