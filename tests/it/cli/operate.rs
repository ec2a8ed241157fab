//! Operations on a running VM, on real QEMU with the boot-sector guest.

use std::{
    fs,
    io::{Read, Write},
    os::unix::net::UnixStream,
    process::{Child, Stdio},
};

use crate::lab::{Lab, guest, signal, until};
use qvm::value::ErrorCode;
use serde_json::{Value, json};

const SIGHUP: i32 = 1;
const SIGINT: i32 = 2;

/// A lab with a running VM `web` whose guest has booted.
fn ready(image: &str, more: &str) -> Option<(Lab, usize)> {
    let image = guest(image)?;
    let mut lab = Lab::new();
    lab.vm("web", &image, more);
    let supervisor = lab.run("web");
    lab.says("web", "BOOT-GUEST-READY", 1);
    lab.wait_state("web", "running");
    Some((lab, supervisor))
}

fn rewrite(lab: &Lab, from: &str, to: &str) {
    let text = fs::read_to_string(lab.file("web")).unwrap();
    assert!(text.contains(from));
    fs::write(lab.file("web"), text.replace(from, to)).unwrap();
}

/// Makes a varlink call.
fn call(lab: &Lab, method: &str, parameters: &Value) -> Value {
    let mut stream = UnixStream::connect(lab.runtime("web", "control.sock")).unwrap();
    stream.set_read_timeout(Some(crate::lab::LONG)).unwrap();
    let call = json!({"method": method, "parameters": parameters});
    stream.write_all(format!("{call}\0").as_bytes()).unwrap();
    let mut reply = vec![];
    let mut byte = [0];
    while stream.read(&mut byte).unwrap() == 1 && byte[0] != 0 {
        reply.push(byte[0]);
    }
    serde_json::from_slice(&reply).unwrap()
}

#[test]
fn sighup_and_reload_apply_live_keys() {
    let more = "description = \"before\"\ncpuWeight = 100\nvcpu = 1\nshutdownTimeoutSec = 60\n";
    let Some((mut lab, one)) = ready("boot.qcow2", more) else { return };
    rewrite(&lab, "\"before\"", "\"after\"");
    rewrite(&lab, "vcpu = 1", "vcpu = 2");
    signal(lab.supervisor(one).id().cast_signed(), SIGHUP);
    until("it is applied", || lab.status("web")["description"] == "after");
    let status = lab.status("web");
    assert_eq!(status["vcpu"], 1);
    assert_eq!(status["pending"].as_array().unwrap().len(), 1, "{status}");
    rewrite(&lab, "cpuWeight = 100", "cpuWeight = 300");
    until("the file is watched", || lab.status("web")["pending"].as_array().unwrap().len() == 2);
    assert_eq!(lab.status("web")["pending"][0]["takesEffect"], "live");
    assert_eq!(lab.status("web")["cpuWeight"], 100);
    let told = lab.ok(&["reload", "web"]);
    assert_eq!(
        told,
        "web: VM file read\nweb: applied: cpuWeight: 100 -> 300\n\
         web: pending: vcpu: 1 -> 2, when the guest reboots\n"
    );
    assert_eq!(lab.status("web")["cpuWeight"], 300);
    // An invalid file changes nothing, and is reported.
    rewrite(&lab, "vcpu = 2", "vcpu = 2000");
    let refusal = lab.refused(&["reload", "web"]);
    refusal.is(ErrorCode::InvalidFile, 1).golden("cli", "reload-of-an-invalid-file");
    assert!(lab.has_note("web", "vm-file-invalid"), "{:?}", lab.notes("web"));
    assert_eq!(lab.status("web")["state"], "running");
}

