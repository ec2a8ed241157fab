//! Only proof determines whether a VM is running: every kind of uncertainty prevents every change,
//! and the guest keeps running.

use std::{
    fs,
    os::unix::{
        fs::{MetadataExt, PermissionsExt, chown},
        process::CommandExt,
    },
    path::{Path, PathBuf},
    process::Output,
};

use qvm::value::ErrorCode;

use crate::lab::{
    Lab, guest,
    orphaned::{Orphaned, locks},
    runs, signal, until,
};

const HOST: Option<i32> = Some(75);

fn said(output: &Output) -> String {
    let (out, err) = (&output.stdout, &output.stderr);
    String::from_utf8_lossy(out).into_owned() + &String::from_utf8_lossy(err)
}

fn orphaned() -> Option<Orphaned> {
    Orphaned::new("boot-count.qcow2")
}

impl Orphaned {
    fn write(&self, text: &str) {
        fs::write(self.record(), text).unwrap();
    }

    fn changed(&self, text: &str, change: impl FnOnce(&mut serde_json::Value)) -> String {
        let mut record: serde_json::Value = serde_json::from_str(text).unwrap();
        change(&mut record);
        record.to_string()
    }

    /// Checks that the guest runs, and that its disk and its sockets exist.
    fn is_untouched(&self, what: &str) {
        assert!(runs(self.qemu), "{what}: QEMU was killed");
        assert!(self.lab.state("web", "root.qcow2").exists(), "{what}: the disk is gone");
        for socket in ["qmp.sock", "agent.sock", "serial.sock"] {
            assert!(self.lab.runtime("web", socket).exists(), "{what}: {socket} is gone");
        }
    }
}

/// The processes that have a file open, under any name.
fn open_by(file: (u64, u64)) -> Vec<i32> {
    let mut all = vec![];
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        let mut fds = fs::read_dir(entry.path().join("fd")).into_iter().flatten().flatten();
        let is_it =
            |path: PathBuf| fs::metadata(path).is_ok_and(|meta| (meta.dev(), meta.ino()) == file);
        if fds.any(|fd| is_it(fd.path())) {
            all.push(pid);
        }
    }
    all
}

fn id(path: &Path) -> (u64, u64) {
    let meta = fs::metadata(path).unwrap();
    (meta.dev(), meta.ino())
}

/// Only QEMU has each lock open.
fn held_by_qemu_alone(lab: &Lab, when: &str) {
    let qemu = lab.qemu_pid("web");
    for lock in locks(lab, "web") {
        assert_eq!(fs::metadata(&lock).unwrap().mode() & 0o7777, 0o600);
        assert_eq!(open_by(id(&lock)), [qemu], "{when}: {}", lock.display());
    }
}

/// `qvm kill` is the only verb that acts on a VM whose state is unknown; afterward, every verb
/// works.
#[test]
fn kill_makes_an_unknown_vm_usable() {
    let Some(vm) = orphaned() else { return };
    // The runtime directory was emptied: the lock beside the disks is still held.
    let sockets = fs::read_dir(vm.lab.runtime("web", "")).unwrap();
    sockets.for_each(|entry| fs::remove_file(entry.unwrap().path()).unwrap());
    for words in [&["start", "web"][..], &["rm", "web", "--disks", "--yes"]] {
        let output = vm.lab.qvm(words);
        assert_eq!(output.status.code(), HOST, "{words:?}: {}", said(&output));
        assert!(runs(vm.qemu) && vm.lab.state("web", "root.qcow2").exists());
    }
    let kill = vm.lab.qvm(&["kill", "web"]);
    assert!(kill.status.success(), "{}", said(&kill));
    until("QEMU is gone", || !runs(vm.qemu));
    assert_eq!(vm.lab.status("web")["state"], "stopped");
    assert_eq!(vm.lab.last_reason("web"), "killed");
    vm.lab.ok(&["start", "web"]);
    held_by_qemu_alone(&vm.lab, "after kill");
    vm.lab.ok(&["stop", "web"]);
    vm.lab.ok(&["rm", "web", "--disks", "--yes"]);
    assert!(!vm.lab.state("web", "").exists());
}

