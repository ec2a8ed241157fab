//! The complete standard error and exit code of command lines.
use std::{
    fs,
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::Path,
    process::{Command, Stdio},
};

use qvm::value::ErrorCode;
use tempfile::TempDir;

use crate::lab::refusal::{Refusal, golden};

/// A lab, with the expected result of one call.
struct Test {
    dir: TempDir,
}

impl Test {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    /// Writes a file below the directory.
    fn file(self, path: &str, text: &str) -> Self {
        let path = self.dir.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
        self
    }

    fn path(&self, path: &str) -> String {
        self.dir.path().join(path).display().to_string()
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_qvm"));
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap()).stdin(Stdio::null());
        for (key, dir) in [("CONFIG", "config"), ("STATE", "state"), ("RUNTIME", "run")] {
            command.env(format!("QVM_{key}_DIR"), self.dir.path().join(dir));
        }
        command.args(words);
        command
    }

    /// Standard output of a command with this exit code and without an error; `DIR` is the lab.
    #[track_caller]
    fn says(&self, words: &[&str], exit: i32) -> String {
        let output = self.command(words).output().unwrap();
        let dir = self.dir.path().display().to_string();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap().replace(&dir, "DIR");
        let err = text(output.stderr);
        assert_eq!((output.status.code(), err.as_str()), (Some(exit), ""), "{words:?}");
        text(output.stdout)
    }

    /// Standard output of a command that fails with these codes and the text of a golden section.
    #[track_caller]
    fn refused(&self, words: &[&str], code: ErrorCode, exit: i32, golden: &str) -> String {
        let output = self.command(words).output().unwrap();
        let refusal = Refusal::new(&output, &self.dir.path().display().to_string());
        refusal.is(code, exit).golden("cli", golden);
        String::from_utf8(output.stdout).unwrap()
    }
}

const HEAD: &str = "NAME  STATE  WHY  VCPU  MEM  RSS  CPU%  IP  UPTIME  PEND\n";

#[test]
fn usage_errors_are_code_2() {
    let test = Test::new();
    for words in [&["stop"][..], &["nonsense"], &["exec", "web"], &["status", "-v", "-q"]] {
        let output = test.command(words).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{words:?}");
    }
    test.refused(&["start", "We_b"], ErrorCode::Usage, 2, "invalid-name");
}

#[test]
fn empty_directory_is_an_empty_list() {
    let test = Test::new();
    assert_eq!(test.says(&["list"], 0), HEAD);
    assert_eq!(test.says(&["list", "--json"], 0), "[]\n");
    assert_eq!(test.says(&["status", "--json"], 0), "[]\n");
}

#[test]
fn unknown_vm_is_code_3() {
    let test = Test::new();
    for verb in
        ["status", "start", "stop", "restart", "reboot", "kill", "pause", "resume", "reload"]
    {
        assert_eq!(test.refused(&[verb, "web"], ErrorCode::VmNotFound, 3, "no-vm"), "", "{verb}");
    }
    for words in [
        &["console", "web"][..],
        &["log", "web"],
        &["events", "web"],
        &["exec", "web", "--", "true"],
        &["rm", "web", "--disks", "--yes"],
    ] {
        assert_eq!(test.refused(words, ErrorCode::VmNotFound, 3, "no-vm"), "", "{words:?}");
    }
    let words = ["status", "web", "--json"];
    assert_eq!(test.refused(&words, ErrorCode::VmNotFound, 3, "no-vm"), "[]\n");
    assert!(
        !Path::new(&test.path("state")).exists(),
        "something was made for a VM that is not there"
    );
}

#[test]
fn stopped_vm() {
    let test =
        Test::new().file("config/vms/web.toml", "vcpu = 2\nmem = \"512M\"\nip = \"10.0.0.2/24\"\n");
    for verb in ["stop", "kill", "reboot", "pause", "resume", "reload", "console", "events"] {
        test.refused(&[verb, "web"], ErrorCode::NotRunning, 3, "not-running");
    }
    test.refused(&["log", "web"], ErrorCode::NoOutput, 3, "no-output");
    let table = test.says(&["list"], 0);
    assert_eq!(
        table,
        "NAME  STATE    WHY  VCPU   MEM  RSS  CPU%  IP        UPTIME  PEND\n\
         web   stopped  -       2  512M    -     -  10.0.0.2  -          -\n"
    );
    let json = test.says(&["status", "web", "--json"], 3);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json[0]["state"], "stopped");
    assert_eq!((&json[0]["vcpu"], &json[0]["pid"]), (&2.into(), &serde_json::Value::Null));
    let test = test.file("config/vms/a.toml", "vcpu = 1\n");
    test.refused(&["stop", "a", "b", "a"], ErrorCode::VmNotFound, 3, "two-vms");
}

#[test]
fn broken_file_is_listed_as_invalid() {
    let test = Test::new().file("config/vms/web.toml", "vcpu = 0\n");
    let problem = "error: DIR/config/vms/web.toml:1:8: vcpu: ";
    let table = test.says(&["list"], 0);
    let lines: Vec<&str> = table.lines().collect();
    assert_eq!(lines.len(), 3, "{table}");
    assert_eq!(lines[1], "web   invalid  -       -    -    -     -  -   -          -");
    assert!(lines[2].starts_with(&format!("  {problem}")), "{table}");
    // Nothing is started or created.
    test.refused(&["start", "web"], ErrorCode::InvalidFile, 78, "invalid-file");
    assert!(!Path::new(&test.path("state")).exists());
}

