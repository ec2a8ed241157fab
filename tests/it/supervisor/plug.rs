//! A changed VM file, applied to a running guest: disks and NICs plugged and unplugged, disks
//! grown, memory, links, bridges.

use std::fs;

use crate::lab::{Lab, guest, network::Network, signal, until};
use serde_json::json;

const SIGKILL: i32 = 9;

/// The tiny guest, started with `more` in its VM file.
fn started(mut lab: Lab, more: &str, network: Option<Network>) -> Option<Lab> {
    let image = guest("tiny.qcow2")?;
    lab.network = network;
    lab.vm("web", &image, &format!("mem = \"256M\"\n{more}"));
    lab.ok(&["start", "web"]);
    lab.says("web", "QVM-TINY READY", 1);
    Some(lab)
}

/// Replaces a text in the VM file.
fn edit(lab: &Lab, from: &str, to: &str) {
    let text = fs::read_to_string(lab.file("web")).unwrap();
    assert!(text.contains(from), "{text}");
    fs::write(lab.file("web"), text.replace(from, to)).unwrap();
}

fn add(lab: &Lab, more: &str) {
    let text = fs::read_to_string(lab.file("web")).unwrap();
    fs::write(lab.file("web"), text + more).unwrap();
}

/// Runs a command of the guest's shell; returns its output.
fn shell(lab: &Lab, command: &str) -> String {
    let output = lab.qvm(&["exec", "web", "--", "sh", "-c", command]);
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

fn agent(lab: &Lab) {
    lab.ok(&["wait", "web", "--for", "agent", "--timeout", "120"]);
}

/// The disks of the guest by their serials, with their sizes in MiB.
fn disks(lab: &Lab) -> String {
    shell(
        lab,
        "cd /sys/block; for d in vd* nvme*; do [ -f $d/size ] || continue; \
         echo $(cat $d/serial $d/device/serial 2>/dev/null | tr -d ' ')=$(($(cat $d/size) / \
         2048)); done | sort | xargs",
    )
}

fn pending(lab: &Lab) -> serde_json::Value {
    lab.status("web")["pending"].clone()
}

#[test]
fn disks_are_plugged_grown_and_unplugged() {
    let Some(lab) = Lab::tiny("plain", "", "") else { return };
    let qemu = lab.qemu_pid("web");
    let root = disks(&lab);
    add(&lab, "[disk.data]\nsize = \"64M\"\n[disk.fast]\nsize = \"32M\"\nbus = \"nvme\"\n");
    let told = lab.ok(&["diff", "web"]);
    assert_eq!(
        told,
        "web: disk.data: - -> 64M, virtio, at `qvm apply`\n\
         web: disk.fast: - -> 32M, nvme, at `qvm apply`\n"
    );
    let told = lab.ok(&["apply", "web"]);
    assert!(told.contains("applied: disk.data: - -> 64M, virtio\n"), "{told}");
    assert_eq!(pending(&lab), json!([]));
    until("the guest sees both", || {
        let seen = disks(&lab);
        seen.contains("data=64") && seen.contains("fast=32")
    });
    // Written data is in the file.
    shell(
        &lab,
        "for d in /sys/block/vd*; do [ \"$(cat $d/serial)\" = data ] && \
         echo mark-in-data | dd of=/dev/${d##*/} conv=fsync; done",
    );

    // The supervisor is killed; the next one knows the changes.
    let supervisor = lab.status("web")["supervisorPid"].as_i64().unwrap().try_into().unwrap();
    signal(supervisor, SIGKILL);
    let socket = lab.runtime("web", "control.sock");
    until("it has gone", || std::os::unix::net::UnixStream::connect(&socket).is_err());
    lab.ok(&["start", "web"]);
    assert_eq!(pending(&lab), json!([]));
    assert_eq!(lab.qemu_pid("web"), qemu);

    edit(&lab, "64M", "96M");
    edit(&lab, "[image]", "diskSizeG = 1\n[image]");
    let told = lab.ok(&["apply", "web"]);
    assert!(told.contains("applied: disk.data.size: 64M -> 96M\n"), "{told}");
    assert!(told.contains("applied: diskSizeG: - -> 1G\n"), "{told}");
    until("the guest sees both grown", || {
        let seen = disks(&lab);
        seen.contains("data=96") && seen.contains("root=1024")
    });
    // A smaller size is reported, and changes nothing.
    edit(&lab, "96M", "80M");
    let told = lab.ok(&["apply", "web"]);
    assert!(
        told.contains("pending: disk.data.size: 96M -> 80M, never: a disk cannot be shrunk"),
        "{told}"
    );
    edit(&lab, "80M", "96M");

    edit(&lab, "[disk.data]\nsize = \"96M\"\n[disk.fast]\nsize = \"32M\"\nbus = \"nvme\"\n", "");
    let told = lab.ok(&["apply", "web"]);
    assert!(told.contains("applied: disk.data: 96M, virtio -> -\n"), "{told}");
    assert_eq!(pending(&lab), json!([]));
    assert_eq!(disks(&lab).split(' ').count(), root.split(' ').count());

    // Its file still exists, and can be plugged in with its data.
    assert!(lab.state("web", "data.qcow2").is_file());
    add(&lab, "[disk.data]\nsize = \"96M\"\n");
    lab.ok(&["apply", "web"]);
    until("it is back", || disks(&lab).contains("data=96"));
    let mark = shell(
        &lab,
        "for d in /sys/block/vd*; do [ \"$(cat $d/serial)\" = data ] && \
         head -c 12 /dev/${d##*/}; done",
    );
    assert_eq!(mark, "mark-in-data");
    // A state can be saved only of a machine that can be started again.
    let refused = lab.qvm(&["suspend", "web"]);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("plugged in or out"), "{refused:?}");
    assert_eq!(lab.qemu_pid("web"), qemu);
    lab.ok(&["stop", "web"]);
    // The next start has the disk as well.
    lab.ok(&["start", "web"]);
    agent(&lab);
    assert!(disks(&lab).contains("data=96"));
}

