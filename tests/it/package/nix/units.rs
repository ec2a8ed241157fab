//! The units: as written by NixOS and read by systemd, and the scripts.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Child, Command, Output, Stdio},
};

use qvm::sys::liveness_lock::LivenessLock;
use serde_json::{Value, json};

use super::{configure, evaluate, install::make_install, required};

const VMS: &str = "{ web = { mem = \"1G\"; }; db = { }; }";

/// The module with these VMs; `arguments` are further ones of tests/nix/eval.nix.
fn made(arguments: &[&str]) -> Option<Value> {
    let all = [&["--arg", "vms", VMS], arguments].concat();
    Some(evaluate("tests/nix/eval.nix", &all)?.unwrap())
}

#[test]
fn switch_reloads_and_never_stops_vms() {
    let Some(made) = configure(&json!({ "web": { "mem": "1G" }, "db": {} })) else { return };
    let made = made.unwrap();
    let units = made["units"].as_object().unwrap();
    let names: Vec<&str> = units.keys().map(String::as_str).collect();
    assert_eq!(names, ["qvm-network", "qvm-replace", "qvm@", "qvm@db", "qvm@web"]);
    for (name, unit) in units.iter().filter(|(name, _)| name.starts_with("qvm@")) {
        assert_eq!(unit["dropIn"], true, "{name}");
        assert_eq!(unit["reloadIfChanged"], true, "{name}");
        // An instance is not stopped when it is removed; with the template, the module itself is
        // removed.
        assert_eq!(unit["stopOnRemoval"], name == "qvm@", "{name}");
        assert_eq!(unit["environment"]["QVM_QEMU"], "/store/qemu/bin/qemu-system-x86_64", "{name}");
        assert_eq!(unit["path"], json!(["/store/qemu"]), "{name}");
        // An instance has every setting of the template: its drop-in hides the template's.
        assert_eq!(unit["serviceConfig"], units["qvm@"]["serviceConfig"], "{name}");
        let text = unit["text"].as_str().unwrap();
        assert!(text.contains("\nX-ReloadIfChanged=true\n"), "{text}");
        assert!(text.contains("\nAfter=qvm-replace.service\n"), "{text}");
        // A change of the VM file changes the unit.
        let file = name.strip_prefix("qvm@").unwrap();
        assert_eq!(
            text.contains(&format!("\nX-Restart-Triggers=/store/{file}.toml\n")),
            name != "qvm@"
        );
    }
    let user = &made["userUnits"]["qvm@"];
    assert_eq!((&user["dropIn"], &user["reloadIfChanged"]), (&json!(true), &json!(true)));
    assert_eq!(user["environment"]["QVM_QEMU"], "/store/qemu/bin/qemu-system-x86_64");
    assert_eq!(user["path"], json!(["/store/qemu"]));
}

#[test]
fn system_has_what_make_install_provides() {
    let Some(made) = made(&[]) else { return };
    let generator = |kind: &str| format!("/store/qvm/lib/systemd/{kind}-generators/qvm-generator");
    assert_eq!(made["generators"]["qvm-generator"], generator("system"));
    assert_eq!(made["userGenerators"]["qvm-generator"], generator("user"));
    assert_eq!(made["tmpfilesPackages"], json!(["/store/qvm"]));
    // For `qvm doctor`, `plan`, `image` and `clone` in a shell.
    assert_eq!(made["systemPackages"], json!(["/store/qvm", "/store/qemu"]));
    assert_eq!(made["etc"]["qvm/bin"], "/store/qvm/bin");
}

