//! The first steps with qvm: new VM files, edited VM files, completed command lines, manual pages.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use qvm::value::ErrorCode;

use crate::lab::{Lab, guest, required, terminal::Terminal};

const KEY: &str =
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ5rJ3mUq0kT7m5S4m8xv0bq2vY1n6c3Zp9wQe7dR8sT op@desk";

fn has(program: &str) -> bool {
    let there = Command::new(program).arg("--version").stdin(Stdio::null()).output().is_ok();
    if !there {
        println!("skipped: no {program}");
    }
    there
}

/// `qvm` of a user whose home is the lab.
fn at_home(lab: &Lab, arguments: &[&str]) -> Output {
    lab.command(arguments).env("HOME", lab.path()).stdin(Stdio::null()).output().unwrap()
}

fn said(output: &Output) -> String {
    let (out, err) = (&output.stdout, &output.stderr);
    String::from_utf8_lossy(out).into_owned() + &String::from_utf8_lossy(err)
}

fn known(lab: &Lab) -> Vec<serde_json::Value> {
    serde_json::from_str(&lab.ok(&["new", "--list", "--json"])).unwrap()
}

#[test]
fn new_file_of_each_image_is_valid() {
    let lab = Lab::new();
    let qemu = Command::new("qemu-system-x86_64").arg("-version").output().is_ok();
    assert!(qemu || !required("qemu"), "QEMU is missing");
    let key = lab.path().join("key.pub");
    fs::write(&key, format!("# mine\n{KEY}\n\n{KEY}2\n")).unwrap();
    let key = key.to_str().unwrap();
    let images = known(&lab);
    assert!(images.len() >= 12, "{images:?}");
    for (nr, image) in images.iter().enumerate() {
        let image_key = image["key"].as_str().unwrap();
        let told = image["cloudInit"].as_bool().unwrap();
        let ways: [(String, &[&str]); 3] = [
            (format!("plain{nr}"), &[]),
            (format!("a-longer-name-{nr}"), &["--bridge", "br0", "--mem", "4G", "--vcpu", "3"]),
            (format!("own{nr}"), &["--disk", "40", "--user", "op", "--ssh-key", key]),
        ];
        for (name, options) in &ways {
            let own = options.contains(&"--user");
            let mut arguments = vec!["new", name.as_str(), "--image", image_key];
            arguments.extend(*options);
            let made = at_home(&lab, &arguments);
            if own && !told {
                assert_eq!(made.status.code(), Some(2), "{}", said(&made));
                assert!(!lab.file(name).exists());
                continue;
            }
            assert!(made.status.success(), "{arguments:?}: {}", said(&made));
            assert_eq!(lab.ok(&["check", name]), format!("{name}: ok\n"));
            let file = lab.file(name);
            assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o640);
            let text = fs::read_to_string(&file).unwrap();
            let vm = qvm::spec::load(&file).unwrap();
            match name {
                name if name.starts_with("own") => {
                    let told = vm.cloud_init.unwrap();
                    assert_eq!(told.user.as_deref(), Some("op"));
                    assert_eq!(told.ssh_authorized_keys, [KEY.to_owned(), format!("{KEY}2")]);
                    assert!(text.contains("\ndiskSizeG = 40"), "{text}");
                }
                name if name.starts_with("plain") => {
                    assert!(text.contains("\nforward = ["), "{text}")
                }
                _ => assert!(text.contains("\nbridge = \"br0\"\n") && vm.vcpu == 3, "{text}"),
            }
            let firmware = vm.firmware;
            let plan = lab.qvm(&["plan", name]);
            let lacks = !qemu || firmware != qvm::spec::Firmware::Bios && !required("ovmf");
            assert!(plan.status.success() || lacks, "{}", said(&plan));
        }
    }
    // No VM claims a port, tap or address of another one.
    assert_eq!(lab.ok(&["check"]).lines().count(), images.len() * 3 - 1);
}

