//! Starts, states and ends of a VM on real QEMU with the boot-sector guest.

use std::{
    fs,
    io::{BufRead, BufReader},
    os::unix::net::UnixListener,
    process::{Child, Stdio},
    time::Duration,
};

use qvm::value::ErrorCode;

use crate::lab::{Lab, guest, runs, signal, until};

const SIGKILL: i32 = 9;
const SIGTERM: i32 = 15;
const SIGUSR2: i32 = 12;
const SIGHUP: i32 = 1;
const SIGSTOP: i32 = 19;
const SIGCONT: i32 = 18;

/// A lab with a running VM whose guest has booted.
fn ready(name: &str, image: &str, more: &str) -> Option<(Lab, usize)> {
    let image = guest(image)?;
    let mut lab = Lab::new();
    lab.vm(name, &image, more);
    let supervisor = lab.run(name);
    lab.says(name, "BOOT-GUEST-READY", 1);
    lab.wait_state(name, "running");
    Some((lab, supervisor))
}

fn nothing_left(lab: &Lab, name: &str, qemu: i32) {
    until("QEMU is gone", || !runs(qemu));
    for file in ["record.json", "control.sock", "qmp.sock", "agent.sock", "serial.sock"] {
        assert!(!lab.runtime(name, file).exists(), "{file} was left");
    }
}

#[test]
fn sigterm_is_a_clean_stop() {
    let Some((mut lab, one)) = ready("web", "boot.qcow2", "") else { return };
    let qemu = lab.qemu_pid("web");
    let pid = lab.supervisor(one).id().cast_signed();
    signal(pid, SIGTERM);
    assert_eq!(lab.exit_code(one), Some(0));
    assert_eq!(lab.last_reason("web"), "stopped");
    assert!(lab.console("web").contains("BOOT-GUEST-POWEROFF"));
    nothing_left(&lab, "web", qemu);
}

#[test]
fn start_status_and_stop() {
    let Some(image) = guest("boot.qcow2") else { return };
    let lab = Lab::new();
    lab.vm("web", &image, "cpuWeight = 200");
    // Notes follow if the host lacks something, such as cgroup v2.
    assert!(lab.ok(&["start", "web"]).starts_with("web: running\n"));
    let status = lab.status("web");
    assert_eq!(status["state"], "running");
    assert_eq!((&status["vcpu"], &status["cpuWeight"]), (&1.into(), &200.into()));
    assert_eq!(status["memBytes"], 64 << 20);
    assert_eq!(status["accel"], "tcg");
    assert!(status["pid"].is_u64() && status["qemuVersion"].is_string());
    lab.says("web", "BOOT-GUEST-READY", 1);
    assert!(lab.ok(&["stop", "web"]).contains("guest has shut down"));
    let stopped = lab.qvm(&["stop", "web"]);
    assert_eq!(stopped.status.code(), Some(3));
    assert_eq!(lab.last_reason("web"), "stopped");
}

#[test]
fn unresponsive_guest_is_forced_off() {
    let Some((mut lab, one)) = ready("web", "boot-deaf.qcow2", "shutdownTimeoutSec = 2") else {
        return;
    };
    signal(lab.supervisor(one).id().cast_signed(), SIGTERM);
    assert_eq!(lab.exit_code(one), Some(0));
    assert_eq!(lab.last_reason("web"), "forced-off");
    assert!(lab.log("web").contains("time is up"));
}

#[test]
fn second_sigterm_forces_off() {
    let Some((mut lab, one)) = ready("web", "boot-deaf.qcow2", "shutdownTimeoutSec = 3600") else {
        return;
    };
    let pid = lab.supervisor(one).id().cast_signed();
    signal(pid, SIGTERM);
    lab.wait_state("web", "stopping");
    signal(pid, SIGTERM);
    assert_eq!(lab.exit_code(one), Some(0));
    assert_eq!(lab.last_reason("web"), "forced-off");
}

