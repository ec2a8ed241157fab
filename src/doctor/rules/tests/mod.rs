//! A healthy host, and the finding of each fault.

pub(crate) mod claims;
pub(crate) mod headroom;
pub(crate) mod machine;
pub(crate) mod network;
pub(crate) mod unit;

use std::path::{Path, PathBuf};

use proptest::prelude::*;

use super::{finding::names, *};
use crate::{
    control::isolation::{Isolation, Layer, Missing, Mode},
    machine::facts::{Kvm, Machine, Qemu, Version},
    spec::{self, Admission, Vm},
    store::identity::Identity,
    supervisor::start::memory_budget::Memory,
    sys::cgroup::weights,
    systemd::unit::unit_name,
    value::VmName,
};

proptest! {
    #[test]
    fn output_of_other_programs_never_panics(
        text in "(-P FORWARD DROP|-A |-i |br0|\\+|-m physdev|-j ACCEPT|Id=|TimeoutStopUSec=|\
                 [0-9]{1,20}|min|\\.|y | |\\PC|\n){0,30}",
        json in "(\\[|\\]|\\{|\\}|\"|:|,|nftables|chain|rule|expr|hook|forward|match|\
                 null|1){0,40}",
    ) {
        let _ = units(&text);
        let _ = nft(&json);
        let _ = iptables(&text, "iptables");
    }
}

/// Returns a VM before its first start.
fn vm(name: &str, text: &str) -> VmSeen {
    VmSeen {
        name: name.parse().unwrap(),
        written: Some(file(name, text)),
        booted: None,
        runs: false,
        unknown: None,
        user: None,
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
        uid: None,
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
            sandbox: true,
        },
        machines: vec![machine("pc-q35-10.0", false), machine("pc-q35-6.2", true)],
    })
}

fn complaint(what: &str, hint: Option<&str>) -> Complaint {
    Complaint { what: what.into(), hint: hint.map(str::to_owned) }
}

fn words(all: &[&str]) -> Vec<String> {
    all.iter().map(|word| (*word).to_owned()).collect()
}