#[test]
fn new_refuses_invalid_options() {
    let lab = Lab::new();
    lab.ok(&["new", "web", "--image", "alpine-3.23"]);
    let before = fs::read_to_string(lab.file("web")).unwrap();
    for (arguments, code, exit, section) in [
        (&["new", "web"][..], ErrorCode::VmExists, 1, "new-existing"),
        (&["new", "a", "--image", "debian13"], ErrorCode::Usage, 2, "new-unknown-image"),
        (&["new", "a", "--mem", "64M"], ErrorCode::Usage, 2, "new-little-memory"),
        (&["new", "a", "--disk", "1"], ErrorCode::Usage, 2, "new-small-disk"),
        (&["new", "a", "--user", "A b"], ErrorCode::Usage, 2, "new-invalid-user"),
        (&["new", "a", "--bridge", "a-name-too-long-"], ErrorCode::Usage, 2, "new-long-bridge"),
        (&["new", "a", "--ssh-key", "/no/key"], ErrorCode::FileMissing, 1, "new-missing-key"),
        (&["new", "a", "--ssh-key", "/dev/null"], ErrorCode::NoPublicKey, 1, "new-empty-key"),
        (&["new", "A"], ErrorCode::Usage, 2, "new-invalid-name"),
        (&["new"], ErrorCode::Usage, 2, "new-without-name"),
    ] {
        lab.refusal(&at_home(&lab, arguments)).is(code, exit).golden("cli", section);
    }
    assert_eq!(fs::read_to_string(lab.file("web")).unwrap(), before);
    let private = lab.path().join("id");
    fs::write(&private, "-----BEGIN OPENSSH PRIVATE KEY-----\n").unwrap();
    let output = at_home(&lab, &["new", "a", "--ssh-key", private.to_str().unwrap()]);
    lab.refusal(&output).is(ErrorCode::Usage, 2).golden("cli", "new-private-key");
    assert_eq!(names(lab.file("web").parent().unwrap()), ["web.toml"]);
}

#[test]
fn new_creates_directory_and_uses_key() {
    let lab = Lab::new();
    let dir = lab.file("web").parent().unwrap().to_owned();
    fs::remove_dir(&dir).unwrap();
    let without = at_home(&lab, &["new", "db"]);
    assert!(said(&without).contains("no login is possible yet"), "{}", said(&without));
    fs::create_dir(lab.path().join(".ssh")).unwrap();
    for (name, key) in [("id_rsa.pub", "ssh-rsa AAAA"), ("id_ed25519.pub", KEY)] {
        fs::write(lab.path().join(".ssh").join(name), format!("{key}\n")).unwrap();
    }
    let with = at_home(&lab, &["new", "web"]);
    assert!(with.status.success() && !said(&with).contains("note:"), "{}", said(&with));
    let vm = qvm::spec::load(&lab.file("web")).unwrap();
    assert_eq!(vm.cloud_init.unwrap().ssh_authorized_keys, [KEY]);
    assert_eq!(fs::metadata(&dir).unwrap().permissions().mode() & 0o777, 0o750);
    // The table, compared with its source.
    let table = lab.ok(&["new", "--list"]);
    assert!(table.starts_with("KEY  "), "{table}");
    for image in known(&lab) {
        assert!(table.contains(&format!("\n{} ", image["key"].as_str().unwrap())), "{table}");
    }
}

/// The names in a directory.
fn names(dir: &Path) -> Vec<String> {
    let names = fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.collect();
    names.sort();
    names
}

