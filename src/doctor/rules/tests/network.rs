//! Bridges, and packet filters that drop what guests send.

use super::*;

/// `web` and `db` are on `br0`.
fn bridged(interface: Interface) -> Seen {
    let mut seen = well(vec![
        vm("db", "[nic.lan]\nbridge = \"br0\""),
        vm("dns", ""),
        vm("web", "bridge = \"br0\""),
    ]);
    seen.network.bridges = [("br0".parse().unwrap(), interface)].into();
    seen
}

#[test]
fn bridges_that_are_not_there_or_down() {
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
    assert_eq!(told(&seen, "bridge br0"), ["ok bridge br0: up, no spanning tree, with eth0"]);
    let down = seen.network.bridges.values_mut().next().unwrap();
    if let Interface::Bridge(bridge) = down {
        bridge.up = false;
    }
    let expected =
        "error bridge br0: it is down: no network for `db` and `web` | `ip link set br0 up`";
    assert_eq!(told(&seen, "bridge br0"), [expected]);
}

#[test]
fn mtu_above_the_bridge_is_warned_of() {
    let mut seen = bridged(bridge(0, 1500, &[("eth0", false)]));
    seen.vms.push(vm("wide", "[nic.lan]\nbridge = \"br0\"\nmtu = 9000"));
    seen.vms.push(vm("small", "[nic.lan]\nbridge = \"br0\"\nmtu = 1400"));
    one(
        &seen,
        "VM wide",
        "warning VM wide: `mtu` 9000 of NIC `lan` exceeds MTU 1500 of bridge `br0`",
    );
    assert_eq!(told(&seen, "VM small"), [""; 0]);
    if let Some(Interface::Bridge(bridge)) = seen.network.bridges.values_mut().next() {
        bridge.mtu = Some(9000);
    }
    assert_eq!(told(&seen, "VM wide"), [""; 0]);
}

#[test]
fn address_outside_the_user_network_is_warned_of() {
    let seen = well(vec![vm("web", "ip = \"192.168.1.5/24\""), vm("db", "ip = \"10.0.2.20/24\"")]);
    one(
        &seen,
        "VM web",
        "warning VM web: `ip` 192.168.1.5/24 of NIC `net` is not in the user-mode network",
    );
    assert_eq!(told(&seen, "VM db"), [""; 0]);
}

#[test]
fn spanning_tree_that_holds_up_a_guests_dhcp() {
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
                    "{level} bridge br0: spanning tree holds every new port up for {seconds} s: the first DHCP \
                     requests of `db` and `web` are lost | "
                );
                let said = one(&seen, "bridge br0", &starts);
                assert!(said.contains("`ip link set br0 type bridge stp_state 0`"), "{said}");
            }
        }
    }
}

