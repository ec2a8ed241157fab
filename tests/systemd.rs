//! What qvm has for systemd: units that it understands, the generator, and what happens after a unit has stopped.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod lab;

use std::{
    fs,
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    time::Instant,
};

use lab::{Lab, guest, runs, signal};

const SIGKILL: i32 = 9;

fn top() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The generator on a lab's VM files, as systemd calls it.
fn generate(lab: &Lab, out: &Path) -> Output {
    let dirs = ["normal", "early", "late"].map(|dir| out.join(dir));
    for dir in &dirs {
        fs::create_dir_all(dir).unwrap();
    }
    let mut command = lab.command(&[]);
    command.arg0("/usr/lib/systemd/system-generators/qvm-generator").args(dirs);
    command.output().unwrap()
}

/// Everything below a directory, by its path: a file's text, a link's target.
fn tree(dir: &Path) -> Vec<(String, String)> {
    let mut out = vec![];
    let mut dirs = vec![dir.to_owned()];
    while let Some(next) = dirs.pop() {
        for entry in fs::read_dir(next).unwrap().map(|entry| entry.unwrap().path()) {
            let name = entry.strip_prefix(dir).unwrap().display().to_string();
            let kind = entry.symlink_metadata().unwrap().file_type();
            if kind.is_symlink() {
                out.push((name, fs::read_link(&entry).unwrap().display().to_string()));
            } else if kind.is_dir() {
                dirs.push(entry);
            } else {
                out.push((name, fs::read_to_string(&entry).unwrap()));
            }
        }
    }
    out.sort();
    out
}

#[test]
fn vm_files_become_drop_ins_and_links() {
    let lab = Lab::new();
    let vm = |name: &str, text: &str| fs::write(lab.file(name), text).unwrap();
    vm("db", "autostart = true\ncpuWeight = 300\n[image]\npath = \"/srv/a b.qcow2\"\n");
    vm("web", "after = [\"db\"]\nshutdownTimeoutSec = 10\nvcpu = 1\n");
    vm("broken", "autostart = true # always\nvcpuu = 1\n");
    vm("quiet", "autostart = false\nvcpuu = 1\n");
    fs::write(lab.file("Bad_Name"), "autostart = true\nvcpu = 1\n").unwrap();
    let out = lab.path().join("out");
    let output = generate(&lab, &out);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    assert!(said.contains("broken.toml:2:1: vcpuu: unknown key"), "{said}");
    let names: Vec<String> = tree(&out).into_iter().map(|(name, _)| name).collect();
    assert_eq!(
        names,
        [
            "normal/qvm.target.wants/qvm@broken.service",
            "normal/qvm.target.wants/qvm@db.service",
            "normal/qvm@db.service.d/10-qvm.conf",
            "normal/qvm@web.service.d/10-qvm.conf",
        ]
    );
    let all = tree(&out);
    assert_eq!(all[1].1, "/usr/lib/systemd/system/qvm@.service");
    assert!(all[2].1.contains("CPUWeight=300\n"), "{}", all[2].1);
    assert!(all[2].1.contains("RequiresMountsFor=\"/srv/a b.qcow2\"\n"), "{}", all[2].1);
    assert!(all[3].1.contains("After=qvm@db.service\n"), "{}", all[3].1);
    assert!(all[3].1.contains("TimeoutStopSec=40\n"), "{}", all[3].1);
}

#[test]
fn two_hundred_vm_files_hold_up_no_boot() {
    let lab = Lab::new();
    let text = fs::read_to_string(top().join("examples/web.toml")).unwrap();
    for nr in 0..200 {
        fs::write(lab.file(&format!("vm{nr}")), &text).unwrap();
    }
    let out = lab.path().join("out");
    let begun = Instant::now();
    let output = generate(&lab, &out);
    let took = begun.elapsed();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(tree(&out).len(), 400);
    println!("200 VM files in {took:?}");
}

