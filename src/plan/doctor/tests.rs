//! A host on which all is well, and what each thing that is not leads to.

use std::path::{Path, PathBuf};

use proptest::prelude::*;

use super::*;
use crate::{
    plan::{
        facts::{Kvm, Machine, Qemu, Version},
        unit::unit_name,
        weights,
    },
    spec,
};

proptest! {
    #[test]
    fn what_other_programs_print_never_panics(
        text in "(-P FORWARD DROP|-A |-i |br0|\\+|-m physdev|-j ACCEPT|Id=|TimeoutStopUSec=|[0-9]{1,20}|min|\\.|y | |\\PC|\n){0,30}",
        json in "(\\[|\\]|\\{|\\}|\"|:|,|nftables|chain|rule|expr|hook|forward|match|null|1){0,40}",
    ) {
        let _ = units(&text);
        let _ = nft(&json);
        let _ = iptables(&text, false).dropping("br0");
    }
}

/// A VM as it is before its first start.
fn vm(name: &str, text: &str) -> VmSeen {
    VmSeen {
        name: name.parse().unwrap(),
        written: Some(file(name, text)),
        booted: None,
        runs: false,
        identity: Ok(None),
        firmware: Ok(()),
        disks: vec![],
    }
}

fn file(name: &str, text: &str) -> Vm {
    let path = PathBuf::from(format!("/vms/{name}.toml"));
    let text = format!("{text}\n[image]\npath = \"/srv/x.qcow2\"\n");
    spec::read(&name.parse().unwrap(), &path, &text, &mut |_| unreachable!()).unwrap()
}

fn with_identity(seen: VmSeen, uuid: &str, machine: &str, mac: Option<&str>) -> VmSeen {
    let macs = mac.map(|mac| ("net".parse().unwrap(), mac.parse().unwrap()));
    let identity = Identity {
        uuid: uuid.into(),
        instance_id: "iid".into(),
        machine: machine.into(),
        macs: macs.into_iter().collect(),
        hostname: None,
    };
    VmSeen { identity: Ok(Some(identity)), ..seen }
}

fn qemu(major: u16, minor: u16, micro: u16) -> Result<QemuSeen, Complaint> {
    let machine = |name: &str, deprecated| Machine { name: name.into(), deprecated };
    Ok(QemuSeen {
        qemu: Qemu {
            binary: "/usr/bin/qemu-system-x86_64".into(),
            version: Version { major, minor, micro },
            machine: "pc-q35-10.0".into(),
        },
        machines: vec![machine("pc-q35-10.0", false), machine("pc-q35-6.2", true)],
    })
}

fn complaint(what: &str, way_out: Option<&str>) -> Complaint {
    Complaint { what: what.into(), way_out: way_out.map(str::to_owned) }
}

fn words(all: &[&str]) -> Vec<String> {
    all.iter().map(|word| (*word).to_owned()).collect()
}

/// All is well, and these are the VMs.
fn well(vms: Vec<VmSeen>) -> Seen {
    Seen {
        kvm: KvmSeen {
            usable: Kvm::Usable,
            module: Some("kvm_amd".into()),
            nested: false,
            offered: true,
        },
        cgroups: Cgroups {
            root: Ok("/sys/fs/cgroup".into()),
            hybrid: true,
            available: words(&["cpuset", "cpu", "io", "memory", "pids"]),
            of_vms: "/sys/fs/cgroup/qvm.slice".into(),
            enabled: words(&["cpu", "io", "memory", "pids"]),
        },
        qemu: qemu(10, 0, 2),
        qemu_img: true,
        network: Network::default(),
        room: Some(Room { at: "/var/lib/qvm".into(), free: 500 << 30, total: 1000 << 30 }),
        memory: Some(16 << 30),
        units: None,
        vms,
        problems: vec![],
    }
}

/// `level about: found` and, after a bar, what to do; of the findings that are about this.
fn told(seen: &Seen, about: &str) -> Vec<String> {
    let line = |Finding { level, about, found, todo }: &Finding| {
        let todo = todo.as_ref().map_or_else(String::new, |todo| format!(" | {todo}"));
        format!("{} {about}: {found}{todo}", level.word())
    };
    examine(seen).iter().filter(|finding| finding.about == about).map(line).collect()
}