#[test]
fn log_includes_its_older_part() {
    let test = Test::new()
        .file("state/vms/web/console.log.1", "one\ntwo\n")
        .file("state/vms/web/console.log", "three\n");
    assert_eq!(test.says(&["log", "web"], 0), "one\ntwo\nthree\n");
    assert_eq!(test.says(&["log", "web", "-n", "2"], 0), "two\nthree\n");
}

#[test]
fn rm_requires_disks_option() {
    let test =
        Test::new().file("config/vms/web.toml", "vcpu = 1\n").file("state/vms/web/root.raw", "x");
    test.refused(&["rm", "web"], ErrorCode::Usage, 2, "rm-without-disks");
    test.refused(&["rm", "web", "--disks"], ErrorCode::Usage, 2, "rm-without-terminal");
    assert_eq!(fs::read(test.path("state/vms/web/root.raw")).unwrap(), b"x");
}

#[test]
fn rm_follows_no_link() {
    let test = Test::new()
        .file("config/vms/web.toml", "vcpu = 1\n")
        .file("state/vms/web/root.raw", "x")
        .file("state/vms/other/root.raw", "y")
        .file("run/web/lock", "");
    std::os::unix::fs::symlink(test.path("state/vms/other"), test.path("state/vms/web/link"))
        .unwrap();
    let out = test.says(&["rm", "web", "--disks", "--yes"], 0);
    assert_eq!(out, "web: removed DIR/state/vms/web\n");
    assert!(!Path::new(&test.path("state/vms/web")).exists());
    for kept in ["state/vms/other/root.raw", "config/vms/web.toml", "run/web/lock"] {
        assert!(Path::new(&test.path(kept)).exists(), "{kept} is gone");
    }
    let words = ["rm", "web", "--disks", "--yes"];
    test.refused(&words, ErrorCode::NothingToRemove, 3, "nothing-to-remove");
}

#[test]
fn closed_reader_is_no_error() {
    let test = Test::new().file("state/vms/web/console.log", &"line\n".repeat(100_000));
    let mut child = test.command(&["log", "web"]);
    let mut child = child.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(0), &b""[..]));
}

#[test]
fn missing_runtime_dir_is_explained() {
    let test = Test::new();
    let mut command = test.command(&["list"]);
    command.env_remove("QVM_RUNTIME_DIR").env("HOME", "/nonexistent");
    if rustix::process::geteuid().is_root() {
        // The other user must be able to execute the program.
        let copy = test.dir.path().join("qvm");
        crate::lab::copy_program(env!("CARGO_BIN_EXE_qvm"), &copy);
        fs::set_permissions(test.dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        command = Command::new(copy);
        command.arg("list").env_clear().env("HOME", "/nonexistent").uid(65_534).gid(65_534);
    }
    let output = command.current_dir("/").output().unwrap();
    let refusal = Refusal::new(&output, "DIR");
    refusal.is(ErrorCode::DirectoryUnknown, 1).golden("cli", "no-runtime-dir");
}

/// A process with the name of a QEMU, which ends with its test.
struct Qemu(std::process::Child);

impl Drop for Qemu {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn unsupervised_qemu_keeps_its_disks() {
    let test =
        Test::new().file("config/vms/web.toml", "vcpu = 1\n").file("state/vms/web/root.raw", "x");
    let qemu = Qemu(Command::new("sleep").arg("600").spawn().unwrap());
    let pid = qemu.0.id();
    let record = serde_json::json!({
        "pid": pid,
        "startTime": qvm::sys::pidfd::start_time(pid).unwrap(),
        "bootId": qvm::sys::pidfd::boot_id().unwrap(),
        "startedAt": "2026-01-01T00:00:00Z",
        "qemuVersion": "10.0.2",
        "machine": "pc-q35-10.0",
        "accel": "tcg",
        "tap": null,
        "mac": null,
    });
    let test = test.file("run/web/record.json", &record.to_string());
    let alone = |words: &[&str]| {
        test.refused(words, ErrorCode::NoSupervisor, 1, "no-supervisor");
    };
    alone(&["rm", "web", "--disks", "--yes"]);
    assert_eq!(fs::read(test.path("state/vms/web/root.raw")).unwrap(), b"x");
    for verb in ["stop", "pause", "console"] {
        alone(&[verb, "web"]);
    }
    // Only a QEMU is killed.
    let not_qemu = Refusal::new(&test.command(&["kill", "web"]).output().unwrap(), "DIR");
    not_qemu.is(ErrorCode::StateUnknown, 75);
    golden("cli", "not-a-qemu", &not_qemu.text.replace(&pid.to_string(), "N"));
    let table = test.says(&["list"], 0);
    assert!(table.contains(&format!("(pid {pid}) runs without a supervisor")), "{table}");
    let json = test.says(&["status", "web", "--json"], 0);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!((&json[0]["state"], &json[0]["pid"]), (&"running".into(), &pid.into()));
    // After its exit, no confirmation is necessary.
    drop(qemu);
    test.says(&["rm", "web", "--disks", "--yes"], 0);
    assert!(!Path::new(&test.path("state/vms/web")).exists());
}
