//! The resources of a VM on real QEMU: the CPUs of its vCPUs, and its OOM score. Weights and limits
//! need a cgroup, and are tested in a host VM.

use std::{collections::BTreeMap, fs};

use crate::lab::{Lab, guest, until};

/// The permitted CPUs of the vCPU threads, by vCPU.
fn pinned(lab: &Lab) -> BTreeMap<String, String> {
    let tasks = format!("/proc/{}/task", lab.qemu_pid("web"));
    let mut found = BTreeMap::new();
    for task in fs::read_dir(tasks).unwrap().flatten() {
        let read = |file: &str| fs::read_to_string(task.path().join(file)).unwrap_or_default();
        let status = read("status");
        let allowed = status.lines().find_map(|l| l.strip_prefix("Cpus_allowed_list:\t"));
        if read("comm").starts_with("CPU ") {
            found.insert(read("comm").trim().to_owned(), allowed.unwrap_or_default().to_owned());
        }
    }
    found
}

fn all(lab: &Lab, cpus: &str) -> bool {
    let pinned = pinned(lab);
    pinned.len() == 2 && pinned.values().all(|allowed| allowed == cpus)
}

fn host_cpus() -> String {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    status.lines().find_map(|l| l.strip_prefix("Cpus_allowed_list:\t")).unwrap().to_owned()
}

fn oom_score(pid: i32) -> String {
    fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap().trim().to_owned()
}

fn write(lab: &Lab, more: &str) {
    lab.vm("web", &guest("boot-count.qcow2").unwrap(), &format!("vcpu = 2\n{more}"));
}

#[test]
fn vcpu_pinning_follows_the_vm_file() {
    if guest("boot-count.qcow2").is_none() {
        return;
    }
    let mut lab = Lab::new();
    write(&lab, "cpu.pin = [\"0\"]\n");
    let first = lab.run("web");
    until("both vCPUs are on the first CPU", || {
        lab.runtime("web", "record.json").exists() && all(&lab, "0")
    });
    // Other threads of QEMU are not pinned.
    let main = fs::read_to_string(format!("/proc/{}/status", lab.qemu_pid("web"))).unwrap();
    assert!(main.contains(&format!("Cpus_allowed_list:\t{}\n", host_cpus())));
    lab.wait_state("web", "running");

    write(&lab, "cpu.pin = [\"0-1023\", \"0\"]\n");
    lab.ok(&["reload", "web"]);
    until("one of them is free", || {
        let pinned = pinned(&lab);
        pinned.len() == 2 && pinned.values().filter(|allowed| *allowed == "0").count() == 1
    });
    assert_eq!(lab.status("web")["pending"], serde_json::json!([]));

    write(&lab, "");
    lab.ok(&["reload", "web"]);
    until("both are free", || all(&lab, &host_cpus()));

    // Changes of a reload persist through supervisors.
    write(&lab, "cpu.pin = [\"0\"]\noomScoreAdjust = 300\n");
    lab.ok(&["reload", "web"]);
    until("both are bound again", || all(&lab, "0"));
    lab.supervisor(first).kill().unwrap();
    lab.supervisor(first).wait().unwrap();
    write(&lab, "cpu.pin = [\"0-1023\"]\n");
    lab.run("web");
    lab.wait_state("web", "running");
    until("what is not applied yet is pending", || {
        let pending = lab.status("web")["pending"].to_string();
        pending.contains("cpu.pin") && pending.contains("oomScoreAdjust")
    });
    assert!(all(&lab, "0"));
    assert_eq!(oom_score(lab.qemu_pid("web")), "300");
    lab.ok(&["kill", "web"]);
}

#[test]
fn missing_cpu_is_reported() {
    if guest("boot-count.qcow2").is_none() {
        return;
    }
    let lab = Lab::new();
    write(&lab, "cpu.pin = [\"0\", \"1023\"]\n");
    lab.ok(&["start", "web"]);
    until("it is noted", || lab.has_note("web", "no-effect cpu.pin"));
    lab.says("web", "1", 1);
    write(&lab, "cpu.pin = [\"0\"]\n");
    lab.ok(&["reload", "web"]);
    until("the note is removed", || !lab.has_note("web", "no-effect cpu.pin"));
    lab.ok(&["kill", "web"]);
}

#[test]
fn oom_score_is_set_for_qemu_only() {
    if guest("boot-count.qcow2").is_none() {
        return;
    }
    let lab = Lab::new();
    write(&lab, "oomScoreAdjust = 700\n");
    lab.ok(&["start", "web"]);
    let status = lab.status("web");
    let supervisor = i32::try_from(status["supervisorPid"].as_i64().unwrap()).unwrap();
    let own = oom_score(i32::try_from(std::process::id()).unwrap());
    assert_eq!(oom_score(lab.qemu_pid("web")), "700");
    assert_eq!(oom_score(supervisor), own);
    write(&lab, "");
    lab.ok(&["reload", "web"]);
    assert_eq!(oom_score(lab.qemu_pid("web")), own);
    lab.ok(&["kill", "web"]);
}