#[test]
fn hung_qemu_is_killed() {
    let Some((mut lab, one)) = ready("web", "boot-deaf.qcow2", "shutdownTimeoutSec = 1") else {
        return;
    };
    let qemu = lab.qemu_pid("web");
    // SIGSTOP: neither `quit` nor SIGTERM has an effect.
    signal(qemu, 19);
    signal(lab.supervisor(one).id().cast_signed(), SIGTERM);
    assert_eq!(lab.exit_code(one), Some(0));
    assert!(lab.log("web").contains("SIGKILL"), "{}", lab.log("web"));
    nothing_left(&lab, "web", qemu);
}

#[test]
fn powered_off_guest_stays_off() {
    let Some((mut lab, one)) = ready("web", "boot.qcow2", "") else { return };
    lab.types("web", b"p");
    assert_eq!(lab.exit_code(one), Some(0));
    assert_eq!(lab.last_reason("web"), "guest-shutdown");
}

#[test]
fn guest_reboot_keeps_the_qemu() {
    let Some((lab, _)) = ready("web", "boot.qcow2", "") else { return };
    let qemu = lab.qemu_pid("web");
    lab.types("web", b"r");
    lab.says("web", "BOOT-GUEST-READY", 2);
    assert_eq!(lab.qemu_pid("web"), qemu);
    assert_eq!(lab.status("web")["state"], "running");
}

#[test]
fn guest_reboot_with_changes_relaunches() {
    let Some((mut lab, one)) = ready("web", "boot.qcow2", "") else { return };
    let qemu = lab.qemu_pid("web");
    let text = std::fs::read_to_string(lab.file("web")).unwrap();
    std::fs::write(lab.file("web"), text.replace("64M", "96M")).unwrap();
    signal(lab.supervisor(one).id().cast_signed(), SIGHUP);
    until("the change is pending", || lab.status("web")["pending"][0]["key"] == "mem");
    let pending = &lab.status("web")["pending"][0];
    assert_eq!((&pending["from"], &pending["to"]), (&"64M".into(), &"96M".into()));
    assert_eq!(pending["takesEffect"], "next-reboot");
    assert_eq!(lab.status("web")["memBytes"], 64 << 20);
    lab.types("web", b"r");
    lab.says("web", "BOOT-GUEST-READY", 2);
    until("the new QEMU runs", || lab.status("web")["memBytes"] == 96 << 20);
    lab.wait_state("web", "running");
    assert_ne!(lab.qemu_pid("web"), qemu);
    assert_eq!(lab.status("web")["pending"], serde_json::json!([]));
    assert!(lab.supervisor(one).try_wait().unwrap().is_none());
}

#[test]
fn panic_follows_on_panic() {
    for (policy, code) in [("restart", Some(1)), ("stop", Some(0)), ("pause", None)] {
        let more = format!("onPanic = \"{policy}\"");
        let Some((mut lab, one)) = ready("web", "boot.qcow2", &more) else { return };
        lab.types("web", b"x");
        if code.is_none() {
            lab.wait_state("web", "paused");
            lab.ok(&["kill", "web"]);
            assert_eq!(lab.exit_code(one), Some(0));
            continue;
        }
        assert_eq!(lab.exit_code(one), code, "{policy}");
        assert_eq!(lab.last_reason("web"), "guest-panic");
    }
}

#[test]
fn killed_qemu_is_a_failure_with_console() {
    let Some((mut lab, one)) = ready("web", "boot.qcow2", "") else { return };
    signal(lab.qemu_pid("web"), SIGKILL);
    assert_eq!(lab.exit_code(one), Some(1));
    let status = lab.status("web");
    assert_eq!(
        (&status["state"], &status["lastStop"]["reason"]),
        (&"failed".into(), &"qemu-signal".into())
    );
    let words = status["lastStop"]["console"].to_string();
    assert!(words.contains("BOOT-GUEST-READY"), "{words}");
}

fn counter(lab: &Lab) -> u64 {
    let text = lab.console("web");
    let last = text.rsplit("COUNT ").find_map(|part| part.get(..6)?.parse().ok());
    last.unwrap_or(0)
}

