//! `qvm disk check` and `qvm disk list`: results, exit codes, and the capabilities of directories.

use std::{
    fs,
    os::unix::fs::FileExt,
    path::Path,
    process::{Command, Output},
};

use serde_json::{Value, json};

use qvm::value::ErrorCode;

use crate::lab::{Lab, guest, loops::Loop, required};

fn sh(program: &str, arguments: &[&str]) {
    assert!(Command::new(program).args(arguments).status().unwrap().success(), "{arguments:?}");
}

/// A VM with disks in the state directory, which is never started.
fn lab_with(more: &str) -> Lab {
    let lab = Lab::new();
    fs::write(lab.file("web"), format!("accel = \"tcg\"\n{more}")).unwrap();
    fs::create_dir_all(lab.state("web", "")).unwrap();
    lab
}

fn qcow2(path: &Path) {
    let path = path.to_str().unwrap();
    sh("qemu-img", &["create", "-q", "-f", "qcow2", path, "8M"]);
    sh("qemu-io", &["-f", "qcow2", "-c", "write -q -P 7 0 1M", path]);
}

/// Reads big-endian numbers of a qcow2 file: the offset of its first reference count block.
fn refcount_block(file: &fs::File) -> u64 {
    let at = |offset| {
        let mut bytes = [0; 8];
        file.read_exact_at(&mut bytes, offset).unwrap();
        u64::from_be_bytes(bytes)
    };
    at(at(48))
}

/// Changes the reference count of a cluster (docs/interop/qcow2.rst: two bytes each).
fn count(path: &Path, cluster: u64, count: u16) {
    let file = fs::File::options().read(true).write(true).open(path).unwrap();
    let block = refcount_block(&file);
    file.write_all_at(&count.to_be_bytes(), block + 2 * cluster).unwrap();
}

fn text(output: &Output) -> (Option<i32>, String, String) {
    let utf8 = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), utf8(&output.stdout), utf8(&output.stderr))
}

fn json_of(lab: &Lab, arguments: &[&str]) -> Value {
    serde_json::from_slice(&lab.qvm(arguments).stdout).unwrap()
}

#[test]
fn exit_code_is_the_worst_result() {
    let lab = lab_with(
        "[disk.root]\nsize = \"8M\"\n[disk.data]\nsize = \"8M\"\n[disk.raw]\nsize = \"8M\"\n\
         format = \"raw\"\n",
    );
    let root = lab.state("web", "root.qcow2");
    qcow2(&root);
    fs::write(lab.state("web", "raw.raw"), [0; 4096]).unwrap();

    let (code, out, _) = text(&lab.qvm(&["disk", "check", "web"]));
    assert_eq!(code, Some(0), "{out}");
    assert_eq!(
        out,
        "web: root: clean\nweb: data: nothing to check: the disk does not exist yet\n\
         web: raw: nothing to check: a raw disk has no tables that could be checked\n"
    );

    // An unused cluster with a reference, as after a power failure.
    let data = lab.state("web", "data.qcow2");
    qcow2(&data);
    fs::File::options().append(true).open(&data).unwrap().set_len(64 << 20).unwrap();
    count(&data, 100, 1);
    let (code, out, err) = text(&lab.qvm(&["disk", "check", "web"]));
    assert_eq!(code, Some(4), "{out}{err}");
    lab.golden("disk", "check-leaks", &(out + &err));
    assert_eq!(text(&lab.qvm(&["disk", "check", "web", "--disk", "root"])).0, Some(0));

    // A used cluster without a reference will be overwritten.
    let file = fs::File::open(&root).unwrap();
    count(&root, refcount_block(&file) / 65536, 0);
    let before = fs::read(&root).unwrap();
    let (code, out, err) = text(&lab.qvm(&["disk", "check", "web"]));
    assert_eq!(code, Some(5), "{out}{err}");
    lab.golden("disk", "check-corrupt", &(out + &err));
    assert!(fs::read(&root).unwrap() == before, "a check changes nothing");

    let all = json_of(&lab, &["disk", "check", "web", "--json"]);
    let results: Vec<&Value> = all.as_array().unwrap().iter().map(|disk| &disk["result"]).collect();
    assert_eq!(results, ["corrupt", "leaks", "nothingToCheck"]);
    assert_eq!(all[1]["leaks"], 1);
    assert_eq!(all[0]["vm"], "web");
}

