//! Names that no VM can have, and directories whose names have special characters of QEMU's options
//! or a shell.

use std::{
    ffi::{OsStr, OsString},
    fs,
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::Path,
    process::{Command, Stdio},
};

use crate::lab::{Lab, guest, until};
use nix::{
    fcntl::{FcntlArg, fcntl},
    libc,
};

/// The separators, quotes and special characters of QEMU options, URLs, shells, formats and JSON.
const DIRECTORY: &str = "a b,c=d,,%n%%20'e\"f;$HOME`{g}[h]\\t#?:j ü雪";

/// Every verb with a VM name, with its other arguments.
const VERBS: [(&str, &[&str]); 19] = [
    ("status", &[]),
    ("start", &[]),
    ("stop", &[]),
    ("restart", &[]),
    ("reboot", &[]),
    ("kill", &[]),
    ("pause", &[]),
    ("resume", &[]),
    ("reload", &[]),
    ("console", &[]),
    ("log", &[]),
    ("events", &[]),
    ("exec", &["--", "true"]),
    ("plan", &[]),
    ("run", &[]),
    ("rm", &[]),
    ("rename", &["x"]),
    ("clone", &["x"]),
    ("export", &["x.tar"]),
];

fn everything_below(path: &Path) -> Vec<std::path::PathBuf> {
    let mut found = vec![];
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        found.push(entry.path());
        found.extend(everything_below(&entry.path()));
    }
    found.sort();
    found
}

#[test]
fn every_verb_refuses_invalid_names() {
    let lab = Lab::new();
    // The target of the first name if it were used as a path.
    fs::write(lab.path().join("c/x.toml"), "mem = \"64M\"\n").unwrap();
    let before = everything_below(lab.path());
    let long = "x".repeat(300);
    let names: [&[u8]; 11] = [
        b"../x",
        b"..",
        b"",
        b"a/b",
        b"a,b",
        b"a\"b",
        b"a'b",
        b"a\nb",
        b"a\x1b[2Jb",
        b"a\xffb",
        long.as_bytes(),
    ];
    for (verb, behind) in VERBS {
        for name in names {
            let output = lab
                .command(&[verb])
                .arg(OsStr::from_bytes(name))
                .args(behind)
                .stdin(Stdio::null())
                .output()
                .unwrap();
            let message = String::from_utf8_lossy(&output.stderr).into_owned();
            let shown = String::from_utf8_lossy(name).into_owned();
            assert_eq!(output.status.code(), Some(2), "{verb} {shown:?}: {message}");
            assert!(output.stdout.is_empty() && message.starts_with("error: "), "{message}");
            assert!(!message.contains('\x1b') && !message.contains("a\nb"), "{message:?}");
            assert!(message.len() < 700, "{verb} {shown:?}: {message}");
        }
    }
    assert_eq!(everything_below(lab.path()), before);
}

#[test]
fn files_with_invalid_names_are_reported() {
    let lab = Lab::new();
    fs::write(lab.file("web"), "mem = \"64M\"\n").unwrap();
    for name in [&b"a b.toml"[..], b"a\nb.toml", b"a\x1b[2Jb.toml", b"a\xffb.toml", b".toml"] {
        let name = OsString::from_vec(name.to_vec());
        fs::write(lab.path().join("c/vms").join(name), "mem = \"64M\"\n").unwrap();
    }
    let before = everything_below(lab.path());
    for arguments in [&["list"][..], &["list", "--json"], &["status"], &["check"]] {
        let output = lab.qvm(arguments);
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said).into_owned();
        assert!(said.contains("web") || arguments == ["check"], "{arguments:?}: {said}");
        assert!(!said.contains('\x1b') && !said.contains("a\nb"), "{arguments:?}: {said:?}");
        let told = arguments.contains(&"--json") || said.contains("`a\\nb` is not a VM name");
        assert!(told, "{arguments:?}: {said}");
    }
    assert_eq!(everything_below(lab.path()), before);
}

#[test]
fn vm_runs_in_directory_with_special_characters() {
    let Some(image) = guest("tiny.qcow2") else { return };
    let lab = Lab::below(DIRECTORY);
    let own = lab.path().join("image,file=x %s.qcow2");
    fs::copy(image, &own).unwrap();
    let extra = lab.path().join("extra,format=qcow2.raw");
    fs::File::create(&extra).unwrap().set_len(8 << 20).unwrap();
    let quoted = |path: &Path| toml::Value::from(path.to_str().unwrap()).to_string();
    fs::write(
        lab.file("web"),
        format!(
            "accel = \"tcg\"\nmem = \"256M\"\nfirmware = \"uefi\"\n\
             [image]\npath = {}\nclone = \"overlay\"\n[cloudInit]\n\
             [disk.data]\nsize = \"16M\"\n[disk.extra]\npath = {}\n",
            quoted(&own),
            quoted(&extra)
        ),
    )
    .unwrap();
    lab.ok(&["check", "web"]);
    lab.ok(&["plan", "web"]);
    lab.ok(&["start", "web"]);
    lab.says("web", "QVM-TINY READY", 1);
    let console = lab.console("web");
    for line in ["FILE-BEGIN meta-data", "FIRMWARE uefi"] {
        assert!(console.contains(line), "no `{line}`\n{console}");
    }
    for disk in ["16777216 serial=data", "8388608 serial=extra", "serial=root"] {
        assert!(console.contains(disk), "no `{disk}`\n{console}");
    }
    until("the guest agent answers", || lab.qvm(&["exec", "web", "--", "true"]).status.success());
    assert_eq!(lab.status("web")["console"], lab.state("web", "console.log").to_str().unwrap());
    assert!(lab.ok(&["image", "list"]).contains("image,file=x"));
    lab.ok(&["stop", "web"]);
    assert_eq!(lab.last_reason("web"), "stopped");
    // No file was created beside the directory, by a name that was cut at a special character.
    let beside = fs::read_dir(lab.path().parent().unwrap()).unwrap().count();
    assert_eq!(beside, 1);
}