#[track_caller]
fn one(seen: &Seen, about: &str, starts: &str) -> String {
    let told = told(seen, about);
    let [only] = told.as_slice() else { panic!("{told:?}") };
    assert!(only.starts_with(starts), "{only}");
    only.clone()
}

#[test]
fn where_all_is_well_every_subject_says_so_once() {
    let mut seen = well(vec![vm("web", "bridge = \"br0\"\nautostart = true\n"), vm("db", "")]);
    seen.network.bridges = [("br0".parse().unwrap(), bridge(0, 1500, &[("eth0", false)]))].into();
    seen.units = Some(Ok(vec![unit("web", "2min 30s"), unit("db", "infinity")]));
    let all: Vec<String> =
        examine(&seen).iter().map(|f| format!("{} {}", f.level.word(), f.about)).collect();
    let expected = [
        "ok kvm",
        "ok cgroup",
        "ok qemu",
        "ok bridge br0",
        "ok firewall",
        "ok memory",
        "ok disk",
        "ok units",
        "ok VM files",
    ];
    assert_eq!(all, expected);
    assert!(examine(&seen).iter().all(|finding| finding.todo.is_none()));
    assert_eq!(told(&seen, "VM files"), ["ok VM files: all 2 are valid"]);
    let json = serde_json::to_value(examine(&seen)).unwrap();
    let expected = serde_json::json!({
        "level": "ok",
        "about": "kvm",
        "found": "/dev/kvm can be opened, of `kvm_amd`; guests may not be hypervisors themselves",
        "todo": null
    });
    assert_eq!(json[0], expected);
}

#[test]
fn without_vms_nothing_that_they_would_need_is_missed() {
    let mut seen = well(vec![]);
    seen.network.netfilter = Some(Netfilter { ipv4: true, ipv6: true });
    seen.cgroups.root = Err(weights::Error::NotMounted);
    seen.kvm.usable = Kvm::Missing;
    let worst = examine(&seen).into_iter().map(|finding| finding.level).max();
    assert_eq!(worst, Some(Level::Note));
    assert_eq!(told(&seen, "VM files"), ["ok VM files: there is none"]);
}

#[test]
fn kvm_is_as_bad_as_the_vms_need_it() {
    let (tcg, auto, demand) = ("accel = \"tcg\"", "accel = \"auto\"", "accel = \"kvm\"");
    for (usable, offered, file, starts, ends) in [
        (Kvm::Missing, true, tcg, "note kvm: there is no /dev/kvm, though", "`modprobe kvm_intel`"),
        (Kvm::Missing, true, auto, "warning kvm: there is no /dev/kvm, though", "modprobe"),
        (Kvm::Missing, false, auto, "warning kvm: there is no /dev/kvm, and", "firmware setup"),
        (Kvm::Missing, false, demand, "error kvm: ", "firmware setup"),
        (Kvm::Denied, true, tcg, "note kvm: /dev/kvm may not be opened", "the group"),
        (Kvm::Denied, true, auto, "warning kvm: /dev/kvm may not be opened", "the group"),
        (Kvm::Denied, true, demand, "error kvm: /dev/kvm may not be opened", "the group"),
        (Kvm::Unproven, true, tcg, "note kvm: /dev/kvm is there without", "TCG is meant"),
        (Kvm::Unproven, true, auto, "warning kvm: /dev/kvm is there without", "TCG is meant"),
        (Kvm::Unproven, true, demand, "warning kvm: /dev/kvm is there without", "TCG is meant"),
    ] {
        let mut seen = well(vec![vm("web", file)]);
        seen.kvm = KvmSeen { usable: usable.clone(), module: None, nested: false, offered };
        let said = one(&seen, "kvm", starts);
        let (_, todo) = said.split_once(" | ").unwrap();
        assert!(todo.contains(ends), "{said}");
        assert_eq!(said.contains("`web`"), file == demand, "{said}");
    }
    let mut seen = well(vec![]);
    seen.kvm.nested = true;
    assert!(one(&seen, "kvm", "ok ").ends_with("guests may be hypervisors themselves"));
}