#[test]
fn kill_ends_a_qemu_without_supervisor() {
    let Some(vm) = orphaned() else { return };
    assert_eq!(vm.lab.status("web")["state"], "running");
    vm.lab.ok(&["kill", "web"]);
    assert!(!runs(vm.qemu));
    for file in ["record.json", "qmp.sock"] {
        assert!(!vm.lab.runtime("web", file).exists(), "{file} is left");
    }
    assert_eq!(vm.lab.status("web")["state"], "stopped");
    assert_eq!(vm.lab.last_reason("web"), "killed");
    assert_eq!(vm.lab.qvm(&["kill", "web"]).status.code(), Some(3));
    vm.lab.ok(&["start", "web"]);
    vm.lab.ok(&["stop", "web"]);
}

/// systemd starts the next supervisor soon after a crash: the stop is sent to it, so that its unit
/// stays stopped.
#[test]
fn kill_asks_the_next_supervisor() {
    let Some(mut vm) = orphaned() else { return };
    let lab = &vm.lab;
    let kill = std::thread::scope(|scope| {
        let mut kill = lab.command(&["kill", "web"]).spawn().unwrap();
        let next = scope.spawn(|| lab.command(&["run", "web"]).status().unwrap());
        assert_eq!(next.join().unwrap().code(), Some(0), "the supervisor was asked");
        kill.wait().unwrap()
    });
    assert!(kill.success());
    assert!(!runs(vm.qemu));
    assert_eq!(vm.lab.last_reason("web"), "killed");
    vm.qemu = i32::MAX;
}

/// A canceled adoption would leave QEMU running: a kill waits until QEMU is adopted.
#[test]
fn kill_during_an_adoption_ends_qemu() {
    let Some(mut vm) = orphaned() else { return };
    // QEMU's monitor does not answer.
    signal(vm.qemu, 19);
    let supervisor = vm.lab.run("web");
    until("the supervisor answers", || !vm.lab.status("web")["supervisorPid"].is_null());
    let mut kill = vm.lab.command(&["kill", "web"]).spawn().unwrap();
    let sockets = |pid: u32| {
        let fds = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        let links = fds.filter_map(|fd| fs::read_link(fd.path()).ok());
        links.filter(|link| link.to_string_lossy().starts_with("socket:")).count()
    };
    // One connection for the events, one for the command.
    until("the kill has asked", || sockets(kill.id()) >= 2);
    assert_eq!(vm.lab.status("web")["supervisorPid"], vm.lab.supervisor(supervisor).id());
    signal(vm.qemu, 18);
    assert!(kill.wait().unwrap().success());
    assert_eq!(vm.lab.exit_code(supervisor), Some(0), "{}", vm.lab.log("web"));
    assert!(!runs(vm.qemu));
    assert_eq!(vm.lab.last_reason("web"), "killed");
}

/// A supervisor that is stopped during an adoption ends without QEMU.
#[test]
fn stop_and_kill_during_adoption_are_truthful() {
    let Some(mut vm) = orphaned() else { return };
    let qemu = vm.qemu;
    // A QEMU process that does not answer makes the adoption last.
    signal(qemu, nix::libc::SIGSTOP);
    let adopts = |lab: &mut Lab| {
        let supervisor = lab.run("web");
        until("the supervisor answers", || !lab.status("web")["supervisorPid"].is_null());
        supervisor
    };
    let next = adopts(&mut vm.lab);
    let stop = vm.lab.qvm(&["stop", "web"]);
    assert!(said(&stop).contains(&qemu.to_string()), "{}", said(&stop));
    let refusal = vm.lab.refusal(&stop);
    refusal.is(ErrorCode::NoSupervisor, 1).golden("start", "stop-of-a-silent-adoption");
    assert!(runs(qemu));
    assert_eq!(vm.lab.exit_code(next), Some(0));

    let next = adopts(&mut vm.lab);
    let refusal = vm.lab.refused(&["stop", "--no-wait", "web"]);
    refusal.is(ErrorCode::QemuLeft, 1).golden("start", "qemu-left");
    assert!(runs(qemu));
    assert_eq!(vm.lab.exit_code(next), Some(0));

    let next = adopts(&mut vm.lab);
    vm.lab.ok(&["kill", "web"]);
    assert!(!runs(qemu), "QEMU is running after `qvm kill`");
    vm.qemu = i32::MAX;
    assert_eq!(vm.lab.exit_code(next), Some(0));
    assert_eq!(vm.lab.last_reason("web"), "killed");
}

