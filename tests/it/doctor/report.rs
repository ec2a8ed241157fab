//! `qvm doctor` on fake hosts, in a network namespace, and with running guests.

use std::{
    ffi::OsString,
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Output,
    sync::{Mutex, MutexGuard, PoisonError},
};

use crate::lab::{Lab, guest, network::Network};
use qvm::{
    doctor::{
        collect::{Sources, inspect},
        rules::{Finding, Level, examine},
    },
    store::layout::Layout,
    systemd::unit::Scope,
};
use serde_json::Value;

/// A lab with a fake host below `root` and fake programs in `bin`. One at a time, because a script
/// that one thread writes while another forks cannot be executed (ETXTBSY).
struct Host {
    lab: Lab,
    _alone: MutexGuard<'static, ()>,
}

impl Host {
    /// Creates a healthy host.
    fn new() -> Self {
        static ALONE: Mutex<()> = Mutex::new(());
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let host = Self { lab: Lab::new(), _alone: alone };
        for (path, text) in [
            ("dev/kvm", ""),
            ("sys/module/kvm_intel/parameters/nested", "Y\n"),
            ("proc/cpuinfo", "flags\t\t: fpu vmx\n"),
            ("proc/modules", "cls_bpf 28672 0 - Live 0x0\nsch_ingress 16384 0 - Live 0x0\n"),
            ("proc/sys/kernel/osrelease", "6.1.0-9-amd64\n"),
            ("proc/meminfo", "MemTotal:       8388608 kB\n"),
            ("proc/self/mountinfo", "30 1 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"),
            ("sys/fs/cgroup/cgroup.controllers", "cpu io memory\n"),
            ("sys/fs/cgroup/qvm.slice/cgroup.subtree_control", "cpu io memory\n"),
            ("sys/class/net/br0/flags", "0x1003\n"),
            ("sys/class/net/br0/bridge/stp_state", "0\n"),
            ("sys/class/net/br0/bridge/forward_delay", "1500\n"),
            ("sys/class/net/br0/brif/eth0/port_no", "0x1\n"),
        ] {
            host.write(path, text);
        }
        // The mode set by udev.
        let device = host.root().join("dev/kvm");
        fs::set_permissions(device, fs::Permissions::from_mode(0o666)).unwrap();
        let qemu = "if [ \"$1\" = -version ]; then echo 'QEMU emulator version 10.0.2'; else\n\
                    echo 'Supported machines are:'\n\
                    echo 'q35         Standard PC (alias of pc-q35-10.0)'\n\
                    echo 'pc-q35-10.0 Standard PC'; echo 'pc-q35-5.2 Standard PC (deprecated)'; fi";
        host.script("qemu-system-x86_64", qemu);
        host.script("qemu-img", "exit 0");
        host
    }

    fn root(&self) -> PathBuf {
        self.lab.path().join("root")
    }

    fn bin(&self) -> PathBuf {
        self.lab.path().join("bin")
    }

    /// Writes a file of the fake host.
    fn write(&self, path: &str, text: &str) {
        let path = self.root().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn script(&self, name: &str, text: &str) {
        fs::create_dir_all(self.bin()).unwrap();
        let path = self.bin().join(name);
        fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// Writes a VM file.
    fn vm(&self, name: &str, text: &str) {
        fs::write(self.lab.file(name), format!("{text}\n[image]\npath = \"/srv/x.qcow2\"\n"))
            .unwrap();
    }

    fn doctor(&self, more: &[&str]) -> Output {
        let root = self.root();
        let mut command = self.lab.command(&["doctor", "--root", root.to_str().unwrap()]);
        command.args(more).env("PATH", self.bin()).env_remove("QVM_QEMU");
        command.output().unwrap()
    }

    /// Returns the findings, and checks the exit code.
    fn findings(&self) -> Vec<(String, String)> {
        findings(&self.doctor(&["--json"]))
    }
}

/// Returns `level about` and `found | todo` of each finding.
fn findings(output: &Output) -> Vec<(String, String)> {
    let all: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| {
        panic!("{error}: {output:?}");
    });
    let bad = all.iter().any(|one| one["level"] == "error");
    assert_eq!(output.status.code(), Some(i32::from(bad)), "{output:?}");
    assert!(output.stderr.is_empty(), "{output:?}");
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    all.iter()
        .map(|one| {
            let todo = one["todo"].as_str().map_or_else(String::new, |todo| format!(" | {todo}"));
            (
                format!("{} {}", text(&one["level"]), text(&one["about"])),
                text(&one["found"]) + &todo,
            )
        })
        .collect()
}

/// Returns the only finding of this level and subject.
#[track_caller]
fn one<'a>(all: &'a [(String, String)], what: &str) -> &'a str {
    let found: Vec<&(String, String)> = all.iter().filter(|(head, _)| head == what).collect();
    let [(_, text)] = found.as_slice() else { panic!("`{what}` in {all:#?}") };
    text
}