#[test]
fn inapplicable_changes_are_reported() {
    let Some(lab) = started(Lab::new(), "[disk.data]\nsize = \"64M\"\n", None) else { return };
    agent(&lab);
    add(&lab, "[disk.gone]\npath = \"/nonexistent/disk.qcow2\"\n[disk.more]\nsize = \"32M\"\n");
    edit(&lab, "256M", "192M");
    let output = lab.qvm(&["apply", "web"]);
    let (told, why) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(1), "{told}{why}");
    assert!(told.contains("applied: disk.more: - -> 32M, virtio\n"), "{told}");
    assert!(told.contains("applied: mem: 256M -> 192M\n"), "{told}");
    assert!(
        why.contains("`disk.gone` could not be applied: ")
            && why.contains("/nonexistent/disk.qcow2"),
        "{why}"
    );
    assert_eq!(lab.notes("web"), ["not-applied disk.gone"]);
    until("the balloon has taken the memory", || lab.status("web")["memActualBytes"] == 192 << 20);
    assert_eq!(lab.status("web")["memTargetBytes"], 192 << 20);
    // A disk of the start can be unplugged too; one on SATA cannot.
    edit(&lab, "[disk.gone]\npath = \"/nonexistent/disk.qcow2\"\n", "");
    edit(&lab, "[disk.data]\nsize = \"64M\"\n", "");
    edit(&lab, "192M", "256M");
    lab.ok(&["apply", "web"]);
    assert_eq!((pending(&lab), lab.status("web")["notes"].clone()), (json!([]), json!([])));
    until("the memory is back", || lab.status("web")["memActualBytes"] == 256 << 20);
    assert!(!disks(&lab).contains("data="));
    add(&lab, "[disk.cd]\nsize = \"32M\"\nbus = \"sata\"\n");
    let told = lab.ok(&["apply", "web"]);
    assert!(told.contains("pending: disk.cd: - -> 32M, sata, when the guest reboots\n"), "{told}");
}

