//! The rules of the packet filter, as `nft` and `iptables` print them: what becomes of a frame that is forwarded within a bridge.
//!
//! Only rules that look at nothing but interfaces are weighed, in their order. What other rules accept is more than nothing, and
//! what they drop is less than all: such rules are passed over.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

/// How deep chains can jump into each other: the kernel's NFT_JUMP_STACK_SIZE.
const JUMPS: usize = 16;

/// The chains of one table, or of one view of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// What it is called: `the table ip filter`, `iptables`.
    pub name: String,
    /// How `nft` is told which it is, such as `inet fw`; none where `iptables` told of it.
    pub nft: Option<String>,
    /// It sees IPv4.
    pub ipv4: bool,
    /// It sees IPv6.
    pub ipv6: bool,
    /// The chains at the forward hook, and whether each drops what comes to its end.
    bases: Vec<(String, bool)>,
    /// Every chain's rules.
    rules: BTreeMap<String, Vec<Rule>>,
}

/// A rule.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Rule {
    /// The interfaces that a packet has to come in and go out by; several conditions count together. One that ends in `*` stands
    /// for all that begin so.
    by: Vec<Vec<String>>,
    then: Then,
}

/// What a rule does.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Then {
    Accept,
    Drop,
    /// Goes through another chain, and on from here where that decides nothing.
    Jump(String),
    /// Goes through another chain instead.
    Goto(String),
    Return,
}

impl Rule {
    /// Whether it holds for all that is forwarded within a bridge: both interfaces are the bridge then.
    fn is_for(&self, bridge: &str) -> bool {
        let is = |name: &String| match name.strip_suffix('*') {
            Some(start) => bridge.starts_with(start),
            None => name == bridge,
        };
        self.by.iter().all(|names| names.iter().any(is))
    }
}

impl Table {
    /// The chain at the forward hook that drops what is forwarded within a bridge, if one does.
    pub fn dropping(&self, bridge: &str) -> Option<&str> {
        let drops = |(chain, policy): &&(String, bool)| {
            !self.decides(chain, bridge, 0, &mut BTreeMap::new()).unwrap_or(!policy)
        };
        self.bases.iter().find(drops).map(|(chain, _)| chain.as_str())
    }

    /// The command that lets pass what a chain of this table drops within a bridge.
    pub fn remedy(&self, chain: &str, bridge: &str) -> String {
        match &self.nft {
            // What `iptables` made is only to be changed by it.
            Some(table)
                if !matches!(table.as_str(), "ip filter" | "ip6 filter") || chain != "FORWARD" =>
            {
                format!("nft insert rule {table} {chain} iifname {bridge} oifname {bridge} accept")
            }
            _ => {
                let program = if self.ipv4 { "iptables" } else { "ip6tables" };
                format!("{program} -I FORWARD -i {bridge} -o {bridge} -j ACCEPT")
            }
        }
    }

    /// Whether a chain accepts; none where it decides nothing. `known` are the chains that were weighed already, so that rules
    /// which jump in circles come to an end.
    fn decides<'t>(
        &'t self,
        chain: &'t str,
        bridge: &str,
        depth: usize,
        known: &mut BTreeMap<&'t str, Option<bool>>,
    ) -> Option<bool> {
        if let Some(known) = known.get(chain) {
            return *known;
        }
        if depth > JUMPS {
            return None;
        }
        known.insert(chain, None);
        let rules = self.rules.get(chain).into_iter().flatten();
        for rule in rules.filter(|rule| rule.is_for(bridge)) {
            let (decided, last) = match &rule.then {
                Then::Accept => (Some(true), true),
                Then::Drop => (Some(false), true),
                Then::Return => (None, true),
                Then::Jump(to) => (self.decides(to, bridge, depth + 1, known), false),
                Then::Goto(to) => (self.decides(to, bridge, depth + 1, known), true),
            };
            if decided.is_some() || last {
                known.insert(chain, decided);
                return decided;
            }
        }
        None
    }
}

/// The tables in what `nft -j list ruleset` prints (libnftables-json(5)); none where that is no such thing.
pub fn nft(said: &str) -> Option<Vec<Table>> {
    #[derive(Deserialize)]
    struct Said {
        nftables: Vec<Value>,
    }
    let said: Said = serde_json::from_str(said).ok()?;
    let mut tables: BTreeMap<(&str, &str), Table> = BTreeMap::new();
    for (kind, body) in said.nftables.iter().filter_map(only) {
        let text = |key: &str| body.get(key).and_then(Value::as_str);
        let (Some(family), Some(name)) = (text("family"), text("table")) else { continue };
        let (ipv4, ipv6) = match family {
            "ip" => (true, false),
            "ip6" => (false, true),
            "inet" => (true, true),
            // A bridge's own tables are somebody's wish for bridged frames, and no accident.
            _ => continue,
        };
        let table = tables.entry((family, name)).or_insert_with(|| Table {
            name: format!("the table `{family} {name}`"),
            nft: Some(format!("{family} {name}")),
            ipv4,
            ipv6,
            bases: Vec::new(),
            rules: BTreeMap::new(),
        });
        match (kind, text("name"), text("chain")) {
            ("chain", Some(chain), _) if text("hook") == Some("forward") => {
                table.bases.push((chain.to_owned(), text("policy") == Some("drop")));
            }
            ("rule", _, Some(chain)) => {
                let rule = body.get("expr").and_then(Value::as_array);
                let rule = rule.and_then(|expressions| rule_of_nft(expressions));
                table.rules.entry(chain.to_owned()).or_default().extend(rule);
            }
            _ => {}
        }
    }
    Some(tables.into_values().filter(|table| !table.bases.is_empty()).collect())
}

