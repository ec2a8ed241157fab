//! Bridges, and packet filters that drop frames of guests.

use super::*;

/// `web` and `db` are on `br0`.
fn bridged(interface: Interface) -> Seen {
    let mut seen = healthy(vec![
        vm("db", "[nic.lan]\nbridge = \"br0\""),
        vm("dns", ""),
        vm("web", "bridge = \"br0\""),
    ]);
    seen.network.bridges = [("br0".parse().unwrap(), interface)].into();
    seen
}

#[test]
fn missing_bridge_and_bridge_that_is_down() {
    for (interface, expected) in [
        (
            Interface::Missing,
            "error bridge br0: it does not exist: `db` and `web` cannot start | create it",
        ),
        (
            Interface::Other,
            "error bridge br0: this interface is not a bridge: `db` and `web` cannot",
        ),
    ] {
        one(&bridged(interface), "bridge br0", expected);
    }
    let mut seen = bridged(bridge(0, 1500, &[("eth0", false), ("qvm-web", true)]));
    assert_eq!(findings(&seen, "bridge br0"), ["ok bridge br0: up, no spanning tree, with eth0"]);
    let down = seen.network.bridges.values_mut().next().unwrap();
    if let Interface::Bridge(bridge) = down {
        bridge.up = false;
    }
    let expected =
        "error bridge br0: it is down: no network for `db` and `web` | run `ip link set br0 up`";
    assert_eq!(findings(&seen, "bridge br0"), [expected]);
}

#[test]
fn mtu_above_the_bridge_is_a_warning() {
    let mut seen = bridged(bridge(0, 1500, &[("eth0", false)]));
    seen.vms.push(vm("wide", "[nic.lan]\nbridge = \"br0\"\nmtu = 9000"));
    seen.vms.push(vm("small", "[nic.lan]\nbridge = \"br0\"\nmtu = 1400"));
    one(
        &seen,
        "VM wide",
        "warning VM wide: `mtu` 9000 of NIC `lan` exceeds MTU 1500 of bridge `br0`",
    );
    assert_eq!(findings(&seen, "VM small"), [""; 0]);
    if let Some(Interface::Bridge(bridge)) = seen.network.bridges.values_mut().next() {
        bridge.mtu = Some(9000);
    }
    assert_eq!(findings(&seen, "VM wide"), [""; 0]);
}

#[test]
fn address_outside_the_user_network_is_a_warning() {
    let seen =
        healthy(vec![vm("web", "ip = \"192.168.1.5/24\""), vm("db", "ip = \"10.0.2.20/24\"")]);
    one(
        &seen,
        "VM web",
        "warning VM web: `ip` 192.168.1.5/24 of NIC `net` is not in the user-mode network",
    );
    assert_eq!(findings(&seen, "VM db"), [""; 0]);
}

#[test]
fn spanning_tree_delay() {
    for (stp, delay, level, seconds) in [
        (0, 1500, None, 0),
        (1, 0, None, 0),
        (1, 200, Some("note"), 4),
        (1, 499, Some("note"), 10),
        (1, 500, Some("warning"), 10),
        (1, 1500, Some("warning"), 30),
        (2, 1500, Some("warning"), 15),
        (2, 400, Some("note"), 4),
        (1, u64::MAX, Some("warning"), u64::MAX.div_ceil(100)),
    ] {
        let seen = bridged(bridge(stp, delay, &[("eth0", false)]));
        match level {
            None => drop(one(&seen, "bridge br0", "ok bridge br0: up, ")),
            Some(level) => {
                let starts = format!(
                    "{level} bridge br0: spanning tree delays every new port by {seconds} s: the \
                     first DHCP requests of `db` and `web` are lost | "
                );
                let finding = one(&seen, "bridge br0", &starts);
                assert!(finding.contains("`ip link set br0 type bridge stp_state 0`"), "{finding}");
            }
        }
    }
}