#[test]
fn killed_supervisor_is_replaced() {
    let Some((mut lab, one)) = ready("web", "boot.qcow2", "") else { return };
    lab.types("web", b"c");
    until("it counts", || counter(&lab) > 3);
    let qemu = lab.qemu_pid("web");
    lab.supervisor(one).kill().unwrap();
    lab.supervisor(one).wait().unwrap();
    let before = counter(&lab);
    assert!(runs(qemu));
    let two = lab.run("web");
    lab.wait_state("web", "running");
    assert_eq!(lab.qemu_pid("web"), qemu);
    until("it continues counting", || counter(&lab) > before + 5);
    assert_eq!(lab.console("web").matches("BOOT-GUEST-READY").count(), 1);
    signal(lab.supervisor(two).id().cast_signed(), SIGTERM);
    assert_eq!(lab.exit_code(two), Some(0));
    assert_eq!(lab.last_reason("web"), "stopped");
}

#[test]
fn reexec_keeps_pid_lock_and_guest() {
    let Some((mut lab, one)) = ready("web", "boot.qcow2", "") else { return };
    lab.types("web", b"c");
    until("it counts", || counter(&lab) > 3);
    let (qemu, before) = (lab.qemu_pid("web"), counter(&lab));
    let pid = lab.supervisor(one).id();
    signal(pid.cast_signed(), SIGUSR2);
    until("it took over", || lab.log("web").contains("taken over"));
    lab.wait_state("web", "running");
    assert_eq!(lab.status("web")["supervisorPid"], pid);
    assert_eq!(lab.qemu_pid("web"), qemu);
    until("it continues counting", || counter(&lab) > before + 5);
    let second = lab.qvm(&["run", "web"]);
    lab.refusal(&second).is(ErrorCode::AlreadySupervised, 1);
    signal(pid.cast_signed(), SIGTERM);
    assert_eq!(lab.exit_code(one), Some(0));
}

/// Exit code 1 would make the unit's ExecStopPost= end the guest.
#[test]
fn failed_reexec_keeps_qemu() {
    let Some(image) = guest("boot.qcow2") else { return };
    let mut lab = Lab::new();
    let program = lab.copy_program();
    lab.vm("web", &image, "");
    let one = lab.run("web");
    lab.wait_state("web", "running");
    let qemu = lab.qemu_pid("web");
    let kept = program.with_extension("kept");
    fs::rename(&program, &kept).unwrap();
    signal(lab.supervisor(one).id().cast_signed(), SIGUSR2);
    assert_eq!(lab.exit_code(one), Some(75), "{}", lab.log("web"));
    assert!(runs(qemu) && lab.runtime("web", "record.json").exists());
    fs::rename(&kept, &program).unwrap();
    let two = lab.run("web");
    lab.wait_state("web", "running");
    assert_eq!(lab.qemu_pid("web"), qemu);
    signal(lab.supervisor(two).id().cast_signed(), SIGTERM);
    assert_eq!(lab.exit_code(two), Some(0));
}

/// The same if the control socket cannot be created.
#[test]
fn missing_control_socket_keeps_qemu() {
    let Some((mut lab, one)) = ready("web", "boot.qcow2", "") else { return };
    let qemu = lab.qemu_pid("web");
    lab.supervisor(one).kill().unwrap();
    lab.supervisor(one).wait().unwrap();
    let socket = lab.runtime("web", "control.sock");
    fs::remove_file(&socket).unwrap();
    fs::create_dir(&socket).unwrap();
    let two = lab.run("web");
    assert_eq!(lab.exit_code(two), Some(75), "{}", lab.log("web"));
    assert!(runs(qemu));
    fs::remove_dir(&socket).unwrap();
    let three = lab.run("web");
    lab.wait_state("web", "running");
    assert_eq!(lab.qemu_pid("web"), qemu);
    signal(lab.supervisor(three).id().cast_signed(), SIGTERM);
    assert_eq!(lab.exit_code(three), Some(0));
}

