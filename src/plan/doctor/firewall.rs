//! The packet filter: whether it drops what guests send each other and the network over a bridge.
//!
//! With the module `br_netfilter` (Docker loads it) bridged IP packets pass through the forward hooks as routed ones do, and a
//! policy of drop (Docker sets it) is then the end of them. <https://wiki.libvirt.org/Net.bridge.bridge-nf-call_and_sysctl.conf.html>

use serde::Deserialize;
use serde_json::Value;

use super::{Finding, Netfilter, Seen};

/// A program of the packet filter's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Firewall {
    /// `nft`, `iptables` or `ip6tables`.
    pub program: String,
    /// What it says of itself, such as `iptables v1.8.9 (nf_tables)`.
    pub version: String,
    /// The chains that drop what no rule accepts, or why it did not tell.
    pub chains: Result<Vec<Chain>, String>,
}

/// A chain at the forward hook whose policy is to drop.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    /// Its name, such as `FORWARD` in `ip filter`.
    pub name: String,
    /// It sees IPv4.
    pub ipv4: bool,
    /// It sees IPv6.
    pub ipv6: bool,
    /// What a rule of its table accepts whole.
    pub accepts: Vec<Accepted>,
}

/// What a rule accepts without looking further.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Accepted {
    /// Everything, or everything bridged.
    All,
    /// What comes in or goes out by an interface; one that ends in `*` stands for all that begin so.
    By(String),
}

impl Accepted {
    fn is_for(&self, bridge: &str) -> bool {
        match self {
            Self::All => true,
            Self::By(name) => match name.strip_suffix('*') {
                Some(start) => bridge.starts_with(start),
                None => name == bridge,
            },
        }
    }
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
    let mut findings: Vec<Finding> = chains(network)
        .filter(|chain| (chain.ipv4 && called.ipv4) || (chain.ipv6 && called.ipv6))
        .filter_map(|chain| dropping(seen, chain, called))
        .collect();
    if findings.is_empty() {
        findings.push(told(seen, &programs));
    }
    findings
}

/// The chains, each once: `iptables` may be another view of what `nft` has told already.
fn chains(network: &super::Network) -> impl Iterator<Item = &Chain> {
    let nft = network.firewalls.iter().any(|one| one.program == "nft" && one.chains.is_ok());
    let again = move |one: &&Firewall| nft && one.version.contains("nf_tables");
    let all = network.firewalls.iter().filter(move |one| !again(one));
    all.filter_map(|one| one.chains.as_ref().ok()).flatten()
}