/// Returns a host without faults, with these VMs.
fn healthy(vms: Vec<VmSeen>) -> Seen {
    Seen {
        kvm: KvmSeen {
            usable: Kvm::Usable,
            only_root: false,
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
        isolation: Some(Ok(Isolation::without(Mode::On, Some(1_900_000_000), vec![]))),
        network: Network::default(),
        disk_space: Some(DiskSpace {
            at: "/var/lib/qvm".into(),
            free: 500 << 30,
            total: 1000 << 30,
        }),
        memory: Some(Memory::new(16 << 30, 0, None)),
        admission: Admission::Refuse,
        units: None,
        vms,
        problems: vec![],
    }
}

/// Returns the findings about a subject, each as `level about: found | todo`.
fn findings(seen: &Seen, about: &str) -> Vec<String> {
    let line = |Finding { level, about, found, todo, .. }: &Finding| {
        let todo = todo.as_ref().map_or_else(String::new, |todo| format!(" | {todo}"));
        format!("{} {about}: {found}{todo}", level.word())
    };
    examine(seen).iter().filter(|finding| finding.about == about).map(line).collect()
}

#[track_caller]
fn one(seen: &Seen, about: &str, starts: &str) -> String {
    let findings = findings(seen, about);
    let [only] = findings.as_slice() else { panic!("{findings:?}") };
    assert!(only.starts_with(starts), "{only}");
    only.clone()
}

fn bridge(stp: u8, forward_delay: u64, ports: &[(&str, bool)]) -> Interface {
    let port = |(name, tap): &(&str, bool)| BridgePort { name: (*name).to_owned(), tap: *tap };
    let ports = ports.iter().map(port).collect();
    Interface::Bridge(Bridge { up: true, mtu: Some(1500), stp, forward_delay, ports })
}

/// Returns a correct unit, except for its timeout.
fn unit(name: &str, timeout: &str) -> Unit {
    let text = format!(
        "Id={}\nLoadState=loaded\nTimeoutStopUSec={timeout}\nNeedDaemonReload=no\n\
         DropInPaths=/run/systemd/generator/qvm@{name}.service.d/10-qvm.conf\n",
        unit_name(&name.parse().unwrap())
    );
    units(&text).remove(0)
}

#[test]
fn healthy_host_has_one_ok_per_subject() {
    let mut seen = healthy(vec![vm("web", "bridge = \"br0\"\nautostart = true\n"), vm("db", "")]);
    seen.network.bridges = [("br0".parse().unwrap(), bridge(0, 1500, &[("eth0", false)]))].into();
    seen.units = Some(Ok(vec![unit("web", "2min 30s"), unit("db", "infinity")]));
    let all: Vec<String> =
        examine(&seen).iter().map(|f| format!("{} {}", f.level.word(), f.about)).collect();
    let expected = [
        "ok kvm",
        "ok cgroup",
        "ok qemu",
        "ok isolation",
        "ok bridge br0",
        "ok firewall",
        "ok memory",
        "ok disk",
        "ok units",
        "ok VM files",
    ];
    assert_eq!(all, expected);
    assert!(examine(&seen).iter().all(|finding| finding.todo.is_none()));
    assert_eq!(findings(&seen, "VM files"), ["ok VM files: all 2 are valid"]);
    let json = serde_json::to_value(examine(&seen)).unwrap();
    let expected = serde_json::json!({
        "code": "kvm",
        "level": "ok",
        "about": "kvm",
        "found": "/dev/kvm is usable, by `kvm_amd`; nested virtualization is off",
        "todo": null
    });
    assert_eq!(json[0], expected);
}

#[test]
fn host_without_vms_has_no_warnings() {
    let mut seen = healthy(vec![]);
    seen.network.netfilter = Some(Netfilter { ipv4: true, ipv6: true });
    seen.cgroups.root = Err(weights::Error::NotMounted);
    seen.kvm.usable = Kvm::Missing;
    let worst = examine(&seen).into_iter().map(|finding| finding.level).max();
    assert_eq!(worst, Some(Level::Note));
    assert_eq!(findings(&seen, "VM files"), ["ok VM files: no VM file"]);
}

#[test]
fn unknown_state_of_a_vm_is_an_error() {
    let seen = healthy(vec![vm("db", ""), vm("web", "")]);
    assert!(findings(&seen, "web").is_empty());
    let unknown = Some(complaint("cannot determine whether the VM is running", Some("look")));
    let seen = healthy(vec![vm("db", ""), VmSeen { unknown, ..vm("web", "") }]);
    assert_eq!(
        findings(&seen, "web"),
        ["error web: cannot determine whether the VM is running | look"]
    );
}

#[test]
fn missing_isolation_layer_has_a_remedy() {
    let mut seen = healthy(vec![vm("web", "isolation = \"off\"\n")]);
    let why = "the kernel has none".to_owned();
    let missing = vec![Missing { layer: Layer::Landlock, why }];
    seen.isolation = Some(Ok(Isolation::without(Mode::On, None, missing)));
    assert_eq!(
        findings(&seen, "isolation"),
        [
            "warning isolation: no landlock: the kernel has none | use Linux 5.13 or later with \
             CONFIG_SECURITY_LANDLOCK, and `landlock` in `lsm=`",
            "note isolation: the QEMU of `web` has all privileges of its supervisor: \
             `isolation = \"off\"`",
        ]
    );
    seen.isolation = Some(Err(complaint("QEMU does not start", None)));
    assert!(findings(&seen, "isolation")[0].starts_with("error isolation: QEMU does not start"));
}

#[test]
fn long_lists_of_names_are_shortened() {
    let all: Vec<VmName> = (1..=7).map(|nr| format!("vm{nr}").parse().unwrap()).collect();
    let of = |count: usize| names(all.iter().take(count));
    assert_eq!(of(0), "");
    assert_eq!(of(1), "`vm1`");
    assert_eq!(of(2), "`vm1` and `vm2`");
    assert_eq!(of(5), "`vm1`, `vm2`, `vm3`, `vm4` and `vm5`");
    assert_eq!(of(7), "`vm1`, `vm2`, `vm3`, `vm4`, `vm5` and 2 more");
}