#[test]
fn reboot_may_leave_changes_pending() {
    let Some((lab, _)) = ready("boot.qcow2", "onGuestReboot = \"reset\"\n") else { return };
    let qemu = lab.qemu_pid("web");
    rewrite(&lab, "64M", "96M");
    until("the change is pending", || lab.status("web")["pending"][0]["key"] == "mem");
    assert_eq!(lab.status("web")["pending"][0]["takesEffect"], "next-start");
    lab.types("web", b"r");
    lab.says("web", "BOOT-GUEST-READY", 2);
    assert_eq!(lab.qemu_pid("web"), qemu);
    assert_eq!(lab.status("web")["memBytes"], 64 << 20);
}

#[test]
fn reboot_relaunches_and_force_resets() {
    let Some((lab, _)) = ready("boot.qcow2", "") else { return };
    let qemu = lab.qemu_pid("web");
    lab.ok(&["reboot", "--force", "web"]);
    lab.says("web", "BOOT-GUEST-READY", 2);
    assert_eq!(lab.qemu_pid("web"), qemu);
    lab.ok(&["reboot", "web"]);
    lab.says("web", "BOOT-GUEST-READY", 3);
    lab.wait_state("web", "running");
    assert_ne!(lab.qemu_pid("web"), qemu);
    assert!(lab.console("web").contains("BOOT-GUEST-POWEROFF"));
    lab.ok(&["restart", "web"]);
    lab.says("web", "BOOT-GUEST-READY", 4);
}

#[test]
fn systemd_lists_the_machine() {
    let Some((lab, _)) = ready("boot.qcow2", "") else { return };
    let machine = |method: &str, parameters: Value| {
        call(&lab, &format!("io.systemd.MachineInstance.{method}"), &parameters)
    };
    let told = machine("Describe", json!({}));
    assert_eq!(told["parameters"]["running"], true, "{told}");
    assert_eq!(told["parameters"]["status"], "running");
    assert_eq!(told["parameters"]["memory"]["configuredBytes"], 64 << 20, "{told}");
    machine("Pause", json!({}));
    lab.wait_state("web", "paused");
    assert_eq!(machine("Describe", json!({}))["parameters"]["status"], "paused");
    machine("Resume", json!({}));
    lab.wait_state("web", "running");
    let set = machine("SetMemory", json!({"bytes": 48 << 20}));
    assert!(set["error"].is_null(), "{set}");
    let refused = machine("SetMemory", json!({"bytes": 1_u64 << 40}));
    assert_eq!(refused["error"], "org.varlink.service.InvalidParameter", "{refused}");
    machine("Reboot", json!({}));
    lab.says("web", "BOOT-GUEST-READY", 2);
    machine("PowerOff", json!({}));
    lab.wait_state("web", "stopped");
    assert_eq!(lab.last_reason("web"), "stopped");
}

#[test]
fn rm_requires_a_stopped_vm() {
    let Some((lab, _)) = ready("boot.qcow2", "") else { return };
    let refusal = lab.refused(&["rm", "web", "--disks", "--yes"]);
    refusal.is(ErrorCode::VmRunning, 1).golden("cli", "rm-of-a-running-vm");
    lab.ok(&["stop", "web"]);
    for (typed, removed) in [("wed\n", false), ("web\n", true)] {
        let pty = nix::pty::openpty(None, None).unwrap();
        let mut command = lab.command(&["rm", "web", "--disks"]);
        let mut child =
            command.stdin(pty.slave).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        drop(command);
        let mut operator = fs::File::from(pty.master);
        operator.write_all(typed.as_bytes()).unwrap();
        let mut said = String::new();
        child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        assert_eq!(child.wait().unwrap().success(), removed, "{said}");
        assert!(said.contains("root.qcow2"), "{said}");
        assert_eq!(lab.state("web", "root.qcow2").exists(), !removed);
    }
    assert!(lab.file("web").exists());
}