/// Nothing is known to drop: either nothing does, or nobody told.
fn told(seen: &Seen, programs: &str) -> Finding {
    let firewalls = &seen.network.firewalls;
    let silent = firewalls.iter().find_map(|one| one.chains.as_ref().err());
    let passes = "bridged frames pass through it (`bridge-nf-call-iptables`)";
    match (silent, firewalls.is_empty()) {
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

/// A chain that drops what comes from guests, on at least one of their bridges.
fn dropping(seen: &Seen, chain: &Chain, called: Netfilter) -> Option<Finding> {
    let bridges = seen.network.bridges.keys().map(|name| name.as_str());
    let hit: Vec<&str> = bridges
        .filter(|bridge| !chain.accepts.iter().any(|accepted| accepted.is_for(bridge)))
        .collect();
    let first = hit.first()?;
    let found = format!(
        "bridged frames pass through it, and {} drops what no rule accepts: guests on {} may have no network",
        chain.name,
        hit.iter().map(|bridge| format!("`{bridge}`")).collect::<Vec<_>>().join(", ")
    );
    let settings: Vec<&str> = [
        ("net.bridge.bridge-nf-call-iptables=0", chain.ipv4 && called.ipv4),
        ("net.bridge.bridge-nf-call-ip6tables=0", chain.ipv6 && called.ipv6),
    ]
    .into_iter()
    .filter_map(|(setting, needed)| needed.then_some(setting))
    .collect();
    let todo = format!(
        "`sysctl -w {}` leaves bridged frames alone (a file in /etc/sysctl.d keeps it, and br_netfilter in /etc/modules-load.d is \
         loaded before that); or a rule: `iptables -I FORWARD -i {first} -o {first} -j ACCEPT`, with Docker in the chain DOCKER-USER",
        settings.join(" ")
    );
    Some(Finding::warning("firewall", found).todo(todo))
}

/// The chains in what `nft -j list ruleset` prints (libnftables-json(5)); none where that is no such thing.
pub fn nft(said: &str) -> Option<Vec<Chain>> {
    #[derive(Deserialize)]
    struct Said {
        nftables: Vec<Value>,
    }
    let said: Said = serde_json::from_str(said).ok()?;
    let of_kind = |kind: &'static str| said.nftables.iter().filter_map(move |one| one.get(kind));
    let text = |value: &Value, key: &str| value.get(key)?.as_str().map(str::to_owned);
    let table = |value: &Value| Some((text(value, "family")?, text(value, "table")?));
    let chains = of_kind("chain").filter_map(|chain| {
        let is = |key: &str, word: &str| chain.get(key).is_some_and(|value| value == word);
        if !is("hook", "forward") || !is("policy", "drop") {
            return None;
        }
        let (family, of) = table(chain)?;
        let (ipv4, ipv6) = match family.as_str() {
            "ip" => (true, false),
            "ip6" => (false, true),
            "inet" => (true, true),
            // A bridge's own chains are somebody's wish for bridged frames, and no accident.
            _ => return None,
        };
        let rules = of_kind("rule").filter(|rule| table(rule) == table(chain));
        let accepts = rules.flat_map(|rule| accepted_by_nft(rule.get("expr"))).collect();
        let name = format!("`{}` of the table `{family} {of}`", text(chain, "name")?);
        Some(Chain { name, ipv4, ipv6, accepts })
    });
    Some(chains.collect())
}

/// What a rule accepts, if that depends on interfaces alone.
fn accepted_by_nft(expressions: Option<&Value>) -> Vec<Accepted> {
    let Some(expressions) = expressions.and_then(Value::as_array) else { return Vec::new() };
    let mut by: Option<Vec<Accepted>> = None;
    let mut accepts = false;
    for expression in expressions {
        let Some((kind, body)) = expression.as_object().and_then(|object| object.iter().next())
        else {
            return Vec::new();
        };
        match kind.as_str() {
            "accept" => accepts = true,
            "counter" => {}
            // What iptables calls `-m physdev`: it knows bridged frames alone.
            "xt" if body.get("name").is_some_and(|name| name == "physdev") => {}
            "match" => match interfaces(body) {
                Some(names) => by = by.or(Some(names)),
                None => return Vec::new(),
            },
            _ => return Vec::new(),
        }
    }
    match (accepts, by) {
        (false, _) => Vec::new(),
        (true, None) => vec![Accepted::All],
        (true, Some(by)) => by,
    }
}

/// The interfaces that a match wants a packet to come in or go out by.
fn interfaces(body: &Value) -> Option<Vec<Accepted>> {
    let key = body.pointer("/left/meta/key")?.as_str()?;
    let equal = matches!(body.get("op")?.as_str()?, "==" | "in");
    if !matches!(key, "iifname" | "oifname" | "iif" | "oif") || !equal {
        return None;
    }
    let by = |value: &Value| Some(Accepted::By(value.as_str()?.to_owned()));
    match body.get("right")? {
        Value::Object(set) => set.get("set")?.as_array()?.iter().map(by).collect(),
        one => Some(vec![by(one)?]),
    }
}

/// The chain `FORWARD` in what `iptables -S` prints of the table `filter`, if it drops.
pub fn iptables(said: &str, ipv6: bool) -> Vec<Chain> {
    if !said.lines().any(|line| line.trim() == "-P FORWARD DROP") {
        return Vec::new();
    }
    let program = if ipv6 { "ip6tables" } else { "iptables" };
    vec![Chain {
        name: format!("`FORWARD` of {program}"),
        ipv4: !ipv6,
        ipv6,
        accepts: said.lines().filter_map(accepted_by_iptables).collect(),
    }]
}

/// What a rule accepts, if that depends on interfaces alone.
fn accepted_by_iptables(line: &str) -> Option<Accepted> {
    let mut words = line.split_whitespace();
    if words.next() != Some("-A") || matches!(words.next()?, "INPUT" | "OUTPUT") {
        return None;
    }
    let (mut by, mut accepts) = (None, false);
    while let Some(word) = words.next() {
        match word {
            "-i" | "-o" => {
                let name = words.next()?;
                let name =
                    name.strip_suffix('+').map_or(name.to_owned(), |start| format!("{start}*"));
                by = by.or(Some(Accepted::By(name)));
            }
            "-m" => match words.next()? {
                "physdev" => {}
                _ => return None,
            },
            "--physdev-is-bridged" => {}
            "-j" => accepts = words.next()? == "ACCEPT",
            _ => return None,
        }
    }
    accepts.then(|| by.unwrap_or(Accepted::All))
}
