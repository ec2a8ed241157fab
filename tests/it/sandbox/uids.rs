//! A separate UID for each VM, regardless of identity.toml: copies, UIDs of the host's accounts,
//! unreadable files. On real QEMU, as root.

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::Path,
};

use crate::lab::{Lab, guest, signal, until};
use nix::sys::signal::Signal::SIGKILL;

const STRICT: &str = "isolation = \"strict\"\n[nic]\n";
const FIRST: u32 = 1_900_000_000;

/// A lab with VM files of these names; `None` if the tests are not root.
fn place(vms: &[&str]) -> Option<Lab> {
    let image = guest("boot-count.qcow2")?;
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: only root gives VMs users");
        return None;
    }
    let lab = Lab::new();
    vms.iter().for_each(|vm| lab.vm(vm, &image, STRICT));
    Some(lab)
}

/// The UID of a VM's QEMU in the kernel, which is also that of its status.
fn runs_as(lab: &Lab, vm: &str) -> u32 {
    let status = fs::read_to_string(format!("/proc/{}/status", lab.qemu_pid(vm))).unwrap();
    let all = status.lines().find_map(|line| line.strip_prefix("Uid:")).unwrap();
    let all: Vec<u32> = all.split_whitespace().map(|uid| uid.parse().unwrap()).collect();
    assert_eq!(all, [all[0]; 4]);
    assert_eq!(lab.status(vm)["isolation"]["uid"], all[0]);
    all[0]
}

/// Starts a VM; returns the UID of its QEMU, which also owns its disk.
fn starts_as(lab: &Lab, vm: &str) -> u32 {
    lab.ok(&["start", vm]);
    let user = runs_as(lab, vm);
    assert_eq!(owner(lab, vm), user);
    assert_eq!(identity(lab, vm)["uid"].as_integer(), Some(user.into()));
    user
}

fn owner(lab: &Lab, vm: &str) -> u32 {
    lab.state(vm, "root.qcow2").metadata().unwrap().uid()
}

fn identity(lab: &Lab, vm: &str) -> toml::Table {
    fs::read_to_string(lab.state(vm, "identity.toml")).unwrap().parse().unwrap()
}

/// Writes an identity with this UID, or without one, for `vm`: that of `from` with another UUID.
fn write_identity(lab: &Lab, from: &str, vm: &str, user: Option<u32>) {
    let mut all = identity(lab, from);
    all.remove("uid");
    all.extend(user.map(|uid| ("uid".to_owned(), toml::Value::from(uid))));
    if from != vm {
        let uuid = "7e0f3c52-4f2b-4b7e-9a34-0c5d0a1b2c3d";
        all.insert("uuid".to_owned(), uuid.into());
        fs::create_dir_all(lab.state(vm, "")).unwrap();
    }
    fs::write(lab.state(vm, "identity.toml"), all.to_string()).unwrap();
}

/// The number of log messages that the VM has lost its UID for this reason.
fn told(lab: &Lab, vm: &str, why: &str) -> usize {
    let log = fs::read_to_string(lab.state(vm, "supervisor.log")).unwrap();
    log.lines().filter(|line| line.contains(why) && line.contains(": QEMU runs with UID ")).count()
}

fn doctor(lab: &Lab, vms: &str) -> Vec<String> {
    let said = lab.qvm(&["doctor", "--json"]).stdout;
    let all: serde_json::Value = serde_json::from_slice(&said).unwrap();
    let found = all.as_array().unwrap().iter();
    let found = found.filter(|finding| finding["level"] == "error");
    let found = found.map(|finding| finding["found"].as_str().unwrap().to_owned());
    found.filter(|found| found.contains(vms) && found.contains("UID")).collect()
}

#[test]
fn copied_identity_gets_another_uid() {
    let Some(lab) = place(&["a", "b"]) else { return };
    let a = starts_as(&lab, "a");
    write_identity(&lab, "a", "b", Some(a));
    let twice = format!("`a` and `b` have the same UID {a}");
    assert!(doctor(&lab, &twice).len() == 1, "{:?}", doctor(&lab, ""));
    let b = starts_as(&lab, "b");
    assert_ne!(a, b);
    assert_eq!(told(&lab, "b", &format!("its UID {a} is also that of `a`")), 1);
    assert_eq!(doctor(&lab, "`a` and `b`"), [""; 0]);
    // Each keeps its UID from now on.
    for (vm, user) in [("b", b), ("a", a)] {
        lab.ok(&["stop", vm]);
        assert_eq!(starts_as(&lab, vm), user);
    }
    assert_eq!(told(&lab, "a", "its UID") + told(&lab, "b", "its UID"), 1);
}