/// A program that ends with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn console_flood_is_bounded() {
    let Some((lab, _)) = ready("boot-flood.qcow2", "") else { return };
    // Viewers that do not read.
    let viewer = || {
        Running(
            lab.command(&["console", "web"])
                .stdout(Stdio::piped())
                .stdin(Stdio::piped())
                .spawn()
                .unwrap(),
        )
    };
    let viewers = [viewer(), viewer()];
    let log = || {
        let size = |file: &str| fs::metadata(lab.state("web", file)).map_or(0, |meta| meta.len());
        (size("console.log"), size("console.log.1"))
    };
    until("the log has gone round", || log().1 > 0);
    let (newer, older) = log();
    assert!(newer + older <= 1 << 20, "{newer} + {older}");
    assert_eq!(lab.status("web")["state"], "running");
    lab.ok(&["stop", "web"]);
    assert_eq!(lab.last_reason("web"), "stopped");
    let (newer, older) = log();
    assert!(newer + older <= 1 << 20, "{newer} + {older}");
    drop(viewers);
}

#[test]
fn events_are_printed_until_the_end() {
    let Some((lab, _)) = ready("boot.qcow2", "") else { return };
    let mut watching = Running(
        lab.command(&["events", "-f", "--json", "web"]).stdout(Stdio::piped()).spawn().unwrap(),
    );
    let mut stdout = std::io::BufReader::new(watching.0.stdout.take().unwrap());
    let mut next = || -> Option<Value> {
        let mut line = String::new();
        let count = std::io::BufRead::read_line(&mut stdout, &mut line).unwrap();
        (count > 0).then(|| serde_json::from_str(&line).unwrap())
    };
    // Past events are printed first.
    let first = next().unwrap();
    assert_eq!((&first["vm"], &first["event"]), (&"web".into(), &"QVM_STATE".into()));
    assert!(first["at"].as_str().unwrap().parse::<jiff::Timestamp>().is_ok());
    until("all events are printed", || next().unwrap()["event"] == "READY");
    let told = lab.ok(&["events"]);
    assert!(told.lines().all(|line| line.contains("  web  ")), "{told}");
    assert!(told.contains("  QVM_STATE  state=running\n"), "{told}");
    lab.ok(&["pause", "web"]);
    lab.ok(&["resume", "web"]);
    lab.ok(&["stop", "web"]);
    let mut seen = vec![];
    while let Some(event) = next() {
        seen.push(event["event"].as_str().unwrap().to_owned());
        if event["event"] == "QVM_END" {
            assert_eq!(event["data"]["reason"], "stopped");
        }
    }
    for wanted in
        ["STOP", "RESUME", "POWERDOWN", "SHUTDOWN", "QVM_STATE", "QVM_STOP_RUNG", "QVM_END"]
    {
        assert!(seen.iter().any(|name| name == wanted), "no {wanted} in {seen:?}");
    }
    assert!(watching.0.wait().unwrap().success());
}

#[test]
fn log_is_followed_through_relaunch() {
    let Some((lab, _)) = ready("boot.qcow2", "") else { return };
    let mut following =
        Running(lab.command(&["log", "-f", "web"]).stdout(Stdio::piped()).spawn().unwrap());
    let mut stdout = following.0.stdout.take().unwrap();
    let reader = std::thread::spawn(move || {
        let mut text = String::new();
        stdout.read_to_string(&mut text).unwrap();
        text
    });
    lab.ok(&["reboot", "web"]);
    lab.says("web", "BOOT-GUEST-READY", 2);
    lab.ok(&["stop", "web"]);
    until("it ends with the VM", || following.0.try_wait().unwrap().is_some());
    let text = reader.join().unwrap();
    assert_eq!(text.matches("BOOT-GUEST-READY").count(), 2, "{text}");
    assert_eq!(text, lab.console("web"));
}

#[test]
fn ctrl_c_is_a_clean_stop() {
    let Some((mut lab, one)) = ready("boot.qcow2", "") else { return };
    signal(lab.supervisor(one).id().cast_signed(), SIGINT);
    assert_eq!(lab.exit_code(one), Some(0));
    assert_eq!(lab.last_reason("web"), "stopped");
}
