//! A small Linux guest from start to end: its configuration, its devices, access to it, and its
//! shutdown.

use std::{
    fs,
    io::{Read, Write},
    net::{TcpListener, TcpStream},
};

use qvm::value::ErrorCode;

use crate::lab::{Lab, guest, terminal::Terminal, until};

/// A started VM of the tiny guest, when its shell accepts commands.
fn ready(more: &str) -> Option<Lab> {
    let image = guest("tiny.qcow2")?;
    let lab = Lab::new();
    let mem = if more.contains("mem =") { "" } else { "mem = \"256M\"\n" };
    lab.vm("web", &image, &format!("{mem}{more}"));
    boot(&lab, 1);
    Some(lab)
}

/// Starts the VM for the `count`th time.
fn boot(lab: &Lab, count: usize) {
    assert_eq!(lab.ok(&["start", "web"]), "web: running\n");
    lab.says("web", "QVM-TINY READY", count);
}

/// Runs a command in the guest's shell, and waits for its end.
fn shell(lab: &Lab, command: &str) {
    let before = lab.console("web").matches("QVM-TINY EXIT ").count();
    lab.types("web", format!("sh {command}\n").as_bytes());
    lab.says("web", "QVM-TINY EXIT ", before + 1);
    // The kernel may have printed messages since.
    let console = lab.console("web");
    let last = console.lines().rfind(|line| line.contains("QVM-TINY EXIT "));
    assert!(last.is_some_and(|line| line.contains("EXIT 0")), "{command}\n{console}");
}

/// The size of the guest's disk with this serial, in bytes, by its last output.
fn disk_size(lab: &Lab, serial: &str) -> Option<u64> {
    let console = lab.console("web");
    let line = console.lines().rfind(|line| {
        line.contains("QVM-TINY DISK") && line.contains(&format!(" serial={serial} "))
    })?;
    line.split(' ').nth(3)?.parse().ok()
}

/// A document of the guest's seed, as the guest printed it.
fn document(lab: &Lab, name: &str) -> String {
    let console = lab.console("web").replace('\r', "");
    let (_, after) = console.split_once(&format!("QVM-TINY FILE-BEGIN {name}\n")).unwrap();
    let (text, _) = after.split_once(&format!("QVM-TINY FILE-END {name}\n")).unwrap();
    text.to_owned()
}

/// A free port of 127.0.0.1.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Sends a line to the guest's echo server by a forwarded port.
fn echoes(port: u16, text: &str) -> bool {
    let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)) else { return false };
    stream.set_read_timeout(Some(crate::lab::LONG)).unwrap();
    let mut back = vec![0; text.len()];
    stream.write_all(text.as_bytes()).is_ok()
        && stream.read_exact(&mut back).is_ok()
        && back == text.as_bytes()
}

#[test]
fn guest_reads_seed_and_has_address() {
    let Some(lab) = ready(
        "vcpu = 2\nmac = \"52:54:00:61:90:15\"\nip = \"10.0.2.15/24\"\ngateway = \"10.0.2.2\"\n\
         [cloudInit]\nhostname = \"dev.example.org\"\nuser = \"op\"\n",
    ) else {
        return;
    };
    let identity = fs::read_to_string(lab.state("web", "identity.toml")).unwrap();
    let identity: toml::Table = toml::from_str(&identity).unwrap();
    let meta = document(&lab, "meta-data");
    assert!(meta.contains(&format!("instance-id: {}", identity["instanceId"])), "{meta}");
    assert!(meta.contains("local-hostname: \"dev.example.org\""), "{meta}");
    assert!(document(&lab, "user-data").starts_with("#cloud-config\n"));
    let console = lab.console("web");
    for line in [
        "QVM-TINY CPUS 2",
        "QVM-TINY FIRMWARE bios",
        "QVM-TINY NIC eth0 52:54:00:61:90:15 mtu=1500",
        "QVM-TINY ADDRESS eth0 10.0.2.15/24",
    ] {
        assert!(console.contains(line), "no `{line}`\n{console}");
    }
    assert!(!console.contains("NO-MODULE"), "{console}");

    let status = lab.status("web");
    assert_eq!(status["name"], "web");
    assert_eq!(status["state"], "running");
    assert_eq!((&status["vcpu"], &status["memBytes"]), (&2.into(), &(256 << 20).into()));
    assert_eq!(status["mac"], "52:54:00:61:90:15");
    assert_eq!(status["ip"], "10.0.2.15/24");
    assert_eq!(status["accel"], "tcg");
    assert_eq!(status["machine"], identity["machine"].as_str().unwrap());
    assert_eq!(status["pid"], lab.qemu_pid("web"));
    assert_eq!(status["console"], lab.state("web", "console.log").to_str().unwrap());
    for empty in ["pending", "notes", "ends"] {
        assert_eq!(status[empty], serde_json::json!([]), "{empty}");
    }
    assert!(status["tap"].is_null() && status["lastStop"].is_null());

    // The power button, handled by the guest's acpid.
    lab.ok(&["stop", "web"]);
    assert!(lab.console("web").contains("QVM-TINY BUTTON"));
    assert_eq!(lab.last_reason("web"), "stopped");
    assert_eq!(lab.status("web")["state"], "stopped");
}

