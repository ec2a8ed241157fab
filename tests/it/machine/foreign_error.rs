//! The texts of other programs that qvm compares, as printed by the installed versions: QEMU of the
//! machine, QEMU 7.2, and qemu-img.

use std::{
    ffi::OsStr,
    io::{BufRead, BufReader, Lines, Write},
    process::{Child, ChildStdout, Command, Stdio},
};

use qvm::value::foreign_error::{is_no_space, is_unplug_pending};
use serde_json::{Value, json};

use crate::lab::old_qemu;

/// A QEMU without a guest whose monitor is on its standard streams.
struct Machine {
    qemu: Child,
    replies: Lines<BufReader<ChildStdout>>,
}

impl Machine {
    fn start(binary: &OsStr) -> Self {
        // With this machine type, the guest must release a device, and no guest runs.
        let args = ["-machine", "pc,accel=tcg", "-S", "-nodefaults", "-display", "none"];
        let mut qemu = Command::new(binary)
            .args(args)
            .args(["-qmp", "stdio", "-device", "virtio-rng-pci,id=x"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut replies = BufReader::new(qemu.stdout.take().unwrap()).lines();
        assert!(replies.next().unwrap().unwrap().contains("QMP"));
        let mut machine = Self { qemu, replies };
        machine.execute("qmp_capabilities", &json!({}));
        machine
    }

    fn execute(&mut self, command: &str, arguments: &Value) -> Value {
        let call = json!({ "execute": command, "arguments": arguments });
        writeln!(self.qemu.stdin.as_mut().unwrap(), "{call}").unwrap();
        loop {
            let line = self.replies.next().unwrap().unwrap();
            let reply: Value = serde_json::from_str(&line).unwrap();
            if reply.get("event").is_none() {
                return reply;
            }
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

#[test]
fn second_unplug_is_refused_as_pending() {
    let old = old_qemu::lab();
    let old_binary = old.as_ref().and_then(|lab| lab.qemu.clone());
    for binary in [Some("qemu-system-x86_64".into()), old_binary].into_iter().flatten() {
        let mut machine = Machine::start(&binary);
        let device = json!({ "id": "x" });
        assert_eq!(machine.execute("device_del", &device), json!({ "return": {} }));
        let again = machine.execute("device_del", &device);
        let text = again["error"]["desc"].as_str().unwrap();
        assert!(is_unplug_pending(text), "{}: {text}", binary.display());
        let other = machine.execute("device_del", &json!({ "id": "other" }));
        assert!(!is_unplug_pending(other["error"]["desc"].as_str().unwrap()), "{other}");
    }
}

#[test]
fn full_file_system_is_recognized() {
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: only root mounts a file system");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let script = "mount -t tmpfs -o size=64k none \"$1\" && \
                  exec qemu-img create -f raw -o preallocation=full \"$1/disk\" 8M";
    let output = Command::new("unshare")
        .args(["--mount", "sh", "-c", script, "sh"])
        .arg(dir.path())
        .env("LC_ALL", "C")
        .output()
        .unwrap();
    let printed = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && is_no_space(&printed), "{printed}");
}