#[test]
fn earlier_power_off_is_adopted() {
    let Some((mut lab, one)) = ready("web", "boot.qcow2", "") else { return };
    let qemu = lab.qemu_pid("web");
    lab.types("web", b"c");
    lab.supervisor(one).kill().unwrap();
    lab.supervisor(one).wait().unwrap();
    // No supervisor passes the key on, so the test writes to the serial socket.
    let mut serial =
        std::os::unix::net::UnixStream::connect(lab.runtime("web", "serial.sock")).unwrap();
    std::io::Write::write_all(&mut serial, b"p").unwrap();
    serial.set_read_timeout(Some(crate::lab::LONG)).unwrap();
    let (mut said, mut buffer) = (vec![], [0; 4096]);
    // The text may arrive in two parts.
    until("it powers off", || {
        let count = std::io::Read::read(&mut serial, &mut buffer).unwrap();
        said.extend_from_slice(&buffer[..count]);
        String::from_utf8_lossy(&said).contains("POWEROFF")
    });
    drop(serial);
    assert!(runs(qemu));
    let two = lab.run("web");
    assert_eq!(lab.exit_code(two), Some(0));
    assert_eq!(lab.last_reason("web"), "guest-shutdown");
    nothing_left(&lab, "web", qemu);
}

#[test]
fn second_parallel_start_is_refused() {
    let Some((mut lab, one)) = ready("web", "boot.qcow2", "") else { return };
    let winner = lab.supervisor(one).id();
    let loser = lab.qvm(&["run", "web"]);
    let message = String::from_utf8_lossy(&loser.stderr).into_owned();
    assert!(message.contains(&winner.to_string()), "{message}");
    lab.refusal(&loser).is(ErrorCode::AlreadySupervised, 1).golden("start", "already-supervised");
    assert_eq!(lab.status("web")["state"], "running");
}

#[test]
fn start_waits_for_a_running_stop() {
    let Some((mut lab, one)) = ready("web", "boot-deaf.qcow2", "") else { return };
    let (qemu, supervisor) = (lab.qemu_pid("web"), lab.supervisor(one).id().cast_signed());
    lab.ok(&["stop", "--no-wait", "web"]);
    let mut start = lab.command(&["start", "web"]);
    let mut start = start.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut said = BufReader::new(start.stdout.take().unwrap()).lines();
    assert_eq!(said.next().unwrap().unwrap(), "web: waits until it is down");
    // A QEMU that is silent for longer than any time limit still ends.
    signal(supervisor, SIGSTOP);
    std::thread::sleep(Duration::from_secs(3));
    signal(supervisor, SIGCONT);
    lab.ok(&["kill", "web"]);
    assert_eq!(said.next().unwrap().unwrap(), "web: running");
    assert!(start.wait().unwrap().success());
    assert!(lab.qemu_pid("web") != qemu && !runs(qemu));
}

#[test]
fn start_after_an_end_boots_again() {
    let Some(image) = guest("boot.qcow2") else { return };
    let lab = Lab::new();
    lab.vm("web", &image, "");
    lab.ok(&["start", "web"]);
    lab.says("web", "BOOT-GUEST-READY", 1);
    // At any of the last steps of the supervisor.
    for round in 0..8 {
        let qemu = lab.qemu_pid("web");
        match round % 2 {
            0 => drop(lab.ok(&["stop", "--no-wait", "web"])),
            _ => {
                signal(qemu, SIGKILL);
                until("QEMU is gone", || !runs(qemu));
            }
        }
        let said = lab.ok(&["start", "web"]);
        assert_eq!(said.lines().next_back(), Some("web: running"), "round {round}");
        assert_ne!(lab.qemu_pid("web"), qemu, "round {round}");
        lab.says("web", "BOOT-GUEST-READY", round + 2);
    }
}

#[test]
fn parallel_starts_all_succeed() {
    let Some(image) = guest("boot.qcow2") else { return };
    let lab = Lab::new();
    lab.vm("web", &image, "");
    let start = || lab.command(&["start", "web"]).stdout(Stdio::piped()).spawn().unwrap();
    let all: Vec<Child> = (0..4).map(|_| start()).collect();
    for one in all {
        let output = one.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success() && said.ends_with("running\n"), "{output:?}");
    }
    assert_eq!(lab.status("web")["state"], "running");
}