/// The one key of an object, and its value.
fn only(value: &Value) -> Option<(&str, &Value)> {
    value.as_object()?.iter().next().map(|(key, value)| (key.as_str(), value))
}

/// A rule, if it looks at nothing but interfaces.
fn rule_of_nft(expressions: &[Value]) -> Option<Rule> {
    let (mut by, mut then, mut bridged) = (Vec::new(), None, false);
    for expression in expressions {
        let (kind, body) = only(expression)?;
        let target = || body.get("target").and_then(Value::as_str).map(str::to_owned);
        match kind {
            "match" => by.push(interfaces(body)?),
            // What iptables calls `-m physdev` is about bridged frames, and which is not told.
            "xt" if body.get("name")? == "physdev" => bridged = true,
            "xt" if body.get("name")? == "comment" => {}
            // As `nft` shows what `iptables -j REJECT` made.
            "xt" if body.get("name")? == "REJECT" => then = Some(Then::Drop),
            "counter" => {}
            "accept" => then = Some(Then::Accept),
            "drop" | "reject" => then = Some(Then::Drop),
            "return" => then = Some(Then::Return),
            "jump" => then = Some(Then::Jump(target()?)),
            "goto" => then = Some(Then::Goto(target()?)),
            _ => return None,
        }
    }
    // Those that are accepted are thought to be all; those that are dropped are not.
    then.filter(|then| !bridged || *then == Then::Accept).map(|then| Rule { by, then })
}

/// The interfaces that a match wants a packet to come in or go out by.
fn interfaces(body: &Value) -> Option<Vec<String>> {
    let key = body.pointer("/left/meta/key")?.as_str()?;
    let equal = matches!(body.get("op")?.as_str()?, "==" | "in");
    if !matches!(key, "iifname" | "oifname" | "iif" | "oif") || !equal {
        return None;
    }
    let name = |value: &Value| value.as_str().map(str::to_owned);
    match body.get("right")? {
        Value::Object(set) => set.get("set")?.as_array()?.iter().map(name).collect(),
        one => Some(vec![name(one)?]),
    }
}

/// The table `filter` in what `iptables -S` prints, or `ip6tables -S`.
pub fn iptables(said: &str, ipv6: bool) -> Table {
    let mut rules: BTreeMap<String, Vec<Rule>> = BTreeMap::new();
    for line in said.lines() {
        let mut words = line.split_whitespace();
        if let (Some("-A"), Some(chain)) = (words.next(), words.next()) {
            rules.entry(chain.to_owned()).or_default().extend(rule_of_iptables(words));
        }
    }
    let drops = said.lines().any(|line| line.trim() == "-P FORWARD DROP");
    let name = if ipv6 { "ip6tables" } else { "iptables" }.to_owned();
    Table { name, nft: None, ipv4: !ipv6, ipv6, bases: vec![("FORWARD".to_owned(), drops)], rules }
}

/// A rule, if it looks at nothing but interfaces.
fn rule_of_iptables<'w>(mut words: impl Iterator<Item = &'w str>) -> Option<Rule> {
    let mut by = Vec::new();
    while let Some(word) = words.next() {
        match word {
            "-i" | "-o" => {
                let name = words.next()?;
                let name = match name.strip_suffix('+') {
                    Some(start) => format!("{start}*"),
                    None => name.to_owned(),
                };
                by.push(vec![name]);
            }
            "-m" => drop(words.next().filter(|name| matches!(*name, "physdev" | "comment"))?),
            "--physdev-is-bridged" => {}
            "--comment" => comment(&mut words)?,
            // What follows is of the target.
            "-j" => {
                let then = match words.next()? {
                    "ACCEPT" => Then::Accept,
                    "DROP" | "REJECT" => Then::Drop,
                    "RETURN" => Then::Return,
                    // LOG and the like are chains without rules to us.
                    chain => Then::Jump(chain.to_owned()),
                };
                return Some(Rule { by, then });
            }
            "-g" => return Some(Rule { by, then: Then::Goto(words.next()?.to_owned()) }),
            _ => return None,
        }
    }
    None
}

/// Passes over a comment, which is one word or stands in quotes.
fn comment<'w>(words: &mut impl Iterator<Item = &'w str>) -> Option<()> {
    let closes = |word: &str| word.ends_with('"') && !word.ends_with("\\\"");
    let first = words.next()?;
    let Some(rest) = first.strip_prefix('"') else { return Some(()) };
    if closes(rest) {
        return Some(());
    }
    words.find(|word| closes(word)).map(drop)
}