#[test]
fn kill_spares_processes_that_are_not_qemu() {
    let Some(vm) = orphaned() else { return };
    vm.write("{");
    // A process that has the lock open, and another one with the arguments.
    let [lock, _] = locks(&vm.lab, "web");
    let reader = fs::File::open(&lock).unwrap();
    let mut other = std::process::Command::new("sh")
        .args(["-c", "read line; :", "x", "-name", "web", "-uuid", "x", "-add-fd"])
        // It must not look like a QEMU of another test's VM.
        .arg("fd=40,set=40,opaque=root /elsewhere/vms/web/root.raw")
        .stdin(std::process::Stdio::piped())
        .stdout(reader)
        .spawn()
        .unwrap();
    vm.lab.ok(&["kill", "web"]);
    assert!(other.try_wait().unwrap().is_none(), "another process was killed");
    assert!(!runs(vm.qemu));
    drop(other.stdin.take());
    other.wait().unwrap();
    // A QEMU without a lock is not proven to belong to the VM.
    vm.lab.ok(&["start", "web"]);
    vm.lab.ok(&["stop", "web"]);
    assert_eq!(vm.lab.qvm(&["kill", "web"]).status.code(), Some(3));
}

#[test]
fn newer_record_is_adopted_and_kept() {
    let Some(vm) = orphaned() else { return };
    let text = fs::read_to_string(vm.record()).unwrap();
    vm.write(&vm.changed(&text, |record| {
        record["version"] = 99.into();
        record["future"] = serde_json::json!({ "key": [1, 2] });
        record["isolation"]["layers"].as_array_mut().unwrap().push("memory-keys".into());
        record["isolation"]["mode"] = "paranoid".into();
    }));
    assert_eq!(vm.lab.status("web")["state"], "running");
    let rm = vm.lab.qvm(&["rm", "web", "--disks", "--yes"]);
    assert_eq!(rm.status.code(), Some(1), "{}", said(&rm));
    vm.is_untouched("rm");
    vm.lab.ok(&["start", "web"]);
    let status = vm.lab.status("web");
    assert_eq!(status["pid"], vm.qemu);
    assert!(status["isolation"]["layers"].to_string().contains("memory-keys"), "{status}");
    // A rewrite of the record keeps the field.
    vm.lab.ok(&["pause", "web"]);
    vm.lab.ok(&["resume", "web"]);
    let record: serde_json::Value =
        serde_json::from_slice(&fs::read(vm.record()).unwrap()).unwrap();
    assert_eq!((&record["version"], &record["future"]["key"][1]), (&99.into(), &2.into()));
    assert_eq!(record["isolation"]["mode"], "paranoid");
    let rm = vm.lab.qvm(&["rm", "web", "--disks", "--yes"]);
    assert_eq!(rm.status.code(), Some(1), "{}", said(&rm));
    vm.lab.ok(&["stop", "web"]);
}

/// Without the guest, or after a reboot of the host, a truncated record prevents nothing.
#[test]
fn unreadable_record_without_qemu_is_replaced() {
    let Some(vm) = orphaned() else { return };
    vm.write("{\"pid\":");
    signal(vm.qemu, 9);
    until("QEMU is gone", || !runs(vm.qemu));
    until("the VM is stopped", || vm.lab.status("web")["state"] == "stopped");
    vm.lab.ok(&["start", "web"]);
    vm.lab.ok(&["stop", "web"]);
}

