//! What the rules of iptables and nft let through of a bridge.

use super::*;

/// Whether frames within `br0` are dropped, by the rules that `iptables -S` prints below a policy.
fn drops(policy: &str, rules: &str) -> bool {
    iptables(&format!("-P FORWARD {policy}\n{rules}\n"), false).dropping("br0").is_some()
}

#[test]
fn what_iptables_accepts_of_a_bridge() {
    for (rules, dropped) in [
        ("-A FORWARD -i br0 -o br0 -j ACCEPT", false),
        ("-A FORWARD -i br0 -j ACCEPT", false),
        ("-A FORWARD -i br+ -j ACCEPT", false),
        ("-A FORWARD -j USER\n-A USER -o br0 -j ACCEPT", false),
        ("-A FORWARD -i br0 -j USER\n-A USER -j ACCEPT", false),
        ("-A FORWARD -i br0 -g USER\n-A FORWARD -j DROP\n-A USER -j ACCEPT", false),
        ("-A FORWARD -j USER\n-A USER -j RETURN\n-A FORWARD -o br0 -j ACCEPT", false),
        ("-A FORWARD -m physdev --physdev-is-bridged -j ACCEPT", false),
        ("-A FORWARD -m comment --comment \"let it \\\" pass\" -i br0 -j ACCEPT", false),
        ("-A FORWARD -m comment --comment pass -j ACCEPT", false),
        ("-A FORWARD -j LOG --log-prefix \"x \"\n-A FORWARD -j ACCEPT", false),
        ("-A FORWARD -s 10.0.0.0/8 -j DROP\n-A FORWARD -i br0 -j ACCEPT", false),
        // Not reached.
        ("-A USER -o br0 -j ACCEPT", true),
        ("-A INPUT -i br0 -j ACCEPT", true),
        ("-A FORWARD -i docker0 -j USER\n-A USER -j ACCEPT", true),
        ("-A FORWARD -j USER\n-A USER -j RETURN\n-A USER -j ACCEPT", true),
        ("-A FORWARD -g USER\n-A FORWARD -j ACCEPT", true),
        ("-A FORWARD -i br0 -j DROP\n-A FORWARD -i br0 -j ACCEPT", true),
        // Not all of it.
        ("-A FORWARD -i br1 -j ACCEPT", true),
        ("-A FORWARD -i br0 -o eth0 -j ACCEPT", true),
        ("-A FORWARD ! -i br0 -j ACCEPT", true),
        ("-A FORWARD -i br0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT", true),
        ("-A FORWARD -i br0 -p tcp -j ACCEPT", true),
        ("-A FORWARD -s 10.0.0.0/8 -j ACCEPT", true),
        // In circles, cut off.
        ("-A FORWARD -j A\n-A A -j B\n-A B -j A", true),
        ("-A FORWARD -i", true),
        ("-A FORWARD -j", true),
        ("-A FORWARD -m comment --comment \"and on", true),
        ("-A", true),
        ("-N DOCKER-USER", true),
        ("", true),
    ] {
        assert_eq!(drops("DROP", rules), dropped, "{rules}");
    }
    for (rules, dropped) in [
        ("", false),
        ("-A FORWARD -j REJECT --reject-with icmp-host-prohibited", true),
        ("-A FORWARD -i br0 -j ACCEPT\n-A FORWARD -j REJECT", false),
        ("-A FORWARD -j USER\n-A USER -j DROP", true),
        ("-A FORWARD -m conntrack --ctstate INVALID -j DROP", false),
        ("-A INPUT -j DROP", false),
    ] {
        assert_eq!(drops("ACCEPT", rules), dropped, "{rules}");
    }
    // Deeper than the kernel lets chains jump.
    let deep = |count: usize| -> String {
        let jump = |nr: usize| format!("-A C{nr} -j C{}\n", nr + 1);
        let jumps: String = (0..count).map(jump).collect();
        format!("-A FORWARD -j C0\n{jumps}-A C{count} -j ACCEPT")
    };
    assert!(!drops("DROP", &deep(15)));
    assert!(drops("DROP", &deep(100_000)));
}