#[test]
fn start_reports_unknown_state() {
    let Some((mut lab, one)) = ready("web", "boot.qcow2", "") else { return };
    let (qemu, supervisor) = (lab.qemu_pid("web"), lab.supervisor(one).id().cast_signed());
    // Its QEMU has exited, and no supervisor has noticed.
    signal(supervisor, SIGSTOP);
    signal(qemu, SIGKILL);
    let silent = lab.refused(&["start", "web"]);
    silent.is(ErrorCode::SupervisorSilent, 1).golden("start", "supervisor-silent");
    signal(supervisor, SIGCONT);
    assert_eq!(lab.ok(&["start", "web"]), "web: running\n");
    assert_ne!(lab.qemu_pid("web"), qemu);
    // A socket that accepts connections without a reply.
    lab.vm("app", &guest("boot.qcow2").unwrap(), "");
    fs::create_dir_all(lab.runtime("app", "")).unwrap();
    let socket = UnixListener::bind(lab.runtime("app", "control.sock")).unwrap();
    std::thread::spawn(move || socket.incoming().for_each(drop));
    let hangs_up = lab.refused(&["start", "app"]);
    hangs_up.is(ErrorCode::SupervisorBusy, 1).golden("start", "supervisor-busy");
}

#[test]
fn start_ignores_an_ending_supervisor() {
    let Some(image) = guest("boot.qcow2") else { return };
    let lab = Lab::new();
    lab.vm("web", &image, "");
    // Like a killed supervisor for a moment: a socket that accepts connections, and the lock.
    fs::create_dir_all(lab.runtime("web", "")).unwrap();
    let lock = fs::File::create(lab.runtime("web", "lock")).unwrap();
    fs2::FileExt::lock_exclusive(&lock).unwrap();
    let socket = UnixListener::bind(lab.runtime("web", "control.sock")).unwrap();
    let log = lab.state("web", "supervisor.log");
    let going = std::thread::spawn(move || {
        drop(socket.accept().unwrap());
        drop(socket);
        until("the next supervisor begins", || log.exists());
        drop(lock);
    });
    assert_eq!(lab.ok(&["start", "web"]), "web: running\n");
    going.join().unwrap();
    lab.says("web", "BOOT-GUEST-READY", 1);
}

#[test]
fn pause_and_resume() {
    let Some((lab, _)) = ready("web", "boot.qcow2", "") else { return };
    lab.types("web", b"c");
    until("it counts", || counter(&lab) > 1);
    lab.ok(&["pause", "web"]);
    lab.wait_state("web", "paused");
    let held = counter(&lab);
    lab.ok(&["resume", "web"]);
    until("it continues counting", || counter(&lab) > held + 2);
    assert_eq!(lab.status("web")["state"], "running");
}

#[test]
fn kill_forces_off() {
    let Some((mut lab, one)) = ready("web", "boot-deaf.qcow2", "") else { return };
    let qemu = lab.qemu_pid("web");
    lab.ok(&["kill", "web"]);
    assert_eq!(lab.exit_code(one), Some(0));
    assert_eq!(lab.last_reason("web"), "killed");
    nothing_left(&lab, "web", qemu);
}

#[test]
fn exec_without_agent_is_explained() {
    let Some((lab, _)) = ready("web", "boot.qcow2", "") else { return };
    let refusal = lab.refused(&["exec", "--timeout", "1", "web", "--", "true"]);
    refusal.is(ErrorCode::GuestSilent, 1).golden("start", "no-guest-agent");
}

#[test]
fn eight_vms_in_parallel() {
    let Some(image) = guest("boot.qcow2") else { return };
    let lab = Lab::new();
    let names: Vec<String> = (1..=8).map(|n| format!("vm{n}")).collect();
    for name in &names {
        lab.vm(name, &image, "");
    }
    let with = |verb: &'static str| -> Vec<&str> {
        std::iter::once(verb).chain(names.iter().map(String::as_str)).collect()
    };
    let started = lab.ok(&with("start"));
    for name in &names {
        assert!(started.contains(&format!("{name}: running")), "{started}");
        lab.says(name, "BOOT-GUEST-READY", 1);
    }
    assert_eq!(lab.ok(&["list"]).matches(" running ").count(), 8);
    lab.ok(&with("stop"));
    for name in &names {
        assert_eq!(lab.last_reason(name), "stopped");
    }
}