#[test]
fn file_that_cannot_be_checked_is_not_clean() {
    let lab = lab_with("[disk.root]\nsize = \"8M\"\n");
    let root = lab.state("web", "root.qcow2");
    fs::write(&root, [7; 8192]).unwrap();
    let (code, out, _) = text(&lab.qvm(&["disk", "check", "web"]));
    assert_eq!(code, Some(5), "{out}");
    lab.golden("disk", "check-no-qcow2", &out);

    // The check did not complete: qemu-img is killed, or does not exist.
    fs::remove_file(&root).unwrap();
    qcow2(&root);
    let fake = lab.path().join("bin");
    fs::create_dir(&fake).unwrap();
    fs::write(fake.join("qemu-img"), "#!/bin/sh\nkill -9 $$\n").unwrap();
    sh("chmod", &["755", fake.join("qemu-img").to_str().unwrap()]);
    let mut command = lab.command(&["disk", "check", "web"]);
    let (code, out, _) = text(&command.env("PATH", &fake).output().unwrap());
    assert_eq!(code, Some(1), "{out}");
    lab.golden("disk", "check-killed", &out);
    let mut command = lab.command(&["disk", "check", "web"]);
    let (code, out, err) = text(&command.env("PATH", "/nowhere").output().unwrap());
    assert_eq!(code, Some(1), "{out}");
    lab.golden("disk", "check-without-qemu-img", &(out + &err));
}

#[test]
fn unknown_names_exit_with_3() {
    let lab = lab_with("[disk.root]\nsize = \"8M\"\n");
    for (arguments, code, section) in [
        (&["disk", "check", "other"][..], ErrorCode::VmNotFound, "unknown-vm"),
        (&["disk", "list", "other"], ErrorCode::VmNotFound, "unknown-vm"),
        (&["disk", "check", "web", "--disk", "other"], ErrorCode::DiskUnknown, "unknown-disk"),
    ] {
        lab.refused(arguments).is(code, 3).golden("disk", section);
    }
    fs::write(lab.file("web"), "mem = 1\n").unwrap();
    lab.refused(&["disk", "check", "web"]).is(ErrorCode::InvalidFile, 78);
    lab.refused(&["disk", "list", "web"]).is(ErrorCode::InvalidFile, 78);
}

#[test]
fn running_vm_is_not_checked() {
    let Some(image) = guest("boot.qcow2") else { return };
    let lab = Lab::new();
    lab.vm("web", &image, "");
    lab.ok(&["start", "web"]);
    let refusal = lab.refused(&["disk", "check", "web"]);
    refusal.is(ErrorCode::VmRunning, 1).golden("disk", "check-of-a-running-vm");
    // A list changes nothing, and needs no lock.
    let all = json_of(&lab, &["disk", "list", "web", "--json"]);
    assert_eq!((&all[0]["disk"], &all[0]["exists"]), (&json!("root"), &json!(true)));
    lab.ok(&["kill", "web"]);
    assert_eq!(text(&lab.qvm(&["disk", "check", "web"])).0, Some(0));
}

#[test]
fn check_prevents_a_start() {
    let lab = lab_with("mem = \"64M\"\n[disk.root]\nsize = \"8M\"\n");
    qcow2(&lab.state("web", "root.qcow2"));
    // qemu-img reports its position, and waits for a continuation.
    let (fake, gate) = (lab.path().join("bin"), lab.path().join("gate"));
    fs::create_dir(&fake).unwrap();
    let script =
        format!("#!/bin/sh\necho >{0}.open; read line <{0}\necho '{{}}'\n", gate.display());
    fs::write(fake.join("qemu-img"), script).unwrap();
    sh("chmod", &["755", fake.join("qemu-img").to_str().unwrap()]);
    sh("mkfifo", &[gate.to_str().unwrap()]);
    let path = format!("{}:{}", fake.display(), std::env::var("PATH").unwrap());
    let mut check = lab.command(&["disk", "check", "web"]).env("PATH", path).spawn().unwrap();
    crate::lab::until("the check is under way", || gate.with_extension("open").exists());
    let (code, _, err) = text(&lab.qvm(&["start", "web"]));
    assert_ne!(code, Some(0), "{err}");
    fs::write(&gate, "go\n").unwrap();
    assert!(check.wait().unwrap().success());
}

