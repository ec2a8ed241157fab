//! Inherited properties that must not matter to a `qvm` process: the umask, the working directory,
//! the variables of a session.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::Path,
    process::{Command, Output},
};

use qvm::value::ErrorCode;

use crate::lab::{
    Lab, guest,
    mounts::Mounts,
    refusal::{Refusal, golden},
};

/// A group without members.
const GROUP: u32 = 1_900_004_711;

/// Runs `qvm` in a shell after `first`.
fn after(lab: &Lab, first: &str, arguments: &[&str]) -> Output {
    let qvm = lab.command(arguments);
    let mut sh = Command::new("sh");
    sh.args(["-c", &format!("{first} && exec \"$@\""), "sh"]).arg(qvm.get_program());
    sh.args(qvm.get_args());
    for (key, value) in qvm.get_envs() {
        match value {
            Some(value) => sh.env(key, value),
            None => sh.env_remove(key),
        };
    }
    sh.stdin(std::process::Stdio::null()).output().unwrap()
}

fn said(output: &Output) -> String {
    let text = [&output.stdout[..], &output.stderr[..]].concat();
    String::from_utf8_lossy(&text).into_owned()
}

/// The mode of everything below `top`, by its relative path.
fn modes(top: &Path, below: &Path, found: &mut BTreeMap<String, u32>) {
    for entry in fs::read_dir(below).unwrap().flatten() {
        let path = entry.path();
        let Ok(metadata) = path.symlink_metadata() else { continue };
        let name = path.strip_prefix(top).unwrap().to_str().unwrap().to_owned();
        found.insert(name, metadata.mode() & 0o7777);
        if metadata.is_dir() {
            modes(top, &path, found);
        }
    }
}

#[test]
fn modes_do_not_depend_on_umask() {
    let Some(image) = guest("boot-count.qcow2") else { return };
    let mut all = vec![];
    for umask in ["022", "077", "000"] {
        let lab = Lab::new();
        // The directories belong to a group, which is inherited, like those of a package. The test
        // itself is not in the group.
        let root = nix::unistd::geteuid().is_root();
        for place in ["c", "c/vms", "s", "r"] {
            let place = lab.path().join(place);
            fs::create_dir_all(&place).unwrap();
            if root {
                std::os::unix::fs::chown(&place, None, Some(GROUP)).unwrap();
            }
            fs::set_permissions(&place, fs::Permissions::from_mode(0o2750)).unwrap();
        }
        lab.vm("web", &image, "[disk.data]\nsize = \"1M\"\n[display]\nvnc = \"unix\"\n");
        let text = fs::read_to_string(lab.file("web")).unwrap() + "[cloudInit]\n";
        fs::write(lab.file("web"), text).unwrap();
        fs::set_permissions(lab.file("web"), fs::Permissions::from_mode(0o640)).unwrap();
        let first = format!("umask {umask}");
        let tar = lab.path().join("web.tar");
        let prom = lab.path().join("qvm.prom");
        let (tar, prom) = (tar.to_str().unwrap(), prom.to_str().unwrap());
        let run = |arguments: &[&str]| {
            let output = after(&lab, &first, arguments);
            assert!(output.status.success(), "{umask} {arguments:?}: {}", said(&output));
        };
        let mut found = BTreeMap::new();
        run(&["start", "web"]);
        lab.says("web", "COUNT", 1);
        run(&["metrics", "--output", prom]);
        modes(lab.path(), lab.path(), &mut found);
        let gid = |name: &str| lab.path().join(name).metadata().unwrap().gid();
        let names = ["r/web", "r/web/control.sock", "r/web/record.json", "s/vms/web"];
        let groups: BTreeMap<&str, u32> = names.into_iter().map(|name| (name, gid(name))).collect();
        run(&["suspend", "web"]);
        run(&["start", "web"]);
        run(&["kill", "web"]);
        run(&["export", "web", tar]);
        run(&["rename", "web", "db"]);
        run(&["import", tar, "--new-identity"]);
        run(&["new", "fresh"]);
        modes(lab.path(), lab.path(), &mut found);
        let group = |name: &str| found[name] & 0o70;
        for (name, mode) in [("r/web", 0o50), ("s/vms", 0o50), ("s/vms/web", 0o50)] {
            assert_eq!(group(name), mode, "{umask} {name}");
        }
        if root {
            for name in ["r/web", "r/web/control.sock", "r/web/record.json", "s/vms/web"] {
                assert_eq!(groups.get(name), Some(&GROUP), "{umask} {name}");
            }
            assert_eq!((found["r/web"], found["s/vms"]), (0o2750, 0o2750), "{umask}");
        }
        assert_eq!((found["r/web/control.sock"], found["r/web/record.json"]), (0o660, 0o640));
        all.push((umask, found));
    }
    let (_, usual) = &all[0];
    assert!(usual.len() > 20, "{usual:?}");
    for (umask, found) in &all[1..] {
        for (name, mode) in usual {
            let other = found.get(name).copied();
            assert_eq!(other, Some(*mode), "{umask} {name}: {other:?}, usual {mode:o}");
        }
    }
}

