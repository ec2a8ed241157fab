//! The end of a VM for systemd, on real QEMU but without systemd: `qvm exec-stop-post` with the
//! environment of ExecStopPost=, and the exit codes of the unit's restart policy.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    process::{Command, Output, Stdio},
};

use crate::lab::{Lab, guest, runs, signal, until};

const SIGKILL: i32 = 9;
const SIGSTOP: i32 = 19;

/// A lab with a running VM whose supervisor was killed.
fn left_behind(image: &str, more: &str) -> Option<(Lab, i32)> {
    let image = guest(image)?;
    let mut lab = Lab::new();
    lab.vm("web", &image, more);
    let one = lab.run("web");
    lab.says("web", "BOOT-GUEST-READY", 1);
    lab.wait_state("web", "running");
    let qemu = lab.qemu_pid("web");
    signal(lab.supervisor(one).id().cast_signed(), SIGKILL);
    assert_eq!(lab.exit_code(one), None);
    assert!(runs(qemu));
    Some((lab, qemu))
}

/// A fake `systemctl`, first in `PATH`, which records its arguments.
fn systemctl(lab: &Lab) -> PathBuf {
    let bin = lab.path().join("bin");
    fs::create_dir_all(&bin).unwrap();
    let asked = lab.path().join("systemctl.asked");
    let script = format!("#!/bin/sh\necho \"$@\" >> {}\n", asked.display());
    fs::write(bin.join("systemctl"), script).unwrap();
    fs::set_permissions(bin.join("systemctl"), fs::Permissions::from_mode(0o755)).unwrap();
    asked
}

/// Runs `qvm exec-stop-post web` like ExecStopPost= after this end.
fn reap(lab: &Lab, result: &str, code: &str, status: &str) -> Output {
    let path = format!("{}:{}", lab.path().join("bin").display(), std::env::var("PATH").unwrap());
    let mut command = lab.command(&["exec-stop-post", "web"]);
    command.env("PATH", path).env("INVOCATION_ID", "0123456789abcdef0123456789abcdef");
    command.env("SERVICE_RESULT", result).env("EXIT_CODE", code).env("EXIT_STATUS", status);
    command.stdin(Stdio::null()).output().unwrap()
}