#[test]
fn cgroups_matter_to_vms_that_have_weights() {
    let (plain, weighed) = (vm("db", ""), vm("web", "cpuWeight = 300\nioWeight = 50"));
    let v1 = || Err(weights::Error::Version1("/sys/fs/cgroup/cpu".into()));
    for (root, hybrid, vms, starts, has) in [
        (v1(), false, vec![plain.clone()], "note cgroup: the cpu controller is cgroup v1's", ""),
        (v1(), true, vec![weighed.clone()], "warning cgroup: the cpu", "(the \"hybrid\" layout)"),
        (
            Err(weights::Error::NotMounted),
            false,
            vec![weighed.clone()],
            "warning ",
            "of `web` have no",
        ),
        (
            Err(weights::Error::NotMounted),
            false,
            vec![plain.clone()],
            "note cgroup: no cgroup v2",
            "",
        ),
    ] {
        let mut seen = well(vms);
        (seen.cgroups.root, seen.cgroups.hybrid) = (root, hybrid);
        let said = one(&seen, "cgroup", starts);
        assert!(said.contains(has) && said.contains(" | "), "{said}");
        assert_eq!(said.contains("hybrid"), hybrid, "{said}");
    }
    let mut seen = well(vec![plain, weighed]);
    seen.cgroups.available = words(&["cpu", "memory"]);
    seen.cgroups.enabled = words(&["cpu"]);
    let told = told(&seen, "cgroup");
    assert_eq!(
        told[0],
        "ok cgroup: version 2 at `/sys/fs/cgroup`; controllers enabled for `/sys/fs/cgroup/qvm.slice`: cpu; to be had when a \
         VM file asks for them: memory"
    );
    let missing = "warning cgroup: there is no controller `io`: weights and limits of `web` have no effect | ";
    assert!(told[1].starts_with(missing) && told.len() == 2, "{told:?}");
    seen.cgroups.available = words(&["cpu", "io"]);
    assert!(
        super::tests::told(&seen, "cgroup")[1]
            .starts_with("note cgroup: there is no controller `memory` | ")
    );
}

#[test]
fn a_qemu_that_cannot_be_used_is_told_with_its_way_out() {
    let mut seen = well(vec![]);
    seen.qemu = Err(complaint("it is QEMU 6.2.0,\nand qvm needs 7.2.0", Some("another")));
    seen.qemu_img = false;
    assert_eq!(
        told(&seen, "qemu"),
        ["error qemu: it is QEMU 6.2.0, and qvm needs 7.2.0 | another"]
    );
    one(&seen, "qemu-img", "error qemu-img: there is none");
}

#[test]
fn known_faults_are_told_of_the_versions_that_have_them() {
    let sata = "[disk.data]\nsize = \"1G\"\nbus = \"sata\"";
    for (version, cves) in [
        ((7, 2, 0), "5088 3446"),
        ((7, 2, 6), "5088 3446"),
        ((7, 2, 7), "3446"),
        ((7, 2, 11), ""),
        ((7, 2, 22), ""),
        ((8, 0, 5), "5088 3446"),
        ((8, 1, 2), "5088 3446"),
        ((8, 1, 3), "3446"),
        ((8, 2, 0), "3446"),
        ((8, 2, 2), "3446"),
        ((8, 2, 3), ""),
        ((9, 0, 0), ""),
        ((10, 0, 2), ""),
    ] {
        let mut seen = well(vec![vm("web", ""), vm("win", sata)]);
        seen.qemu = qemu(version.0, version.1, version.2);
        let told = told(&seen, "qemu");
        let expected: Vec<&str> = cves.split_whitespace().collect();
        assert_eq!(told.len(), 1 + expected.len(), "{version:?}: {told:?}");
        for (said, cve) in told.iter().skip(1).zip(expected) {
            assert!(said.starts_with("warning qemu: QEMU ") && said.contains(cve), "{said}");
            let about = if cve == "5088" { "is about `win` |" } else { "about `web` and `win` |" };
            assert!(said.contains(about), "{said}");
        }
    }
    let mut seen = well(vec![]);
    seen.qemu = qemu(7, 2, 0);
    assert_eq!(told(&seen, "qemu").len(), 1, "nobody meets it");
}