/// An editor that is this shell script, with the file as `$1`.
fn editor(lab: &Lab, script: &str) -> PathBuf {
    let path = lab.path().join("an editor");
    fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

fn edit_command(lab: &Lab, script: &str) -> Command {
    let quoted = format!("'{}' --an-option", editor(lab, &format!("shift\n{script}")).display());
    let mut command = lab.command(&["edit", "web"]);
    command.env("EDITOR", quoted).env_remove("VISUAL").env("FILE", lab.file("web"));
    command
}

fn edit(lab: &Lab, script: &str) -> Output {
    edit_command(lab, script).stdin(Stdio::null()).output().unwrap()
}

#[test]
fn invalid_edit_is_not_saved() {
    let lab = Lab::new();
    let (file, dir) = (lab.file("web"), lab.file("web").parent().unwrap().to_owned());
    fs::write(&file, "vcpu = 1\n").unwrap();
    fs::write(lab.file("db"), "forward = [\"2222:22\"]\n").unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o604)).unwrap();
    let mine = nix::unistd::geteuid().is_root();
    if mine {
        std::os::unix::fs::chown(&file, Some(12), Some(34)).unwrap();
    }

    let good = edit(&lab, "echo 'vcpu = 2' >\"$1\"");
    assert_eq!(said(&good), format!("web: wrote {}\n", file.display()));
    assert_eq!(fs::read_to_string(&file).unwrap(), "vcpu = 2\n");
    let meta = fs::metadata(&file).unwrap();
    assert_eq!(meta.permissions().mode() & 0o7777, 0o604);
    if mine {
        use std::os::unix::fs::MetadataExt;
        assert_eq!((meta.uid(), meta.gid()), (12, 34));
    }

    // Like vim: a new file replaces the opened one.
    let renamed = edit(&lab, "echo 'vcpu = 3' >\"$1.new\" && mv \"$1.new\" \"$1\"");
    assert!(renamed.status.success(), "{}", said(&renamed));
    assert_eq!(fs::read_to_string(&file).unwrap(), "vcpu = 3\n");
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o7777, 0o604);

    let unchanged = edit(&lab, "touch \"$1\"");
    assert_eq!((said(&unchanged).as_str(), unchanged.status.code()), ("web: unchanged\n", Some(0)));

    for (script, code, exit, section) in [
        ("echo 'vcpus = 2' >\"$1\"", ErrorCode::InvalidFile, 78, "edit-unknown-key"),
        ("echo 'forward = [\"2222:22\"]' >\"$1\"", ErrorCode::InvalidFile, 78, "edit-same-port"),
        ("printf 'vcpu = \\377' >\"$1\"", ErrorCode::InvalidFile, 78, "edit-no-utf8"),
        ("echo 'vcpu = 9' >\"$1\"; exit 1", ErrorCode::EditorFailed, 1, "edit-failed"),
        ("rm \"$1\"", ErrorCode::FileMissing, 1, "edit-removed"),
    ] {
        let refusal = lab.refusal(&edit(&lab, script)).is(code, exit).clone();
        refusal.without_copy().golden("cli", section);
        assert_eq!(fs::read_to_string(&file).unwrap(), "vcpu = 3\n", "{script}");
        assert_eq!(names(&dir), ["db.toml", "web.toml"], "{script}");
    }

    let none = lab.refused(&["edit", "none"]);
    none.is(ErrorCode::VmFileMissing, 3).golden("cli", "edit-no-vm");
}

#[test]
fn concurrent_change_is_kept() {
    let lab = Lab::new();
    let file = lab.file("web");
    fs::write(&file, "vcpu = 1\n").unwrap();
    let output = edit(&lab, "echo 'vcpu = 2' >\"$1\"; echo 'vcpu = 7' >\"$FILE\"");
    let refusal = lab.refusal(&output).is(ErrorCode::VmFileChanged, 1).clone();
    refusal.without_copy().golden("cli", "edit-changed");
    assert_eq!(fs::read_to_string(&file).unwrap(), "vcpu = 7\n");
    // The edited text is not lost, and the hint contains its path.
    let kept = names(file.parent().unwrap()).into_iter().find(|name| name.starts_with(".qvm-"));
    let kept = file.with_file_name(kept.unwrap()).join("web.toml");
    assert_eq!(fs::read_to_string(&kept).unwrap(), "vcpu = 2\n");
    assert!(said(&output).contains(&*kept.to_string_lossy()), "{}", said(&output));
    assert_eq!(lab.ok(&["check"]), "web: ok\n", "it is no VM file");
}

