//! The bridges of VM files: whether they exist, are up, and forward frames at once.

use super::{
    code::FindingCode,
    finding::{Finding, names},
    seen::{Bridge, Interface, Seen},
};
use crate::{
    machine::user_network,
    net::tap_spec::taps,
    spec::{Link, Vm},
    value::{IfName, VmName},
};

/// The delay of a new port that causes a warning, in hundredths of a second: a DHCP client repeats
/// its request after 4 s, then after 8 s (RFC 2131, 4.1).
const STP_PATIENCE: u64 = 1000;

pub(crate) fn examine(seen: &Seen) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (name, interface) in &seen.network.bridges {
        let about = format!("bridge {name}");
        let users: Vec<&VmName> =
            seen.written().filter(|vm| is_on(vm, name)).map(|vm| &vm.name).collect();
        let users = names(users);
        match interface {
            Interface::Missing => findings.push(
                Finding::error(
                    FindingCode::BridgeMissing,
                    about,
                    format!("it does not exist: {users} cannot start"),
                )
                .todo(format!(
                    "create it (`ip link add {name} up type bridge`), or correct `bridge`"
                )),
            ),
            Interface::Other => findings.push(
                Finding::error(
                    FindingCode::NotABridge,
                    about,
                    format!("this interface is not a bridge: {users} cannot start"),
                )
                .todo("correct `bridge`: `ip link show type bridge` lists the bridges"),
            ),
            Interface::Bridge(bridge) => {
                findings.extend(examine_one(&about, name, bridge, &users));
                findings.extend(exceeding(seen, name, bridge));
            }
        }
    }
    for vm in seen.written() {
        let notes = user_network::notes(&vm.nics);
        let about = format!("VM {}", vm.name);
        findings.extend(notes.iter().map(|note| {
            Finding::warning(FindingCode::IpUnreachable, &about, &note.text)
                .maybe_todo(note.hint.as_ref())
        }));
    }
    findings
}

/// The NICs on a bridge whose `mtu` exceeds the bridge's.
fn exceeding(seen: &Seen, name: &IfName, bridge: &Bridge) -> Vec<Finding> {
    let Some(mtu) = bridge.mtu else { return vec![] };
    let taps = seen.written().flat_map(|vm| taps(vm).into_iter().map(move |tap| (vm, tap)));
    let here = taps.filter(|(_, tap)| tap.bridge == *name);
    here.flat_map(|(vm, tap)| {
        let about = format!("VM {}", vm.name);
        let notes = tap.bridge_notes(true, mtu);
        notes.into_iter().map(move |note| {
            Finding::warning(FindingCode::BridgeMtu, &about, &note.text)
                .maybe_todo(note.hint.as_ref())
                .todo(format!(
                    "run `ip link set {name} mtu SIZE`, or reduce `mtu` to at most {mtu}"
                ))
        })
    })
    .collect()
}

fn examine_one(about: &str, name: &IfName, bridge: &Bridge, users: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    if !bridge.up {
        let found = format!("it is down: no network for {users}");
        findings.push(
            Finding::error(FindingCode::BridgeDown, about, found)
                .todo(format!("run `ip link set {name} up`")),
        );
    }
    if let Some(delay) = port_delay(bridge) {
        let found = format!(
            "spanning tree delays every new port by {} s: the first DHCP requests of {users} are \
             lost",
            delay.div_ceil(100)
        );
        let todo = format!(
            "without loops, run `ip link set {name} type bridge stp_state 0`; else reduce \
             `forward_delay` (at least 200)"
        );
        findings.push(
            if delay >= STP_PATIENCE {
                Finding::warning(FindingCode::BridgeDelay, about, found)
            } else {
                Finding::note(FindingCode::BridgeDelay, about, found)
            }
            .todo(todo),
        );
    }
    let uplinks: Vec<&str> =
        bridge.ports.iter().filter(|port| !port.tap).map(|port| port.name.as_str()).collect();
    if uplinks.is_empty() {
        let found = format!(
            "its only ports are taps: {users} can reach other networks only if this host routes"
        );
        findings.push(
            Finding::note(FindingCode::BridgeWithoutUplink, about, found)
                .todo(format!("unless intended, run `ip link set INTERFACE master {name}`")),
        );
    }
    if findings.is_empty() {
        let stp = match bridge.stp {
            0 => "no spanning tree",
            _ => "spanning tree without a delay",
        };
        findings.push(Finding::ok(
            FindingCode::Bridge,
            about,
            format!("up, {stp}, with {}", uplinks.join(", ")),
        ));
    }
    findings
}

/// Returns the delay of a new port in hundredths of a second: listening and learning with the
/// kernel's STP, only learning with a program's (net/bridge/br_stp.c, `br_make_forwarding`).
fn port_delay(bridge: &Bridge) -> Option<u64> {
    let delay = match bridge.stp {
        0 => 0,
        1 => bridge.forward_delay.saturating_mul(2),
        _ => bridge.forward_delay,
    };
    (delay > 0).then_some(delay)
}

/// Whether a VM has a NIC on a bridge.
pub(crate) fn is_on(vm: &Vm, name: &IfName) -> bool {
    vm.nics.iter().any(|nic| matches!(&nic.link, Link::Bridge { bridge, .. } if bridge == name))
}