/// Returns the subjects that depend only on the fake host, not on the test machine.
fn heads(all: &[(String, String)]) -> Vec<&str> {
    let is_fake = |head: &&str| !head.ends_with(" disk") && !head.ends_with(" isolation");
    all.iter().map(|(head, _)| head.as_str()).filter(is_fake).collect()
}

#[test]
fn healthy_host() {
    let host = Host::new();
    host.vm("web", "bridge = \"br0\"\ncpuWeight = 200\n");
    let all = host.findings();
    let expected = [
        "ok kvm",
        "ok cgroup",
        "ok qemu",
        "ok bridge br0",
        "ok antiSpoof",
        "ok firewall",
        "ok memory",
        "ok VM files",
    ];
    assert_eq!(heads(&all), expected, "{all:#?}");
    assert!(one(&all, "ok kvm").contains("by `kvm_intel`; nested virtualization is on"));
    assert!(one(&all, "ok qemu").contains("/bin/qemu-system-x86_64` is QEMU 10.0.2"));
    assert!(
        one(&all, "ok memory")
            .starts_with("VMs may use 7.5 GiB of 8 GiB; running VMs may use 0 MiB, ")
    );
    // In columns.
    let text = String::from_utf8(host.doctor(&[]).stdout).unwrap();
    assert!(
        text.contains("ok  ") && text.contains("  bridge br0  up, no spanning tree, with eth0\n"),
        "{text}"
    );
    assert!(!host.lab.state("web", "").exists(), "qvm doctor created a file");
}

#[test]
fn host_with_every_problem() {
    let host = Host::new();
    for path in ["dev", "sys/module", "sys/fs"] {
        fs::remove_dir_all(host.root().join(path)).unwrap();
    }
    let v1 = "32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
              41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
    host.write("proc/self/mountinfo", v1);
    host.write("proc/meminfo", "MemTotal: 524288 kB\n");
    host.write("proc/modules", "sch_ingress 16384 0 - Live 0x0\n");
    host.write("lib/modules/6.1.0-9-amd64/modules.dep", "");
    host.script("modprobe", "echo 'modprobe: FATAL: Module cls_bpf not found' >&2; exit 1");
    host.write("sys/class/net/br0/bridge/stp_state", "1\n");
    host.write("sys/class/net/eth0/flags", "0x1003\n");
    host.write("proc/sys/net/bridge/bridge-nf-call-iptables", "1\n");
    host.script(
        "qemu-system-x86_64",
        "echo 'QEMU emulator version 6.2.0'; echo 'q35 x (alias of pc-q35-6.2)'",
    );
    fs::remove_file(host.bin().join("qemu-img")).unwrap();
    host.script(
        "iptables",
        "case $1 in --version) echo 'iptables v1.8.9 (legacy)';; -S) echo '-P FORWARD DROP';; esac",
    );
    host.script("nft", "echo 'Operation not permitted (you must be root)' >&2; exit 1");
    host.vm("db", "accel = \"kvm\"\nbridge = \"br9\"\nautostart = true\ncpuWeight = 300\n");
    host.vm("web", "bridge = \"br0\"\nautostart = true\nafter = [\"wbe\"]\n");
    host.vm("nas", "bridge = \"eth0\"\n");
    host.vm("bad", "vcpu = 0\n");
    let huge = "diskSizeG = 60000\n[disk.data]\nsize = \"60T\"\n";
    host.vm("big", huge);
    let all = host.findings();
    for (what, has) in [
        ("error kvm", "the processor has virtualization: `db` cannot start"),
        (
            "warning cgroup",
            "also mounted, without its controllers (the \"hybrid\" layout): weights and limits of \
             `db`",
        ),
        ("error qemu", "is QEMU 6.2.0; qvm requires 7.2.0 or newer | "),
        ("error qemu-img", "not found"),
        ("error bridge br9", "it does not exist: `db` cannot start | "),
        ("error bridge eth0", "not a bridge: `nas` cannot start"),
        ("warning bridge br0", "delays every new port by 30 s"),
        ("warning antiSpoof", "has no module `cls_bpf`: the taps of `db`, `nas` and"),
        (
            "note firewall",
            "the policy of `FORWARD` of iptables is drop: guests on `br0`, `br9`, `eth0` have",
        ),
        (
            "warning memory",
            "VMs may use 0 MiB of 512 MiB; running VMs may use 0 MiB, 2.1 GiB with those of \
             `autostart`: not enough memory after a boot, ",
        ),
        ("note units", "systemd does not manage these VMs: `autostart` of `db` and `web`"),
        ("error bad", "vcpu: "),
        ("error web", "after: VM `wbe` does not exist"),
    ] {
        assert!(one(&all, what).contains(has), "{what}: {}", one(&all, what));
    }
    let disk = all.iter().find(|(what, _)| what == "warning disk");
    assert!(disk.is_some_and(|(_, said)| said.contains("overcommitted")), "{all:#?}");
    let text = String::from_utf8(host.doctor(&[]).stdout).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    let column = lines[0].find("/dev/kvm is missing").unwrap();
    assert!(
        lines[1][..column].trim().is_empty() && lines[1][column..].starts_with("do: "),
        "{text}"
    );
}

