//! The packet filter of the host: whether it may drop frames of guests on a bridge.
//!
//! With the module `br_netfilter` (Docker loads it) bridged IP packets pass the forward hooks like
//! routed ones, and a policy of drop (Docker sets it) ends them unless a rule accepts them. Which
//! rules accept which frames is not interpreted; the finding refers the operator to the rules.
//! <https://wiki.libvirt.org/Net.bridge.bridge-nf-call_and_sysctl.conf.html>

use serde::Deserialize;

use super::{
    code::FindingCode,
    finding::Finding,
    seen::{Firewall, ForwardChain, Netfilter, Network, Seen},
};
use crate::value::shown;

/// The dropping forward chains in the output of `nft -j list chains` (libnftables-json(5)).
///
/// # Errors
/// The output is not such JSON.
pub fn nft(output: &str) -> Result<Vec<ForwardChain>, String> {
    #[derive(Deserialize)]
    struct Output {
        nftables: Vec<Object>,
    }
    #[derive(Deserialize)]
    struct Object {
        chain: Option<Chain>,
    }
    #[derive(Deserialize)]
    struct Chain {
        family: String,
        table: String,
        name: String,
        hook: Option<String>,
        policy: Option<String>,
    }
    let output: Output =
        serde_json::from_str(output).map_err(|_| "`nft` printed no JSON".to_owned())?;
    let chains = output.nftables.into_iter().filter_map(|object| object.chain);
    let drops = |chain: &Chain| {
        chain.hook.as_deref() == Some("forward") && chain.policy.as_deref() == Some("drop")
    };
    Ok(chains
        .filter(drops)
        .filter_map(|Chain { family, table, name, .. }| {
            let (ipv4, ipv6) = match family.as_str() {
                "ip" => (true, false),
                "ip6" => (false, true),
                "inet" => (true, true),
                // The tables of family `bridge` are meant for bridged frames.
                _ => return None,
            };
            let (table, name) = (shown(&table), shown(&name));
            Some(ForwardChain {
                listing: format!("nft list chain {family} {table} {name}"),
                name: format!("`{name}` of the table `{family} {table}`"),
                ipv4,
                ipv6,
            })
        })
        .collect())
}

/// The dropping forward chain in the output of `iptables -S FORWARD` or `ip6tables -S FORWARD`.
pub fn iptables(output: &str, program: &str) -> Vec<ForwardChain> {
    let drops = output.lines().any(|line| line.trim() == "-P FORWARD DROP");
    let ipv6 = program == "ip6tables";
    let chain = ForwardChain {
        name: format!("`FORWARD` of {program}"),
        listing: format!("{program} -S FORWARD"),
        ipv4: !ipv6,
        ipv6,
    };
    drops.then_some(chain).into_iter().collect()
}

pub(crate) fn examine(seen: &Seen) -> Vec<Finding> {
    let network = &seen.network;
    if network.bridges.is_empty() {
        return Vec::new();
    }
    let versions: Vec<&str> = network.firewalls.iter().map(|one| one.version.as_str()).collect();
    let programs = if versions.is_empty() {
        "neither `nft` nor `iptables` is on PATH".to_owned()
    } else {
        versions.join(", ")
    };
    let called = network.netfilter.filter(|netfilter| netfilter.ipv4 || netfilter.ipv6);
    let Some(called) = called else {
        let found = format!("bridged frames do not pass through it; found: {programs}");
        return vec![Finding::ok(FindingCode::Firewall, "firewall", found)];
    };
    let chains: Vec<&ForwardChain> = views(network)
        .filter_map(|one| one.dropping.as_ref().ok())
        .flatten()
        .filter(|chain| (chain.ipv4 && called.ipv4) || (chain.ipv6 && called.ipv6))
        .collect();
    if chains.is_empty() {
        vec![without_dropping_chain(seen, &programs)]
    } else {
        chains.into_iter().map(|chain| dropping(seen, chain, called)).collect()
    }
}

/// The programs, each packet filter once: `iptables` may be another view of what `nft` lists.
fn views(network: &Network) -> impl Iterator<Item = &Firewall> {
    let nft = network.firewalls.iter().any(|one| one.program == "nft" && one.dropping.is_ok());
    network.firewalls.iter().filter(move |one| !(nft && one.version.contains("nf_tables")))
}

fn without_dropping_chain(seen: &Seen, programs: &str) -> Finding {
    let unknown = views(&seen.network).find_map(|one| one.dropping.as_ref().err());
    let passes = "bridged frames pass through it (`bridge-nf-call-iptables`)";
    match (unknown, seen.network.firewalls.is_empty()) {
        (None, false) => {
            let found = format!("{passes}, and no forward policy is drop; found: {programs}");
            Finding::ok(FindingCode::Firewall, "firewall", found)
        }
        (Some(why), _) => {
            let found = format!("{passes}; cannot read its forward policy: {why}");
            Finding::note(FindingCode::FirewallUnread, "firewall", found)
                .todo("run `qvm doctor` as root")
        }
        (None, true) => {
            let found = format!("{passes}; cannot read its forward policy: {programs}");
            Finding::note(FindingCode::FirewallUnread, "firewall", found)
                .todo("`sysctl -w net.bridge.bridge-nf-call-iptables=0` exempts bridged frames")
        }
    }
}

fn dropping(seen: &Seen, chain: &ForwardChain, called: Netfilter) -> Finding {
    let bridges: Vec<String> =
        seen.network.bridges.keys().map(|bridge| format!("`{bridge}`")).collect();
    let found = format!(
        "bridged frames pass through it, and the policy of {} is drop: guests on {} have a network \
         only if a rule accepts their frames",
        chain.name,
        bridges.join(", ")
    );
    let settings: Vec<&str> = [
        ("net.bridge.bridge-nf-call-iptables=0", chain.ipv4 && called.ipv4),
        ("net.bridge.bridge-nf-call-ip6tables=0", chain.ipv6 && called.ipv6),
    ]
    .into_iter()
    .filter_map(|(setting, needed)| needed.then_some(setting))
    .collect();
    Finding::note(FindingCode::FirewallDrops, "firewall", found).todo(format!(
        "`{}` lists its rules; `sysctl -w {}` exempts bridged frames (permanently with \
         a file in /etc/sysctl.d, and br_netfilter in /etc/modules-load.d)",
        chain.listing,
        settings.join(" ")
    ))
}
