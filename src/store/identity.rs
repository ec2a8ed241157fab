//! What must never change under a guest: kept in `identity.toml`, made on the first start.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use sha2::{Digest, Sha256};

use crate::{
    spec::Vm,
    value::{Label, MacAddr, UidRange, VmName},
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
    /// The user that QEMU runs as, for no other VM of this host; none where that is not root's to give.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// The address of every NIC whose `mac` is not written, by its name.
    #[serde(default)]
    pub macs: BTreeMap<Label, MacAddr>,
    /// The host name by default, where that is not the VM's name any more: the name that it had when the guest learnt it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
}

/// The first user that no VM has.
pub fn free_uid(range: UidRange, taken: &BTreeSet<u32>) -> Option<u32> {
    (range.first()..=range.last()).find(|uid| !taken.contains(uid))
}

/// The address of a NIC that none was written for: QEMU's prefix and three bytes that depend on the host, the VM and the
/// NIC alone, so that it is the same after the state was lost, and another on another host. One that another VM has, such
/// as the VM that had this name before it was renamed, is passed over.
pub fn derived_mac(host: &str, vm: &VmName, nic: &Label, taken: &BTreeSet<MacAddr>) -> MacAddr {
    let derived = |again: Option<usize>| {
        let again = again.map_or_else(String::new, |again| format!("\n{again}"));
        let digest = Sha256::digest(format!("{host}\n{vm}\n{nic}{again}"));
        MacAddr::local([digest[0], digest[1], digest[2]])
    };
    // One more than there are taken, so that one of them is free, but for two that are derived alike.
    let mut others = (1..=taken.len()).map(|again| derived(Some(again)));
    match derived(None) {
        first if taken.contains(&first) => others.find(|mac| !taken.contains(mac)).unwrap_or(first),
        first => first,
    }
}

impl Identity {
    /// A new identity for `vm` with random parts of the caller's; NICs get their addresses by [`Identity::add_macs`].
    pub fn new(vm: &Vm, uuid: String, instance: &str, machine: &str) -> Self {
        Self {
            uuid,
            instance_id: Self::instance(&vm.name, instance),
            machine: machine.to_owned(),
            uid: None,
            macs: BTreeMap::new(),
            hostname: None,
        }
    }

    /// An instance-id, of the beginning of a random UUID.
    pub fn instance(vm: &VmName, random: &str) -> String {
        let short: String = random.chars().take(8).collect();
        format!("iid-{vm}-{short}")
    }

    /// A NIC has no address yet.
    pub fn lacks_macs(&self, vm: &Vm) -> bool {
        vm.nics.iter().any(|nic| nic.mac.is_none() && !self.macs.contains_key(&nic.name))
    }

    /// Gives every NIC that has none an address; not one of the `taken` ones, which other VMs have.
    pub fn add_macs(&mut self, vm: &Vm, host: &str, taken: &BTreeSet<MacAddr>) {
        for nic in vm.nics.iter().filter(|n| n.mac.is_none()) {
            self.macs
                .entry(nic.name.clone())
                .or_insert_with(|| derived_mac(host, &vm.name, &nic.name, taken));
        }
    }

    /// What of it no identity of qvm's can have, for one that came from elsewhere: it becomes a part of QEMU's command line.
    pub fn flaw(&self) -> Option<&'static str> {
        let all = |text: &str, more: &[u8]| {
            (1..=253).contains(&text.len())
                && text.bytes().all(|b| b.is_ascii_alphanumeric() || more.contains(&b))
        };
        if !(self.uuid.len() == 36 && all(&self.uuid, b"-")) {
            Some("uuid")
        } else if !all(&self.machine, b"-._+") {
            Some("machine")
        } else if !all(&self.instance_id, b"-._") {
            Some("instanceId")
        } else if !self.hostname.as_deref().is_none_or(|name| all(name, b"-.")) {
            Some("hostname")
        } else if self.uid.is_some_and(|uid| !UidRange::is_assignable(uid)) {
            Some("uid")
        } else {
            None
        }
    }

    /// Keeps the default host name that the guest has learnt: that of a VM called `name` until now.
    pub fn keep_hostname(&mut self, name: &VmName) {
        self.hostname.get_or_insert_with(|| name.to_string());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_identity_of_ours() {
        let good = Identity {
            uuid: "7e0f3c52-4f2b-4b7e-9a34-0c5d0a1b2c3d".into(),
            instance_id: "iid-web-7e0f3c52".into(),
            machine: "pc-q35-10.0".into(),
            uid: None,
            macs: BTreeMap::new(),
            hostname: Some("web".into()),
        };
        assert_eq!(good.flaw(), None);
        // As a distribution may call its own.
        let machine = "pc-q35-9.2+deb1".to_owned();
        assert_eq!(Identity { machine, ..good.clone() }.flaw(), None);
        let machine = "q35,accel=kvm".to_owned();
        assert_eq!(Identity { machine, ..good.clone() }.flaw(), Some("machine"));
        assert_eq!(Identity { uuid: "1".into(), ..good.clone() }.flaw(), Some("uuid"));
        assert_eq!(
            Identity { instance_id: "a\nb".into(), ..good.clone() }.flaw(),
            Some("instanceId")
        );
        assert_eq!(Identity { uid: Some(1_900_000_000), ..good.clone() }.flaw(), None);
        for uid in [0, 999, 65_534, u32::MAX] {
            assert_eq!(Identity { uid: Some(uid), ..good.clone() }.flaw(), Some("uid"));
        }
        assert_eq!(Identity { hostname: Some(String::new()), ..good }.flaw(), Some("hostname"));
    }

    #[test]
    fn an_address_is_the_same_again_unless_another_vm_has_it() {
        let (vm, nic) = ("web".parse().unwrap(), Label::net());
        let mut taken = BTreeSet::new();
        let first = derived_mac("host", &vm, &nic, &taken);
        assert_eq!(derived_mac("host", &vm, &nic, &taken), first);
        for _ in 0..10 {
            let next = derived_mac("host", &vm, &nic, &taken);
            assert!(taken.insert(next), "{next} is taken");
        }
        assert!(taken.contains(&first));
    }
}