#[test]
fn identities_conflict_with_qemu_and_each_other() {
    let host = Host::new();
    let identity = |last: &str, machine: &str| {
        format!(
            "uuid = \"01234567-89ab-4cde-8f01-00000000000{last}\"\ninstanceId = \"iid\"\n\
             machine = \"{machine}\"\n[macs]\nnet = \"52:54:00:00:00:01\"\n"
        )
    };
    for (name, text) in [
        ("copy", identity("1", "pc-q35-10.0")),
        ("late", identity("1", "pc-q35-11.1")),
        ("old", identity("2", "pc-q35-2.4").replace(":01", ":02")),
        ("odd", "uuid = ".to_owned()),
    ] {
        host.vm(name, "");
        let path = host.lab.state(name, "identity.toml");
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    host.vm("win", "[disk.cd]\nsize = \"1G\"\nbus = \"sata\"\n");
    let all = host.findings();
    assert!(one(&all, "error late").starts_with("created with a later QEMU"), "{all:#?}");
    assert!(one(&all, "error old").contains("has removed its machine type `pc-q35-2.4`"));
    assert!(one(&all, "error odd").starts_with("cannot read `"));
    assert!(
        one(&all, "error addresses").starts_with("`copy` and `late` have the same MAC address")
    );
    assert!(
        one(&all, "warning addresses").starts_with("`copy` and `late` have the same UUID `0123")
    );
    // The same VMs on a QEMU with known faults.
    let qemu = "if [ \"$1\" = -version ]; then echo 'QEMU emulator version 8.2.0'; else\n\
                echo 'q35 x (alias of pc-q35-8.2)'; echo 'pc-q35-8.2 x'\n\
                echo 'pc-q35-2.4 x (deprecated)'; fi";
    host.script("qemu-system-x86_64", qemu);
    let all = host.findings();
    assert!(one(&all, "warning qemu").contains("CVE-2024-3446"), "{all:#?}");
    assert!(one(&all, "note old").contains("a later QEMU will not support"), "{all:#?}");
    host.script("qemu-system-x86_64", &qemu.replace("8.2.0", "8.1.2"));
    let all = host.findings();
    let faults: Vec<_> = all.iter().filter(|(what, _)| what == "warning qemu").collect();
    assert!(
        faults.len() == 2 && faults[0].1.contains("CVE-2023-5088); affects `win` |"),
        "{all:#?}"
    );
}

/// Returns the findings of the library, with a manager that the command line cannot set.
fn inspected(host: &Host, manager: Option<Scope>) -> Vec<Finding> {
    let at = |place: &str| host.lab.path().join(place);
    let layout = Layout { config: at("c"), state: at("s"), runtime: at("r") };
    let bin: OsString = host.bin().into();
    let root = host.root();
    let from = Sources {
        layout: &layout,
        root: &root,
        qemu: None,
        search_path: Some(&bin),
        config_home: None,
        manager,
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    examine(&runtime.block_on(inspect(&from)))
}

#[test]
fn units_are_read_by_one_call() {
    let host = Host::new();
    host.vm("db", "shutdownTimeoutSec = 600\n");
    host.vm("web", "autostart = true\n");
    let shown = "echo \"$@\" > \"$0.asked\"\ncat <<END\n\
        Id=qvm@db.service\nLoadState=loaded\nTimeoutStopUSec=1min 30s\nNeedDaemonReload=no\n\
        DropInPaths=/run/systemd/generator/qvm@db.service.d/10-qvm.conf \
        /etc/systemd/system/qvm@.service.d/x.conf\n\n\
        Id=qvm@web.service\nLoadState=loaded\nTimeoutStopUSec=2min 30s\nNeedDaemonReload=no\n\
        DropInPaths=\nEND";
    host.script("systemctl", shown);
    for (scope, first) in [(Scope::System, "--no-pager"), (Scope::User, "--user")] {
        let all = inspected(&host, Some(scope));
        let of = |about: &str| all.iter().find(|f| f.about == about).unwrap();
        let db = of("db");
        assert_eq!(db.level, Level::Error);
        assert!(db.found.contains("90 s for a stop, but the VM may need 630 s"), "{db:?}");
        assert!(db.todo.as_ref().unwrap().contains("/etc/systemd/system/qvm@.service.d/x.conf"));
        let units = of("units");
        assert!(units.level == Level::Warning && units.found.ends_with("`web`"), "{units:?}");
        let asked = fs::read_to_string(host.bin().join("systemctl.asked")).unwrap();
        assert!(
            asked.starts_with(first) && asked.ends_with("qvm@db.service qvm@web.service\n"),
            "{asked}"
        );
    }
    host.script("systemctl", "echo 'Failed to connect to bus' >&2; exit 1");
    let all = inspected(&host, Some(Scope::System));
    let units = all.iter().find(|f| f.about == "units").unwrap();
    assert!(
        units.level == Level::Warning && units.found.contains("Failed to connect"),
        "{units:?}"
    );
    fs::remove_file(host.bin().join("systemctl")).unwrap();
    let all = inspected(&host, Some(Scope::System));
    assert!(all.iter().any(|f| f.about == "units" && f.found.contains("`systemctl` on PATH")));
}

#[test]
fn output_of_nft() {
    let host = Host::new();
    host.write("proc/sys/net/bridge/bridge-nf-call-iptables", "1\n");
    host.vm("web", "bridge = \"br0\"\n");
    host.script("nft", "echo 'table ip filter {'");
    let said = host.findings();
    assert!(
        one(&said, "note firewall").contains("`nft` printed no JSON | run `qvm doctor` as root"),
        "{said:#?}"
    );
    let json = r#"echo '{"nftables": [{"chain": {"family": "inet", "table": "fw",
        "name": "forward", "hook": "forward", "policy": "drop"}}]}'"#;
    host.script("nft", &format!("case $1 in --version) echo 'nftables v1.0.6';; *) {json};; esac"));
    let said = host.findings();
    assert!(
        one(&said, "note firewall").contains("policy of `forward` of the table `inet fw` is drop"),
        "{said:#?}"
    );
}