#[test]
fn qemu_alone_holds_the_locks() {
    let Some(image) = guest("boot-count.qcow2") else { return };
    let mut lab = Lab::new();
    lab.vm("web", &image, "");
    let index = lab.run("web");
    lab.wait_state("web", "running");
    held_by_qemu_alone(&lab, "after the start");
    // Replaced in place.
    let supervisor = i32::try_from(lab.supervisor(index).id()).unwrap();
    signal(supervisor, 12);
    until("the supervisor is replaced", || lab.log("web").contains("taken over"));
    lab.wait_state("web", "running");
    held_by_qemu_alone(&lab, "after re-execution");
    // Adopted, while qemu-img creates a disk that is then plugged in.
    signal(supervisor, 9);
    lab.supervisor(index).wait().unwrap();
    held_by_qemu_alone(&lab, "without a supervisor");
    lab.run("web");
    lab.wait_state("web", "running");
    held_by_qemu_alone(&lab, "after adoption");
    lab.vm("web", &image, "[disk.data]\nsize = \"1G\"\n");
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                for lock in locks(&lab, "web") {
                    let all = open_by(id(&lock));
                    // A prober has it open for a moment.
                    let helper = all.iter().find(|pid| {
                        let name = fs::read_to_string(format!("/proc/{pid}/comm"));
                        name.is_ok_and(|name| name.starts_with("qemu-img"))
                    });
                    assert_eq!(helper, None);
                }
            }
        });
        lab.ok(&["apply", "web"]);
        done.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    held_by_qemu_alone(&lab, "after hot-plug");
    // A new QEMU has new locks.
    let before = lab.qemu_pid("web");
    lab.ok(&["restart", "web"]);
    assert_ne!(lab.qemu_pid("web"), before);
    held_by_qemu_alone(&lab, "after restart");
    lab.ok(&["suspend", "web"]);
    for lock in locks(&lab, "web") {
        assert_eq!(open_by(id(&lock)), Vec::<i32>::new());
    }
    lab.ok(&["start", "web"]);
    held_by_qemu_alone(&lab, "after restore");
    lab.ok(&["stop", "web"]);
}

/// A QEMU of a qvm without locks: adopted by its record; without one, its command line shows its
/// VM.
#[test]
fn qemu_without_locks_is_found_by_its_command_line() {
    let Some(vm) = orphaned() else { return };
    // The files were replaced, so these locks have no holder.
    for lock in locks(&vm.lab, "web") {
        fs::remove_file(lock).unwrap();
    }
    let text = fs::read_to_string(vm.record()).unwrap();
    let older = vm.changed(&text, |record| {
        record.as_object_mut().unwrap().remove("version");
    });
    vm.write("");
    for words in [&["start", "web"][..], &["rm", "web", "--disks", "--yes"], &["kill", "web"]] {
        let output = vm.lab.qvm(words);
        assert_eq!(output.status.code(), HOST, "{words:?}: {}", said(&output));
        vm.is_untouched("no locks");
        assert!(said(&output).contains(&vm.qemu.to_string()), "{}", said(&output));
    }
    assert_eq!(vm.lab.status("web")["state"], "unknown");
    // A VM of the same name in other directories is another one.
    let elsewhere = Lab::new();
    elsewhere.vm("web", &guest("boot-count.qcow2").unwrap(), "");
    assert_eq!(elsewhere.status("web")["state"], "stopped");
    vm.write(&older);
    vm.lab.ok(&["start", "web"]);
    assert_eq!(vm.lab.status("web")["pid"], vm.qemu);
    vm.lab.ok(&["stop", "web"]);
}

/// The UID and GID of Debian's `nobody`.
const NOBODY: u32 = 65534;
/// The group `qvm`; no account of this host is in it.
const GROUP: u32 = 54_321;

fn as_member(lab: &Lab, words: &[&str]) -> Output {
    let mut command = lab.command(words);
    // Without root's groups.
    command.uid(NOBODY).gid(GROUP).output().unwrap()
}

