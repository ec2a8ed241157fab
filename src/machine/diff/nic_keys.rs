//! The keys of a NIC: the text of each value, and when a change of it takes effect.
//!
//! [`Table::rows`] takes a [`Nic`] apart without `..`: a field without a row does not compile.

#![deny(unused_variables)]

use super::{
    change::ChangeKind,
    key,
    row::{Effect, Row, Sides, joined, row, text, word},
    running_machine::LiveChange,
    table::Table,
};
use crate::{
    spec::{AntiSpoof, Isolation, Link, Nic, Vm},
    value::Label,
};

fn is_user(nic: &Nic) -> bool {
    matches!(nic.link, Link::User { .. })
}

impl Table for Nic {
    const TABLE: &'static str = key::NIC;

    fn name(&self) -> &Label {
        &self.name
    }

    fn key(name: &Label, property: &str) -> String {
        key::of_nic(name, property)
    }

    fn rows(&self) -> Vec<Row<Self>> {
        rows(self)
    }

    fn summary(&self) -> String {
        summary(self)
    }

    fn added(&self, place: usize, running: &Vm) -> ChangeKind {
        // QEMU in a private network namespace cannot provide user-mode networking.
        let has_private_network =
            running.isolation != Isolation::Off && !running.nics.iter().any(is_user);
        match place == 0 || has_private_network && is_user(self) {
            true => ChangeKind::NextReboot,
            false => ChangeKind::Live(LiveChange::AddNic(Box::new(self.clone()))),
        }
    }

    fn removed(&self, place: usize) -> ChangeKind {
        match place {
            // The first NIC is part of the machine.
            0 => ChangeKind::NextReboot,
            _ => ChangeKind::Live(LiveChange::RemoveNic(self.name.clone())),
        }
    }
}

fn rows(nic: &Nic) -> Vec<Row<Nic>> {
    use Effect::{CloudInitRerun, Depends, NextReboot};
    let Nic { name: _, mac, ip, gateway, dns, mtu, model, state, anti_spoof, isolated, link } = nic;
    let isolated = isolated.then(|| true.to_string());
    let anti_spoof = match anti_spoof {
        AntiSpoof::Off => Some(false.to_string()),
        AntiSpoof::WherePossible => None,
        AntiSpoof::Required => Some(true.to_string()),
    };
    let (bridge, tap, forward, isolated, anti_spoof) = match link {
        Link::Bridge { bridge, tap } => (Some(bridge), Some(tap), None, isolated, anti_spoof),
        Link::User { forward } => (None, None, joined(forward), None, None),
    };
    const NETWORK: &str = "the network configuration";
    const BRIDGE: &str = "live from one bridge to another, else next reboot";
    vec![
        row("mac", text(mac.as_ref()), NextReboot),
        row("ip", text(ip.as_ref()), CloudInitRerun(NETWORK)),
        row("gateway", text(gateway.as_ref()), CloudInitRerun(NETWORK)),
        row("dns", joined(dns), CloudInitRerun(NETWORK)),
        row("bridge", text(bridge), Depends(BRIDGE, |s| tap_change(s, LiveChange::MoveNic))),
        row("tap", text(tap), NextReboot),
        row("forward", forward, NextReboot),
        row("mtu", text(mtu.as_ref()), NextReboot),
        row("model", Some(word(model)), NextReboot),
        row("link", Some(word(state)), Depends("live", link_change)),
        row("antiSpoof", anti_spoof, Depends("live", |s| tap_change(s, LiveChange::FilterNic))),
        row("isolated", isolated, Depends("live", |s| tap_change(s, LiveChange::IsolateNic))),
    ]
}

fn summary(nic: &Nic) -> String {
    match &nic.link {
        Link::Bridge { bridge, .. } => format!("on {bridge}, {}", word(&nic.model)),
        Link::User { .. } => format!("user-mode network, {}", word(&nic.model)),
    }
}

fn link_change(sides: &Sides<'_, Nic>) -> ChangeKind {
    ChangeKind::Live(LiveChange::SetLink(sides.written.name.clone(), sides.written.state))
}

/// Returns a change of an existing tap. A change between tap and user-mode network needs another
/// back end of QEMU.
fn tap_change(sides: &Sides<'_, Nic>, change: fn(Box<Nic>) -> LiveChange) -> ChangeKind {
    let (Link::Bridge { tap, .. }, Link::Bridge { bridge, .. }) =
        (&sides.running.link, &sides.written.link)
    else {
        return ChangeKind::NextReboot;
    };
    // Tap, MAC address and filter addresses remain those of the running NIC.
    let nic = Nic {
        link: Link::Bridge { bridge: bridge.clone(), tap: tap.clone() },
        state: sides.written.state,
        anti_spoof: sides.written.anti_spoof,
        isolated: sides.written.isolated,
        ..sides.running.clone()
    };
    ChangeKind::Live(change(Box::new(nic)))
}
