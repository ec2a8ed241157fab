//! Hung storage, on real QEMU: its report, and that no end waits for it.

use std::{
    fs,
    path::PathBuf,
    process::Output,
    time::{Duration, Instant},
};

use crate::lab::{
    Lab, guest,
    hanging::{Hanging, Storage},
    runs, signal, until,
};

const SIGTERM: i32 = 15;
const SIGUSR2: i32 = 12;
/// The time limit of a status; the best of several attempts counts, because other tests run in
/// parallel.
const STATUS_LIMIT: Duration = Duration::from_millis(100);

/// The directory of a VM on the hung storage.
#[derive(Clone, Copy)]
enum Of {
    State,
    VmFile,
}

/// A running VM, and the storage of one of its directories.
fn vm(of: Of, image: &str, more: &str) -> Option<(Lab, Hanging, usize)> {
    let image = guest(image)?;
    let mut lab = Lab::new();
    lab.mounts()?;
    let at = lab.path().join(match of {
        Of::State => "s",
        Of::VmFile => "c",
    });
    let below = lab.path().join("below");
    if let Of::VmFile = of {
        fs::create_dir_all(below.join("vms")).unwrap();
    }
    let Some(storage) = Hanging::mount(lab.mounts.as_ref().unwrap(), &at, &below) else {
        assert!(!crate::lab::required("fuse"), "no /dev/fuse");
        println!("skipped: no /dev/fuse");
        return None;
    };
    lab.vm("web", &image, more);
    if let Of::VmFile = of {
        fs::rename(lab.file("web"), storage.past("vms/web.toml")).unwrap();
    }
    let one = lab.run("web");
    lab.wait_state("web", "running");
    Some((lab, storage, one))
}

/// The time that the supervisor needs for its status, by its socket.
fn status_takes(lab: &Lab) -> Duration {
    let socket = lab.runtime("web", "control.sock");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let begun = Instant::now();
        let mut client = qvm::control::client::Client::connect(&socket).await.unwrap();
        client.status(Duration::from_secs(60)).await.unwrap();
        begun.elapsed()
    })
}

/// Checks that the supervisor and `qvm status` report the status in time.
fn answers(lab: &Lab, state: &str) {
    let best = (0..10).map(|_| status_takes(lab)).min().unwrap();
    assert!(best < STATUS_LIMIT, "a status takes {best:?}");
    println!("a status takes {best:?}");
    assert_eq!(lab.status("web")["state"], state);
}

/// Waits for a state without reading the console log, which is on the hung storage.
fn reaches(lab: &Lab, state: &str) {
    until(state, || lab.status("web")["state"] == state);
}

