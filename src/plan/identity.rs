//! What must never change under a guest: kept in `identity.toml`, made on the first start.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use sha2::{Digest, Sha256};

use crate::{
    spec::Vm,
    value::{Label, MacAddr, VmName},
};

/// The content of `identity.toml`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Identity {
    /// The machine's UUID (SMBIOS type 1), hyphenated lower case.
    pub uuid: String,
    /// cloud-init's instance-id.
    pub instance_id: String,
    /// The pinned machine type, such as `pc-q35-10.0`.
    pub machine: String,
    /// The address of every NIC whose `mac` is not written, by its name.
    #[serde(default)]
    pub macs: BTreeMap<Label, MacAddr>,
}

/// The address of a NIC that none was written for: QEMU's prefix and three bytes that depend on the host, the VM and the
/// NIC alone, so that it is the same after the state was lost, and another on another host.
pub fn derived_mac(host: &str, vm: &VmName, nic: &Label) -> MacAddr {
    let digest = Sha256::digest(format!("{host}\n{vm}\n{nic}"));
    MacAddr::local([digest[0], digest[1], digest[2]])
}

impl Identity {
    /// A new identity for `vm` with random parts of the caller's.
    pub fn new(vm: &Vm, host: &str, uuid: String, instance: &str, machine: &str) -> Self {
        let mut identity = Self {
            uuid,
            instance_id: Self::instance(&vm.name, instance),
            machine: machine.to_owned(),
            macs: BTreeMap::new(),
        };
        identity.add_macs(vm, host);
        identity
    }

    /// An instance-id, of the beginning of a random UUID.
    pub fn instance(vm: &VmName, random: &str) -> String {
        let short: String = random.chars().take(8).collect();
        format!("iid-{vm}-{short}")
    }

    /// Gives every NIC that has none an address; true when there was one to give.
    pub fn add_macs(&mut self, vm: &Vm, host: &str) -> bool {
        let mut added = false;
        for nic in vm.nics.iter().filter(|n| n.mac.is_none()) {
            self.macs.entry(nic.name.clone()).or_insert_with(|| {
                added = true;
                derived_mac(host, &vm.name, &nic.name)
            });
        }
        added
    }
}