#[test]
fn forwarded_port_reaches_the_guest() {
    let port = free_port();
    let Some(lab) = ready(&format!("forward = [\"{port}:7\", \"{port}:7/udp\"]\n")) else { return };
    lab.says("web", "QVM-TINY ADDRESS eth0 10.0.2.15/24", 1);
    until("the echo server answers", || echoes(port, "over user-mode network\n"));

    // Only on 127.0.0.1, unless an address is configured: /proc/net/tcp has the address in
    // hexadecimal.
    let listening = fs::read_to_string("/proc/net/tcp").unwrap();
    assert!(listening.contains(&format!(" 0100007F:{port:04X} ")), "{listening}");

    // The port belongs to this VM now.
    let second = lab.file("other");
    fs::copy(lab.file("web"), second).unwrap();
    let refusal = lab.refused(&["start", "other"]).without_log();
    refusal.is(ErrorCode::PortInUse, 75);
    refusal.masked(&port.to_string(), "PORT").golden("start", "port-in-use");
    assert_eq!(lab.last_reason("other"), "start-failed");
    assert!(echoes(port, "still there\n"));

    // The next QEMU of this VM gets the port of the last one, with open connections.
    let qemu = lab.qemu_pid("web");
    let file = fs::read_to_string(lab.file("web")).unwrap();
    fs::write(lab.file("web"), file.replace("256M", "272M")).unwrap();
    lab.ok(&["reload", "web"]);
    lab.types("web", b"reboot\n");
    lab.says("web", "QVM-TINY ADDRESS eth0 10.0.2.15/24", 2);
    assert_ne!(lab.qemu_pid("web"), qemu);
    until("the echo server answers again", || echoes(port, "after the reboot\n"));
}

#[test]
fn command_runs_in_the_guest() {
    let Some(lab) = Lab::tiny("plain", "", "") else { return };
    let exec = |arguments: &[&str]| {
        let output = lab.qvm(&[&["exec", "web", "--"], arguments].concat());
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    };
    assert_eq!(
        exec(&["sh", "-c", "echo \"$1 and  $2\"; echo wrong >&2; exit 7", "sh", "one", "t w,o\"'"]),
        (Some(7), "one and  t w,o\"'\n".into(), "wrong\n".into())
    );
    // Killed by signal 9, like in a shell.
    assert_eq!(exec(&["sh", "-c", "kill -9 $$"]).0, Some(137));
    let binary = lab.qvm(&["exec", "web", "--", "printf", "\\0\\377\\n"]);
    assert_eq!(binary.stdout, [0, 0xff, b'\n']);
    let (code, _, message) = exec(&["no-such-program"]);
    // The error message of the guest's setsid or shell.
    assert_eq!(code, Some(127));
    assert!(message.contains("no-such-program"), "{message}");
    let slow = lab.refused(&["exec", "--timeout", "1", "web", "--", "sleep", "1000"]);
    slow.is(ErrorCode::GuestTimeout, 1).golden("start", "exec-timeout");
    // The agent keeps working afterward.
    assert_eq!(exec(&["hostname"]), (Some(0), "tiny\n".into(), String::new()));
}

#[test]
fn agent_shuts_down_guest_without_acpi() {
    let Some(lab) = Lab::tiny("plain", "", "") else { return };
    lab.types("web", b"deaf\n");
    lab.says("web", "QVM-TINY DEAF", 1);
    lab.ok(&["stop", "web"]);
    assert!(lab.console("web").contains("QVM-TINY AGENT-SHUTDOWN"), "{}", lab.console("web"));
    assert_eq!(lab.last_reason("web"), "stopped");
}

#[test]
fn reboot_shuts_down_and_boots() {
    let Some(lab) = Lab::tiny("plain", "", "") else { return };
    let before = lab.status("web");
    lab.ok(&["reboot", "web"]);
    lab.says("web", "QVM-TINY READY", 2);
    assert!(lab.console("web").contains("QVM-TINY POWEROFF"), "{}", lab.console("web"));
    lab.wait_state("web", "running");
    let status = lab.status("web");
    for key in ["supervisorPid", "ends"] {
        assert_eq!(status[key], before[key], "{key}");
    }
}