#[test]
fn a_bridge_with_guests_alone_is_noted() {
    for ports in [&[][..], &[("qvm-web", true), ("qvm-db", true)]] {
        let seen = bridged(bridge(0, 0, ports));
        one(
            &seen,
            "bridge br0",
            "note bridge br0: it has no port but taps: from `db` and `web` the network",
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
    let said = one(&seen, "firewall", "note firewall: bridged frames pass through it, and");
    assert!(
        said.contains("the policy of `FORWARD` of iptables is drop: guests on `br0`"),
        "{said}"
    );
    assert!(said.contains("`sysctl -w net.bridge.bridge-nf-call-iptables=0`"), "{said}");
    // Off, not loaded, or of the other family.
    for netfilter in [None, Some(Netfilter { ipv4: false, ipv6: false })] {
        let mut seen = seen.clone();
        seen.network.netfilter = netfilter;
        one(&seen, "firewall", "ok firewall: bridged frames do not pass through it; there is: ");
    }
    let accepts = Ok(iptables("-P FORWARD ACCEPT\n", "iptables"));
    let seen = filtered(vec![legacy(accepts), firewall("ip6tables", "ip6tables v1", drops6())]);
    one(&seen, "firewall", "ok firewall: ");
    let mut both = seen.clone();
    both.network.netfilter = Some(Netfilter { ipv4: true, ipv6: true });
    let said = one(&both, "firewall", "note firewall: ");
    assert!(said.contains("`sysctl -w net.bridge.bridge-nf-call-ip6tables=0`"), "{said}");
    // No VM on a bridge.
    let mut nobody = filtered(vec![legacy(drops())]);
    nobody.network.bridges.clear();
    assert_eq!(told(&nobody, "firewall"), Vec::<String>::new());
}

#[test]
fn firewall_that_cannot_be_read() {
    let denied = firewall("nft", "nftables v1.0.6", Err("you must be root"));
    let said = one(&filtered(vec![denied.clone()]), "firewall", "note firewall: ");
    assert!(said.ends_with(": you must be root | run `qvm doctor` as root"), "{said}");
    let drops = firewall("iptables", "iptables v1", Ok(iptables("-P FORWARD DROP\n", "iptables")));
    let said = one(&filtered(vec![denied, drops]), "firewall", "note ");
    assert!(said.contains("`FORWARD` of iptables is drop"), "{said}");
    let said = one(&filtered(vec![]), "firewall", "note firewall: ");
    assert!(said.contains("neither `nft` nor `iptables` is on PATH | `sysctl"), "{said}");
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
    let said = one(&filtered(vec![nft.clone(), compatible.clone()]), "firewall", "note ");
    assert!(said.contains("`FORWARD` of the table `ip filter` is drop"), "{said}");
    let legacy = firewall("iptables", "iptables v1.8.9 (legacy)", same());
    assert_eq!(told(&filtered(vec![nft, legacy]), "firewall").len(), 2);
    // What `nft` lists needs no other program.
    let failing = firewall("iptables", "iptables v1.8.9 (nf_tables)", Err("incompatible"));
    let silent = firewall("nft", "nftables v1.0.6", Err("no"));
    let fine = firewall("nft", "nftables v1.0.6", Ok(vec![]));
    one(&filtered(vec![fine, failing.clone()]), "firewall", "ok ");
    one(&filtered(vec![silent.clone(), failing]), "firewall", "note ");
    let said = one(&filtered(vec![silent, compatible]), "firewall", "note ");
    assert!(said.contains("is drop"), "{said}");
}

#[test]
fn a_kernel_that_cannot_filter_taps() {
    let there = Module::There;
    let mut seen = bridged(bridge(0, 0, &[("eth0", false)]));
    // Nobody has told.
    assert_eq!(told(&seen, "antiSpoof"), [""; 0]);
    for modules in [[Module::Unknown; 2], [there, Module::Unknown]] {
        seen.network.filter_modules = modules.into();
        assert_eq!(told(&seen, "antiSpoof"), [""; 0], "{modules:?}");
    }
    seen.network.filter_modules = vec![there, there];
    let fine = "ok antiSpoof: the kernel filters what leaves the taps of `db` and `web`";
    assert_eq!(told(&seen, "antiSpoof"), [fine]);
    for (modules, why) in [
        ([there, Module::NotInstalled], "finds no module `cls_bpf`"),
        ([Module::NotInstalled, Module::NotInstalled], "finds no module `sch_ingress`"),
        ([there, Module::Shut], "has not loaded `cls_bpf`, and loads no module any more"),
    ] {
        seen.network.filter_modules = modules.into();
        let said = one(&seen, "antiSpoof", &format!("warning antiSpoof: this kernel {why}"));
        assert!(
            said.contains(": what leaves the taps of `db` and `web` is not filtered | "),
            "{said}"
        );
        assert!(said.ends_with("; `antiSpoof = false` goes without"), "{said}");
    }
    // Some do not start then.
    seen.vms.push(vm("strict", "isolation = \"strict\"\nbridge = \"br0\""));
    seen.vms.push(vm("sure", "[nic.lan]\nbridge = \"br0\"\nantiSpoof = true"));
    let starts = "error antiSpoof: this kernel has not loaded `cls_bpf`";
    let said = one(&seen, "antiSpoof", starts);
    assert!(said.contains("is not filtered, and `strict` and `sure` cannot start | "), "{said}");
    // Others want no filter, or have no tap.
    let without = "isolation = \"strict\"\nbridge = \"br0\"\nantiSpoof = false";
    seen.vms = vec![vm("dns", ""), vm("router", without)];
    assert_eq!(told(&seen, "antiSpoof"), [""; 0]);
}