#[test]
fn what_nftables_accept_of_a_bridge() {
    let bridge = r#"{"match": {"op": "==", "left": {"meta": {"key": "iifname"}}, "right": "br0"}}"#;
    let out = r#"{"match": {"op": "==", "left": {"meta": {"key": "oifname"}}, "right": "eth0"}}"#;
    let set = r#"{"match": {"op": "in", "left": {"meta": {"key": "oifname"}}, "right": {"set": ["eth0", "br*"]}}}"#;
    let named =
        r#"{"match": {"op": "==", "left": {"meta": {"key": "oifname"}}, "right": {"prefix": 3}}}"#;
    let not = r#"{"match": {"op": "!=", "left": {"meta": {"key": "iifname"}}, "right": "br0"}}"#;
    let state =
        r#"{"match": {"op": "in", "left": {"ct": {"key": "state"}}, "right": ["established"]}}"#;
    let physdev = r#"{"xt": {"type": "match", "name": "physdev"}}"#;
    let (accept, drop) = (r#"{"accept": null}"#, r#"{"drop": null}"#);
    let (count, jump) = (r#"{"counter": {"packets": 0}}"#, r#"{"jump": {"target": "x"}}"#);
    let (goto, back) = (r#"{"goto": {"target": "x"}}"#, r#"{"return": null}"#);
    let reject = r#"{"reject": {"type": "icmpx"}}"#;
    let target = r#"{"xt": {"type": "target", "name": "REJECT"}}"#;
    // The rules of the chain at the hook, and of another one.
    for (rules, others, dropped) in [
        (vec![vec![bridge, count, accept]], vec![], false),
        (vec![vec![set, accept]], vec![], false),
        (vec![vec![bridge, set, accept]], vec![], false),
        (vec![vec![physdev, accept]], vec![], false),
        (vec![vec![accept]], vec![], false),
        (vec![vec![bridge, jump]], vec![vec![accept]], false),
        (vec![vec![goto]], vec![vec![bridge, accept]], false),
        (vec![vec![back], vec![accept]], vec![], true),
        (vec![vec![bridge, jump]], vec![vec![back], vec![accept]], true),
        (vec![vec![bridge, out, accept]], vec![], true),
        (vec![vec![named, accept]], vec![], true),
        (vec![vec![bridge, drop], vec![accept]], vec![], true),
        (vec![vec![bridge, reject], vec![accept]], vec![], true),
        (vec![vec![count, target], vec![accept]], vec![], true),
        (vec![vec![physdev, drop], vec![accept]], vec![], false),
        (vec![vec![not, accept]], vec![], true),
        (vec![vec![bridge, state, accept]], vec![], true),
        (vec![vec![bridge]], vec![], true),
        (vec![vec!["7", accept]], vec![], true),
        (vec![], vec![vec![accept]], true),
    ] {
        let written = |chain: &str, rules: &[Vec<&str>]| -> String {
            let one = |rule: &Vec<&str>| {
                let rule = rule.join(", ");
                format!(
                    r#", {{"rule": {{"family": "inet", "table": "fw", "chain": "{chain}", "expr": [{rule}]}}}}"#
                )
            };
            rules.iter().map(one).collect()
        };
        let json = format!(
            r#"{{"nftables": [{{"metainfo": {{}}}},
            {{"chain": {{"family": "inet", "table": "fw", "name": "forward", "hook": "forward", "policy": "drop"}}}},
            {{"chain": {{"family": "inet", "table": "fw", "name": "in", "hook": "input", "policy": "drop"}}}},
            {{"chain": {{"family": "ip6", "table": "ok", "name": "forward", "hook": "forward", "policy": "accept"}}}},
            {{"chain": {{"family": "bridge", "table": "b", "name": "forward", "hook": "forward", "policy": "drop"}}}},
            {{"chain": {{"family": "ip", "table": "in", "name": "in", "hook": "input", "policy": "drop"}}}},
            {{"chain": {{"family": "inet", "table": "fw", "name": "x"}}}}{}{}]}}"#,
            written("forward", &rules),
            written("x", &others)
        );
        let tables = nft(&json).unwrap();
        let [fw, ok] = tables.as_slice() else { panic!("{tables:?}") };
        assert_eq!((fw.name.as_str(), fw.ipv4, fw.ipv6), ("the table `inet fw`", true, true));
        assert_eq!((ok.ipv4, ok.ipv6, ok.dropping("br0")), (false, true, None));
        let remedy = "nft insert rule inet fw forward iifname br0 oifname br0 accept";
        assert_eq!(fw.remedy("forward", "br0"), remedy);
        assert_eq!(fw.dropping("br0"), dropped.then_some("forward"), "{json}");
    }
    for said in ["", "{}", "[]", "table ip filter {", "{\"nftables\": 3}"] {
        assert_eq!(nft(said), None, "{said}");
    }
    let odd = r#"{"nftables": [3, {"chain": 4}, {"rule": null}, {"rule": {"family": "ip", "table": "t", "chain": "c"}}]}"#;
    assert_eq!(nft(odd), Some(vec![]));
}