#[test]
fn list_has_sizes_and_backing_files() {
    let lab = lab_with(
        "[disk.root]\nsize = \"8M\"\n[disk.new]\nsize = \"2G\"\n[disk.own]\npath = \"OWN\"\n",
    );
    let own = lab.path().join("own.raw");
    fs::write(&own, [1; 1 << 20]).unwrap();
    let written = fs::read_to_string(lab.file("web")).unwrap();
    fs::write(lab.file("web"), written.replace("OWN", own.to_str().unwrap())).unwrap();
    let (root, below) = (lab.state("web", "root.qcow2"), lab.path().join("below.qcow2"));
    qcow2(&below);
    let below = below.to_str().unwrap();
    sh(
        "qemu-img",
        &["create", "-q", "-f", "qcow2", "-b", below, "-F", "qcow2", root.to_str().unwrap()],
    );
    qcow2(&lab.state("web", "forgotten.qcow2"));

    let all = json_of(&lab, &["disk", "list", "--json"]);
    let names: Vec<&Value> = all.as_array().unwrap().iter().map(|disk| &disk["disk"]).collect();
    assert_eq!(names, ["root", "new", "own", "forgotten"]);
    assert_eq!(all[0]["backing"], json!([below]));
    assert_eq!(all[0]["virtualBytes"], 8 << 20);
    assert_eq!((&all[1]["exists"], &all[1]["virtualBytes"]), (&json!(false), &json!(2_u64 << 30)));
    assert_eq!((&all[2]["source"], &all[2]["format"]), (&json!("file"), &json!("raw")));
    assert_eq!(all[2]["virtualBytes"], 1 << 20);
    assert_eq!(all[3]["source"], "unnamed");
    assert!(all[3]["allocatedBytes"].as_u64().unwrap() >= 1 << 20, "{}", all[3]);
    let mount = String::from_utf8(
        Command::new("findmnt")
            .args(["-nT", own.to_str().unwrap(), "-o", "FSTYPE"])
            .output()
            .unwrap()
            .stdout,
    );
    assert_eq!(all[2]["place"]["fileSystem"], mount.unwrap().trim());

    let table = lab.ok(&["disk", "list", "web"]);
    assert!(table.contains("the VM file does not name it"), "{table}");
    assert!(table.contains(&format!("on {below}")), "{table}");
    // The probes leave no files.
    assert_eq!(fs::read_dir(lab.state("web", "")).unwrap().count(), 2);
}

#[test]
fn list_probes_file_system_features() {
    for (make, kind, reflink) in
        [("mkfs.btrfs", "btrfs", true), ("mkfs.xfs", "xfs", true), ("mkfs.ext4", "ext4", false)]
    {
        if Command::new(make).arg("-V").output().is_err() {
            assert!(!required(make), "{make} is missing");
            println!("skipped: no {make}");
            continue;
        }
        let mut lab = lab_with("[disk.root]\nsize = \"8M\"\n");
        let image = lab.path().join("fs.img");
        fs::File::create(&image).unwrap().set_len(400 << 20).unwrap();
        sh(make, &["-q", image.to_str().unwrap()]);
        let state = lab.state("web", "");
        let Some(mounts) = lab.mounts() else { return };
        mounts.sh(&format!("mount -o loop '{}' '{}'", image.display(), state.display()));
        let root = lab.state("web", "root.qcow2");
        qcow2(&root);
        let copy = lab.state("web", "copy.qcow2");
        sh("cp", &["--reflink=auto", root.to_str().unwrap(), copy.to_str().unwrap()]);
        sh("sync", &["-f", copy.to_str().unwrap()]);
        let all = json_of(&lab, &["disk", "list", "web", "--json"]);
        let place = &all[0]["place"];
        assert_eq!(place["fileSystem"], kind);
        assert_eq!(place["mountPoint"], state.to_str().unwrap().trim_end_matches('/'));
        assert_eq!((&place["reflink"], &place["discard"]), (&json!(reflink), &json!(true)));
        assert_eq!(place["direct"], json!(true));
        let bytes = |key: &str| all[0][key].as_u64().unwrap();
        let (allocated, own) = (bytes("allocatedBytes"), bytes("ownBytes"));
        assert!(allocated >= 1 << 20, "{allocated}");
        // The copy shares the blocks of the disk, or has separate blocks.
        assert!(if reflink { own < 1 << 20 } else { own == allocated }, "{kind}: {own}");
    }
}

#[test]
fn list_has_devices() {
    if !nix::unistd::geteuid().is_root() {
        return println!("skipped: only root makes loop devices");
    }
    let lab = Lab::new();
    let raw = lab.path().join("device.raw");
    fs::File::create(&raw).unwrap().set_len(8 << 20).unwrap();
    let Some(device) = Loop::new(&raw, 4096) else { return };
    let path = device.path().display().to_string();
    fs::write(lab.file("web"), format!("[disk.root]\ndevice = \"{path}\"\n")).unwrap();
    let all = json_of(&lab, &["disk", "list", "web", "--json"]);
    assert_eq!(all[0]["virtualBytes"], 8 << 20);
    assert_eq!((&all[0]["source"], &all[0]["format"]), (&json!("device"), &json!("raw")));
    assert_eq!(all[0]["place"]["direct"], true);
    let (code, out, _) = text(&lab.qvm(&["disk", "check", "web"]));
    assert_eq!((code, out.contains("root: nothing to check")), (Some(0), true), "{out}");
}