/// Lets the waiting operations reach the storage: that is not visible from outside.
fn hang(storage: &Hanging, how: Storage) {
    storage.is(how);
    std::thread::sleep(Duration::from_millis(300));
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Some seconds of output have arrived, according to the lost bytes.
fn loses_output(lab: &Lab) {
    until("output is lost", || lab.has_note("web", "console-output-lost"));
}

#[test]
fn hung_state_directory_counts_lost_output() {
    let Some((lab, storage, _one)) = vm(Of::State, "boot-flood.qcow2", "") else { return };
    let log = storage.past("vms/web/console.log");
    until("output", || fs::metadata(&log).is_ok_and(|found| found.len() > 0));
    hang(&storage, Storage::Hangs);
    loses_output(&lab);
    answers(&lab, "running");
    lab.ok(&["pause", "web"]);
    reaches(&lab, "paused");
    lab.ok(&["resume", "web"]);
    reaches(&lab, "running");
    storage.is(Storage::Answers);
    let told = || {
        let older = fs::read_to_string(storage.past("vms/web/console.log.1")).unwrap_or_default();
        let both = fs::read(&log).map(|log| String::from_utf8_lossy(&log).into_owned() + &older);
        both.is_ok_and(|text| text.contains("bytes were not logged]"))
            || lab.log("web").contains("bytes of console output were not logged")
    };
    until("the log reports lost output", told);
    lab.ok(&["kill", "web"]);
}

#[test]
fn stop_ladder_ends_while_state_directory_hangs() {
    let more = "shutdownTimeoutSec = 2\n";
    let Some((mut lab, storage, one)) = vm(Of::State, "boot-deaf.qcow2", more) else { return };
    let qemu = lab.qemu_pid("web");
    hang(&storage, Storage::Hangs);
    signal(lab.supervisor(one).id().cast_signed(), SIGTERM);
    reaches(&lab, "stopping");
    answers(&lab, "stopping");
    assert_eq!(lab.exit_code(one), Some(0), "{}", lab.log("web"));
    assert!(!runs(qemu));
    assert!(!lab.runtime("web", "record.json").exists());
}

#[test]
fn kill_works_while_a_directory_hangs() {
    for of in [Of::State, Of::VmFile] {
        let Some((mut lab, storage, one)) = vm(of, "boot-deaf.qcow2", "") else { return };
        let qemu = lab.qemu_pid("web");
        hang(&storage, Storage::Hangs);
        let killed = lab.qvm(&["kill", "web"]);
        assert!(killed.status.success(), "{}\n{}", said(&killed), lab.log("web"));
        assert_eq!(lab.exit_code(one), Some(0), "{}", lab.log("web"));
        assert!(!runs(qemu));
    }
}

/// The VM to force off is found among all QEMU processes, one of which has files on hung storage.
#[test]
fn unknown_vm_is_killed_beside_hung_storage() {
    let Some((lab, storage, _one)) = vm(Of::State, "boot-flood.qcow2", "") else { return };
    let mut other = Lab::new();
    other.vm("other", &guest("boot-deaf.qcow2").unwrap(), "");
    let two = other.run("other");
    other.wait_state("other", "running");
    let qemu = other.qemu_pid("other");
    other.supervisor(two).kill().unwrap();
    other.supervisor(two).wait().unwrap();
    fs::write(other.runtime("other", "record.json"), "").unwrap();
    hang(&storage, Storage::Hangs);
    loses_output(&lab);
    let mut kill = other.command(&["kill", "other"]).spawn().unwrap();
    let mut code = None;
    let began = Instant::now();
    while code.is_none() && began.elapsed() < crate::lab::LONG {
        code = kill.try_wait().unwrap();
        std::thread::sleep(Duration::from_millis(10));
    }
    // Before the assertion: a command that hangs, and a QEMU without a readable record.
    storage.is(Storage::Answers);
    let _ = kill.kill();
    kill.wait().unwrap();
    let killed = !runs(qemu);
    if !killed {
        signal(qemu, 9);
    }
    assert!(code.is_some_and(|code| code.success()) && killed, "{code:?}");
    lab.ok(&["kill", "web"]);
}

#[test]
fn vm_file_hangs_and_a_reload_is_refused() {
    let more = "shutdownTimeoutSec = 2\n";
    let Some((mut lab, storage, one)) = vm(Of::VmFile, "boot-deaf.qcow2", more) else { return };
    hang(&storage, Storage::Hangs);
    // By the supervisor: `qvm apply` reads the VM file as well.
    let socket = lab.runtime("web", "control.sock");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let reloaded = runtime.block_on(async {
        let mut client = qvm::control::client::Client::connect(&socket).await.unwrap();
        client.command(qvm::control::types::Command::Reload).await
    });
    let why = format!("{:?}", reloaded.unwrap_err());
    assert!(why.contains("storage does not answer"), "{why}");
    answers(&lab, "running");
    assert!(lab.has_note("web", "vm-file-unread"), "{:?}", lab.notes("web"));
    storage.is(Storage::Answers);
    until("the note goes", || !lab.has_note("web", "vm-file-unread"));
    hang(&storage, Storage::Hangs);
    signal(lab.supervisor(one).id().cast_signed(), SIGTERM);
    assert_eq!(lab.exit_code(one), Some(0), "{}", lab.log("web"));
}

#[test]
fn reexecution_waits_for_no_hung_storage() {
    let Some((mut lab, storage, one)) = vm(Of::State, "boot-flood.qcow2", "") else { return };
    hang(&storage, Storage::Hangs);
    loses_output(&lab);
    let supervisor = lab.supervisor(one).id().cast_signed();
    signal(supervisor, SIGUSR2);
    until("it is refused", || lab.log("web").contains("not replaced now"));
    answers(&lab, "running");
    storage.is(Storage::Answers);
    until("it is replaced", || {
        signal(supervisor, SIGUSR2);
        std::thread::sleep(Duration::from_millis(200));
        lab.log("web").contains("taken over")
    });
    lab.wait_state("web", "running");
    lab.ok(&["kill", "web"]);
}

#[test]
fn qemu_that_no_signal_ends_is_reported() {
    let more = "mem = \"128M\"\nshutdownTimeoutSec = 1\n";
    let Some((mut lab, storage, one)) = vm(Of::State, "tiny.qcow2", more) else { return };
    let said = storage.past("vms/web/console.log");
    let ready = || fs::read_to_string(&said).is_ok_and(|text| text.contains("QVM-TINY READY"));
    until("the guest is ready", ready);
    let qemu = lab.qemu_pid("web");
    storage.is(Storage::HangsUnkillably);
    lab.types("web", b"sh dd if=/dev/zero of=/dev/vda bs=1M count=8 conv=fsync\n");
    until("QEMU waits for the storage", || waits_for_storage(qemu));
    answers(&lab, "running");
    signal(lab.supervisor(one).id().cast_signed(), SIGTERM);
    let log = |lab: &Lab| lab.log("web");
    until("SIGKILL", || log(&lab).contains("SIGKILL"));
    until("the end is reported", || log(&lab).contains("after SIGKILL: the kernel waits"));
    assert!(runs(qemu), "QEMU could be killed");
    assert!(lab.runtime("web", "record.json").exists());
    // Only a thread of the supervisor that waits for the same storage delays its exit.
    until("the control socket goes", || !lab.runtime("web", "control.sock").exists());
    storage.is(Storage::Answers);
    assert_eq!(lab.exit_code(one), Some(70), "{}", log(&lab));
    until("QEMU ends", || !runs(qemu));
    let two = lab.run("web");
    lab.wait_state("web", "running");
    lab.ok(&["kill", "web"]);
    assert_eq!(lab.exit_code(two), Some(0));
}

/// A thread of the process waits for an answer of FUSE.
fn waits_for_storage(pid: i32) -> bool {
    let threads: Vec<PathBuf> = fs::read_dir(format!("/proc/{pid}/task"))
        .map(|all| all.flatten().map(|entry| entry.path()).collect())
        .unwrap_or_default();
    let waits = |task: &PathBuf| {
        fs::read_to_string(task.join("wchan")).is_ok_and(|at| at.contains("request_wait_answer"))
    };
    threads.iter().any(waits)
}