#[test]
fn bridge_without_uplink_is_a_note() {
    for ports in [&[][..], &[("qvm-web", true), ("qvm-db", true)]] {
        let seen = bridged(bridge(0, 0, ports));
        one(
            &seen,
            "bridge br0",
            "note bridge br0: its only ports are taps: `db` and `web` can reach",
        );
    }
}

fn filtered(firewalls: Vec<Firewall>) -> Seen {
    let mut seen = bridged(bridge(0, 0, &[("eth0", false)]));
    seen.network.netfilter = Some(Netfilter { ipv4: true, ipv6: false });
    seen.network.firewalls = firewalls;
    seen
}

fn firewall(program: &str, version: &str, dropping: Result<Vec<ForwardChain>, &str>) -> Firewall {
    Firewall {
        program: program.into(),
        version: version.into(),
        dropping: dropping.map_err(str::to_owned),
    }
}

#[test]
fn firewall_policy_drop_with_br_netfilter() {
    let drops = || Ok(iptables("-P FORWARD DROP\n-A FORWARD -j DOCKER-USER\n", "iptables"));
    let drops6 = || Ok(iptables("-P FORWARD DROP\n", "ip6tables"));
    let legacy = |chains| firewall("iptables", "iptables v1.8.9 (legacy)", chains);
    let seen = filtered(vec![legacy(drops())]);
    let finding = one(&seen, "firewall", "note firewall: bridged frames pass through it, and");
    assert!(
        finding.contains("the policy of `FORWARD` of iptables is drop: guests on `br0`"),
        "{finding}"
    );
    assert!(finding.contains("`sysctl -w net.bridge.bridge-nf-call-iptables=0`"), "{finding}");
    // Off, not loaded, or of the other family.
    for netfilter in [None, Some(Netfilter { ipv4: false, ipv6: false })] {
        let mut seen = seen.clone();
        seen.network.netfilter = netfilter;
        one(&seen, "firewall", "ok firewall: bridged frames do not pass through it; found: ");
    }
    let accepts = Ok(iptables("-P FORWARD ACCEPT\n", "iptables"));
    let seen = filtered(vec![legacy(accepts), firewall("ip6tables", "ip6tables v1", drops6())]);
    one(&seen, "firewall", "ok firewall: ");
    let mut both = seen.clone();
    both.network.netfilter = Some(Netfilter { ipv4: true, ipv6: true });
    let finding = one(&both, "firewall", "note firewall: ");
    assert!(finding.contains("`sysctl -w net.bridge.bridge-nf-call-ip6tables=0`"), "{finding}");
    // No VM on a bridge.
    let mut unused = filtered(vec![legacy(drops())]);
    unused.network.bridges.clear();
    assert_eq!(findings(&unused, "firewall"), Vec::<String>::new());
}

#[test]
fn firewall_that_cannot_be_read() {
    let denied = firewall("nft", "nftables v1.0.6", Err("you must be root"));
    let finding = one(&filtered(vec![denied.clone()]), "firewall", "note firewall: ");
    assert!(finding.ends_with(": you must be root | run `qvm doctor` as root"), "{finding}");
    let drops = firewall("iptables", "iptables v1", Ok(iptables("-P FORWARD DROP\n", "iptables")));
    let finding = one(&filtered(vec![denied, drops]), "firewall", "note ");
    assert!(finding.contains("`FORWARD` of iptables is drop"), "{finding}");
    let finding = one(&filtered(vec![]), "firewall", "note firewall: ");
    assert!(finding.contains("neither `nft` nor `iptables` is on PATH | `sysctl"), "{finding}");
}

