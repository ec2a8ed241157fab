//! A guest's state saved and restored, on real QEMU: the counting guest continues with its last
//! number.

use std::fs;

use qvm::value::ErrorCode;

use crate::lab::{Lab, guest, runs, signal, until};

/// The last integer that the guest has printed.
fn counted(lab: &Lab) -> u64 {
    let console = lab.console("web");
    let whole = &console[..console.rfind('\n').unwrap_or(0)];
    let last = whole.lines().rev().find_map(|line| line.trim().rsplit(' ').next()?.parse().ok());
    last.unwrap_or(0)
}

fn boots(lab: &Lab) -> usize {
    lab.console("web").matches("BOOT-GUEST-READY").count()
}

/// A guest that counts, beyond 20.
fn counting(more: &str) -> Option<Lab> {
    let image = guest("boot-count.qcow2")?;
    let lab = Lab::new();
    lab.vm("web", &image, more);
    lab.ok(&["start", "web"]);
    goes_on(&lab, 20);
    Some(lab)
}

fn goes_on(lab: &Lab, from: u64) {
    until(&format!("it counts on from {from}"), || counted(lab) > from);
}

#[test]
fn saved_state_is_restored_once() {
    let Some(lab) = counting("") else { return };
    let said = lab.ok(&["suspend", "web"]);
    assert!(said.contains("web: saving the guest's state, it has 120 s\n"), "{said}");
    assert!(
        said.ends_with("web: the guest's state was saved, requested by `qvm suspend`\n"),
        "{said}"
    );
    let status = lab.status("web");
    assert_eq!(status["state"], "stopped");
    assert_eq!(status["lastStop"]["reason"], "suspended");
    assert!(lab.has_note("web", "saved-state"), "{status}");
    let state = lab.state("web", "saved.state");
    let mode =
        std::os::unix::fs::PermissionsExt::mode(&fs::metadata(&state).unwrap().permissions());
    assert_eq!(mode & 0o077, 0, "{mode:o}");
    let saved = counted(&lab);

    lab.ok(&["start", "web"]);
    goes_on(&lab, saved);
    assert_eq!(boots(&lab), 1);
    assert!(!state.exists());
    assert_eq!(lab.notes("web"), [""; 0]);

    // After a kill it boots: the saved state was used before.
    lab.ok(&["kill", "web"]);
    lab.ok(&["start", "web"]);
    lab.says("web", "BOOT-GUEST-READY", 2);

    // It can be suspended again, and stopped afterward.
    goes_on(&lab, 20);
    lab.ok(&["suspend", "web"]);
    lab.ok(&["start", "web"]);
    assert_eq!(boots(&lab), 2);
    lab.ok(&["stop", "web"]);
    assert_eq!(lab.last_reason("web"), "stopped");
}

#[test]
fn pending_changes_wait_for_a_boot() {
    let Some(lab) = counting("vcpu = 1\n") else { return };
    lab.ok(&["suspend", "web"]);
    let saved = counted(&lab);
    let image = guest("boot-count.qcow2").unwrap();
    lab.vm("web", &image, "vcpu = 2\nmem = \"128M\"\ndiskSizeG = 1\nshutdownTimeoutSec = 77\n");
    lab.ok(&["start", "web"]);
    goes_on(&lab, saved);
    let status = lab.status("web");
    assert_eq!((&status["vcpu"], &status["memBytes"]), (&1.into(), &(64 << 20).into()));
    let pending = status["pending"].as_array().unwrap();
    let keys: Vec<&str> = pending.iter().map(|p| p["key"].as_str().unwrap()).collect();
    // Immediate keys are applied; the disk was not changed.
    assert_eq!(keys, ["diskSizeG", "mem", "vcpu"]);
    lab.ok(&["suspend", "web"]);
    // A boot uses the complete VM file.
    lab.ok(&["start", "--discard-state", "web"]);
    lab.says("web", "BOOT-GUEST-READY", 2);
    let status = lab.status("web");
    assert_eq!((&status["vcpu"], &status["pending"]), (&2.into(), &serde_json::json!([])));
    lab.ok(&["kill", "web"]);
}

#[test]
fn paused_guest_stays_paused() {
    let Some(lab) = counting("") else { return };
    lab.ok(&["pause", "web"]);
    lab.wait_state("web", "paused");
    lab.ok(&["suspend", "web"]);
    let saved = counted(&lab);
    lab.ok(&["start", "web"]);
    lab.wait_state("web", "paused");
    assert_eq!(counted(&lab), saved);
    lab.ok(&["resume", "web"]);
    goes_on(&lab, saved);
    lab.ok(&["kill", "web"]);
}

#[test]
fn guest_clock_is_set_after_resume() {
    let Some(lab) = Lab::tiny("plain", "", "") else { return };
    let behind = || -> i64 {
        let guest: i64 = lab.ok(&["exec", "web", "--", "date", "+%s"]).trim().parse().unwrap();
        jiff::Timestamp::now().as_second() - guest
    };
    // An hour ago by the guest's clock, which may be about to be set.
    let an_hour_ago = format!("@{}", jiff::Timestamp::now().as_second() - 3600);
    until("its clock is behind", || {
        lab.ok(&["exec", "web", "--", "date", "-s", &an_hour_ago]);
        behind() > 3000
    });
    lab.ok(&["suspend", "web"]);
    lab.ok(&["start", "web"]);
    assert_eq!(lab.status("web")["ready"], "yes");
    until("its clock is set", || behind() < 60);
    lab.ok(&["kill", "web"]);
}