#[test]
fn image_url_with_escapes_is_decoded() {
    let Some(image) = guest("boot.qcow2") else { return };
    let lab = Lab::below("a b%20ü");
    fs::copy(image, lab.path().join("im age%.qcow2")).unwrap();
    let escaped: String = lab
        .path()
        .join("im age%.qcow2")
        .as_os_str()
        .as_bytes()
        .iter()
        .map(|byte| match byte {
            b'/' | b'.' | b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' => char::from(*byte).to_string(),
            other => format!("%{other:02X}"),
        })
        .collect();
    let text = format!("accel = \"tcg\"\nmem = \"64M\"\n[image]\nurl = \"file://{escaped}\"\n");
    fs::write(lab.file("web"), text).unwrap();
    lab.ok(&["start", "web"]);
    lab.says("web", "BOOT-GUEST-READY", 1);
    lab.ok(&["stop", "web"]);
}

/// Like the files of a QEMU that a guest has taken over.
#[test]
fn disk_with_external_file_is_not_opened() {
    let Some(image) = guest("boot-count.qcow2") else { return };
    let lab = Lab::new();
    lab.vm("web", &image, "");
    lab.ok(&["start", "web"]);
    lab.ok(&["stop", "web"]);
    let disk = lab.state("web", "root.qcow2");
    let stand_on = |base: &str| {
        let rebase = ["rebase", "-u", "-f", "qcow2", "-F", "raw", "-b", base];
        let done = Command::new("qemu-img").args(rebase).arg(&disk).output().unwrap();
        assert!(done.status.success(), "{done:?}");
    };
    let refused = |lab: &Lab| {
        let output = lab.qvm(&["start", "web"]);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        String::from_utf8(output.stderr).unwrap()
    };
    stand_on("/etc/shadow");
    let told = refused(&lab);
    assert!(
        told.contains("has the backing file `/etc/shadow`, which is not the base that qvm used"),
        "{told}"
    );
    // The disk is not grown either, because qemu-img would open it as root.
    lab.vm("web", &image, "isolation = \"off\"\ndiskSizeG = 1\n");
    assert!(refused(&lab).contains("has the backing file `/etc/shadow`"));
    stand_on("");
    lab.ok(&["start", "web"]);
    lab.ok(&["stop", "web"]);
    // Version 3, bit 2 of the incompatible features, byte 79: an external data file.
    let mut bytes = fs::read(&disk).unwrap();
    bytes[79] |= 4;
    fs::write(&disk, bytes).unwrap();
    let told = refused(&lab);
    assert!(told.contains("has an external data file"), "{told}");
}

/// Like a QEMU that a guest has taken over, with the base image of its disk open for reading: it
/// locks each byte that denies a permission to others (`RAW_LOCK_SHARED_BASE` of QEMU's
/// block/file-posix.c).
#[test]
fn locked_shared_image_prevents_no_start() {
    let Some(image) = guest("boot.qcow2") else { return };
    let lab = Lab::new();
    let from = format!("path = {}\n", toml::Value::from(image.to_str().unwrap()));
    let text = format!("accel = \"tcg\"\nmem = \"64M\"\n[image]\n{from}clone = \"overlay\"\n");
    fs::write(lab.file("first"), &text).unwrap();
    lab.ok(&["start", "first"]);
    let made = fs::read(lab.state("first", "root.origin.json")).unwrap();
    let made: serde_json::Value = serde_json::from_slice(&made).unwrap();
    let base = Path::new(made["base"].as_str().unwrap());
    let held = fs::File::open(base).unwrap();
    for start in 200..205 {
        let lock = libc::flock {
            l_type: libc::F_RDLCK.try_into().unwrap(),
            l_whence: libc::SEEK_SET.try_into().unwrap(),
            l_start: start,
            l_len: 1,
            l_pid: 0,
        };
        fcntl(&held, FcntlArg::F_OFD_SETLK(&lock)).unwrap();
    }
    let locked = Command::new("qemu-img").args(["check", "-f", "qcow2"]).arg(base).output();
    let said = String::from_utf8(locked.unwrap().stderr).unwrap();
    assert!(said.contains("Failed to get \"consistent read\" lock"), "{said}");
    // An overlay on the image, a conversion of it, and a disk that is plugged into a running guest.
    let disk = format!("[disk.more.image]\n{from}");
    for (name, more) in [
        ("second", String::new()),
        ("third", format!("[disk.more]\nformat = \"raw\"\n{disk}")),
        ("first", format!("[disk.more]\nclone = \"overlay\"\n{disk}")),
    ] {
        fs::write(lab.file(name), format!("{text}{more}")).unwrap();
        lab.ok(&[if name == "first" { "apply" } else { "start" }, name]);
    }
    lab.ok(&["stop", "second"]);
    fs::write(lab.file("second"), text.replace("[image]", "diskSizeG = 1\n[image]")).unwrap();
    lab.ok(&["start", "second"]);
    lab.ok(&["restart", "first"]);
    for name in ["first", "second", "third"] {
        assert_eq!(lab.status(name)["state"], "running");
        assert_eq!(lab.status(name)["pending"], serde_json::json!([]), "{name}");
    }
    // A disk of one VM keeps its image locks.
    let own = lab.state("second", "root.qcow2");
    let taken = Command::new("qemu-img").args(["check", "-f", "qcow2"]).arg(own).output().unwrap();
    assert!(!taken.status.success(), "{taken:?}");
}