/// `systemd-analyze verify` has nothing to say.
#[test]
fn systemd_understands_the_units() {
    if Command::new("systemd-analyze").arg("--version").output().is_err() {
        assert!(!lab::required("systemd"), "systemd-analyze is not installed");
        println!("skipped: no systemd-analyze");
        return;
    }
    let lab = Lab::new();
    fs::write(
        lab.file("web"),
        "description = \"50% of 'all' \\\\\"\nafter = [\"db\"]\n[image]\npath = \"/srv/a %b/\\\"c.qcow2\"\n",
    )
    .unwrap();
    let out = lab.path().join("out");
    assert!(generate(&lab, &out).status.success());
    let units = out.join("normal");
    for (place, kind) in [("systemd", "system"), ("systemd/user", "user")] {
        let dir = lab.path().join(kind);
        fs::create_dir_all(&dir).unwrap();
        for file in ["qvm@.service", "qvm.target", "qvm.slice"] {
            let Ok(text) = fs::read_to_string(top().join(place).join(file)) else { continue };
            // The program is wherever the test has it, and documentation is not installed.
            let text = text.replace("/usr/bin/qvm", env!("CARGO_BIN_EXE_qvm"));
            let text: String = text
                .lines()
                .filter(|line| !line.starts_with("Documentation="))
                .map(|line| format!("{line}\n"))
                .collect();
            fs::write(dir.join(file), text).unwrap();
        }
        let conf = dir.join("qvm@web.service.d");
        fs::create_dir_all(&conf).unwrap();
        fs::copy(units.join("qvm@web.service.d/10-qvm.conf"), conf.join("10-qvm.conf")).unwrap();
        let mut verify = Command::new("systemd-analyze");
        verify.args(["verify", "--man=no", "--recursive-errors=no", &format!("--{kind}")]);
        verify.env("SYSTEMD_UNIT_PATH", format!("{}:", dir.display()));
        verify.env("XDG_RUNTIME_DIR", lab.path());
        let verified = verify.arg(dir.join("qvm@web.service")).output().unwrap();
        let said = String::from_utf8_lossy(&verified.stderr).into_owned();
        let ours: Vec<&str> = said.lines().filter(|line| line.contains("qvm")).collect();
        assert!(verified.status.success() && ours.is_empty(), "{kind}: {said}");
    }
}

/// A VM whose supervisor was killed: the lab, and QEMU's pid.
fn orphan() -> Option<(Lab, i32)> {
    let image = guest("boot.qcow2")?;
    let mut lab = Lab::new();
    lab.vm("web", &image, "");
    let one = lab.run("web");
    lab.says("web", "BOOT-GUEST-READY", 1);
    lab.wait_state("web", "running");
    let qemu = lab.qemu_pid("web");
    signal(lab.supervisor(one).id().cast_signed(), SIGKILL);
    assert_eq!(lab.exit_code(one), None);
    Some((lab, qemu))
}

fn reap(lab: &Lab, result: &str, status: &str) -> Output {
    let mut command = lab.command(&["reap", "web"]);
    command.env("SERVICE_RESULT", result).env("EXIT_STATUS", status);
    command.stdin(Stdio::null()).output().unwrap()
}

#[test]
fn a_crash_leaves_qemu_to_the_next_supervisor_and_a_stop_leaves_none() {
    let Some((lab, qemu)) = orphan() else { return };
    for result in ["signal", "core-dump", "watchdog", "oom-kill"] {
        assert!(reap(&lab, result, "KILL").status.success());
        assert!(runs(qemu), "{result}");
    }
    let output = reap(&lab, "success", "0");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(!runs(qemu));
    assert!(lab.console("web").contains("BOOT-GUEST-POWEROFF"), "the power was cut");
    assert_eq!(lab.last_reason("web"), "stopped");
    assert!(!lab.runtime("web", "record.json").exists());
    // Nothing left, nothing to do.
    assert!(reap(&lab, "success", "0").status.success());
}

#[test]
fn what_is_left_is_stopped_also_when_its_file_is_gone() {
    let Some((lab, qemu)) = orphan() else { return };
    fs::remove_file(lab.file("web")).unwrap();
    assert!(reap(&lab, "timeout", "KILL").status.success());
    assert!(!runs(qemu));
    assert!(lab.console("web").contains("BOOT-GUEST-POWEROFF"));
}

#[test]
fn what_the_host_is_to_blame_for_does_not_use_up_the_start_limit() {
    let lab = Lab::new();
    let (bin, log) = (lab.path().join("bin"), lab.path().join("log"));
    fs::create_dir_all(&bin).unwrap();
    let systemctl: PathBuf = bin.join("systemctl");
    fs::write(&systemctl, format!("#!/bin/sh\necho \"$@\" >> '{}'\n", log.display())).unwrap();
    fs::set_permissions(&systemctl, fs::Permissions::from_mode(0o755)).unwrap();
    for (status, called) in [("1", false), ("75", true)] {
        let mut command = lab.command(&["reap", "web"]);
        command.env("SERVICE_RESULT", "exit-code").env("EXIT_STATUS", status);
        command.env("PATH", format!("{}:/usr/bin:/bin", bin.display()));
        assert!(command.output().unwrap().status.success());
        assert_eq!(log.exists(), called, "{status}");
    }
    let user = if nix::unistd::geteuid().is_root() { "" } else { "--user " };
    let said = fs::read_to_string(&log).unwrap();
    assert_eq!(said, format!("{user}reset-failed qvm@web.service\n"));
}