#[test]
fn a_machine_type_that_is_gone_or_going() {
    for (machine, starts) in [
        ("pc-q35-10.0", None),
        (
            "pc-q35-6.2",
            Some("note web: its machine type `pc-q35-6.2` will not be in a later QEMU | "),
        ),
        (
            "pc-q35-2.4",
            Some("error web: QEMU 10.0.2 does not have its machine type `pc-q35-2.4` any more | "),
        ),
        (
            "pc-q35-11.0",
            Some("error web: it was made with a later QEMU: QEMU 10.0.2 does not know "),
        ),
        ("pc-q35-rhel9.4.0", Some("error web: QEMU 10.0.2 does not have its machine type ")),
    ] {
        let mut seen = well(vec![with_identity(vm("web", ""), "u", machine, None)]);
        match starts {
            Some(starts) => {
                assert!(one(&seen, "web", starts).contains("write `pc-q35-10.0` for it into"));
            }
            None => assert_eq!(told(&seen, "web"), Vec::<String>::new()),
        }
        // Where QEMU did not tell, nothing is known.
        if let Ok(qemu) = &mut seen.qemu {
            qemu.machines.clear();
        }
        assert_eq!(told(&seen, "web"), Vec::<String>::new());
    }
}

#[test]
fn what_is_wrong_with_one_vm_is_told_of_it() {
    let identity = Err(complaint("cannot read `identity.toml`", Some("from a backup")));
    let firmware = Err(complaint("no UEFI firmware", Some("install it")));
    let mut seen = well(vec![VmSeen { identity, firmware, ..vm("web", "") }]);
    assert_eq!(
        told(&seen, "web"),
        [
            "error web: cannot read `identity.toml` | from a backup",
            "error web: no UEFI firmware | install it"
        ]
    );
    let mut problem = Problem::of_file(Path::new("/vms/db.toml"), "it is no number", None);
    (problem.line, problem.key) = (Some(3), Some("vcpu".into()));
    seen.problems = vec![
        problem,
        Problem::of_file(Path::new("/vms/X\n.toml"), "bad name", Some("rename it".into())),
    ];
    assert_eq!(told(&seen, "db"), ["error db: vcpu: it is no number (/vms/db.toml:3)"]);
    assert_eq!(told(&seen, "X "), ["error X : bad name (/vms/X .toml) | rename it"]);
    assert_eq!(told(&seen, "VM files"), Vec::<String>::new());
}

fn bridge(stp: u8, forward_delay: u64, ports: &[(&str, bool)]) -> Interface {
    let port = |(name, tap): &(&str, bool)| Port { name: (*name).to_owned(), tap: *tap };
    let ports = ports.iter().map(port).collect();
    Interface::Bridge(Bridge { up: true, stp, forward_delay, ports })
}

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

fn firewall(program: &str, version: &str, tables: Result<Vec<Table>, &str>) -> Firewall {
    Firewall {
        program: program.into(),
        version: version.into(),
        tables: tables.map_err(str::to_owned),
    }
}

#[test]
fn a_policy_of_drop_counts_where_bridged_frames_come_by() {
    let drops =
        || Ok(vec![iptables("-P INPUT ACCEPT\n-P FORWARD DROP\n-P OUTPUT ACCEPT\n", false)]);
    let drops6 = || Ok(vec![iptables("-P FORWARD DROP\n", true)]);
    let legacy = |chains| firewall("iptables", "iptables v1.8.9 (legacy)", chains);
    let seen = filtered(vec![legacy(drops())]);
    let said = one(
        &seen,
        "firewall",
        "warning firewall: bridged frames pass through it, and `FORWARD` of iptables drops them where no rule looks closer and accepts: guests on \
         `br0` may have no network | `sysctl -w net.bridge.bridge-nf-call-iptables=0` leaves",
    );
    assert!(said.contains("`iptables -I FORWARD -i br0 -o br0 -j ACCEPT`"), "{said}");
    // Off, not loaded, or of the other family.
    for netfilter in [None, Some(Netfilter { ipv4: false, ipv6: false })] {
        let mut seen = seen.clone();
        seen.network.netfilter = netfilter;
        let starts = "ok firewall: bridged frames do not pass through it; there is: iptables v1.8.9 (legacy)";
        one(&seen, "firewall", starts);
    }
    let seen = filtered(vec![legacy(Ok(vec![])), firewall("ip6tables", "ip6tables v1", drops6())]);
    one(
        &seen,
        "firewall",
        "ok firewall: bridged frames pass through it (`bridge-nf-call-iptables`), and it forwards",
    );
    let mut both = seen.clone();
    both.network.netfilter = Some(Netfilter { ipv4: true, ipv6: true });
    let said = one(&both, "firewall", "warning firewall: ");
    assert!(said.contains("`sysctl -w net.bridge.bridge-nf-call-ip6tables=0`"), "{said}");
    let rule =
        "`ip6tables -I FORWARD -i br0 -o br0 -j ACCEPT`, with Docker in its chain DOCKER-USER";
    assert!(said.ends_with(rule), "{said}");
    // No VM on a bridge: nobody's frames.
    let mut nobody = filtered(vec![legacy(drops())]);
    nobody.network.bridges.clear();
    assert_eq!(told(&nobody, "firewall"), Vec::<String>::new());
}