fn executable(path: &Path, text: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

/// The settings of a unit that systemd reads, by `systemd-analyze verify` with debug messages.
struct Loaded {
    drop_ins: Vec<String>,
    environment: Vec<String>,
    commands: Vec<String>,
}

/// Loads units from `directory` with a real systemd.
fn load(directory: &Path, user: bool, units: &[&str]) -> BTreeMap<String, Loaded> {
    let mut command = Command::new("systemd-analyze");
    command.args(["verify", "--man=no", "--generators=no"]);
    command.arg(if user { "--user" } else { "--system" }).args(units);
    command.env("SYSTEMD_UNIT_PATH", format!("{}:", directory.display()));
    command.env("SYSTEMD_LOG_LEVEL", "debug").env("XDG_RUNTIME_DIR", directory);
    let output = command.stdin(Stdio::null()).output().unwrap();
    let messages = String::from_utf8_lossy(&output.stderr);
    let refused: Vec<&str> = messages
        .lines()
        .filter(|line| line.contains("is not executable") || line.contains("Unknown key"))
        .filter(|line| line.contains("qvm"))
        .collect();
    assert!(output.status.success() && refused.is_empty(), "{refused:?}\n{messages}");
    let mut loaded = BTreeMap::new();
    let mut name = String::new();
    for line in String::from_utf8_lossy(&output.stdout).lines().map(str::trim) {
        let at = |key: &str| line.strip_prefix(key).map(|value| value.trim().to_owned());
        if let Some(unit) = at("-> Unit ").or_else(|| at("→ Unit ")) {
            name = unit.trim_end_matches(':').to_owned();
            let empty = Loaded { drop_ins: vec![], environment: vec![], commands: vec![] };
            loaded.insert(name.clone(), empty);
        }
        let Some(unit) = loaded.get_mut(&name) else { continue };
        unit.drop_ins.extend(at("DropIn Path:"));
        unit.environment.extend(at("Environment:"));
        unit.commands.extend(at("Command Line:"));
    }
    loaded
}

/// On NixOS, the drop-ins of the template and of an instance are both named overrides.conf, and
/// systemd reads only the more specific of two files with one name.
#[test]
fn declared_vm_runs_what_an_undeclared_one_runs() {
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("store");
    let text = store.display().to_string();
    let Some(made) = made(&["--argstr", "store", &text]) else { return };
    let analyze = Command::new("systemd-analyze").arg("--version").output();
    if analyze.is_err() {
        assert!(!required("systemd"), "systemd-analyze is missing");
        println!("skipped: no systemd-analyze");
        return;
    }
    make_install(&store.join("qvm"));
    executable(&store.join("qvm-add-root"), "#!/bin/sh\n");
    executable(&store.join("qvm-remove-roots"), "#!/bin/sh\n");
    for (kind, key) in [("system", "units"), ("user", "userUnits")] {
        let units = store.join("qvm/lib/systemd").join(kind);
        for (name, unit) in made[key].as_object().unwrap() {
            let text = unit["text"].as_str().unwrap();
            // On NixOS, /etc/qvm/bin is a link to the package.
            let text = text.replace("/etc/qvm/bin", &format!("{}/qvm/bin", store.display()));
            let drop_in = units.join(format!("{name}.service.d/overrides.conf"));
            if unit["dropIn"] == true {
                fs::create_dir_all(drop_in.parent().unwrap()).unwrap();
                fs::write(drop_in, text).unwrap();
            }
        }
        let loaded = load(
            &units,
            kind == "user",
            &["qvm@web.service", "qvm@db.service", "qvm@other.service"],
        );
        for vm in ["web", "db", "other"] {
            let unit = &loaded[&format!("qvm@{vm}.service")];
            assert_eq!(unit.drop_ins.len(), 1, "{vm}: {:?}", unit.drop_ins);
            let qemu = format!("QVM_QEMU={text}/qemu/bin/qemu-system-x86_64");
            assert!(unit.environment.contains(&qemu), "{vm}: {:?}", unit.environment);
            let path = unit.environment.iter().find(|line| line.starts_with("PATH=")).unwrap();
            assert!(path.starts_with(&format!("PATH={text}/qemu/bin:")), "{vm}: {path}");
            let qvm = format!("{text}/qvm/bin/qvm");
            let mut commands = vec![format!("{qvm} run {vm}"), format!("{qvm} reload {vm}")];
            commands.push(format!("{qvm} exec-stop-post {vm}"));
            if kind == "system" {
                commands.push(format!("{text}/qvm-add-root {vm}"));
                commands.push(format!("{text}/qvm-remove-roots {vm}"));
            }
            let mut found = unit.commands.clone();
            found.sort();
            commands.sort();
            assert_eq!(found, commands, "{kind} {vm}");
        }
        assert_eq!(loaded["qvm@web.service"].drop_ins[0].contains("qvm@web"), kind == "system");
    }
}

/// Runs a script of the module with directories of a test in the place of the host's.
fn run_script(text: &str, replacements: &[(&str, &str)], arguments: &[&str]) -> Output {
    let text = replacements.iter().fold(text.to_owned(), |text, (from, to)| text.replace(from, to));
    let output =
        Command::new("bash").args(["-euc", &text, "bash"]).args(arguments).output().unwrap();
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    output
}

#[test]
fn roots_stay_until_qemu_exits() {
    let dir = tempfile::tempdir().unwrap();
    let [roots, qvm] = ["roots", "qvm"].map(|name| dir.path().join(name).display().to_string());
    let [config, state, run] = ["c", "s", "r"].map(|name| dir.path().join(name));
    fs::create_dir(&roots).unwrap();
    fs::create_dir_all(run.join("web")).unwrap();
    // The built program with directories of the test.
    let script = format!(
        "#!/bin/sh\nexec {} --config-dir {} --state-dir {} --runtime-dir {} \"$@\"\n",
        env!("CARGO_BIN_EXE_qvm"),
        config.display(),
        state.display(),
        run.display()
    );
    executable(Path::new(&qvm), &script);
    let scripts = |store: &str| {
        let made = made(&["--arg", "scriptTexts", "true", "--argstr", "store", store])?;
        let service = &made["units"]["qvm@web"]["serviceConfig"];
        let text = |value: &Value| value.as_str().unwrap().trim_end_matches("%i").to_owned();
        Some((text(&service["ExecStartPre"]), text(&service["ExecStopPost"][2])))
    };
    let Some((add, remove)) = scripts("/first") else { return };
    let (add_newer, remove_newer) = scripts("/second").unwrap();
    let add_newer = add_newer.replace("@qemu", "@qemu-2");
    let run_one = |text: &str, vm: &str| {
        let replacements = [
            ("/nix/var/nix/gcroots/qvm", roots.as_str()),
            ("/etc/qvm/bin/qvm", &qvm),
            ("/first/coreutils/bin/", ""),
            ("/second/coreutils/bin/", ""),
        ];
        run_script(text, &replacements, &[vm]);
    };
    let links = || {
        let entries = fs::read_dir(&roots).unwrap().map(|entry| entry.unwrap().path());
        let mut links: Vec<String> = entries
            .map(|path| {
                format!(
                    "{} {}",
                    path.file_name().unwrap().to_str().unwrap(),
                    fs::read_link(&path).unwrap().display()
                )
            })
            .collect();
        links.sort();
        links
    };
    run_one(&add, "web");
    run_one(&add, "web2");
    assert_eq!(links(), ["web2@qemu /first/qemu", "web@qemu /first/qemu"]);
    // A switch to another QEMU, and a restart of the supervisor: the running QEMU is still the
    // first one.
    run_one(&add_newer, "web");
    let all = ["web2@qemu /first/qemu", "web@qemu /first/qemu", "web@qemu-2 /second/qemu"];
    // QEMU holds its lock even without a run record.
    let lock = LivenessLock::acquire(&run.join("web/qemu.lock")).unwrap().into_qemu_fd().unwrap();
    run_one(&remove_newer, "web");
    assert_eq!(links(), all);
    // A program that cannot report the lock proves nothing either.
    drop(lock);
    fs::rename(&qvm, format!("{qvm}.old")).unwrap();
    run_one(&remove_newer, "web");
    assert_eq!(links(), all);
    fs::rename(format!("{qvm}.old"), &qvm).unwrap();
    run_one(&remove, "web");
    assert_eq!(links(), ["web2@qemu /first/qemu"]);
}

/// A process that ends with the test.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn only_supervisors_of_another_program_are_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("store");
    let Some(made) = made(&["--argstr", "store", &store.display().to_string()]) else { return };
    let script = made["units"]["qvm-replace"]["script"].as_str().unwrap();
    // Programs that run during the test, in the place of supervisors.
    let sleep = fs::canonicalize("/bin/sleep").unwrap();
    let [old, new] = ["old", "qvm"].map(|name| store.join(name).join("bin/qvm"));
    for program in [&old, &new] {
        fs::create_dir_all(program.parent().unwrap()).unwrap();
        crate::lab::copy_program(&sleep, program);
    }
    let start = |program: &Path| Process(Command::new(program).arg("600").spawn().unwrap());
    let (older, newer) = (start(&old), start(&new));
    let bin = dir.path().join("bin");
    let log = dir.path().join("log");
    let systemctl = format!(
        "#!/bin/sh\ncase $1 in\nlist-units) echo 'qvm@a.service x'; echo 'qvm@b.service x'; \
         echo 'qvm@c.service x';;\n\
         show) case $4 in qvm@a.service) echo {};; qvm@b.service) echo {};; *) echo 0;; esac;;\n\
         kill) echo \"$@\" >>{};;\nesac\n",
        older.0.id(),
        newer.0.id(),
        log.display()
    );
    executable(&bin.join("systemctl"), &systemctl);
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
    let output = Command::new("bash").args(["-euc", script]).env("PATH", path).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(
        fs::read_to_string(log).unwrap(),
        "kill --kill-whom=main --signal=SIGUSR2 qvm@a.service\n"
    );
}