#[test]
fn link_target_is_edited() {
    let lab = Lab::new();
    let git = lab.path().join("git");
    fs::create_dir(&git).unwrap();
    fs::write(git.join("the-web.toml"), "vcpu = 1\n").unwrap();
    symlink(git.join("the-web.toml"), lab.file("web")).unwrap();
    fs::write(lab.file("web").with_file_name("data.yaml"), "#cloud-config\n").unwrap();
    let output = edit(&lab, "printf '[cloudInit]\\nuserData = \"data.yaml\"\\n' >\"$1\"");
    assert!(output.status.success(), "{}", said(&output));
    assert!(lab.file("web").symlink_metadata().unwrap().is_symlink());
    let written = fs::read_to_string(git.join("the-web.toml")).unwrap();
    assert_eq!(written, "[cloudInit]\nuserData = \"data.yaml\"\n");
    assert_eq!(names(&git), ["the-web.toml"]);
}

#[test]
fn edit_reports_effects_on_running_vm() {
    let Some(image) = guest("tiny.qcow2") else { return };
    let lab = Lab::new();
    lab.vm("web", &image, "mem = \"256M\"\nvcpu = 1\n");
    assert_eq!(lab.ok(&["start", "web"]), "web: running\n");
    let output = edit(&lab, "sed -i 's/^mem.*/mem = \"200M\"/; s/^vcpu.*/vcpu = 2/' \"$1\"");
    let said = said(&output);
    assert!(output.status.success(), "{said}");
    lab.golden("cli", "edit-of-a-running-vm", &said);
    lab.ok(&["kill", "web"]);
}

const QUESTION: &str = "web: not valid. (e)dit again, or e(x)it without saving? ";

#[test]
fn terminal_edit_is_repeated_on_request() {
    let lab = Lab::new();
    fs::write(lab.file("web"), "vcpu = 1\n").unwrap();
    // Invalid at first, and valid after the first attempt.
    let script =
        "if grep -q wrong \"$1\"; then echo 'vcpu = 4' >\"$1\"; else echo 'wrong = 1' >\"$1\"; fi";
    let mut terminal = Terminal::open(&mut edit_command(&lab, script));
    terminal.shows("wrong: unknown key", 1);
    terminal.shows(QUESTION, 1);
    // There is no answer that saves an invalid file: the question is repeated.
    terminal.types(b"Q\n");
    terminal.shows(QUESTION, 2);
    assert_eq!(fs::read_to_string(lab.file("web")).unwrap(), "vcpu = 1\n");
    terminal.types(b"e\n");
    terminal.shows("web: wrote ", 1);
    assert_eq!(terminal.code(), Some(0));
    assert_eq!(fs::read_to_string(lab.file("web")).unwrap(), "vcpu = 4\n");
}

#[test]
fn terminal_exit_and_ctrl_d_save_nothing() {
    for keys in ["x\n", "\x04"] {
        let lab = Lab::new();
        fs::write(lab.file("web"), "vcpu = 1\n").unwrap();
        let mut terminal = Terminal::open(&mut edit_command(&lab, "echo 'wrong = 1' >\"$1\""));
        terminal.shows(QUESTION, 1);
        terminal.types(keys.as_bytes());
        terminal.shows("not changed: the edited text is invalid", 1);
        assert_eq!(terminal.code(), Some(78));
        assert_eq!(fs::read_to_string(lab.file("web")).unwrap(), "vcpu = 1\n");
        assert_eq!(names(lab.file("web").parent().unwrap()), ["web.toml"]);
    }
}

#[test]
fn ctrl_c_at_the_question_saves_nothing() {
    let lab = Lab::new();
    fs::write(lab.file("web"), "vcpu = 1\n").unwrap();
    // To the waiting process, which is the parent, or the parent of a shell.
    let script = "p=$PPID; while [ \"$(cat /proc/$p/comm)\" != qvm ]; do \
        p=$(cut -d' ' -f4 /proc/$p/stat); done; kill -INT $p; echo 'wrong = 1' >\"$1\"";
    let mut terminal = Terminal::open(&mut edit_command(&lab, script));
    terminal.shows(QUESTION, 1);
    assert_eq!(terminal.child.try_wait().unwrap(), None);
    crate::lab::signal(terminal.child.id().try_into().unwrap(), 2);
    assert_eq!(terminal.code(), Some(78));
    assert_eq!(fs::read_to_string(lab.file("web")).unwrap(), "vcpu = 1\n");
    assert_eq!(names(lab.file("web").parent().unwrap()), ["web.toml"]);
}