fn err(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn crash_leaves_guest_to_next_supervisor() {
    let Some((mut lab, qemu)) = left_behind("boot.qcow2", "") else { return };
    let asked = systemctl(&lab);
    for (result, code, status) in [
        ("signal", "killed", "KILL"),
        ("watchdog", "dumped", "ABRT"),
        ("oom-kill", "killed", "KILL"),
        // A panic.
        ("exit-code", "exited", "101"),
    ] {
        let output = reap(&lab, result, code, status);
        assert!(output.status.success(), "{}", err(&output));
        assert!(runs(qemu), "{result}");
    }
    let asked = fs::read_to_string(asked).unwrap();
    let looks = |line: &str| line.contains("list-jobs") || line.contains("show");
    assert!(asked.lines().all(looks), "{asked}");
    let one = lab.run("web");
    until("it is taken over", || lab.log("web").contains(" taken over, pid "));
    assert_eq!(lab.qemu_pid("web"), qemu);
    // The supervisor crashes during a stop: no other process will continue it.
    signal(lab.supervisor(one).id().cast_signed(), SIGKILL);
    lab.exit_code(one);
    let job = "#!/bin/sh\necho '42 qvm@web.service stop running'\n";
    fs::write(lab.path().join("bin/systemctl"), job).unwrap();
    let output = reap(&lab, "signal", "killed", "KILL");
    assert!(output.status.success(), "{}", err(&output));
    assert!(!runs(qemu));
    assert_eq!(lab.last_reason("web"), "stopped");
}

/// The NixOS module keeps the store paths of a QEMU by this environment variable.
#[test]
fn probe_reports_stopped_only_with_proof() {
    let Some((lab, qemu)) = left_behind("boot.qcow2", "") else { return };
    let probe = || lab.qvm(&["exec-stop-post", "--probe", "web"]).status.code();
    assert_eq!(probe(), Some(75), "it is running");
    let record = lab.runtime("web", "record.json");
    let text = fs::read(&record).unwrap();
    fs::remove_file(&record).unwrap();
    assert_eq!(probe(), Some(75), "there is no record, and the locks are held");
    assert!(runs(qemu));
    fs::write(&record, text).unwrap();
    signal(qemu, SIGKILL);
    until("QEMU is gone", || !runs(qemu));
    assert_eq!(probe(), Some(0));
}

#[test]
fn stop_shuts_down_guest_without_supervisor() {
    for (result, code, status) in [("success", "exited", "0"), ("timeout", "killed", "KILL")] {
        let Some((lab, qemu)) = left_behind("boot.qcow2", "") else { return };
        let output = reap(&lab, result, code, status);
        assert!(output.status.success(), "{}", err(&output));
        assert!(!runs(qemu), "{result}");
        assert!(lab.console("web").contains("BOOT-GUEST-POWEROFF"));
        assert_eq!(lab.last_reason("web"), "stopped");
        for file in ["record.json", "control.sock", "qmp.sock"] {
            assert!(!lab.runtime("web", file).exists(), "{file} was left");
        }
        // Again: nothing is left to do.
        assert!(reap(&lab, result, code, status).status.success());
    }
}

#[test]
fn unresponsive_orphan_is_forced_off() {
    let Some((lab, qemu)) = left_behind("boot-deaf.qcow2", "shutdownTimeoutSec = 1") else {
        return;
    };
    assert!(reap(&lab, "success", "exited", "0").status.success());
    assert!(!runs(qemu));
    assert_eq!(lab.last_reason("web"), "forced-off");
}

#[test]
fn unit_start_reads_newer_vm_file() {
    if guest("boot.qcow2").is_none() {
        return;
    }
    let lab = Lab::new();
    let asked = systemctl(&lab);
    let answers = |jobs: &str, stale: &str| {
        let _ = fs::remove_file(&asked);
        let script = format!(
            "#!/bin/sh\necho \"$@\" >> {}\ncase \"$*\" in\n*list-jobs*) echo '{jobs}';;\n\
             *show*) printf 'LoadState=loaded\\nActiveState=deactivating\\n\
             NeedDaemonReload={stale}\\n\
             DropInPaths=/run/systemd/generator/qvm@web.service.d/10-qvm.conf\\n';;\nesac\n",
            asked.display()
        );
        fs::write(lab.path().join("bin/systemctl"), script).unwrap();
    };
    let none = "No jobs running.";
    for (result, code, status, jobs, stale, reads) in [
        ("exit-code", "exited", "1", none, "yes", true),
        ("exit-code", "exited", "75", none, "yes", true),
        // A supervisor that was killed with its QEMU.
        ("signal", "killed", "KILL", none, "yes", true),
        ("exit-code", "exited", "1", none, "no", false),
        // The VM is not started again.
        ("exit-code", "exited", "1", "42 qvm@web.service stop running", "yes", false),
        ("exit-code", "exited", "78", none, "yes", false),
        ("success", "exited", "0", none, "yes", false),
    ] {
        answers(jobs, stale);
        let output = reap(&lab, result, code, status);
        assert!(output.status.success(), "{}", err(&output));
        let asked = fs::read_to_string(&asked).unwrap_or_default();
        assert_eq!(asked.contains("daemon-reload"), reads, "{result} {status} {jobs}: {asked}");
    }
}

#[test]
fn missing_vm_file_does_not_prevent_reap() {
    let Some((lab, qemu)) = left_behind("boot.qcow2", "") else { return };
    fs::remove_file(lab.file("web")).unwrap();
    assert!(reap(&lab, "exit-code", "exited", "1").status.success());
    assert!(!runs(qemu));
    assert!(lab.console("web").contains("BOOT-GUEST-POWEROFF"));
}

#[test]
fn guest_with_supervisor_is_not_reaped() {
    let Some(image) = guest("boot.qcow2") else { return };
    let mut lab = Lab::new();
    lab.vm("web", &image, "");
    lab.run("web");
    lab.wait_state("web", "running");
    assert!(reap(&lab, "exit-code", "exited", "1").status.success());
    assert!(runs(lab.qemu_pid("web")));
    assert_eq!(lab.status("web")["state"], "running");
}

#[test]
fn invalid_or_missing_vm_file_ends_no_guest() {
    let Some((mut lab, qemu)) = left_behind("boot.qcow2", "") else { return };
    let good = fs::read_to_string(lab.file("web")).unwrap();
    fs::write(lab.file("web"), "vcpu = ").unwrap();
    let one = lab.run("web");
    until("it is taken over", || lab.log("web").matches(" taken over, pid ").count() == 1);
    assert_eq!(lab.qemu_pid("web"), qemu);
    assert!(lab.log("web").contains("keeps running with its earlier settings"));
    signal(lab.supervisor(one).id().cast_signed(), SIGKILL);
    lab.exit_code(one);
    fs::remove_file(lab.file("web")).unwrap();
    let two = lab.run("web");
    until("it is taken over again", || lab.log("web").matches(" taken over, pid ").count() == 2);
    signal(lab.supervisor(two).id().cast_signed(), SIGKILL);
    lab.exit_code(two);
    fs::write(lab.file("web"), good).unwrap();
    assert!(reap(&lab, "success", "exited", "0").status.success());
    assert!(!runs(qemu));
    // Without a guest, the same file is refused.
    fs::write(lab.file("web"), "vcpu = ").unwrap();
    assert_eq!(lab.qvm(&["run", "web"]).status.code(), Some(78));
}

#[test]
fn host_fault_does_not_count_as_start() {
    if guest("boot.qcow2").is_none() {
        return;
    }
    let lab = Lab::new();
    let asked = systemctl(&lab);
    // The device does not exist yet: a fault of the host.
    let text = "accel = \"tcg\"\n[disk.root]\ndevice = \"/dev/qvm-none\"\n";
    fs::write(lab.file("web"), text).unwrap();
    let run = |in_unit: bool| {
        let _ = fs::remove_file(&asked);
        let path =
            format!("{}:{}", lab.path().join("bin").display(), std::env::var("PATH").unwrap());
        let mut command = lab.command(&["run", "web"]);
        if in_unit {
            command.env("NOTIFY_SOCKET", lab.path().join("unused"));
        }
        let output = command.env("PATH", path).stdin(Stdio::null()).output().unwrap();
        assert_eq!(output.status.code(), Some(75), "{}", err(&output));
        (fs::read_to_string(&asked).unwrap_or_default(), err(&output))
    };
    let user = if nix::unistd::geteuid().is_root() { "" } else { "--user " };
    assert_eq!(run(true).0, format!("{user}reset-failed qvm@web.service\n"));
    assert_eq!(run(false).0, "");
    // A failure of systemctl is reported, and changes nothing.
    fs::write(lab.path().join("bin/systemctl"), "#!/bin/sh\necho no >&2\nexit 1\n").unwrap();
    let (_, said) = run(true);
    assert!(said.contains("`systemctl reset-failed qvm@web.service` failed: no"), "{said}");
    // ExecStopPost= then only waits, to delay the restarts.
    let begun = std::time::Instant::now();
    assert!(reap(&lab, "exit-code", "exited", "75").status.success());
    assert!(begun.elapsed() >= std::time::Duration::from_secs(2));
}

#[test]
fn silent_qemu_survives_restart_but_not_stop() {
    let Some((mut lab, qemu)) = left_behind("boot.qcow2", "") else { return };
    systemctl(&lab);
    signal(qemu, SIGSTOP);
    let one = lab.run("web");
    assert_eq!(lab.exit_code(one), Some(75), "{}", lab.log("web"));
    assert!(reap(&lab, "exit-code", "exited", "75").status.success());
    assert!(runs(qemu));
    let output = reap(&lab, "success", "exited", "0");
    assert!(output.status.success(), "{}", err(&output));
    assert!(!runs(qemu));
    assert!(!lab.runtime("web", "record.json").exists());
}

#[test]
fn missing_bridge_is_a_host_fault() {
    let Some(image) = guest("boot.qcow2") else { return };
    let lab = Lab::new();
    lab.vm("web", &image, "bridge = \"qvmnone0\"\n");
    let qvm = lab.command(&["run", "web"]);
    // In a network namespace, so that no tap is created on this machine.
    let mut command = Command::new("unshare");
    command
        .args(["--user", "--map-root-user", "--net"])
        .arg(qvm.get_program())
        .args(qvm.get_args());
    for (key, value) in qvm.get_envs() {
        match value {
            Some(value) => command.env(key, value),
            None => command.env_remove(key),
        };
    }
    let output = command.stdin(Stdio::null()).output().unwrap();
    if err(&output).contains("unshare failed") || err(&output).contains("/dev/net/tun") {
        assert!(!crate::lab::required("netns"), "{}", err(&output));
        println!("skipped: {}", err(&output));
        return;
    }
    assert!(err(&output).contains("bridge `qvmnone0` does not exist"), "{}", err(&output));
    assert_eq!(output.status.code(), Some(75));
}

#[test]
fn unreachable_image_server_is_a_host_fault() {
    if guest("boot.qcow2").is_none() {
        return;
    }
    let lab = Lab::new();
    // A port without a listener: it was free a moment ago, and is bound but not listening now.
    let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = socket.local_addr().unwrap().port();
    drop(socket);
    let text = format!(
        "accel = \"tcg\"\n[image]\nurl = \"http://127.0.0.1:{port}/x.qcow2\"\ninsecureNoChecksum = true\n"
    );
    fs::write(lab.file("web"), text).unwrap();
    let output = lab.qvm(&["run", "web"]);
    assert!(err(&output).contains("cannot download"), "{}", err(&output));
    assert_eq!(output.status.code(), Some(75));
    // The content of the VM file is a fault of the VM.
    let missing = "accel = \"tcg\"\n[image]\npath = \"/nowhere/x.qcow2\"\n";
    fs::write(lab.file("web"), missing).unwrap();
    assert_eq!(lab.qvm(&["run", "web"]).status.code(), Some(1));
}
