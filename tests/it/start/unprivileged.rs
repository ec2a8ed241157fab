//! An unprivileged user: XDG directories, user-mode network, no cgroup, no tap.

use std::{fs, os::unix::fs::MetadataExt, path::Path};

use qvm::value::ErrorCode;

use crate::lab::{Lab, guest, notes_of, until};
use rustix::thread::CapabilitySet;

/// A user's VM, with an image that the user can read.
fn vm(image: &str, more: &str) -> Option<Lab> {
    let image = guest(image)?;
    let lab = Lab::of_a_user();
    let own = lab.path().join("image.qcow2");
    fs::copy(image, &own).unwrap();
    lab.give(&own);
    lab.vm("web", &own, more);
    lab.give(&lab.file("web"));
    Some(lab)
}

/// The mode of everything below `top`, by its path.
fn modes(top: &Path, found: &mut Vec<(String, u32)>) {
    for entry in fs::read_dir(top).unwrap() {
        let path = entry.unwrap().path();
        let metadata = path.symlink_metadata().unwrap();
        found.push((path.to_str().unwrap().to_owned(), metadata.mode() & 0o777));
        if metadata.is_dir() {
            modes(&path, found);
        }
    }
}

#[test]
fn user_vm_starts_and_stops() {
    let Some(lab) = vm("tiny.qcow2", "mem = \"256M\"\n[cloudInit]\nhostname = \"dev\"\n") else {
        return;
    };
    lab.ok(&["check", "web"]);
    let plan = lab.ok(&["plan", "web"]);
    assert!(plan.contains(lab.state("web", "root.qcow2").to_str().unwrap()), "{plan}");
    assert!(!lab.state("web", "root.qcow2").exists(), "a plan made a disk");
    assert_eq!(lab.ok(&["start", "web"]), "web: running\n");
    lab.says("web", "QVM-TINY READY", 1);

    // QEMU and its supervisor have the user's UID, and cannot get another one.
    let owner = lab.path().metadata().unwrap().uid();
    assert_ne!(owner, 0);
    let status = lab.status("web");
    assert_eq!(status["state"], "running");
    assert_eq!(status["notes"], serde_json::json!([]));
    for key in ["pid", "supervisorPid"] {
        let pid = status[key].as_u64().unwrap();
        let uids = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let uids = uids.lines().find_map(|line| line.strip_prefix("Uid:")).unwrap().to_owned();
        assert!(uids.split_whitespace().all(|uid| uid == owner.to_string()), "{key}: {uids}");
    }

    // No other user can read or write its files, and the group cannot read secrets.
    let mut found = vec![];
    for top in ["data", "run"] {
        modes(&lab.path().join(top), &mut found);
    }
    assert!(found.iter().all(|(_, mode)| mode & 0o007 == 0), "{found:?}");
    for (path, mode) in [
        (lab.state("web", "root.qcow2"), 0o600),
        (lab.state("web", "seed.iso"), 0o600),
        (lab.state("web", "identity.toml"), 0o600),
        (lab.state("web", ""), 0o750),
        (lab.runtime("web", ""), 0o750),
        (lab.runtime("web", "control.sock"), 0o660),
        (lab.runtime("web", "qmp.sock"), 0o600),
    ] {
        assert_eq!(path.metadata().unwrap().mode() & 0o777, mode, "{}", path.display());
    }

    until("the guest agent answers", || lab.qvm(&["exec", "web", "--", "true"]).status.success());
    assert_eq!(lab.ok(&["exec", "web", "--", "cat", "/proc/sys/kernel/ostype"]), "Linux\n");
    assert!(lab.ok(&["stop", "web"]).contains("guest has shut down"));
    assert_eq!(lab.last_reason("web"), "stopped");
}

#[test]
fn bridge_requires_root_with_a_hint() {
    let Some(lab) = vm("boot.qcow2", "bridge = \"br0\"\n") else { return };
    lab.ok(&["check", "web"]);
    let refusal = lab.refused(&["start", "web"]).without_log();
    if Path::new("/dev/net/tun").exists() {
        refusal.is(ErrorCode::TapDenied, 1).golden("start", "tap-denied");
    } else {
        assert_eq!(refusal.code, ErrorCode::TunMissing);
    }
    assert!(!lab.runtime("web", "record.json").exists(), "a QEMU was written down");
}

#[test]
fn weight_without_cgroup_is_noted() {
    let Some(lab) = vm("boot.qcow2", "cpuWeight = 300\n") else { return };
    lab.ok(&["start", "web"]);
    lab.says("web", "BOOT-GUEST-READY", 1);
    let status = lab.status("web");
    assert_eq!((&status["state"], &status["cpuWeight"]), (&"running".into(), &300.into()));
    let notes = notes_of(&status);
    assert!(notes.contains(&"no-effect cpuWeight".to_owned()), "{notes:?}");
    lab.ok(&["stop", "web"]);
    assert_eq!(lab.last_reason("web"), "stopped");
}

/// A set of capabilities of a process, as a number.
fn capabilities(pid: u64, set: &str) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(&format!("{set}:"))).unwrap();
    u64::from_str_radix(line.trim(), 16).unwrap()
}

#[test]
fn supervisor_keeps_only_needed_capabilities() {
    let Some(image) = guest("boot.qcow2") else { return };
    let kept = qvm::sandbox::capabilities::KEPT.bits();
    let mut lab = Lab::new();
    lab.vm("web", &image, "oomScoreAdjust = -7\n");
    lab.run("web");
    lab.says("web", "BOOT-GUEST-READY", 1);
    let own = capabilities(std::process::id().into(), "CapPrm");
    let supervisor = u64::from(lab.supervisor(0).id());
    let cut = || {
        for (set, left) in
            [("CapPrm", own & kept), ("CapEff", own & kept), ("CapInh", 0), ("CapAmb", 0)]
        {
            assert_eq!(capabilities(supervisor, set), left, "{set}");
        }
        // Only a process with CAP_SETPCAP drops the bounding set, and only there it matters.
        let bounded = own & CapabilitySet::SETPCAP.bits() != 0;
        for pid in [supervisor, lab.status("web")["pid"].as_u64().unwrap()] {
            assert!(!bounded || capabilities(pid, "CapBnd") & !kept == 0, "{pid}");
        }
    };
    cut();
    let void = lab.has_note("web", "no-effect oomScoreAdjust");
    assert_eq!(void, own & CapabilitySet::SYS_RESOURCE.bits() == 0);

    // The program that replaces it has the same capabilities.
    crate::lab::signal(i32::try_from(supervisor).unwrap(), 12);
    until("it is taken over", || lab.log("web").contains(" taken over, pid "));
    lab.wait_state("web", "running");
    cut();
    lab.ok(&["stop", "web"]);
    assert_eq!(lab.last_reason("web"), "stopped");
}

#[test]
fn user_supervisor_has_no_capabilities() {
    let Some(lab) = vm("boot.qcow2", "") else { return };
    lab.ok(&["start", "web"]);
    lab.says("web", "BOOT-GUEST-READY", 1);
    let supervisor = lab.status("web")["supervisorPid"].as_u64().unwrap();
    for set in ["CapPrm", "CapEff", "CapInh", "CapAmb"] {
        assert_eq!(capabilities(supervisor, set), 0, "{set}");
    }
    lab.ok(&["stop", "web"]);
}