#[test]
fn disk_is_kept_when_the_image_changes() {
    let Some((mut lab, one)) = ready("web", "boot.qcow2", "") else { return };
    lab.types("web", b"w");
    lab.says("web", "BOOT-GUEST-WRITTEN 000001", 1);
    lab.ok(&["stop", "web"]);
    lab.exit_code(one);
    lab.vm("web", &guest("boot-deaf.qcow2").unwrap(), "");
    lab.run("web");
    lab.says("web", "BOOT-GUEST-READY", 2);
    lab.types("web", b"w");
    lab.says("web", "BOOT-GUEST-WRITTEN 000002", 1);
    let notes = lab.notes("web");
    assert!(notes.contains(&"disk-image-changed disk.root".to_owned()), "{notes:?}");
}

#[test]
fn stop_during_preparation_leaves_nothing() {
    let Some(_) = guest("boot.qcow2") else { return };
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    // A server that reads the request and sends nothing.
    let (seen, accepted) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let _ = seen.send(stream);
        }
    });
    let mut lab = Lab::new();
    let text = format!(
        "accel = \"tcg\"\n[image]\nurl = \"http://{address}/x.qcow2\"\nsha256 = \"{}\"\n",
        "ab".repeat(32)
    );
    std::fs::write(lab.file("web"), text).unwrap();
    let one = lab.run("web");
    let _held = accepted.recv_timeout(crate::lab::LONG).unwrap();
    lab.wait_state("web", "starting");
    lab.ok(&["stop", "web"]);
    assert_eq!(lab.exit_code(one), Some(0));
    assert_eq!(lab.last_reason("web"), "start-cancelled");
    assert!(!lab.state("web", "root.qcow2").exists());
}

#[test]
fn invalid_file_exits_78() {
    let lab = Lab::new();
    std::fs::write(lab.file("web"), "brige = \"br0\"\n").unwrap();
    lab.refused(&["run", "web"]).is(ErrorCode::InvalidFile, 78).golden("start", "invalid-file");
    assert!(!lab.path().join("s").exists() && !lab.path().join("r").exists());
}

#[test]
fn failed_start_is_explained_and_recorded() {
    let Some(_) = guest("boot.qcow2") else { return };
    let lab = Lab::new();
    let image = lab.path().join("nothing.qcow2");
    lab.vm("web", &image, "");
    // With the line of `[image]`.
    for verb in ["run", "start"] {
        let refusal = lab.refused(&[verb, "web"]).without_log();
        refusal.is(ErrorCode::FileMissing, 1).golden("start", "missing-image");
    }
    let ends = lab.status("web")["ends"].clone();
    // The same again replaces the earlier one.
    assert_eq!(ends.as_array().unwrap().len(), 1);
    assert_eq!(ends[0]["reason"], "start-failed");
    assert_eq!(ends[0]["code"], "file-missing");
    assert!(ends[0]["detail"].as_str().unwrap().contains(image.to_str().unwrap()), "{ends}");
    assert_eq!(lab.status("web")["state"], "failed");
}

#[test]
fn service_manager_is_notified() {
    let Some(image) = guest("boot.qcow2") else { return };
    let lab = Lab::new();
    lab.vm("web", &image, "");
    let path = lab.path().join("notify");
    let socket = std::os::unix::net::UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(crate::lab::LONG)).unwrap();
    let mut child = lab
        .command(&["run", "web"])
        .env("NOTIFY_SOCKET", &path)
        .env("WATCHDOG_USEC", "400000")
        .spawn()
        .unwrap();
    let wait_for = |what: &str| {
        let mut buffer = [0; 4096];
        loop {
            let count = socket.recv(&mut buffer).unwrap();
            let text = String::from_utf8_lossy(&buffer[..count]).into_owned();
            if text.contains(what) {
                return;
            }
        }
    };
    wait_for("EXTEND_TIMEOUT_USEC=");
    wait_for("READY=1");
    wait_for("WATCHDOG=1");
    lab.says("web", "BOOT-GUEST-READY", 1);
    signal(child.id().cast_signed(), SIGTERM);
    wait_for("STOPPING=1");
    wait_for("EXTEND_TIMEOUT_USEC=");
    assert!(child.wait().unwrap().success());
}
