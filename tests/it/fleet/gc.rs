//! Orphans on real QEMU: listed, stopped on request, and their disks deleted only by another
//! request.

use std::{fs, process::Stdio};

use crate::lab::{Lab, guest, notes_of, runs, until};

/// `old` runs without a VM file, `gone` is stopped without one, `web` has one and runs.
fn lab() -> Option<Lab> {
    let image = guest("boot.qcow2")?;
    let lab = Lab::new();
    for name in ["old", "gone", "web"] {
        lab.vm(name, &image, "");
        lab.ok(&["start", name]);
        lab.says(name, "BOOT-GUEST-READY", 1);
    }
    lab.ok(&["stop", "gone"]);
    for name in ["old", "gone"] {
        fs::remove_file(lab.file(name)).unwrap();
    }
    // A status does not wait long for a pending look at the VM file.
    until("its supervisor misses the VM file", || lab.status("old")["orphan"] == true);
    Some(lab)
}

fn refused(lab: &Lab, arguments: &[&str]) -> (Option<i32>, String) {
    let output = lab.qvm(arguments);
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

#[test]
fn orphan_is_stopped_and_keeps_disks() {
    let Some(lab) = lab() else { return };
    let list = lab.ok(&["list"]);
    assert!(list.lines().any(|line| line.starts_with("old*  ")), "{list}");
    assert_eq!(list.lines().filter(|line| line.starts_with("* no VM file: ")).count(), 1, "{list}");
    let status = lab.status("old");
    assert_eq!((&status["state"], &status["orphan"]), (&"running".into(), &true.into()));
    assert_eq!(notes_of(&status), ["orphan"]);
    assert_eq!(status["noteDetails"][0]["hint"], "`qvm gc` stops it");
    assert_eq!(lab.status("web")["orphan"], false);

    let json = lab.ok(&["gc", "--json"]);
    let all: serde_json::Value = serde_json::from_str(&json).unwrap();
    let names: Vec<&str> =
        all.as_array().unwrap().iter().map(|o| o["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["gone", "old"]);
    assert_eq!(all[1]["pid"], lab.qemu_pid("old"));
    assert!(all[0]["bytes"].as_u64().unwrap() > 4096);

    // Without a terminal for the confirmation, nothing is done.
    let (code, said) = refused(&lab, &["gc"]);
    assert_eq!(code, Some(2));
    assert!(
        said.starts_with("error: not stopped: cannot ask for confirmation without a terminal\n"),
        "{said}"
    );
    assert!(runs(lab.qemu_pid("old")));

    let said = lab.ok(&["gc", "--yes"]);
    assert!(
        said.contains(
            "data of stopped VMs without a VM file; `qvm gc --disks` deletes it:\n  gone: "
        ),
        "{said}"
    );
    assert!(said.contains("running without a VM file:\n  old: running, pid "), "{said}");
    assert!(said.contains("old: the guest shut down, requested by `qvm stop`\n"), "{said}");
    assert!(lab.console("old").contains("BOOT-GUEST-POWEROFF"));
    for name in ["old", "gone"] {
        assert!(lab.state(name, "root.qcow2").exists());
    }
    assert_eq!(lab.status("web")["state"], "running");
    lab.ok(&["kill", "web"]);
}

#[test]
fn orphan_with_stopped_supervisor_is_reported() {
    let Some(lab) = lab() else { return };
    let supervisor = lab.status("old")["supervisorPid"].as_i64().unwrap();
    let supervisor = i32::try_from(supervisor).unwrap();
    crate::lab::signal(supervisor, 19);
    let output = lab.qvm(&["gc", "--yes"]);
    crate::lab::signal(supervisor, 18);
    let said = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(75), "{said}");
    assert!(!said.contains("has ended"), "{said}");
    assert!(runs(lab.qemu_pid("old")));
    lab.ok(&["kill", "old", "web"]);
}

#[test]
fn orphan_without_supervisor_is_shut_down() {
    let Some(lab) = lab() else { return };
    let pid = lab.qemu_pid("old");
    let supervisor = lab.status("old")["supervisorPid"].as_i64().unwrap();
    crate::lab::signal(i32::try_from(supervisor).unwrap(), 9);
    crate::lab::until("its supervisor is gone", || !runs(i32::try_from(supervisor).unwrap()));
    assert!(lab.ok(&["gc", "--yes"]).contains("old: its QEMU has ended\n"));
    crate::lab::until("QEMU is gone", || !runs(pid));
    assert!(lab.console("old").contains("BOOT-GUEST-POWEROFF"));
    assert_eq!(lab.last_reason("old"), "stopped");
    lab.ok(&["kill", "web"]);
}

#[test]
fn only_disks_of_stopped_orphans_are_deleted() {
    let Some(lab) = lab() else { return };
    lab.ok(&["kill", "web"]);
    // A stopped orphan in use: its disk is the image of another VM.
    let image = guest("boot.qcow2").unwrap();
    lab.vm("base", &image, "");
    lab.ok(&["start", "base"]);
    lab.ok(&["kill", "base"]);
    fs::remove_file(lab.file("base")).unwrap();
    lab.vm("heir", &lab.state("base", "root.qcow2"), "");

    let (code, said) = refused(&lab, &["gc", "--disks"]);
    assert_eq!(code, Some(2), "{said}");
    let said = lab.ok(&["gc", "--disks", "--yes"]);
    assert!(said.contains("base: kept: another VM uses "), "{said}");
    assert!(
        said.contains(&format!(
            "gone: removed {}\n",
            lab.state("gone", "").display().to_string().trim_end_matches('/')
        )),
        "{said}"
    );
    assert!(!lab.state("gone", "").exists());
    // The running one was stopped; another call deletes its disks.
    assert!(lab.state("old", "root.qcow2").exists());
    for name in ["web", "base"] {
        assert!(lab.state(name, "root.qcow2").exists(), "{name}");
    }
    lab.ok(&["gc", "--disks", "--yes"]);
    assert!(!lab.state("old", "").exists());
    fs::remove_file(lab.file("heir")).unwrap();
    lab.ok(&["gc", "--disks", "--yes"]);
    assert_eq!(lab.ok(&["gc"]), "every VM has its VM file: nothing to do\n");
    assert!(lab.state("web", "root.qcow2").exists());
}

#[test]
fn unreadable_vm_files_are_no_orphans() {
    let Some(image) = guest("boot.qcow2") else { return };
    let lab = Lab::new();
    lab.vm("web", &image, "");
    lab.ok(&["start", "web"]);
    lab.ok(&["kill", "web"]);
    let disk = lab.state("web", "root.qcow2");
    let vms = lab.file("web").parent().unwrap().to_owned();

    // An invalid VM file counts as a VM file; while there is one, the used images are unknown.
    let text = fs::read_to_string(lab.file("web")).unwrap();
    fs::write(lab.file("web"), "vcpu = \n").unwrap();
    assert_eq!(lab.ok(&["gc", "--disks", "--yes"]), "every VM has its VM file: nothing to do\n");
    fs::rename(lab.file("web"), lab.file("bad")).unwrap();
    let (code, said) = refused(&lab, &["gc", "--disks", "--yes"]);
    assert_eq!(code, Some(78));
    assert!(
        said.contains("nothing deleted: cannot determine which disks `")
            && said.contains("bad.toml` refers to"),
        "{said}"
    );

    // A directory that is empty or missing is probably not mounted.
    fs::remove_file(lab.file("bad")).unwrap();
    let (code, said) = refused(&lab, &["gc", "--disks", "--yes"]);
    assert_eq!(code, Some(1));
    assert!(said.contains("nothing deleted: `"), "{said}");
    fs::remove_dir(&vms).unwrap();
    let (code, said) = refused(&lab, &["gc", "--disks", "--yes"]);
    assert_eq!(code, Some(1));
    assert!(said.starts_with("error: cannot list the VM files in `"), "{said}");
    assert!(disk.exists());

    // A symbolic link in the place of the directory is not followed.
    fs::create_dir(&vms).unwrap();
    fs::write(lab.file("other"), &text).unwrap();
    let (state, elsewhere) = (disk.parent().unwrap().to_owned(), lab.path().join("elsewhere"));
    fs::rename(&state, &elsewhere).unwrap();
    std::os::unix::fs::symlink(&elsewhere, &state).unwrap();
    lab.qvm(&["gc", "--disks", "--yes"]);
    assert!(elsewhere.join("root.qcow2").exists());
}

#[test]
fn declined_confirmation_deletes_nothing() {
    let Some(lab) = lab() else { return };
    let answer = |word: &str, arguments: &str| {
        let qvm = format!("{} {arguments}", env!("CARGO_BIN_EXE_qvm"));
        let mut script = lab.command(&[]);
        let environment: Vec<_> =
            script.get_envs().map(|(k, v)| (k.to_owned(), v.map(ToOwned::to_owned))).collect();
        script = std::process::Command::new("script");
        script.args(["-qec", &qvm, "/dev/null"]).stdin(Stdio::piped()).stdout(Stdio::piped());
        for (key, value) in environment {
            match value {
                Some(value) => script.env(key, value),
                None => script.env_remove(key),
            };
        }
        let mut child = script.spawn().unwrap();
        use std::io::Write;
        child.stdin.take().unwrap().write_all(format!("{word}\n").as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let (code, said) = answer("n", "gc");
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("Stop this VM? Type `y` to confirm: "), "{said}");
    assert!(runs(lab.qemu_pid("old")));
    let (code, said) = answer("y", "gc");
    assert_eq!(code, Some(0), "{said}");
    let (code, said) = answer("yes", "gc --disks");
    assert_eq!(code, Some(1), "{said}");
    assert!(lab.state("gone", "root.qcow2").exists());
    let (code, said) = answer("delete", "gc --disks");
    assert_eq!(code, Some(0), "{said}");
    assert!(!lab.state("gone", "").exists() && !lab.state("old", "").exists());
    lab.ok(&["kill", "web"]);
}

#[test]
fn disk_of_a_running_vm_is_kept() {
    let Some(lab) = lab() else { return };
    // `web` is restarted with a disk in the state directory of `gone`; then the disk is removed
    // from its VM file.
    let image = guest("boot.qcow2").unwrap();
    let disk = lab.state("gone", "root.qcow2");
    let table = format!("[disk.data]\npath = \"{}\"\n", disk.display());
    lab.vm("web", &image, &table);
    lab.ok(&["restart", "web"]);
    lab.vm("web", &image, "");
    let said = lab.ok(&["gc", "--disks", "--yes"]);
    assert!(said.contains("gone: kept: another VM uses"), "{said}");
    assert!(disk.exists());
    lab.ok(&["kill", "web"]);
    lab.ok(&["gc", "--disks", "--yes"]);
    assert!(!disk.exists());
}