#[test]
fn uid_outside_the_range_is_replaced() {
    let Some(mut lab) = place(&["a"]) else { return };
    let a = starts_as(&lab, "a");
    // A running QEMU keeps its UID through adoptions.
    let (qemu, supervisor) = (lab.qemu_pid("a"), lab.status("a")["supervisorPid"].as_i64());
    let supervisor: i32 = supervisor.unwrap().try_into().unwrap();
    signal(supervisor, SIGKILL as i32);
    // Until it has exited, it holds the lock of the VM. Its parent, the lab, waits for it later.
    until("the supervisor is dead", || {
        fs::read_to_string(format!("/proc/{supervisor}/stat")).is_ok_and(|stat| {
            stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('Z'))
        })
    });
    write_identity(&lab, "a", "a", Some(1000));
    lab.run("a");
    lab.wait_state("a", "running");
    assert_eq!((lab.qemu_pid("a"), runs_as(&lab, "a")), (qemu, a));
    lab.ok(&["stop", "a"]);
    assert_eq!(starts_as(&lab, "a"), FIRST);
    let log = |why: &str| told(&lab, "a", why);
    let why = "the UID 1000 of its identity.toml is not in `uidRange` (1900000000-1900065535)";
    assert_eq!(log(why), 1);
    // Another range, and `qvm doctor` uses the range of the host settings.
    lab.ok(&["stop", "a"]);
    fs::write(lab.path().join("c/qvm.toml"), "uidRange = \"1900070000-1900070009\"\n").unwrap();
    assert_eq!(starts_as(&lab, "a"), 1_900_070_000);
    assert_eq!(log("is not in `uidRange` (1900070000-1900070009)"), 1);
    let said = String::from_utf8(lab.qvm(&["doctor"]).stdout).unwrap();
    assert!(
        said.contains("all layers are available") && said.contains("uid 1900070000,"),
        "{said}"
    );
}

#[test]
fn uids_of_unreadable_identities_are_not_reused() {
    let Some(lab) = place(&["a", "b", "c", "d"]) else { return };
    let later = |vm: &str| {
        let text = fs::read_to_string(lab.state(vm, "identity.toml")).unwrap();
        fs::write(lab.state(vm, "identity.toml"), format!("future = 1\n{text}")).unwrap();
    };
    let a = starts_as(&lab, "a");
    later("a");
    let b = starts_as(&lab, "b");
    assert_ne!(a, b);
    // Only the owner of its files remains.
    lab.ok(&["stop", "b"]);
    fs::write(lab.state("b", "identity.toml"), b"\xff").unwrap();
    let c = starts_as(&lab, "c");
    assert!(![a, b].contains(&c), "{a} {b} {c}");
    // The UIDs of running QEMUs are not used either.
    fs::write(lab.state("c", "identity.toml"), b"\xff").unwrap();
    std::os::unix::fs::chown(lab.state("c", "root.qcow2"), Some(0), Some(0)).unwrap();
    let others: Vec<_> = fs::read_dir(lab.state("c", "")).unwrap().collect();
    assert!(others.iter().all(|file| file.as_ref().unwrap().metadata().unwrap().uid() == 0));
    let d = starts_as(&lab, "d");
    assert!(![a, b, c].contains(&d), "{a} {b} {c} {d}");
}

#[test]
fn qemu_without_kvm_has_only_its_group() {
    let Some(mut lab) = place(&["a"]) else { return };
    if !Path::new("/dev/kvm").exists() {
        println!("skipped: no /dev/kvm");
        return;
    }
    // Like udev: with access for a group.
    let device = lab.path().join("kvm");
    fs::write(&device, "").unwrap();
    std::os::unix::fs::chown(&device, None, Some(36)).unwrap();
    fs::set_permissions(&device, fs::Permissions::from_mode(0o660)).unwrap();
    let Some(mounts) = lab.mounts() else { return };
    mounts.sh(&format!("mount --bind '{}' /dev/kvm", device.display()));
    lab.ok(&["start", "a"]);
    let status = fs::read_to_string(format!("/proc/{}/status", lab.qemu_pid("a"))).unwrap();
    let groups = status.lines().find_map(|line| line.strip_prefix("Groups:")).unwrap();
    assert_eq!(groups.trim(), "");
}