/// Every kind of immediate effect, as printed by the verbs. `QVM_BLESS=1` rewrites the golden file.
#[test]
fn verbs_print_the_golden_changes() {
    let before = "description = \"a\"\ndiskSizeG = 1\n[display]\nvnc = \"unix\"\n\
                  [disk.data]\nsize = \"64M\"\n[disk.logs]\nsize = \"32M\"\n[cloudInit]\n\
                  user = \"a\"\n";
    let Some(lab) = started(Lab::new(), before, None) else { return };
    agent(&lab);
    let after = "description = \"b\"\nautostart = true\nonPanic = \"pause\"\ncpuWeight = 50\n\
                 vcpu = 2\n\
                 firmware = \"uefi\"\nready = \"agent\"\nforward = [\"127.0.0.1:42222:22\"]\n\
                 ip = \"10.0.2.20/24\"\n\
                 [display]\n[nic.net]\nlink = \"down\"\n[disk.root]\nformat = \"raw\"\n\
                 [disk.data]\nsize = \"96M\"\n[disk.more]\nsize = \"32M\"\nbus = \"nvme\"\n\
                 [cloudInit]\nuser = \"b\"\n";
    edit(&lab, before, after);
    edit(&lab, "256M", "192M");
    let json = |text: &str| {
        let all: serde_json::Value = serde_json::from_str(text).unwrap();
        let changes = all[0]["pending"].as_array().unwrap().iter();
        changes.map(|change| format!("{change}\n")).collect::<String>()
    };
    let mut text = String::new();
    for verb in ["diff", "diff --json", "status --json", "apply", "diff", "status --json"] {
        let arguments: Vec<&str> = verb.split(' ').chain(["web"]).collect();
        let printed = lab.ok(&arguments);
        let printed = if verb.contains("json") { json(&printed) } else { printed };
        text.push_str(&format!("$ qvm {}\n{printed}\n", arguments.join(" ")));
    }
    // The state that the next supervisor reads.
    let record = fs::read_to_string(lab.runtime("web", "record.json")).unwrap();
    let record: serde_json::Value = serde_json::from_str(&record).unwrap();
    text.push_str(&serde_json::to_string_pretty(&record["applied"]).unwrap());
    let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/vm-diff-verbs.txt");
    if std::env::var_os("QVM_BLESS").is_some() {
        fs::write(golden, format!("{text}\n")).unwrap();
    }
    assert_eq!(text + "\n", fs::read_to_string(golden).unwrap_or_default());
}

#[test]
fn unreleased_device_is_reported() {
    let Some(image) = guest("boot-count.qcow2") else { return };
    let lab = Lab::new();
    lab.vm("web", &image, "[disk.data]\nsize = \"64M\"\n");
    lab.ok(&["start", "web"]);
    lab.says("web", "COUNT", 1);
    edit(&lab, "[disk.data]\nsize = \"64M\"\n", "");
    let output = lab.qvm(&["apply", "web"]);
    let why = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(why.contains("`disk.data`: the guest has not released it"), "{why}");
    // A reset has to apply it.
    lab.ok(&["reboot", "--force", "web"]);
    until("it is gone", || pending(&lab) == json!([]));
    assert_eq!(lab.status("web")["notes"], json!([]));
}