#[test]
fn member_of_the_group_sees_stopped_and_unknown() {
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: only root can change its UID");
        return;
    }
    let Some(image) = guest("boot-count.qcow2") else { return };
    let mut lab = Lab::new();
    lab.open_to_others();
    for above in [lab.runtime("web", ""), lab.state("web", "")] {
        // vms/ is created in the state directory, which belongs to the group.
        for dir in above.ancestors().skip(1).take_while(|dir| *dir != lab.path()) {
            fs::create_dir_all(dir).unwrap();
            chown(dir, None, Some(GROUP)).unwrap();
            fs::set_permissions(dir, fs::Permissions::from_mode(0o2750)).unwrap();
        }
    }
    lab.vm("web", &image, "");
    let state = |lab: &Lab| {
        let output = as_member(lab, &["status", "--json", "web"]);
        let all: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        all[0]["state"].as_str().unwrap().to_owned()
    };
    let supervisor = lab.run("web");
    lab.wait_state("web", "running");
    assert_eq!(state(&lab), "running");
    let qemu = lab.qemu_pid("web");
    lab.supervisor(supervisor).kill().unwrap();
    lab.supervisor(supervisor).wait().unwrap();
    let vm = Orphaned { lab, qemu };
    assert_eq!(state(&vm.lab), "running");
    let text = fs::read_to_string(vm.record()).unwrap();
    vm.write("");
    assert_eq!(state(&vm.lab), "unknown");
    vm.write(&text);
    // A member may not read the record.
    fs::set_permissions(vm.record(), fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(state(&vm.lab), "unknown");
    for words in [
        &["start", "web"][..],
        &["stop", "web"],
        &["rm", "web", "--disks", "--yes"],
        &["rename", "web", "www"],
        &["clone", "web", "copy"],
        &["wait", "web", "--for", "stopped", "--timeout", "5"],
    ] {
        let output = as_member(&vm.lab, words);
        // Some verbs need the supervisor's lock first, which a member may not open.
        let code = output.status.code();
        assert!([Some(1), HOST].contains(&code), "{words:?}: {code:?}: {}", said(&output));
        vm.is_untouched(&format!("{words:?}"));
    }
    fs::set_permissions(vm.record(), fs::Permissions::from_mode(0o640)).unwrap();
    vm.lab.ok(&["start", "web"]);
    vm.lab.ok(&["stop", "web"]);
    // The lock files exist, but cannot be opened.
    assert!(locks(&vm.lab, "web").iter().all(|lock| lock.exists()));
    assert_eq!(state(&vm.lab), "stopped");
}

#[test]
fn list_in_a_loop_fails_no_start() {
    let Some(image) = guest("boot-count.qcow2") else { return };
    let lab = Lab::new();
    lab.vm("web", &image, "");
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                let output = lab.qvm(&["list", "--json"]);
                assert!(output.status.success());
                assert!(!said(&output).contains("unknown"), "{}", said(&output));
            }
        });
        for _ in 0..6 {
            lab.ok(&["start", "web"]);
            lab.ok(&["kill", "web"]);
        }
        done.store(true, std::sync::atomic::Ordering::Relaxed);
    });
}

/// The same VM with another name and as a copy: the locks are not transferred.
#[test]
fn copies_and_renamed_vms_have_own_locks() {
    let Some(image) = guest("boot-count.qcow2") else { return };
    let lab = Lab::new();
    lab.vm("web", &image, "");
    lab.ok(&["start", "web"]);
    lab.ok(&["stop", "web"]);
    let before = id(&locks(&lab, "web")[1]);
    lab.ok(&["clone", "web", "copy"]);
    let copied: Vec<String> = fs::read_dir(lab.state("copy", ""))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    assert!(!copied.iter().any(|name| name.ends_with(".lock")), "{copied:?}");
    lab.ok(&["rename", "web", "www"]);
    assert_eq!(id(&locks(&lab, "www")[1]), before);
    let archive = lab.path().join("www.tar");
    lab.ok(&["export", "www", archive.to_str().unwrap()]);
    let listed = std::process::Command::new("tar").arg("tf").arg(&archive).output().unwrap();
    assert!(!said(&listed).contains(".lock"), "{}", said(&listed));
    lab.ok(&["start", "www"]);
    let refused = lab.qvm(&["rename", "www", "web"]);
    assert_eq!(refused.status.code(), Some(1), "{}", said(&refused));
    lab.ok(&["kill", "www"]);
}
