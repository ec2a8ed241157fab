//! Rename, clone, export and import of a VM, and each of them interrupted at every step and
//! repeated. On real QEMU.

use std::{
    collections::BTreeMap,
    fs,
    io::{Read, Write},
    os::unix::{
        fs::{MetadataExt, PermissionsExt},
        process::ExitStatusExt,
    },
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
};

use qvm::value::ErrorCode;

use crate::lab::{Lab, guest, required};

const MORE: &str = "\
# The web server.
mac = \"52:54:00:61:90:15\"  # in the DHCP server
[disk.data]
size = \"8M\"
format = \"raw\"
[cloudInit]
userData = \"dev.user-data.yaml\"
";

/// `web`, which has run and is shut down; both of its disks have unique content.
fn ran(more: &str) -> Option<Lab> {
    let image = guest("boot.qcow2")?;
    let lab = Lab::new();
    fs::write(lab.path().join("c/vms/dev.user-data.yaml"), "#cloud-config\n{}\n").unwrap();
    lab.vm("web", &image, more);
    lab.ok(&["start", "web"]);
    lab.says("web", "BOOT-GUEST-READY", 1);
    lab.ok(&["stop", "web"]);
    if lab.state("web", "data.raw").exists() {
        use std::os::unix::fs::FileExt;
        let data = fs::OpenOptions::new().write(true).open(lab.state("web", "data.raw")).unwrap();
        data.write_all_at(b"the data of web", 5 << 20).unwrap();
    }
    Some(lab)
}