/// Returns the completions of the last of `words` by a shell with the script of `qvm completions`.
fn bash_completes(lab: &Lab, words: &[&str]) -> Vec<String> {
    let program = Path::new(env!("CARGO_BIN_EXE_qvm")).parent().unwrap();
    let path = format!("{}:{}", program.display(), std::env::var("PATH").unwrap());
    let script = "source <(qvm completions bash)\n\
        complete -p qvm >/dev/null || exit 9\n\
        COMP_WORDS=(\"$@\") COMP_CWORD=$(($# - 1)) COMP_TYPE=9\n\
        COMP_LINE=\"$*\" COMP_POINT=${#COMP_LINE}\n\
        _clap_complete_qvm qvm \"${COMP_WORDS[COMP_CWORD]}\" \"${COMP_WORDS[COMP_CWORD-1]}\"\n\
        printf '%s\\n' \"${COMPREPLY[@]}\"";
    let mut bash = Command::new("bash");
    bash.args(["--norc", "--noprofile", "-c", script, "bash"]).args(words).env("PATH", path);
    for (key, value) in lab.command(&[]).get_envs() {
        match value {
            Some(value) => bash.env(key, value),
            None => bash.env_remove(key),
        };
    }
    let output = bash.current_dir(lab.path()).stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{words:?}: {}", said(&output));
    let mut found: Vec<String> =
        String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect();
    found.retain(|one| !one.is_empty());
    found
}

#[test]
fn bash_completes_verbs_vms_images_and_files() {
    if !has("bash") {
        return;
    }
    let lab = Lab::new();
    for name in ["web", "wiki", "db"] {
        fs::write(lab.file(name), "vcpu = 1\n").unwrap();
    }
    fs::create_dir_all(lab.state("wifeless", "")).unwrap();
    fs::create_dir_all(lab.path().join("other/vms")).unwrap();
    fs::write(lab.path().join("other/vms/wood.toml"), "vcpu = 1\n").unwrap();
    fs::write(lab.path().join("word.toml"), "vcpu = 1\n").unwrap();
    let completes = |words: &[&str]| bash_completes(&lab, words);
    assert_eq!(completes(&["qvm", "st"]), ["status", "start", "stop"]);
    assert_eq!(completes(&["qvm", "start", "we"]), ["web"]);
    assert_eq!(completes(&["qvm", "rm", "w"]), ["web", "wifeless", "wiki"], "also without a file");
    assert_eq!(completes(&["qvm", "--quiet", "stop", "--no-wait", "web", "d"]), ["db"]);
    assert_eq!(completes(&["qvm", "check", "wo"]), ["word.toml"]);
    assert_eq!(completes(&["qvm", "check", "we"]), ["web"]);
    assert_eq!(completes(&["qvm", "new", "w"]), [""; 0], "there is one already");
    assert_eq!(completes(&["qvm", "new", "x", "--image", "ubu"]), ["ubuntu-24.04", "ubuntu-22.04"]);
    assert_eq!(completes(&["qvm", "--config-dir", "other", "start", "wo"]), ["wood"]);
    assert_eq!(completes(&["qvm", "start", "--dis"]), ["--discard-state"]);
    // In every verb with VM arguments.
    for verb in [
        "apply", "console", "diff", "edit", "events", "exec", "ip", "kill", "log", "pause", "plan",
        "reboot", "reseed", "restart", "resume", "run", "seed", "ssh", "status", "suspend", "wait",
    ] {
        assert_eq!(completes(&["qvm", verb, "d"]), ["db"], "{verb}");
    }
}