#[test]
fn disks_are_kept_and_grown() {
    let tables = "[disk.data]\nsize = \"64M\"\n[disk.raw]\nsize = \"32M\"\nformat = \"raw\"\n\
                  [disk.fast]\nsize = \"16M\"\nbus = \"nvme\"\n";
    let Some(lab) = ready(tables) else { return };
    let root = disk_size(&lab, "root").unwrap();
    assert_eq!(disk_size(&lab, "data"), Some(64 << 20));
    assert_eq!(disk_size(&lab, "raw"), Some(32 << 20));
    assert_eq!(disk_size(&lab, "fast"), Some(16 << 20));
    assert!(lab.console("web").contains("QVM-TINY DISK nvme0n1 "));
    let magic = |name: &str| fs::read(lab.state("web", name)).unwrap()[..4].to_vec();
    assert_eq!((magic("data.qcow2"), magic("raw.raw")), (b"QFI\xfb".to_vec(), vec![0; 4]));
    let devices = lab.console("web");
    let device = |serial: &str| {
        let line = devices.lines().find(|l| l.contains(&format!(" serial={serial} "))).unwrap();
        line.split(' ').nth(2).unwrap().to_owned()
    };
    for (serial, text) in [("data", "kept-in-qcow2"), ("raw", "kept-in-raw")] {
        shell(&lab, &format!("printf {text} | dd of=/dev/{} conv=fsync", device(serial)));
    }
    lab.ok(&["stop", "web"]);

    let file = fs::read_to_string(lab.file("web")).unwrap();
    let file = file.replace("64M", "96M").replace("32M", "48M");
    fs::write(lab.file("web"), format!("diskSizeG = 1\n{file}")).unwrap();
    boot(&lab, 2);
    assert!(root < 1 << 30);
    assert_eq!(disk_size(&lab, "root"), Some(1 << 30));
    assert_eq!(disk_size(&lab, "data"), Some(96 << 20));
    assert_eq!(disk_size(&lab, "raw"), Some(48 << 20));
    for (serial, text) in [("data", "kept-in-qcow2"), ("raw", "kept-in-raw")] {
        shell(&lab, &format!("head -c {} /dev/{} | grep {text}", text.len(), device(serial)));
    }
}

#[test]
fn uefi_variables_are_kept_per_vm() {
    let Some(lab) = ready("firmware = \"uefi\"\n") else { return };
    assert!(lab.console("web").contains("QVM-TINY FIRMWARE uefi"), "{}", lab.console("web"));
    assert!(lab.console("web").contains("QVM-TINY SECURE-BOOT off"));
    // Four bytes of attributes (non-volatile, boot and run time), then the value.
    let variable = "/sys/firmware/efi/efivars/QvmTest-6b1f2a54-0c7d-4f0e-9d3a-2f1c5e8b7a90";
    shell(&lab, &format!("printf '\\007\\000\\000\\000kept' >{variable}"));
    lab.ok(&["stop", "web"]);
    boot(&lab, 2);
    shell(&lab, &format!("grep kept {variable}"));

    // Another VM has other variables: the firmware stores the names as UTF-16.
    let name: Vec<u8> = "QvmTest".encode_utf16().flat_map(u16::to_le_bytes).collect();
    let has_variable = |vm: &str| {
        let bytes = fs::read(lab.state(vm, "efivars.fd")).unwrap();
        bytes.windows(name.len()).any(|window| window == name)
    };
    fs::copy(lab.file("web"), lab.file("other")).unwrap();
    lab.ok(&["start", "other"]);
    assert!(has_variable("web") && !has_variable("other"));
}

#[test]
fn secure_boot_follows_the_vm_file() {
    let Some(lab) = ready("mem = \"512M\"\nfirmware = \"uefi-secure\"\n") else { return };
    assert!(lab.console("web").contains("QVM-TINY SECURE-BOOT on"), "{}", lab.console("web"));
}

#[test]
fn console_types_until_ctrl_bracket() {
    let Some(lab) = Lab::tiny("plain", "", "") else { return };
    let mut terminal = Terminal::open(&mut lab.command(&["console", "web"]));
    terminal.shows("Connected to web; Ctrl-] leaves", 1);
    until("the terminal is raw", || terminal.is_raw());
    // The guest joins the words, so that its output is no echo.
    terminal.types(b"sh echo he\"\"llo from \"\"the guest\r");
    terminal.shows("hello from the guest", 1);
    // Ctrl-C is for the guest.
    terminal.types(b"\x03\rsh echo still\"\" there\r");
    terminal.shows("still there", 1);
    terminal.types(b"\x1d");
    assert_eq!(terminal.code(), Some(0));
    assert!(!terminal.is_raw(), "the terminal is left as it was found");
    assert_eq!(lab.status("web")["state"], "running");
}