#[test]
fn what_may_not_be_asked_is_not_called_well() {
    let denied = firewall("nft", "nftables v1.0.6", Err("you must be root"));
    let said = one(&filtered(vec![denied.clone()]), "firewall", "note firewall: ");
    assert!(
        said.ends_with("cannot be told: you must be root | run `qvm doctor` as root"),
        "{said}"
    );
    let drops = firewall("iptables", "iptables v1", Ok(vec![iptables("-P FORWARD DROP\n", false)]));
    one(&filtered(vec![denied, drops]), "firewall", "warning ");
    let said = one(&filtered(vec![]), "firewall", "note firewall: ");
    assert!(said.contains("neither `nft` nor `iptables` is on PATH | `sysctl"), "{said}");
}

#[test]
fn the_two_programs_of_one_packet_filter_tell_once() {
    let json = r#"{"nftables": [{"metainfo": {}}, {"chain": {"family": "ip", "table": "filter", "name": "FORWARD",
        "type": "filter", "hook": "forward", "prio": 0, "policy": "drop"}}]}"#;
    let nft = firewall("nft", "nftables v1.0.6", Ok(nft(json).unwrap()));
    let same = || Ok(vec![iptables("-P FORWARD DROP\n", false)]);
    let compatible = firewall("iptables", "iptables v1.8.9 (nf_tables)", same());
    let said = one(&filtered(vec![nft.clone(), compatible.clone()]), "firewall", "warning ");
    assert!(said.contains("or a rule: `iptables -I FORWARD -i br0"), "{said}");
    assert!(said.contains("`FORWARD` of the table `ip filter` drops"), "{said}");
    let legacy = firewall("iptables", "iptables v1.8.9 (legacy)", same());
    assert_eq!(told(&filtered(vec![nft, legacy]), "firewall").len(), 2);
    // What `nft` has told needs nobody else.
    let failing = firewall("iptables", "iptables v1.8.9 (nf_tables)", Err("incompatible"));
    let silent = firewall("nft", "nftables v1.0.6", Err("no"));
    one(
        &filtered(vec![firewall("nft", "nftables v1.0.6", Ok(vec![])), failing.clone()]),
        "firewall",
        "ok ",
    );
    one(&filtered(vec![silent.clone(), failing]), "firewall", "note ");
    one(&filtered(vec![silent, compatible]), "firewall", "warning ");
}

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

