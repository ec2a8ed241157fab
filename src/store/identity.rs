//! The identity of a VM, which must never change under the guest: `identity.toml`, created at the
//! first start.

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
    /// The instance-id of cloud-init.
    pub instance_id: String,
    /// The pinned machine type, such as `pc-q35-10.0`.
    pub machine: String,
    /// The UID of the QEMU process, unique on this host; `None` if qvm does not run as root.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// The addresses of all NICs without a `mac` key, by NIC name.
    #[serde(default)]
    pub macs: BTreeMap<Label, MacAddr>,
    /// The default host name, if it is no longer the VM name: the name that the guest learned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
}

/// Returns the first UID of the range that is not taken.
pub fn free_uid(range: UidRange, taken: &BTreeSet<u32>) -> Option<u32> {
    (range.first()..=range.last()).find(|uid| !taken.contains(uid))
}

/// Derives the address of a NIC without a `mac` key: QEMU's prefix and three bytes that depend only
/// on host, VM and NIC. The address therefore survives a loss of the state, and differs on another
/// host. An address of another VM, such as the one that had this name before a rename, is skipped.
pub fn derived_mac(host: &str, vm: &VmName, nic: &Label, taken: &BTreeSet<MacAddr>) -> MacAddr {
    let derived = |again: Option<usize>| {
        let again = again.map_or_else(String::new, |again| format!("\n{again}"));
        let digest = Sha256::digest(format!("{host}\n{vm}\n{nic}{again}"));
        MacAddr::local([digest[0], digest[1], digest[2]])
    };
    // One candidate more than taken addresses, so that one is free unless two candidates are equal.
    let mut others = (1..=taken.len()).map(|again| derived(Some(again)));
    match derived(None) {
        first if taken.contains(&first) => others.find(|mac| !taken.contains(mac)).unwrap_or(first),
        first => first,
    }
}

impl Identity {
    /// Returns a new identity for `vm` from the caller's random parts; [`Identity::add_macs`] adds
    /// the addresses.
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

    /// Returns an instance-id from the beginning of a random UUID.
    pub fn instance(vm: &VmName, random: &str) -> String {
        let short: String = random.chars().take(8).collect();
        format!("iid-{vm}-{short}")
    }

    /// Returns true if a NIC has no address yet.
    pub fn lacks_macs(&self, vm: &Vm) -> bool {
        vm.nics.iter().any(|nic| nic.mac.is_none() && !self.macs.contains_key(&nic.name))
    }

    /// Derives an address that is not in `taken` for every NIC without one.
    pub fn add_macs(&mut self, vm: &Vm, host: &str, taken: &BTreeSet<MacAddr>) {
        for nic in vm.nics.iter().filter(|n| n.mac.is_none()) {
            self.macs
                .entry(nic.name.clone())
                .or_insert_with(|| derived_mac(host, &vm.name, &nic.name, taken));
        }
    }

    /// Returns the first key with a value that qvm never generates, for an identity from elsewhere:
    /// the values become part of QEMU's command line.
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

    /// Stores the default host name that the guest has learned: that of a VM called `name` so far.
    pub fn keep_hostname(&mut self, name: &VmName) {
        self.hostname.get_or_insert_with(|| name.to_string());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn foreign_values_are_flaws() {
        let good = Identity {
            uuid: "7e0f3c52-4f2b-4b7e-9a34-0c5d0a1b2c3d".into(),
            instance_id: "iid-web-7e0f3c52".into(),
            machine: "pc-q35-10.0".into(),
            uid: None,
            macs: BTreeMap::new(),
            hostname: Some("web".into()),
        };
        assert_eq!(good.flaw(), None);
        // A machine type of a distribution.
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
    fn derived_address_is_stable_unless_taken() {
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