/// Returns the findings in the network namespace of the lab, with its sysfs.
fn within(lab: &Lab) -> Vec<(String, String)> {
    let qvm = lab.command(&["doctor", "--json"]);
    let mut shell = lab.network.as_ref().unwrap().command("unshare");
    shell.args(["--mount", "sh", "-c", "mount -t sysfs sysfs /sys && exec \"$@\"", "sh"]);
    // Without the program that enters the namespace, because the shell is already in it.
    let of_qvm = qvm.get_args().skip_while(|argument| *argument != "--").skip(1);
    shell.args(of_qvm);
    for (key, value) in qvm.get_envs() {
        match value {
            Some(value) => shell.env(key, value),
            None => shell.env_remove(key),
        };
    }
    findings(&shell.output().unwrap())
}

fn ip(lab: &Lab, arguments: &str) {
    let mut command = lab.network.as_ref().unwrap().command("ip");
    assert!(command.args(arguments.split(' ')).status().unwrap().success(), "ip {arguments}");
}

#[test]
fn bridges_of_the_kernel() {
    let Some(network) = Network::new() else { return };
    let mut lab = Lab::new();
    lab.network = Some(network);
    lab.vm("web", Path::new("/srv/x.qcow2"), "bridge = \"br0\"\n");
    lab.vm("db", Path::new("/srv/x.qcow2"), "bridge = \"br1\"\n");
    let all = within(&lab);
    assert!(one(&all, "note bridge br0").starts_with("its only ports are taps"), "{all:#?}");
    one(&all, "error bridge br1");
    ip(&lab, "link add eth9 type veth peer name eth8");
    ip(&lab, "link set eth9 master br0");
    ip(&lab, "tuntap add qvm-web mode tap");
    ip(&lab, "link set qvm-web master br0");
    ip(&lab, "link add br1 type bridge stp_state 1 forward_delay 400");
    let all = within(&lab);
    assert_eq!(one(&all, "ok bridge br0"), "up, no spanning tree, with eth9");
    assert!(one(&all, "error bridge br1").starts_with("it is down: no network for `db`"));
    let notes: Vec<_> = all.iter().filter(|(what, _)| what == "note bridge br1").collect();
    assert!(notes.len() == 2 && notes[0].1.contains("delays every new port by 8 s"), "{all:#?}");
}