#[test]
fn memory_of_what_runs_and_of_what_starts() {
    let (up, auto) = ("mem = \"8G\"", "mem = \"10G\"\nautostart = true");
    let runs = |vm: VmSeen| VmSeen { runs: true, booted: vm.written.clone(), ..vm };
    for (vms, expected) in [
        (
            vec![vm("web", up)],
            "ok memory: of 16 GiB, running guests may take 0 MiB, and with `autostart` 0 MiB",
        ),
        (vec![runs(vm("web", up))], "ok memory: of 16 GiB, running guests may take 8 GiB, and"),
        // Not counted twice.
        (
            vec![runs(vm("db", auto))],
            "ok memory: of 16 GiB, running guests may take 10 GiB, and with `autostart` 10 GiB",
        ),
        (
            vec![runs(vm("web", up)), vm("db", auto)],
            "warning memory: of 16 GiB, running guests may take 8 GiB, and with `autostart` 18 GiB: more than there is \
             when the host has started | ",
        ),
        (
            vec![runs(vm("web", up)), runs(vm("db", auto))],
            "warning memory: of 16 GiB, running guests may take 18 GiB, and with `autostart` 18 GiB: more than there is | ",
        ),
    ] {
        one(&well(vms), "memory", expected);
    }
    // What runs counts as it was started, also without its VM file.
    let mut web = runs(vm("web", up));
    web.written = Some(file("web", "mem = \"1G\""));
    one(&well(vec![web.clone()]), "memory", "ok memory: of 16 GiB, running guests may take 8 GiB");
    web.written = None;
    let mut seen = well(vec![web]);
    one(&seen, "memory", "ok memory: of 16 GiB, running guests may take 8 GiB");
    seen.memory = None;
    assert_eq!(told(&seen, "memory"), Vec::<String>::new());
}

#[test]
fn room_for_disks() {
    const GIB: u64 = 1 << 30;
    let few = "error disk: `/var/lib/qvm` has ";
    for (free, total, virtual_size, allocated, expected) in [
        (500, 1000, 0, 0, vec!["ok disk: "]),
        (
            100,
            1000,
            110,
            10,
            vec![
                "ok disk: disks in `/var/lib/qvm` may grow by 100 GiB to 110 GiB, and 100 GiB is free",
            ],
        ),
        (
            100,
            1000,
            111,
            10,
            vec![
                "warning disk: disks in `/var/lib/qvm` may grow by 101 GiB to 111 GiB, and 100 GiB is free: \
             over-committed, 101 % of what is free is promised | ",
            ],
        ),
        (
            100,
            1000,
            300,
            0,
            vec![
                "warning disk: disks in `/var/lib/qvm` may grow by 300 GiB to 300 GiB, and 100 GiB is free: \
             over-committed, 300 % of what is free is promised | ",
            ],
        ),
        // A qcow2 file can be larger than what the guest sees.
        (100, 1000, 10, 11, vec!["ok disk: disks in `/var/lib/qvm` may grow by 0 MiB to 10 GiB"]),
        // Two percent, and one gibibyte.
        (20, 1000, 0, 0, vec!["ok "]),
        (19, 1000, 0, 0, vec![few]),
        (1, 10, 0, 0, vec!["ok "]),
        (0, 10, 0, 0, vec![few]),
        (0, 10, 5, 0, vec![few, "warning disk: "]),
        (0, 0, 0, 0, vec![few]),
    ] {
        let disk = DiskSeen { virtual_size: virtual_size * GIB, allocated: allocated * GIB };
        let mut seen = well(vec![VmSeen { disks: vec![disk], ..vm("web", "") }]);
        seen.room = Some(Room { at: "/var/lib/qvm".into(), free: free * GIB, total: total * GIB });
        let told = told(&seen, "disk");
        assert_eq!(told.len(), expected.len(), "{told:?}");
        for (said, starts) in told.iter().zip(expected) {
            assert!(said.starts_with(starts), "{said}");
        }
    }
    let huge = DiskSeen { virtual_size: u64::MAX, allocated: 0 };
    let seen = well(vec![VmSeen { disks: vec![huge, huge], ..vm("web", "") }]);
    one(&seen, "disk", "warning disk: ");
    let mut seen = well(vec![]);
    seen.room = Some(Room { at: "/x".into(), free: (GIB * 3) / 2, total: 100 * GIB });
    one(&seen, "disk", "error disk: `/x` has 1.5 GiB left of 100 GiB (2 %) | make room");
    seen.room = None;
    assert_eq!(told(&seen, "disk"), Vec::<String>::new());
}

/// As systemd shows the unit of a VM that is as it should be, but for its time.
fn unit(name: &str, timeout: &str) -> Unit {
    let text = format!(
        "Id={}\nLoadState=loaded\nTimeoutStopUSec={timeout}\nNeedDaemonReload=no\n\
         DropInPaths=/run/systemd/generator/qvm@{name}.service.d/10-qvm.conf\n",
        unit_name(&name.parse().unwrap())
    );
    units(&text).remove(0)
}