fn refused(lab: &Lab, arguments: &[&str]) -> (Option<i32>, String) {
    let output = lab.qvm(arguments);
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

fn text(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The state directory of a VM, or the symbolic link in its place.
fn place(lab: &Lab, vm: &str) -> PathBuf {
    lab.state(vm, "x").parent().unwrap().to_owned()
}

/// Without the UID of QEMU, which differs between hosts.
fn identity(lab: &Lab, vm: &str) -> toml::Table {
    let mut all: toml::Table = text(&lab.state(vm, "identity.toml")).parse().unwrap();
    all.remove("uid");
    all
}

/// Checks that both disks have the content of those of `of`.
fn same_disks(lab: &Lab, vm: &str, of: &[Vec<u8>; 2]) -> bool {
    let read = |disk| fs::read(lab.state(vm, disk)).ok();
    [read("root.qcow2"), read("data.raw")] == of.clone().map(Some)
}

fn disks(lab: &Lab, vm: &str) -> [Vec<u8>; 2] {
    ["root.qcow2", "data.raw"].map(|disk| fs::read(lab.state(vm, disk)).unwrap())
}

/// Every file and link below the VM files and the state, except those that every command may write.
fn tree(lab: &Lab) -> BTreeMap<PathBuf, Vec<u8>> {
    fn below(dir: &Path, found: &mut BTreeMap<PathBuf, Vec<u8>>) {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            let (path, kind) = (entry.path(), entry.file_type().unwrap());
            if kind.is_dir() {
                found.insert(path.clone(), Vec::new());
                below(&path, found);
            } else {
                found.insert(path.clone(), fs::read(&path).unwrap_or_default());
            }
        }
    }
    let mut found = BTreeMap::new();
    below(&lab.path().join("c/vms"), &mut found);
    below(&lab.path().join("s/vms"), &mut found);
    found
}

fn boots(lab: &Lab, vm: &str) {
    lab.ok(&["start", vm]);
    lab.says(vm, "BOOT-GUEST-READY", 1);
    lab.ok(&["stop", vm]);
}

#[test]
fn renamed_vm_keeps_its_identity() {
    let Some(lab) = ran("[cloudInit]\n") else { return };
    let before = identity(&lab, "web");
    let disk = fs::metadata(lab.state("web", "root.qcow2")).unwrap().ino();
    lab.vm("db", &guest("boot.qcow2").unwrap(), "after = [\"web\"]\n");
    let output = lab.qvm(&["rename", "web", "www"]);
    assert_eq!(String::from_utf8_lossy(&output.stdout), "web: renamed to www\n");
    let db = lab.file("db");
    assert_eq!(
        String::from_utf8_lossy(&output.stderr),
        format!(
            "hint: its guest keeps the host name `web`: set `hostname` in `[cloudInit]` to \
             change it\n\
             hint: `after` in `{}` still names `web`\n",
            db.display()
        )
    );
    assert!(!lab.file("web").exists() && place(&lab, "web").symlink_metadata().is_err());
    assert_eq!(fs::metadata(lab.state("www", "root.qcow2")).unwrap().ino(), disk);
    let after = identity(&lab, "www");
    for key in ["uuid", "instanceId", "machine", "macs"] {
        assert_eq!(after[key], before[key], "{key}");
    }
    let seed = lab.ok(&["seed", "www"]);
    assert!(
        seed.contains("local-hostname: \"web\"") && seed.contains("hostname: \"web\""),
        "{seed}"
    );
    boots(&lab, "www");

    // The name is free again, but not its address.
    lab.vm("web", &guest("boot.qcow2").unwrap(), "[cloudInit]\n");
    boots(&lab, "web");
    assert_ne!(identity(&lab, "web")["macs"], after["macs"]);
    assert!(lab.ok(&["seed", "web"]).contains("local-hostname: \"web\""));
    // And back: the guest keeps the host name that it has learned.
    fs::remove_file(lab.file("web")).unwrap();
    lab.ok(&["rm", "web", "--disks", "--yes"]);
    lab.ok(&["rename", "www", "web"]);
    lab.ok(&["rename", "web", "x"]);
    assert!(lab.ok(&["seed", "x"]).contains("local-hostname: \"web\""));
}

#[test]
fn refused_rename_changes_nothing() {
    let Some(lab) = ran(MORE) else { return };
    let image = guest("boot.qcow2").unwrap();
    lab.vm("db", &image, "");
    fs::create_dir_all(place(&lab, "kept")).unwrap();
    let bridged = "bridge = \"br0\"\n";
    lab.vm("lan", &image, bridged);
    lab.vm("heir", &lab.state("db", "root.qcow2"), "");
    let before = tree(&lab);
    for (from, to, code, exit, section) in [
        ("web", "db", ErrorCode::VmExists, 1, "rename-to-a-vm"),
        ("web", "web", ErrorCode::VmExists, 1, "rename-to-itself"),
        ("no", "yes", ErrorCode::VmNotFound, 3, "rename-of-no-vm"),
        ("kept", "yes", ErrorCode::VmFileMissing, 3, "rename-without-vm-file"),
        ("web", "kept", ErrorCode::VmDataExists, 1, "rename-to-data"),
        ("lan", "a-very-long-name", ErrorCode::ResultInvalid, 78, "rename-to-a-long-name"),
        ("db", "base", ErrorCode::PathNeeded, 1, "rename-of-a-base"),
    ] {
        lab.refused(&["rename", from, to]).is(code, exit).golden("transfer", section);
        assert_eq!(tree(&lab), before, "{section}");
    }

    // A link belongs to its creator.
    let real = lab.path().join("web.toml");
    fs::rename(lab.file("web"), &real).unwrap();
    std::os::unix::fs::symlink(&real, lab.file("web")).unwrap();
    let refusal = lab.refused(&["rename", "web", "www"]);
    refusal.is(ErrorCode::VmFileLinked, 1).golden("transfer", "rename-of-a-linked-file");
    // After the operator's change, the disks follow.
    let disks = disks(&lab, "web");
    fs::rename(lab.file("web"), lab.file("www")).unwrap();
    lab.ok(&["rename", "web", "www"]);
    assert!(same_disks(&lab, "www", &disks) && !place(&lab, "web").exists());
    // Disks that the operator has moved stay there.
    let (state, elsewhere) = (place(&lab, "www"), lab.path().join("elsewhere"));
    fs::rename(&state, &elsewhere).unwrap();
    std::os::unix::fs::symlink(&elsewhere, &state).unwrap();
    fs::remove_file(lab.file("www")).unwrap();
    fs::rename(&real, lab.file("www")).unwrap();
    lab.ok(&["rename", "www", "web"]);
    assert_eq!(fs::read_link(place(&lab, "web")).unwrap(), elsewhere);
    assert!(same_disks(&lab, "web", &disks));
}

#[test]
fn running_or_suspended_vm_is_not_changed() {
    let Some(lab) = ran(MORE) else { return };
    lab.ok(&["start", "web"]);
    let tar = lab.path().join("web.tar");
    let tar = tar.to_str().unwrap();
    let verbs = [&["rename", "web", "www"][..], &["clone", "web", "www"], &["export", "web", tar]];
    let supervisor = lab.status("web")["supervisorPid"].as_i64().unwrap();
    for verb in verbs {
        let refusal = lab.refused(verb);
        refusal.is(ErrorCode::AlreadySupervised, 1).golden("transfer", "running");
    }
    // Without its supervisor, the guest still has its disks.
    crate::lab::signal(i32::try_from(supervisor).unwrap(), 9);
    crate::lab::until("it is gone", || !crate::lab::runs(i32::try_from(supervisor).unwrap()));
    for verb in verbs {
        let refusal = lab.refused(verb);
        refusal.is(ErrorCode::NoSupervisor, 1).golden("transfer", "without-supervisor");
    }
    lab.ok(&["start", "web"]);
    lab.ok(&["suspend", "web"]);
    for verb in &verbs[1..] {
        lab.refused(verb).is(ErrorCode::VmSuspended, 1).golden("transfer", "suspended");
    }
    assert!(!Path::new(tar).exists() && !lab.file("www").exists());
    // A suspended VM resumes with its new name.
    lab.ok(&["rename", "web", "www"]);
    lab.ok(&["start", "www"]);
    assert!(!lab.console("www").contains("BOOT-GUEST-POWEROFF\r\nBOOT-GUEST-READY\r\nBOOT"));
    assert!(
        !lab.state("www", "saved.state").exists() && !lab.state("www", "unusable.state").exists()
    );
    lab.ok(&["stop", "www"]);
}

#[test]
fn clone_has_new_identity_and_same_disks() {
    let more = MORE.replace("[disk.data]", "forward = [\n  \"2222:22\", # ssh\n]\n[disk.data]");
    let Some(lab) = ran(&more) else { return };
    let (before, disks) = (tree(&lab), disks(&lab, "web"));
    fs::write(lab.state("web", "efivars.fd"), "variables").unwrap();
    let output = lab.qvm(&["clone", "web", "copy"]);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(said, "web: cloned to copy\ncopy: removed from its VM file: mac, forward\n");
    let hints = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(hints.starts_with("hint: the guest has the machine-id of `web`; "), "{hints}");
    assert!(hints.contains("\nhint: it uses the user-data of `web`, `"), "{hints}");
    assert!(same_disks(&lab, "copy", &disks));
    let blocks = fs::metadata(lab.state("copy", "data.raw")).unwrap().blocks();
    assert!(blocks * 512 < 1 << 20, "holes were filled: {blocks}");
    assert_eq!(text(&lab.state("copy", "efivars.fd")), "variables");
    assert_eq!(
        text(&lab.file("copy")).replace("# removed, `web` has it:\n# ", ""),
        text(&lab.file("web"))
            .replace("\n  \"2222:22\", # ssh\n]", "\n#   \"2222:22\", # ssh\n# ]")
    );
    // Without its history, and without the identifiers of the original.
    for file in ["console.log", "ends.json", "seed.iso", "supervisor.log"] {
        assert!(lab.state("web", file).exists() && !lab.state("copy", file).exists(), "{file}");
    }
    let (old, new) = (identity(&lab, "web"), identity(&lab, "copy"));
    assert_eq!(old["machine"], new["machine"]);
    assert_ne!(old["uuid"], new["uuid"]);
    assert!(new["instanceId"].as_str().unwrap().starts_with("iid-copy-"));
    assert!(new["macs"]["net"].is_str());
    // Both run in parallel; the original is unchanged.
    lab.ok(&["start", "web"]);
    lab.ok(&["start", "copy"]);
    lab.says("copy", "BOOT-GUEST-READY", 1);
    assert_ne!(lab.status("web")["mac"], lab.status("copy")["mac"]);
    lab.ok(&["stop", "web", "copy"]);
    let logs = ["console.log", "ends.json", "supervisor.log"];
    for (path, content) in before {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if !logs.iter().any(|log| name.starts_with(log)) {
            assert!(fs::read(&path).unwrap_or_default() == content, "{}", path.display());
        }
    }
    // A VM without user-data, started at once.
    let refusal = lab.refused(&["clone", "web", "copy"]);
    refusal.is(ErrorCode::VmExists, 1).golden("transfer", "clone-to-a-vm");
    assert!(lab.ok(&["clone", "web", "third", "--start"]).ends_with("\nthird: running\n"));
    lab.says("third", "BOOT-GUEST-READY", 1);
    lab.ok(&["kill", "third"]);
}

#[test]
fn operator_disk_is_cloned_read_only() {
    let Some(image) = guest("boot.qcow2") else { return };
    let lab = Lab::new();
    let own = lab.path().join("own.raw");
    fs::write(&own, vec![0; 1 << 20]).unwrap();
    let disk = |more: &str| format!("[disk.own]\npath = \"{}\"\n{more}", own.display());
    lab.vm("web", &image, &disk(""));
    let tar = lab.path().join("web.tar");
    let tar = tar.to_str().unwrap();
    for verb in [["clone", "web", "copy"], ["export", "web", tar]] {
        lab.refused(&verb).is(ErrorCode::DiskNotOwned, 1).golden("transfer", "own-disk");
    }
    lab.vm("web", &image, &disk("readOnly = true\n"));
    lab.ok(&["clone", "web", "copy"]);
    let output = lab.qvm(&["export", "web", tar]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let left = |path: &Path| {
        format!("hint: the VM file refers to `{}`, which is not in the archive\n", path.display())
    };
    assert_eq!(said, left(&image) + &left(&own));
    let output = lab.qvm(&["import", tar, "--name", "other"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let named =
        |path: &Path| format!("hint: the VM file refers to `{}` on this host\n", path.display());
    assert_eq!(said, named(&image) + &named(&own));
    boots(&lab, "copy");
    boots(&lab, "other");

    // An overlay needs its base, which an archive lacks; a clone has it.
    let text = text(&lab.file("web")) + "clone = \"overlay\"\n";
    fs::write(lab.file("web"), text).unwrap();
    boots(&lab, "web");
    fs::remove_file(tar).unwrap();
    let refusal = lab.refused(&["export", "web", tar]);
    refusal.is(ErrorCode::DiskIncomplete, 1).golden("transfer", "export-of-an-overlay");
    lab.ok(&["clone", "web", "second"]);
    boots(&lab, "second");
    let rebase = ["rebase", "-f", "qcow2", "-b", ""];
    let mut qemu_img = Command::new("qemu-img");
    assert!(qemu_img.args(rebase).arg(lab.state("web", "root.qcow2")).status().unwrap().success());
    lab.ok(&["export", "web", tar]);
}

#[test]
fn exported_vm_keeps_its_identity() {
    let Some(here) = ran(MORE) else { return };
    let there = Lab::new();
    let tar = here.path().join("web.tar");
    let said = here.ok(&["export", "web", tar.to_str().unwrap()]);
    assert_eq!(said, format!("web: exported to {}, 9M\n", tar.display()));
    let refusal = here.refused(&["export", "web", tar.to_str().unwrap()]);
    refusal.is(ErrorCode::FileExists, 1).golden("transfer", "export-to-a-file");
    // Any tar can read it.
    let list = Command::new("tar").arg("-tf").arg(&tar).output().unwrap();
    assert!(list.status.success());
    assert_eq!(
        String::from_utf8(list.stdout).unwrap(),
        "web/vm.toml\nweb/identity.toml\nweb/user-data\nweb/root.origin.json\nweb/root.qcow2\n\
         web/data.origin.json\nweb/data.raw\nweb/manifest.json\n"
    );
    let said = there.ok(&["import", tar.to_str().unwrap()]);
    let user_data = there.path().join("c/vms/dev.user-data.yaml");
    assert_eq!(
        said,
        format!(
            "web: imported from {}\nweb: the user-data was written to {}\n",
            tar.display(),
            user_data.display()
        )
    );
    assert!(same_disks(&there, "web", &disks(&here, "web")));
    let blocks = fs::metadata(there.state("web", "data.raw")).unwrap().blocks();
    assert!(blocks * 512 < 1 << 20, "holes were filled: {blocks}");
    assert_eq!(identity(&there, "web"), identity(&here, "web"));
    assert_eq!(text(&there.file("web")), text(&here.file("web")));
    boots(&there, "web");

    // The same machine twice is refused, a copy of it is not.
    let refusal = there.refused(&["import", tar.to_str().unwrap()]);
    refusal.is(ErrorCode::VmExists, 1).golden("transfer", "import-to-a-vm");
    let twin = ["import", tar.to_str().unwrap(), "--name", "www"];
    let refusal = there.refused(&twin);
    refusal.is(ErrorCode::IdentityTaken, 1).golden("transfer", "import-of-a-twin");
    let said = there.ok(&[&twin[..], &["--new-identity"]].concat());
    assert_eq!(said.lines().next_back(), Some("www: removed from its VM file: mac"));
    assert_ne!(identity(&there, "www")["uuid"], identity(&there, "web")["uuid"]);
    boots(&there, "www");
}

#[test]
fn export_through_a_pipe_keeps_host_name() {
    let Some(here) = ran("[cloudInit]\n") else { return };
    let there = Lab::new();
    let mut export = here.command(&["export", "web", "-"]).stdout(Stdio::piped()).spawn().unwrap();
    let pipe = export.stdout.take().unwrap();
    let import = there.command(&["import", "-", "--name", "www"]).stdin(pipe).output().unwrap();
    assert!(export.wait().unwrap().success());
    assert_eq!(String::from_utf8_lossy(&import.stdout), "www: imported from -\n");
    let hint =
        "hint: its guest keeps the host name `web`: set `hostname` in `[cloudInit]` to change it\n";
    assert_eq!(String::from_utf8_lossy(&import.stderr), hint);
    assert!(there.ok(&["seed", "www"]).contains("local-hostname: \"web\""));
    boots(&there, "www");
    // A closed reader is a failure: it has no complete VM.
    let mut export = here.command(&["export", "web", "-"]);
    let mut export = export.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(export.stdout.take());
    let output = export.wait_with_output().unwrap();
    here.refusal(&output).golden("transfer", "export-without-reader");
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn unprivileged_user_can_transfer() {
    let Some(image) = guest("boot.qcow2") else { return };
    let lab = Lab::of_a_user();
    for dir in [lab.file("web").parent().unwrap(), lab.file("web").ancestors().nth(2).unwrap()] {
        lab.give(dir);
    }
    let own = lab.path().join("boot.qcow2");
    fs::copy(image, &own).unwrap();
    lab.give(&own);
    lab.vm("web", &own, "");
    boots(&lab, "web");
    let tar = lab.path().join("web.tar");
    lab.ok(&["export", "web", tar.to_str().unwrap()]);
    assert_eq!(fs::metadata(&tar).unwrap().mode() & 0o777, 0o600);
    lab.ok(&["clone", "web", "copy"]);
    lab.ok(&["rename", "web", "www"]);
    lab.ok(&["import", tar.to_str().unwrap(), "--new-identity"]);
    for vm in ["web", "www", "copy"] {
        boots(&lab, vm);
    }
    // A file that the user may not change is reported, and nothing is changed.
    let dir = lab.file("web").parent().unwrap().to_owned();
    let closed = fs::Permissions::from_mode(0o500);
    fs::set_permissions(&dir, closed).unwrap();
    for verb in [
        &["rename", "web", "x"][..],
        &["clone", "web", "x"],
        &["import", tar.to_str().unwrap(), "--name", "x", "--new-identity"],
    ] {
        lab.refused(verb).is(ErrorCode::PermissionDenied, 1);
        assert!(!place(&lab, "x").exists() && !place(&lab, "x").is_symlink());
    }
}

#[test]
fn unstarted_vm_is_transferred() {
    let Some(image) = guest("boot.qcow2") else { return };
    let lab = Lab::new();
    lab.vm("web", &image, "ip = \"10.0.2.20/24\"\ngateway = \"10.0.2.2\"\n[cloudInit]\n");
    let tar = lab.path().join("web.tar");
    lab.ok(&["export", "web", tar.to_str().unwrap()]);
    let output = lab.qvm(&["clone", "web", "copy"]);
    assert_eq!(output.stderr, b"");
    let said = lab.ok(&["rename", "web", "www"]);
    assert_eq!(said, "web: renamed to www\n");
    lab.ok(&["import", tar.to_str().unwrap()]);
    assert!(!lab.state("copy", "identity.toml").exists());
    for vm in ["www", "copy", "web"] {
        boots(&lab, vm);
    }
}

/// The calls before which a crash can occur: those that change a name or a file, or sync a change.
const CALLS: [&str; 18] = [
    "rename",
    "renameat",
    "renameat2",
    "unlink",
    "unlinkat",
    "rmdir",
    "mkdir",
    "mkdirat",
    "symlink",
    "symlinkat",
    "fsync",
    "fdatasync",
    "ftruncate",
    "fchmodat",
    "chmod",
    "copy_file_range",
    "flock",
    "write",
];

/// Runs `qvm` with changed system calls, by strace(1).
fn meddled(lab: &Lab, injections: &[String], arguments: &[&str]) -> Output {
    let qvm = lab.command(arguments);
    let mut strace = Command::new("strace");
    strace.args(["-f", "-qq", "-o", "/dev/null"]);
    let calls: Vec<&str> = injections.iter().map(|one| one.split(':').next().unwrap()).collect();
    strace.arg("-e").arg(format!("trace={}", calls.join(",")));
    for injection in injections {
        strace.arg("-e").arg(format!("inject={injection}"));
    }
    strace.arg(qvm.get_program()).args(arguments);
    for (key, value) in qvm.get_envs() {
        match value {
            Some(value) => strace.env(key, value),
            None => strace.env_remove(key),
        };
    }
    strace.stdin(Stdio::null()).output().unwrap()
}

/// Like a file system without support for the flags.
const NO_FLAGS: &str = "renameat2:error=EINVAL";

/// Runs `qvm` and kills it before its `nth` such call; returns whether it was reached.
fn killed(lab: &Lab, (call, nth): (&str, u32), more: Option<&str>, arguments: &[&str]) -> bool {
    let kill = format!("{call}:signal=SIGKILL:when={nth}");
    let injections: Vec<String> = more.map(str::to_owned).into_iter().chain([kill]).collect();
    let output = meddled(lab, &injections, arguments);
    let killed = output.status.signal() == Some(9) || output.status.code() == Some(137);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(killed || output.status.success(), "{call} {nth}: {} {said}", output.status);
    killed
}

/// `web`, and strace to interrupt the operation.
fn fragile() -> Option<Lab> {
    let found = Command::new("strace").arg("-V").output().is_ok();
    assert!(found || !required("strace"), "strace is missing");
    if !found {
        println!("skipped: no strace");
        return None;
    }
    ran(MORE)
}

/// Performs the operation, killed at every step except the last time, each time after `reset`;
/// `check` checks the leftovers.
fn at_every_step(
    lab: &Lab,
    arguments: &[&str],
    more: Option<&str>,
    mut reset: impl FnMut(),
    mut check: impl FnMut(&str),
) {
    let mut steps = 0;
    let meddled = |call: &&str| more.is_some_and(|more| more.split(':').next() == Some(*call));
    for call in CALLS.into_iter().filter(|call| !meddled(call)) {
        for nth in 1.. {
            reset();
            if !killed(lab, (call, nth), more, arguments) {
                break;
            }
            steps += 1;
            check(&format!("{call} {nth}"));
        }
    }
    println!("{arguments:?}: cut short at {steps} steps");
    assert!(steps >= 20, "only {steps} steps");
}

/// No temporary file or directory and no link exists.
#[track_caller]
fn nothing_is_left(lab: &Lab) {
    for path in tree(lab).keys() {
        let hidden = path.file_name().unwrap().to_string_lossy().starts_with('.');
        assert!(!hidden && !path.is_symlink(), "{}", path.display());
    }
}

/// Renames `web` to `www`, interrupted at every step.
fn rename_at_every_step(more: Option<&str>) {
    let Some(lab) = fragile() else { return };
    let (disks, before) = (disks(&lab, "web"), identity(&lab, "web"));
    let file = text(&lab.state("web", "identity.toml"));
    let reset = || {
        if lab.file("www").exists() {
            lab.ok(&["rename", "www", "web"]);
        }
        fs::write(lab.state("web", "identity.toml"), &file).unwrap();
        assert!(same_disks(&lab, "web", &disks));
    };
    let mut without = 0;
    at_every_step(&lab, &["rename", "web", "www"], more, reset, |step| {
        // One of the two exists, and has its disks.
        let names = ["web", "www"].map(|name| lab.file(name).exists());
        assert!(names[0] != names[1], "{step}: {names:?}");
        let name = if names[0] { "web" } else { "www" };
        let disks_of = |name: &str| {
            let there = same_disks(&lab, name, &disks);
            assert!(!there || identity(&lab, name)["uuid"] == before["uuid"]);
            there
        };
        let works = disks_of(name);
        without += i32::from(!works);
        // They do not count as orphans, which could be deleted.
        lab.qvm(&["gc", "--disks", "--yes"]);
        assert!(disks_of(if works { name } else { "web" }), "{step}");
        if works && !names[0] && place(&lab, "www").is_symlink() {
            boots(&lab, name);
        }
        let output = lab.qvm(&["rename", "web", "www"]);
        let done = output.status.success() || output.status.code() == Some(3);
        assert!(done, "{step}: {}", String::from_utf8_lossy(&output.stderr));
        assert!(disks_of("www") && !lab.file("web").exists(), "{step}");
        assert!(place(&lab, "web").symlink_metadata().is_err(), "{step}");
        assert_eq!(identity(&lab, "www")["hostname"].as_str(), Some("web"), "{step}");
        let left = |path: &PathBuf| path.is_symlink() && !path.ends_with(".qvm-link-www");
        assert!(!tree(&lab).keys().any(left), "{step}");
    });
    // Only if two names cannot be exchanged, there is an instant at which the disks are not found.
    assert_eq!(without, i32::from(more.is_some()));
    lab.ok(&["clone", "www", "copy"]);
    nothing_is_left(&lab);
}

#[test]
fn interrupted_rename_is_completed() {
    rename_at_every_step(None);
}

#[test]
fn interrupted_rename_without_exchange_is_completed() {
    rename_at_every_step(Some(NO_FLAGS));
}

#[test]
fn transfer_works_without_renameat2_flags() {
    let Some(lab) = fragile() else { return };
    let disks = disks(&lab, "web");
    let tar = lab.path().join("web.tar");
    let tar = tar.to_str().unwrap();
    let ok = |arguments: &[&str]| {
        let output = meddled(&lab, &[NO_FLAGS.to_owned()], arguments);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    ok(&["clone", "web", "copy"]);
    ok(&["export", "web", tar]);
    ok(&["rename", "web", "www"]);
    ok(&["import", tar, "--name", "other", "--new-identity"]);
    for vm in ["copy", "www", "other"] {
        assert!(same_disks(&lab, vm, &disks), "{vm}");
    }
    nothing_is_left(&lab);
}

#[test]
fn canceled_transfer_leaves_nothing() {
    let Some(lab) = ran(MORE) else { return };
    let (before, tar) = (tree(&lab), lab.path().join("web.tar"));
    lab.ok(&["export", "web", tar.to_str().unwrap()]);
    let whole = fs::read(&tar).unwrap();
    let import = || {
        let mut import = lab.command(&["import", "-", "--name", "copy", "--new-identity"]);
        import.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut import = import.spawn().unwrap();
        let mut pipe = import.stdin.take().unwrap();
        pipe.write_all(&whole[..100_000]).unwrap();
        let draft = place(&lab, ".qvm-copy").join("root.qcow2");
        // It writes blocks of 64 KiB, and has a part of the next one.
        let written = || fs::metadata(&draft).is_ok_and(|meta| meta.len() >= 64 << 10);
        crate::lab::until("the disk is begun", written);
        crate::lab::signal(import.id().try_into().unwrap(), 15);
        (import, pipe)
    };
    let canceled = |mut child: Child| {
        crate::lab::until("its end", || child.try_wait().unwrap().is_some());
        let refusal = lab.refusal(&child.wait_with_output().unwrap());
        refusal.is(ErrorCode::Canceled, 1);
        refusal
    };
    // While bytes arrive.
    let (child, mut pipe) = import();
    let mut rest = whole[100_000..].chunks(512).cycle();
    crate::lab::until("it reads no more", || pipe.write_all(rest.next().unwrap()).is_err());
    canceled(child).golden("transfer", "canceled");
    assert!(tree(&lab) == before, "{:?}", tree(&lab).keys());
    // While no bytes arrive; the next run removes the leftovers.
    let (child, pipe) = import();
    canceled(child);
    drop(pipe);
    lab.ok(&["clone", "web", "other"]);
    nothing_is_left(&lab);
    // And with a reader that stops reading.
    let mut export = lab.command(&["export", "web", "-"]);
    let mut export = export.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut pipe = export.stdout.take().unwrap();
    pipe.read_exact(&mut [0; 512]).unwrap();
    crate::lab::signal(export.id().try_into().unwrap(), 2);
    canceled(export);
}

#[test]
fn interrupted_clone_is_repeated() {
    let Some(lab) = fragile() else { return };
    let (disks, before) = (disks(&lab, "web"), tree(&lab));
    let clean = || {
        if lab.file("copy").exists() {
            fs::remove_file(lab.file("copy")).unwrap();
            lab.ok(&["rm", "copy", "--disks", "--yes"]);
        }
        assert!(tree(&lab) == before, "{:?}", tree(&lab).keys());
    };
    at_every_step(&lab, &["clone", "web", "copy"], None, clean, |step| {
        // No incomplete VM: with its file it has everything.
        let published = lab.file("copy").exists();
        assert!(!published || same_disks(&lab, "copy", &disks), "{step}");
        match published {
            true => {
                lab.refused(&["clone", "web", "copy"]).is(ErrorCode::VmExists, 1);
            }
            false => drop(lab.ok(&["clone", "web", "copy"])),
        }
        assert!(same_disks(&lab, "copy", &disks), "{step}");
        lab.ok(&["plan", "copy"]);
        if !published {
            nothing_is_left(&lab);
        }
    });
    // Leftovers without a retry are removed by the next successful run.
    let all = |name: &str| tree(&lab).keys().any(|path| path.ends_with(name));
    clean();
    let mut step = 0;
    while !all(".qvm-copy") {
        step += 1;
        assert!(killed(&lab, ("fsync", step), None, &["clone", "web", "copy"]));
    }
    lab.ok(&["clone", "web", "other"]);
    nothing_is_left(&lab);
}

#[test]
fn interrupted_export_leaves_no_archive() {
    let Some(lab) = fragile() else { return };
    let (before, dir) = (tree(&lab), lab.path().join("out"));
    fs::create_dir(&dir).unwrap();
    let tar = dir.join("web.tar");
    let tar = tar.to_str().unwrap();
    let import = ["import", tar, "--name", "copy", "--new-identity"];
    let clean = || {
        let _ = fs::remove_file(tar);
        assert!(tree(&lab) == before);
    };
    at_every_step(&lab, &["export", "web", tar], None, clean, |step| {
        let whole = Path::new(tar).exists();
        let (code, said) = refused(&lab, &["export", "web", tar]);
        assert_eq!(code, Some(i32::from(whole)), "{step}: {said}");
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 1, "{step}");
        if whole {
            lab.ok(&import);
            fs::remove_file(lab.file("copy")).unwrap();
            lab.ok(&["rm", "copy", "--disks", "--yes"]);
        }
    });
    lab.ok(&import);
}

#[test]
fn interrupted_import_is_repeated() {
    let Some(here) = fragile() else { return };
    let tar = here.path().join("web.tar");
    let tar = tar.to_str().unwrap();
    here.ok(&["export", "web", tar]);
    let (disks, there) = (disks(&here, "web"), Lab::new());
    let import = ["import", tar];
    let clean = || {
        for place in ["c/vms", "s"] {
            let _ = fs::remove_dir_all(there.path().join(place));
        }
    };
    at_every_step(&there, &import, None, clean, |step| {
        let published = there.file("web").exists();
        assert!(!published || same_disks(&there, "web", &disks), "{step}");
        match published {
            true => {
                there.refused(&import).is(ErrorCode::VmExists, 1);
            }
            false => drop(there.ok(&import)),
        }
        assert!(same_disks(&there, "web", &disks), "{step}");
        assert_eq!(identity(&there, "web"), identity(&here, "web"));
        there.ok(&["plan", "web"]);
        if !published {
            nothing_is_left(&there);
        }
    });
    boots(&there, "web");
}