#[test]
fn fish_completes_names_of_vms() {
    if !has("fish") {
        return;
    }
    let lab = Lab::new();
    for name in ["web", "wiki", "db"] {
        fs::write(lab.file(name), "vcpu = 1\n").unwrap();
    }
    // The shell finds the program by itself.
    symlink(env!("CARGO_BIN_EXE_qvm"), lab.path().join("qvm")).unwrap();
    let mut fish = Command::new("fish");
    for (key, value) in lab.command(&[]).get_envs() {
        match value {
            Some(value) => fish.env(key, value),
            None => fish.env_remove(key),
        };
    }
    let path = format!("{}:{}", lab.path().display(), std::env::var("PATH").unwrap());
    let script = "qvm completions fish | source; complete -C 'qvm start w'";
    let output = fish
        .args(["--no-config", "-c", script])
        .env("PATH", path)
        .env("HOME", lab.path())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let completed = String::from_utf8(output.stdout.clone()).unwrap();
    let names: Vec<&str> = completed.lines().collect();
    assert_eq!(names, ["web", "wiki"], "{}", said(&output));
}

#[test]
fn zsh_and_fish_completions_come_from_qvm() {
    let lab = Lab::new();
    fs::write(lab.file("web"), "vcpu = 1\n").unwrap();
    let ask = |shell: &str| {
        let mut command = lab.command(&["--", "qvm", "start", "w"]);
        command.env("QVM_COMPLETE", shell).env("_CLAP_COMPLETE_INDEX", "2");
        let output = command.output().unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap().trim().to_owned())
    };
    for shell in ["zsh", "fish", "/usr/bin/bash"] {
        assert_eq!(ask(shell), (Some(0), "web".to_owned()), "{shell}");
    }
    assert_eq!(ask("tcsh").0, Some(1));
    // Each page is valid for the installed shells.
    for (shell, check) in [("bash", "-n"), ("zsh", "-n"), ("fish", "--no-execute")] {
        let file = lab.path().join(format!("completions.{shell}"));
        fs::write(&file, lab.ok(&["completions", shell])).unwrap();
        if has(shell) {
            let output = Command::new(shell).arg(check).arg(&file).output().unwrap();
            assert!(output.status.success(), "{shell}: {}", said(&output));
        }
    }
    // Without directories: no home, no runtime directory.
    let mut bare = Command::new(env!("CARGO_BIN_EXE_qvm"));
    let output = bare.args(["completions", "bash"]).env_clear().output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
}

#[test]
fn manual_pages_are_without_warnings() {
    let lab = Lab::new();
    for (page, name) in [("qvm", "qvm.1"), ("qvm.toml", "qvm.toml.5")] {
        let file = lab.path().join(name);
        let text = lab.ok(&["man", page]);
        fs::write(&file, &text).unwrap();
        let quiet = |program: &str, arguments: &[&str]| {
            if !has(program) {
                return String::new();
            }
            let output = Command::new(program).args(arguments).arg(&file).output().unwrap();
            let complaints = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!((output.status.code(), complaints.as_str()), (Some(0), ""), "{name}");
            String::from_utf8_lossy(&output.stdout).into_owned()
        };
        let shown = quiet("groff", &["-ww", "-man", "-Tutf8"]);
        if !shown.is_empty() {
            assert!(shown.lines().count() > 100, "{shown}");
        }
        quiet("man", &["--warnings", "-l"]);
        quiet("mandoc", &["-Tlint", "-Wwarning"]);
    }
    let (qvm, keys) = (lab.ok(&["man"]), lab.ok(&["man", "qvm.toml"]));
    for section in ["NAME", "SYNOPSIS", "DESCRIPTION", "OPTIONS", "VERBS", "FILES", "ENVIRONMENT"] {
        assert!(qvm.contains(&format!("\n.SH {section}\n")), "{section}");
    }
    assert!(qvm.contains("\n.SH \"EXIT STATUS\"\n") && qvm.contains("\n.SH \"SEE ALSO\"\n"));
    // Every verb in the help.
    let help = lab.ok(&["--help"]);
    for verb in ["new", "edit", "start", "wait", "gc", "completions"] {
        assert!(help.contains(&format!("  {verb} ")), "{help}");
        assert!(qvm.contains(&format!("\n.SS \"qvm {verb} ")), "{verb}");
    }
    assert!(keys.contains(
        "\\fBshutdownTimeoutSec\\fR\nThe time limit for a clean shutdown, in seconds. \
             value: whole number, 1 to 86400; default: \\fB120\\fR; "
    ));
}