#[test]
fn a_unit_must_wait_for_the_whole_ladder() {
    for (file, timeout, given) in [
        ("", "2min 30s", None),
        ("", "infinity", None),
        ("", "2min 29.999s", Some("149 s, and the guest's may take 150 s")),
        ("", "1min 30s", Some("90 s, and the guest's may take 150 s")),
        ("shutdownTimeoutSec = 600", "2min 30s", Some("150 s, and the guest's may take 630 s")),
        ("shutdownTimeoutSec = 600", "10min 30s", None),
        ("shutdownTimeoutSec = 10", "0", Some("0 s, and the guest's may take 40 s")),
    ] {
        let mut seen = well(vec![vm("web", file)]);
        seen.units = Some(Ok(vec![unit("web", timeout)]));
        match given {
            None => drop(one(&seen, "units", "ok units: 1 made from VM files")),
            Some(given) => {
                let starts =
                    format!("error web: its unit gives a stop {given} (`shutdownTimeoutSec`");
                let said = one(&seen, "web", &starts);
                assert!(
                    said.ends_with(
                        "| `systemctl daemon-reload`, so that the unit is made from the VM file"
                    ),
                    "{said}"
                );
            }
        }
    }
    let mut seen = well(vec![vm("web", "")]);
    let mut short = unit("web", "10s");
    short.drop_ins.push("/etc/systemd/system/qvm@.service.d/short.conf".into());
    seen.units = Some(Ok(vec![short]));
    let said = one(&seen, "web", "error web: ");
    assert!(
        said.ends_with(
            "| take `TimeoutStopSec` out of /etc/systemd/system/qvm@.service.d/short.conf"
        ),
        "{said}"
    );
}

#[test]
fn units_that_know_nothing_of_their_vm_file() {
    let mut seen = well(vec![vm("db", ""), vm("web", "")]);
    let fine = unit("db", "infinity");
    let bare = Unit { drop_ins: vec!["/etc/x.d/override.conf".into()], ..unit("web", "infinity") };
    seen.units = Some(Ok(vec![fine.clone(), bare]));
    one(
        &seen,
        "units",
        "warning units: the unit knows nothing of the VM file (no drop-in `10-qvm.conf` by qvm-generator): `web` | ",
    );
    let stale = Unit { stale: true, ..unit("web", "infinity") };
    seen.units = Some(Ok(vec![fine.clone(), stale]));
    one(
        &seen,
        "units",
        "note units: the VM file is newer than the unit: `web` | `systemctl daemon-reload`",
    );
    let absent = Unit { loaded: false, ..unit("web", "1s") };
    seen.units = Some(Ok(vec![fine, absent]));
    one(
        &seen,
        "units",
        "warning units: qvm@.service is not installed: `web` cannot run as a unit | ",
    );
    assert_eq!(told(&seen, "web"), Vec::<String>::new());
    seen.units = Some(Err(complaint("no `systemctl`", None)));
    one(&seen, "units", "warning units: no `systemctl`");
    seen.units = None;
    assert_eq!(told(&seen, "units"), Vec::<String>::new());
    seen.vms.push(vm("x", "autostart = true"));
    one(
        &seen,
        "units",
        "note units: no systemd looks for VMs here: `autostart` of `x` has no effect, and ",
    );
}

