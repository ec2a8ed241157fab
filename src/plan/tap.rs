//! The taps that a VM needs.

use crate::{
    spec::{Link, Nic, Vm},
    value::{IfName, Label, VmName},
};

/// One tap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tap {
    /// Whose it is.
    pub nic: Label,
    /// Its name.
    pub name: IfName,
    /// The bridge it becomes a port of.
    pub bridge: IfName,
    /// Its MTU in bytes; `None` is the bridge's.
    pub mtu: Option<u16>,
    /// Its alias, which tells an operator whose it is: `qvm:VM:NIC`.
    pub alias: String,
}

/// The taps in the order of the NICs.
pub fn taps(vm: &Vm) -> Vec<Tap> {
    vm.nics.iter().filter_map(|nic| tap(&vm.name, nic)).collect()
}

/// The tap of a NIC, unless it is on the user-mode network.
pub fn tap(vm: &VmName, nic: &Nic) -> Option<Tap> {
    match &nic.link {
        Link::User { .. } => None,
        Link::Bridge { bridge, tap } => Some(Tap {
            nic: nic.name.clone(),
            name: tap.clone(),
            bridge: bridge.clone(),
            mtu: nic.mtu,
            alias: format!("qvm:{vm}:{}", nic.name),
        }),
    }
}