#[test]
fn only_relative_paths_need_working_directory() {
    let Some(image) = guest("boot.qcow2") else { return };
    let lab = Lab::new();
    lab.vm("web", &image, "");
    let gone = "mkdir -p \"$QVM_RUNTIME_DIR/gone\" && cd \"$QVM_RUNTIME_DIR/gone\" && \
                rmdir \"$QVM_RUNTIME_DIR/gone\"";
    let tar = lab.path().join("web.tar");
    let tar = tar.to_str().unwrap();
    for (arguments, code) in [
        (&["list"][..], 0),
        (&["status"], 0),
        (&["check"], 0),
        (&["plan", "web"], 0),
        (&["image", "list"], 0),
        (&["start", "web"], 0),
        (&["restart", "web", "--timeout", "1"], 0),
        (&["apply"], 0),
        (&["diff", "web"], 0),
        (&["log", "web"], 0),
        (&["events", "web"], 0),
        (&["metrics"], 0),
        (&["pause", "web"], 0),
        (&["resume", "web"], 0),
        (&["kill", "web"], 0),
        (&["stop", "web"], 3),
        (&["seed", "web"], 0),
        (&["export", "web", tar], 0),
        (&["gc"], 0),
        (&["new", "db"], 0),
        (&["rm", "db", "--yes"], 0),
        (&["completions", "bash"], 0),
        (&["man", "qvm"], 0),
        (&["generate", tar], 0),
        (&["--version"], 0),
    ] {
        let output = after(&lab, gone, arguments);
        let text = said(&output);
        assert!(!text.contains("current directory"), "{arguments:?}: {text}");
        let refused = ["seed", "gc", "man", "generate", "rm", "stop"].contains(&arguments[0]);
        assert!(output.status.code() == Some(code) || refused, "{arguments:?}: {text}");
    }
    for arguments in [
        &["import", "./web.tar"][..],
        &["check", "./web.toml"],
        &["export", "web", "web.tar"],
        &["--state-dir", "s", "list"],
    ] {
        let output = after(&lab, gone, arguments);
        assert!(!output.status.success(), "{arguments:?}: {}", said(&output));
        let text = said(&output).replace(&lab.path().display().to_string(), "DIR");
        golden("start", &format!("without-cwd-{}", arguments[0].trim_matches('-')), &text);
    }
}

/// `su` and cron set no `XDG_RUNTIME_DIR`.
#[test]
fn session_directory_is_found_without_variable() {
    const NOBODY: &str = "65534";
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: only root makes the directory of another user");
        return;
    }
    let Some(mut mounts) = Mounts::new() else { return };
    let place = tempfile::Builder::new().prefix("qvm").tempdir_in("/tmp").unwrap();
    fs::set_permissions(place.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let program = place.path().join("qvm");
    crate::lab::copy_program(env!("CARGO_BIN_EXE_qvm"), &program);
    mounts.sh("mount -t tmpfs tmpfs /run");
    let list = |mounts: &Mounts| {
        let mut command = mounts.command("setpriv");
        command.args(["--reuid", NOBODY, "--regid", NOBODY, "--clear-groups", "--"]);
        command.arg(&program).arg("list").env_clear().env("HOME", "/nonexistent");
        command.env("PATH", std::env::var_os("PATH").unwrap()).output().unwrap()
    };
    let unknown = |output: Output| {
        assert_eq!(Refusal::new(&output, "DIR").code, ErrorCode::DirectoryUnknown);
    };
    unknown(list(&mounts));
    // The directory of another user is not used.
    mounts.sh(&format!("mkdir -p /run/user/{NOBODY}"));
    unknown(list(&mounts));
    mounts.sh(&format!("chown {NOBODY}:{NOBODY} /run/user/{NOBODY}"));
    let output = list(&mounts);
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
}

#[test]
fn address_outside_user_network_is_noted() {
    let Some(image) = guest("boot.qcow2") else { return };
    let lab = Lab::new();
    lab.vm("web", &image, "ip = \"192.168.7.5/24\"\n");
    let started = lab.ok(&["start", "web"]);
    assert!(started.contains("web: note: `ip` 192.168.7.5/24 of NIC `net`"), "{started}");
    assert_eq!(lab.notes("web"), ["ip-unreachable ip"]);
    lab.ok(&["kill", "web"]);
    lab.vm("web", &image, "ip = \"10.0.2.20/24\"\n");
    let started = lab.ok(&["start", "web"]);
    assert_eq!(started, "web: running\n");
    lab.ok(&["kill", "web"]);
}