#[test]
fn running_guest_counts_with_its_booted_vm_file() {
    let Some(image) = guest("boot.qcow2") else { return };
    let lab = Lab::new();
    let ip = |address: &str| format!("ip = \"{address}/24\"\n[cloudInit]\n");
    lab.vm("web", &image, &ip("192.168.97.15"));
    lab.ok(&["start", "web"]);
    let doctor = || findings(&lab.qvm(&["doctor", "--json"]));
    let all = doctor();
    assert!(one(&all, "ok memory").contains("running VMs may use 112.2 MiB"), "{all:#?}");
    assert!(!all.iter().any(|(what, _)| what.ends_with(" addresses")), "{all:#?}");
    // The address is not in the user-mode network, which this test does not use.
    let about_web: Vec<_> = all.iter().filter(|(what, _)| what.ends_with(" web")).collect();
    assert_eq!(about_web.len(), 1, "{all:#?}");
    assert!(about_web[0].1.contains("is not in the user-mode network"), "{all:#?}");
    lab.vm("web", &image, &format!("mem = \"128M\"\n{}", ip("192.168.97.16")));
    lab.vm("db", &image, &ip("192.168.97.15"));
    let all = doctor();
    let said = one(&all, "error addresses");
    assert!(
        said.starts_with("`db` and `web` have the same address `192.168.97.15` | reboot"),
        "{said}"
    );
    assert!(one(&all, "ok memory").contains("running VMs may use 112.2 MiB"), "{all:#?}");
    // Without its VM file, the VM keeps running.
    fs::remove_file(lab.file("web")).unwrap();
    assert!(one(&doctor(), "ok memory").contains("running VMs may use 112.2 MiB"));
    lab.ok(&["kill", "web"]);
    assert!(one(&doctor(), "ok memory").contains("running VMs may use 0 MiB"));
}

#[test]
fn unprivileged_user_gets_findings() {
    let lab = Lab::of_a_user();
    let file = lab.file("web");
    fs::write(&file, "accel = \"tcg\"\n").unwrap();
    lab.give(&file);
    let all = findings(&lab.qvm(&["doctor", "--json"]));
    assert!(all.iter().any(|(what, _)| what == "ok VM files"), "{all:#?}");
}

#[test]
fn closed_standard_output_is_no_error() {
    let host = Host::new();
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let root = host.root();
    let mut command = host.lab.command(&["doctor", "--root", root.to_str().unwrap()]);
    let output = command.stdout(writer).output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
}