#[test]
fn nics_are_plugged_moved_and_unplugged() {
    let Some(network) = Network::new() else { return };
    let made = network.command("sh").args(["-c", "ip link add br1 up type bridge"]).status();
    assert!(made.unwrap().success());
    // A QEMU in a private network namespace could get only taps.
    let vm = "isolation = \"off\"\nbridge = \"br0\"\n";
    let Some(lab) = started(Lab::new(), vm, Some(network)) else { return };
    let network = || lab.network.as_ref().unwrap();
    agent(&lab);
    let ip = |arguments: &[&str]| {
        let output = network().command("ip").args(arguments).output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let master = |tap: &str| {
        let told = ip(&["-o", "link", "show", tap]);
        let after = told.split(" master ").nth(1).unwrap_or_default().to_owned();
        after.split(' ').next().unwrap_or_default().to_owned()
    };
    assert_eq!(master("qvm-web"), "br0");
    add(
        &lab,
        "[nic.lan]\nbridge = \"br1\"\nmac = \"52:54:00:00:00:77\"\nlink = \"down\"\n[nic.out]\n",
    );
    let told = lab.ok(&["apply", "web"]);
    assert!(told.contains("applied: nic.lan: - -> on br1, virtio\n"), "{told}");
    assert!(told.contains("applied: nic.out: - -> user-mode network, virtio\n"), "{told}");
    assert_eq!((master("qvm-web_lan").as_str(), pending(&lab)), ("br1", json!([])));
    let nic = "for n in /sys/class/net/*; do [ $(cat $n/address) = 52:54:00:00:00:77 ] && \
               echo ${n##*/}; done";
    until("the guest has it", || !shell(&lab, nic).is_empty());
    let carrier = format!("n=$({nic}); ip link set $n up; cat /sys/class/net/$n/carrier");
    assert_eq!(shell(&lab, &carrier), "0");
    edit(&lab, "link = \"down\"", "link = \"up\"");
    edit(&lab, "bridge = \"br0\"", "bridge = \"br1\"");
    let told = lab.ok(&["apply", "web"]);
    assert!(told.contains("applied: bridge: br0 -> br1\n"), "{told}");
    assert!(told.contains("applied: nic.lan.link: down -> up\n"), "{told}");
    assert_eq!(master("qvm-web"), "br1");
    until("the cable is in", || shell(&lab, &carrier) == "1");
    // The bridge does not exist: the NIC stays on its bridge.
    edit(&lab, "bridge = \"br1\"\n\n[image]", "bridge = \"br9\"\n\n[image]");
    let refused = lab.qvm(&["apply", "web"]);
    let why = String::from_utf8_lossy(&refused.stderr);
    assert!(
        why.contains("`bridge` could not be applied: ")
            && why.contains("bridge `br9` does not exist"),
        "{why}"
    );
    assert_eq!(master("qvm-web"), "br1");
    edit(&lab, "bridge = \"br9\"", "bridge = \"br1\"");
    let text = fs::read_to_string(lab.file("web")).unwrap();
    let (rest, _) = text.split_once("[nic.lan]").unwrap();
    fs::write(lab.file("web"), rest).unwrap();
    lab.ok(&["apply", "web"]);
    assert_eq!((ip(&["link", "show", "qvm-web_lan"]), pending(&lab)), (String::new(), json!([])));
    assert_eq!(shell(&lab, nic), "");
}

#[test]
fn apply_without_names_starts_and_applies() {
    let Some(image) = guest("boot.qcow2") else { return };
    let lab = Lab::new();
    for name in ["web", "gone", "rests"] {
        lab.vm(name, &image, "autostart = true\n");
    }
    lab.ok(&["start", "web", "gone", "rests"]);
    // An operator stopped this VM: it stays stopped, regardless of `autostart`.
    lab.ok(&["kill", "rests"]);
    fs::remove_file(lab.file("gone")).unwrap();
    lab.vm("web", &image, "autostart = true\ncpuWeight = 50\n");
    lab.vm("new", &image, "autostart = true\n");
    lab.vm("manual", &image, "");
    fs::write(lab.file("broken"), "vcpu = 0\nautostart = true\n").unwrap();
    let output = lab.qvm(&["apply"]);
    let (told, why) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(78), "{told}{why}");
    // On a busy host a start may have to wait, and reports that.
    let turn = |line: &&str| !line.contains(": waits for its turn: ");
    let mut lines: Vec<&str> = told.lines().filter(turn).collect();
    lines.sort_unstable();
    assert_eq!(
        lines,
        [
            "gone: its VM file does not exist; it keeps running: `qvm gc` stops it",
            "new: new, started",
            "web: VM file read",
            "web: applied: cpuWeight: 100 -> 50",
        ]
    );
    assert!(why.contains("broken.toml:1:8: vcpu: "), "{why}");
    for (name, state) in [
        ("web", "running"),
        ("gone", "running"),
        ("new", "running"),
        ("rests", "stopped"),
        ("manual", "stopped"),
    ] {
        assert_eq!(lab.status(name)["state"], state, "{name}");
    }
    fs::remove_file(lab.file("broken")).unwrap();
    // Again: there is nothing to do.
    let told = lab.ok(&["apply"]);
    assert!(!told.contains("applied") && !told.contains("started"), "{told}");
    lab.ok(&["kill", "web", "gone", "new"]);
}