#[test]
fn firewall_of_two_programs_once() {
    let json = r#"{"nftables": [{"metainfo": {}}, {"table": {"family": "ip", "name": "filter"}},
        {"chain": {"family": "ip", "table": "filter", "name": "FORWARD",
        "type": "filter", "hook": "forward", "prio": 0, "policy": "drop"}},
        {"chain": {"family": "ip", "table": "filter", "name": "INPUT", "hook": "input",
        "policy": "drop"}}, {"chain": {"family": "bridge", "table": "filter", "name": "f",
        "hook": "forward", "policy": "drop"}}]}"#;
    let chains = nft(json).unwrap();
    assert_eq!(chains.len(), 1, "{chains:?}");
    assert_eq!((chains[0].ipv4, chains[0].ipv6), (true, false));
    assert_eq!(chains[0].listing, "nft list chain ip filter FORWARD");
    assert!(nft("table ip filter {").is_err());
    let nft = firewall("nft", "nftables v1.0.6", Ok(chains));
    let same = || Ok(iptables("-P FORWARD DROP\n", "iptables"));
    let compatible = firewall("iptables", "iptables v1.8.9 (nf_tables)", same());
    let finding = one(&filtered(vec![nft.clone(), compatible.clone()]), "firewall", "note ");
    assert!(finding.contains("`FORWARD` of the table `ip filter` is drop"), "{finding}");
    let legacy = firewall("iptables", "iptables v1.8.9 (legacy)", same());
    assert_eq!(findings(&filtered(vec![nft, legacy]), "firewall").len(), 2);
    // A chain that `nft` lists is not reported again.
    let failing = firewall("iptables", "iptables v1.8.9 (nf_tables)", Err("incompatible"));
    let silent = firewall("nft", "nftables v1.0.6", Err("no"));
    let fine = firewall("nft", "nftables v1.0.6", Ok(vec![]));
    one(&filtered(vec![fine, failing.clone()]), "firewall", "ok ");
    one(&filtered(vec![silent.clone(), failing]), "firewall", "note ");
    let finding = one(&filtered(vec![silent, compatible]), "firewall", "note ");
    assert!(finding.contains("is drop"), "{finding}");
}

#[test]
fn kernel_that_cannot_filter_taps() {
    let there = Module::Available;
    let mut seen = bridged(bridge(0, 0, &[("eth0", false)]));
    // Unknown.
    assert_eq!(findings(&seen, "antiSpoof"), [""; 0]);
    for modules in [[Module::Unknown; 2], [there, Module::Unknown]] {
        seen.network.filter_modules = modules.into();
        assert_eq!(findings(&seen, "antiSpoof"), [""; 0], "{modules:?}");
    }
    seen.network.filter_modules = vec![there, there];
    let fine = "ok antiSpoof: the kernel can filter the traffic of the taps of `db` and `web`";
    assert_eq!(findings(&seen, "antiSpoof"), [fine]);
    for (modules, why) in [
        ([there, Module::NotInstalled], "has no module `cls_bpf`"),
        ([Module::NotInstalled, Module::NotInstalled], "has no module `sch_ingress`"),
        (
            [there, Module::LoadingDisabled],
            "cannot load `cls_bpf` (`kernel.modules_disabled` is set)",
        ),
    ] {
        seen.network.filter_modules = modules.into();
        let finding = one(&seen, "antiSpoof", &format!("warning antiSpoof: this kernel {why}"));
        assert!(finding.contains(": the taps of `db` and `web` are not filtered | "), "{finding}");
        assert!(finding.ends_with("; or set `antiSpoof = false`"), "{finding}");
    }
    // VMs that require the filter cannot start.
    seen.vms.push(vm("strict", "isolation = \"strict\"\nbridge = \"br0\""));
    seen.vms.push(vm("sure", "[nic.lan]\nbridge = \"br0\"\nantiSpoof = true"));
    let starts = "error antiSpoof: this kernel cannot load `cls_bpf`";
    let finding = one(&seen, "antiSpoof", starts);
    assert!(
        finding.contains("are not filtered, and `strict` and `sure` cannot start | "),
        "{finding}"
    );
    // Without the filter or without a tap.
    let without = "isolation = \"strict\"\nbridge = \"br0\"\nantiSpoof = false";
    seen.vms = vec![vm("dns", ""), vm("router", without)];
    assert_eq!(findings(&seen, "antiSpoof"), [""; 0]);
}