#[test]
fn what_systemctl_shows_of_several_units() {
    let said = "Id=qvm@web.service\nLoadState=loaded\nTimeoutStopUSec=1w 2d 3h 4min 5s 6ms 7us\nNeedDaemonReload=yes\n\
        DropInPaths=/a/10-qvm.conf /b/50-x.conf\n\n\
        TimeoutStopUSec=infinity\nId=qvm@db.service\nLoadState=not-found\nNeedDaemonReload=no\nDropInPaths=\n\n\
        Id=qvm@x.service\nLoadState=loaded\nTimeoutStopUSec=soon\n\nnonsense\n";
    let all = units(said);
    let [web, db] = all.as_slice() else { panic!("{all:?}") };
    let seconds = ((7 + 2) * 24 + 3) * 3600 + 4 * 60 + 5;
    assert_eq!(web.stop_timeout, Some(seconds * 1_000_000 + 6007));
    assert!(web.loaded && web.stale && web.drop_ins == words(&["/a/10-qvm.conf", "/b/50-x.conf"]));
    assert_eq!((db.loaded, db.stale, db.stop_timeout, db.drop_ins.len()), (false, false, None, 0));
    let span = |span: &str| {
        let text = format!("Id=a\nLoadState=loaded\nTimeoutStopUSec={span}\n");
        units(&text).first().map(|unit| unit.stop_timeout)
    };
    for (text, expected) in [
        ("1month", Some(2_629_800_000_000)),
        ("1y", Some(31_557_600_000_000)),
        ("1.5s", Some(1_500_000)),
        ("0", Some(0)),
        ("500ms", Some(500_000)),
    ] {
        assert_eq!(span(text), Some(expected), "{text}");
    }
    for bad in
        ["", "5", "s", "1x", "99999999999999999999s", "9999999999999y", "1.99999999999999999999s"]
    {
        assert_eq!(span(bad), None, "{bad}");
    }
}

#[test]
fn two_vms_with_one_address() {
    const MAC: &str = "52:54:00:00:00:01";
    let address = "ip = \"192.168.97.15/24\"\n[cloudInit]";
    let mac = format!("mac = \"{MAC}\"");
    let runs = |vm: VmSeen, booted: &str| VmSeen {
        runs: true,
        booted: Some(file(vm.name.as_str(), booted)),
        ..vm
    };
    let kept = |name: &str, uuid: &str| with_identity(vm(name, ""), uuid, "pc-q35-10.0", Some(MAC));
    let copy = "if one is a copy of the other, stop it and remove its identity.toml";
    let change = "reboot the one whose VM file has changed";
    for (vms, expected) in [
        // Told by the check of the files.
        (vec![vm("a", &mac), vm("b", &mac)], vec![]),
        (vec![vm("a", address), vm("b", address)], vec![]),
        // Once for each, whoever says so.
        (vec![runs(vm("a", &mac), &mac), vm("b", "")], vec![]),
        (
            vec![runs(vm("a", ""), address), vm("b", address)],
            vec![(
                "error addresses: `a` and `b` have the same address `192.168.97.15` | ".to_owned(),
                change,
            )],
        ),
        (
            vec![runs(vm("a", ""), &mac), runs(vm("b", ""), &mac)],
            vec![(
                format!("error addresses: `a` and `b` have the same MAC address `{MAC}` | "),
                change,
            )],
        ),
        (
            vec![kept("a", "1"), vm("b", &mac)],
            vec![(
                format!("error addresses: `a` and `b` have the same MAC address `{MAC}` | "),
                copy,
            )],
        ),
        (
            vec![kept("a", "1"), kept("b", "1")],
            vec![
                (
                    format!("error addresses: `a` and `b` have the same MAC address `{MAC}` | "),
                    copy,
                ),
                ("warning addresses: `a` and `b` have the same UUID `1` | ".to_owned(), copy),
            ],
        ),
        (vec![kept("a", "1"), with_identity(vm("b", ""), "2", "pc-q35-10.0", None)], vec![]),
        // What is not running any more claims nothing by how it once was started.
        (
            vec![VmSeen { booted: Some(file("a", address)), ..vm("a", "") }, vm("b", address)],
            vec![],
        ),
    ] {
        let told = told(&well(vms), "addresses");
        assert_eq!(told.len(), expected.len(), "{told:?}");
        for (said, (starts, todo)) in told.iter().zip(expected) {
            assert!(said.starts_with(&starts) && said.contains(todo), "{said}");
        }
    }
}

#[test]
fn many_names_are_cut_short() {
    let all: Vec<VmName> = (1..=7).map(|nr| format!("vm{nr}").parse().unwrap()).collect();
    let of = |count: usize| names(all.iter().take(count));
    assert_eq!(of(0), "");
    assert_eq!(of(1), "`vm1`");
    assert_eq!(of(2), "`vm1` and `vm2`");
    assert_eq!(of(5), "`vm1`, `vm2`, `vm3`, `vm4` and `vm5`");
    assert_eq!(of(7), "`vm1`, `vm2`, `vm3`, `vm4`, `vm5` and 2 more");
}
