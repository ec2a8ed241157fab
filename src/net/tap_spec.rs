//! The taps of a VM.

use std::collections::BTreeMap;

use super::anti_spoof::{self, Instruction};
use crate::{
    spec::{AntiSpoof, Isolation, Link, Nic, Vm},
    value::{Cidr, IfName, Label, MacAddr, Note, NoteCode, VmName},
};

/// One tap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tap {
    /// The NIC.
    pub nic: Label,
    /// Its name.
    pub name: IfName,
    /// The bridge to attach to.
    pub bridge: IfName,
    /// The MTU that the guest gets, in bytes; `None` if unset. The tap itself has the bridge's MTU.
    pub mtu: Option<u16>,
    /// No traffic to or from other isolated ports of the bridge.
    pub isolated: bool,
    /// The anti-spoofing mode.
    pub anti_spoof: AntiSpoof,
    /// The NIC's address, if configured.
    pub mac: Option<MacAddr>,
    /// The guest's address, if configured.
    pub ip: Option<Cidr>,
    /// Its alias, which identifies the owner: `qvm:VM:NIC`.
    pub alias: String,
}

/// Returns the taps of a VM, in the order of its NICs.
pub fn taps(vm: &Vm) -> Vec<Tap> {
    taps_of(&vm.name, &vm.nics)
}

/// Returns the taps of NICs, in their order.
pub fn taps_of(vm: &VmName, nics: &[Nic]) -> Vec<Tap> {
    nics.iter().filter_map(|nic| tap(vm, nic)).collect()
}

/// Returns the tap of a NIC; `None` for the user-mode network.
pub fn tap(vm: &VmName, nic: &Nic) -> Option<Tap> {
    match &nic.link {
        Link::User { .. } => None,
        Link::Bridge { bridge, tap } => Some(Tap {
            nic: nic.name.clone(),
            name: tap.clone(),
            bridge: bridge.clone(),
            mtu: nic.mtu,
            isolated: nic.isolated,
            anti_spoof: nic.anti_spoof,
            mac: nic.mac,
            ip: nic.ip,
            alias: alias(vm, nic.name.as_str()),
        }),
    }
}

fn alias(vm: &VmName, nic: &str) -> String {
    format!("qvm:{vm}:{nic}")
}

impl Tap {
    /// Returns a note for each reason why frames do not pass the bridge: it is not `up`, or its MTU
    /// `bridge_mtu` in bytes is too small.
    pub fn bridge_notes(&self, up: bool, bridge_mtu: u32) -> Vec<Note> {
        let bridge = &self.bridge;
        let down = (!up).then(|| {
            let text = format!("bridge `{bridge}` is down, so the guest has no connection");
            let hint = format!("set it up with `ip link set {bridge} up`");
            Note::new(NoteCode::BridgeDown, text).hint(hint)
        });
        let exceeds = self.mtu.filter(|mtu| u32::from(*mtu) > bridge_mtu).map(|mtu| {
            let text = format!(
                "`mtu` {mtu} of NIC `{}` exceeds MTU {bridge_mtu} of bridge `{bridge}`: larger \
                 frames are dropped",
                self.nic
            );
            Note::new(NoteCode::BridgeMtu, text).key("mtu")
        });
        down.into_iter().chain(exceeds).collect()
    }

    /// Returns true if the filter is required: by `antiSpoof = true` or by strict isolation.
    pub fn needs_filter(&self, isolation: Isolation) -> bool {
        match self.anti_spoof {
            AntiSpoof::Off => false,
            AntiSpoof::Required => true,
            AntiSpoof::WherePossible => isolation == Isolation::Strict,
        }
    }

    /// Returns the anti-spoofing filter, if enabled; `generated` has the addresses of NICs without
    /// `mac`.
    pub fn filter(&self, generated: &BTreeMap<Label, MacAddr>) -> Option<Vec<Instruction>> {
        let mac = self.mac.or_else(|| generated.get(&self.nic).copied())?;
        (self.anti_spoof != AntiSpoof::Off).then(|| anti_spoof::program(mac, self.ip))
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::spec;

    #[test]
    fn bridge_notes_name_each_cause() {
        let text = "[nic.lan]\nbridge = \"br0\"\nmtu = 9000\n";
        let name = "web".parse().unwrap();
        let vm = spec::read(&name, Path::new("/v/web.toml"), text, &mut |_| Ok(vec![])).unwrap();
        let tap = &taps(&vm)[0];
        assert!(tap.bridge_notes(true, 9000).is_empty());
        assert!(Tap { mtu: None, ..tap.clone() }.bridge_notes(true, 1500).is_empty());
        let notes = tap.bridge_notes(false, 1500);
        assert_eq!(notes.len(), 2);
        assert!(notes[0].code == NoteCode::BridgeDown, "{notes:?}");
        assert_eq!(notes[1].code, NoteCode::BridgeMtu, "{notes:?}");
    }

    #[test]
    fn filter_needs_an_address() {
        let text = "bridge = \"br0\"\nip = \"10.0.0.5/24\"\nmac = \"52:54:00:00:00:01\"\n\
                    [nic.lan]\nbridge = \"br1\"\ntap = \"lan0\"\nmtu = 1400\nisolated = true\n\
                    antiSpoof = false\n[nic.user]\n[nic.san]\nbridge = \"br2\"\nantiSpoof = true\n";
        let name = "web".parse().unwrap();
        let vm = spec::read(&name, Path::new("/v/web.toml"), text, &mut |_| Ok(vec![])).unwrap();
        let all = taps(&vm);
        assert_eq!(all.len(), 3);
        assert_eq!(all[1].filter(&BTreeMap::new()), None);
        assert_eq!(all[2].filter(&BTreeMap::new()), None, "an unknown address has no filter");
        let generated = [("san".parse().unwrap(), "52:54:00:00:00:02".parse().unwrap())].into();
        assert!(all[2].filter(&generated).is_some());
        assert_eq!(
            all[0].filter(&BTreeMap::new()),
            Some(anti_spoof::program(all[0].mac.unwrap(), all[0].ip))
        );
    }
}
