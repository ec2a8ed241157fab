//! The packet filter: whether it drops what guests send each other and the network over a bridge.
//!
//! With the module `br_netfilter` (Docker loads it) bridged IP packets pass through the forward hooks as routed ones do, and a
//! policy of drop (Docker sets it) is then the end of them. <https://wiki.libvirt.org/Net.bridge.bridge-nf-call_and_sysctl.conf.html>

use super::{Finding, Netfilter, Seen, Table};

/// A program of the packet filter's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Firewall {
    /// `nft`, `iptables` or `ip6tables`.
    pub program: String,
    /// What it says of itself, such as `iptables v1.8.9 (nf_tables)`.
    pub version: String,
    /// The tables that see what is forwarded, or why it did not tell.
    pub tables: Result<Vec<Table>, String>,
}

pub(super) fn examine(seen: &Seen) -> Vec<Finding> {
    let network = &seen.network;
    if network.bridges.is_empty() {
        return Vec::new();
    }
    let programs: Vec<&str> = network.firewalls.iter().map(|one| one.version.as_str()).collect();
    let programs = match programs.as_slice() {
        [] => "neither `nft` nor `iptables` is on PATH".to_owned(),
        programs => programs.join(", "),
    };
    let called = network.netfilter.filter(|netfilter| netfilter.ipv4 || netfilter.ipv6);
    let Some(called) = called else {
        let found = format!("bridged frames do not pass through it; there is: {programs}");
        return vec![Finding::ok("firewall", found)];
    };
    let mut findings: Vec<Finding> = tellers(network)
        .filter_map(|one| one.tables.as_ref().ok())
        .flatten()
        .filter(|table| (table.ipv4 && called.ipv4) || (table.ipv6 && called.ipv6))
        .filter_map(|table| dropping(seen, table, called))
        .collect();
    if findings.is_empty() {
        findings.push(told(seen, &programs));
    }
    findings
}

/// Who tells, each table once: `iptables` may be another view of what `nft` has told already.
fn tellers(network: &super::Network) -> impl Iterator<Item = &Firewall> {
    let nft = network.firewalls.iter().any(|one| one.program == "nft" && one.tables.is_ok());
    let again = move |one: &&Firewall| nft && one.version.contains("nf_tables");
    network.firewalls.iter().filter(move |one| !again(one))
}

/// Nothing is known to drop: either nothing does, or nobody told.
fn told(seen: &Seen, programs: &str) -> Finding {
    let silent = tellers(&seen.network).find_map(|one| one.tables.as_ref().err());
    let passes = "bridged frames pass through it (`bridge-nf-call-iptables`)";
    match (silent, seen.network.firewalls.is_empty()) {
        (None, false) => {
            let found =
                format!("{passes}, and it forwards those of the bridges; there is: {programs}");
            Finding::ok("firewall", found)
        }
        (Some(why), _) => {
            let found = format!("{passes}; whether it drops them cannot be told: {why}");
            Finding::note("firewall", found).todo("run `qvm doctor` as root")
        }
        (None, true) => {
            let found = format!("{passes}; whether it drops them cannot be told: {programs}");
            Finding::note("firewall", found)
                .todo("`sysctl -w net.bridge.bridge-nf-call-iptables=0` leaves them alone")
        }
    }
}

/// A table that drops what is forwarded within at least one of the guests' bridges.
fn dropping(seen: &Seen, table: &Table, called: Netfilter) -> Option<Finding> {
    let bridges = seen.network.bridges.keys().map(|name| name.as_str());
    let hit: Vec<(&str, &str)> =
        bridges.filter_map(|bridge| Some((bridge, table.dropping(bridge)?))).collect();
    let (first, chain) = hit.first()?;
    let found = format!(
        "bridged frames pass through it, and `{chain}` of {} drops them where no rule looks closer and accepts: guests on {} may have \
         no network",
        table.name,
        hit.iter().map(|(bridge, _)| format!("`{bridge}`")).collect::<Vec<_>>().join(", ")
    );
    let settings: Vec<&str> = [
        ("net.bridge.bridge-nf-call-iptables=0", table.ipv4 && called.ipv4),
        ("net.bridge.bridge-nf-call-ip6tables=0", table.ipv6 && called.ipv6),
    ]
    .into_iter()
    .filter_map(|(setting, needed)| needed.then_some(setting))
    .collect();
    let remedy = table.remedy(chain, first);
    let docker =
        if remedy.starts_with("nft") { "" } else { ", with Docker in its chain DOCKER-USER" };
    let todo = format!(
        "`sysctl -w {}` leaves bridged frames alone (a file in /etc/sysctl.d keeps it, and br_netfilter in /etc/modules-load.d is \
         loaded before that); or a rule: `{remedy}`{docker}",
        settings.join(" ")
    );
    Some(Finding::warning("firewall", found).todo(todo))
}