#[test]
fn refused_state_is_quarantined_and_guest_boots() {
    for damage in [0, 1] {
        let Some(lab) = counting("") else { return };
        lab.ok(&["suspend", "web"]);
        let state = lab.state("web", "saved.state");
        let mut bytes = fs::read(&state).unwrap();
        match damage {
            0 => bytes[3] = b'?',
            _ => bytes.truncate(bytes.len() / 2),
        }
        fs::write(&state, &bytes).unwrap();
        lab.ok(&["start", "web"]);
        lab.says("web", "BOOT-GUEST-READY", 2);
        assert_eq!(lab.notes("web"), ["saved-state-unusable"]);
        assert!(!state.exists());
        assert_eq!(fs::read(lab.state("web", "unusable.state")).unwrap(), bytes);
        lab.ok(&["kill", "web"]);
    }
}

#[test]
fn unsavable_guest_keeps_running() {
    let Some(lab) = counting("") else { return };
    // A directory with the final name of the state file.
    fs::create_dir_all(lab.state("web", "saved.state/in-the-way")).unwrap();
    let refusal = lab.refused(&["suspend", "web"]);
    refusal.is(ErrorCode::NotSuspended, 1).golden("supervisor", "not-suspended");
    lab.wait_state("web", "running");
    goes_on(&lab, counted(&lab));
    fs::remove_dir_all(lab.state("web", "saved.state")).unwrap();
    lab.ok(&["stop", "web"]);
}

#[test]
fn crash_during_save_keeps_the_guest() {
    let Some(image) = guest("boot-count.qcow2") else { return };
    let mut lab = Lab::new();
    lab.vm("web", &image, "mem = \"512M\"\n");
    let mut one = lab.run("web");
    lab.says("web", "BOOT-GUEST-READY", 1);
    for round in 0..6_u64 {
        goes_on(&lab, counted(&lab));
        let mut suspend = lab.command(&["suspend", "web"]).spawn().unwrap();
        // At different times: before, during and after QEMU's transfer.
        let record = lab.runtime("web", "record.json");
        until("it is begun, or over", || {
            !fs::read_to_string(&record).is_ok_and(|text| {
                !text.contains("\"saving\": true") && !text.contains("\"saving\": false")
            })
        });
        std::thread::sleep(std::time::Duration::from_millis(round * 20));
        let _ = lab.supervisor(one).kill();
        lab.supervisor(one).wait().unwrap();
        let _ = suspend.wait();
        let last = counted(&lab);
        one = lab.run("web");
        // If QEMU had received `quit`, the guest is suspended: the next start restores it.
        let ended = lab.until_guest_or_exit("web", one);
        if ended {
            assert_eq!(lab.exit_code(one), Some(0), "round {round}: {}", lab.log("web"));
            assert!(lab.state("web", "saved.state").exists(), "round {round}");
            one = lab.run("web");
        }
        lab.wait_state("web", "running");
        goes_on(&lab, last);
        assert_eq!(boots(&lab), 1, "round {round}");
        assert!(!lab.state("web", "saved.state").exists());
    }
    lab.ok(&["stop", "web"]);
    assert_eq!(lab.exit_code(one), Some(0));
}

#[test]
fn crash_during_restore_keeps_the_guest() {
    let Some(lab) = counting("mem = \"512M\"\n") else { return };
    let mut lab = lab;
    for round in 0..6_u64 {
        lab.ok(&["suspend", "web"]);
        let saved = counted(&lab);
        let one = lab.run("web");
        until("QEMU is started", || lab.runtime("web", "record.json").exists());
        std::thread::sleep(std::time::Duration::from_millis(round * 15));
        lab.supervisor(one).kill().unwrap();
        lab.supervisor(one).wait().unwrap();
        lab.run("web");
        lab.wait_state("web", "running");
        goes_on(&lab, saved);
        assert_eq!(boots(&lab), 1, "round {round}");
        assert!(!lab.state("web", "saved.state").exists());
    }
    lab.ok(&["kill", "web"]);
}

#[test]
fn stop_during_save_shuts_down() {
    let Some(lab) = counting("mem = \"512M\"\n") else { return };
    let pid = lab.qemu_pid("web");
    // A stopped QEMU takes as long as necessary.
    signal(pid, 19);
    let mut suspend = lab.command(&["suspend", "web"]).spawn().unwrap();
    lab.wait_state("web", "stopping");
    let mut kill = lab.command(&["kill", "web"]).spawn().unwrap();
    until("it is canceled", || suspend.try_wait().unwrap().is_some());
    assert_eq!(suspend.wait().unwrap().code(), Some(1));
    signal(pid, 18);
    assert!(kill.wait().unwrap().success());
    until("QEMU is gone", || !runs(pid));
    assert_eq!(lab.last_reason("web"), "killed");
    assert!(!lab.state("web", "saved.state").exists());
}
