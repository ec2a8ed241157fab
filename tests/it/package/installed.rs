//! The installed files: the units as systemd reads them, the generator as systemd runs it, `make
//! install` and the Debian package.
use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::Path,
    process::{Command, Output, Stdio},
};

const QVM: &str = env!("CARGO_BIN_EXE_qvm");

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Runs a command to its end, and reports its output if it fails.
fn done(command: &mut Command) -> Output {
    let output = command.stdin(Stdio::null()).output().unwrap();
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    output
}

fn has(program: &str) -> bool {
    let there = Command::new(program).arg("--version").output().is_ok();
    if !there {
        println!("skipped: no {program}");
        let all = std::env::var("QVM_TEST_REQUIRE").unwrap_or_default();
        assert!(!all.split(',').any(|word| word == "systemd"), "{program} is missing");
    }
    there
}

fn install(to: &Path, prefix: &str) {
    let mut make = Command::new("make");
    make.current_dir(root()).args(["--no-print-directory", "install"]);
    make.arg(format!("DESTDIR={}", to.display())).arg(format!("PREFIX={prefix}"));
    // The settings of another make, from which this test may run, do not apply.
    done(make.arg(format!("BINARY={QVM}")).env_remove("MAKEFLAGS").env_remove("MAKELEVEL"));
}

/// Every example as a VM file, and the output of the generator that was installed in `at`.
fn generate(at: &Path, kind: &str) -> Output {
    fs::create_dir_all(at.join("etc/vms")).unwrap();
    for example in fs::read_dir(root().join("examples")).unwrap() {
        let example = example.unwrap();
        fs::copy(example.path(), at.join("etc/vms").join(example.file_name())).unwrap();
    }
    let mut generator =
        Command::new(at.join(format!("usr/lib/systemd/{kind}-generators/qvm-generator")));
    for place in ["normal", "early", "late"] {
        fs::create_dir_all(at.join(place)).unwrap();
        generator.arg(at.join(place));
    }
    generator.env("QVM_CONFIG_DIR", at.join("etc")).env("SYSTEMD_SCOPE", kind);
    generator.env("XDG_RUNTIME_DIR", "/nowhere").env("HOME", "/nowhere");
    done(&mut generator)
}

/// Units without a complaint of systemd.
fn verify(user: bool, runtime: &Path, path: &[&Path], units: &[String]) {
    let path: Vec<String> = path.iter().map(|dir| dir.display().to_string()).collect();
    let mut command = Command::new("systemd-analyze");
    command.args(["verify", "--man=no", "--generators=no"]);
    command.arg(if user { "--user" } else { "--system" });
    // The colon at the end adds the default directories.
    command.args(units).env("SYSTEMD_UNIT_PATH", format!("{}:", path.join(":")));
    command.env("SYSTEMD_LOG_LEVEL", "warning").env("XDG_RUNTIME_DIR", runtime);
    let output = done(&mut command);
    let said = String::from_utf8_lossy(&output.stderr);
    // Complaints about other units do not matter.
    let ours: Vec<&str> = said.lines().filter(|line| line.contains("qvm")).collect();
    assert!(ours.is_empty(), "{said}");
}

#[test]
fn systemd_accepts_units_of_every_example() {
    if !has("systemd-analyze") || !has("make") {
        return;
    }
    for kind in ["system", "user"] {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path();
        install(at, "/usr");
        let output = generate(at, kind);
        assert_eq!(String::from_utf8_lossy(&output.stderr), "");
        let units = at.join("usr/lib/systemd").join(kind);
        // The program of ExecStart= must exist; it is the one that was just built.
        let template = fs::read_to_string(units.join("qvm@.service")).unwrap();
        fs::write(units.join("qvm@.service"), template.replace("/usr/bin/qvm", QVM)).unwrap();
        let normal = at.join("normal");
        let drop_in = |vm: &str| normal.join(format!("qvm@{vm}.service.d/10-qvm.conf"));
        let text = fs::read_to_string(drop_in("web")).unwrap();
        assert!(text.contains("\nDescription=the web server (virtual machine web)\n"), "{text}");
        assert!(text.contains("\nAfter=qvm@db.service\n"), "{text}");
        assert!(normal.join("qvm.target.wants/qvm@web.service").symlink_metadata().is_ok());
        let mut names = vec!["qvm.target".to_owned(), "qvm.slice".to_owned()];
        if kind == "system" {
            let lent = ["qvm-network.socket", "qvm-network.service"].map(str::to_owned);
            for unit in &lent {
                let text = fs::read_to_string(units.join(unit)).unwrap();
                fs::write(units.join(unit), text.replace("/usr/bin/qvm", QVM)).unwrap();
            }
            names.extend(lent);
        }
        for entry in fs::read_dir(&normal).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            names.extend(name.strip_suffix(".d").map(str::to_owned));
        }
        assert!(names.len() > 9, "{names:?}");
        verify(kind == "user", at, &[&normal, &units], &names);
        // An unknown setting would be reported.
        let text = text.replace("CPUWeight=", "CPUHeight=");
        fs::write(drop_in("web"), text).unwrap();
        let verified = || verify(kind == "user", at, &[&normal, &units], &names);
        assert!(std::panic::catch_unwind(verified).is_err());
    }
}

/// The exposure of a unit by `systemd-analyze security`: ten times its overall level, 0 to 100.
fn exposure(unit: &Path) -> u32 {
    let mut command = Command::new("systemd-analyze");
    let said = done(command.args(["security", "--offline=true", "--no-pager"]).arg(unit)).stdout;
    let said = String::from_utf8(said).unwrap();
    let level = said.lines().find_map(|line| line.split_once("Overall exposure level for "));
    let level =
        level.and_then(|(_, rest)| rest.split(' ').nth(1)).unwrap_or_else(|| panic!("{said}"));
    level.replace('.', "").parse().unwrap()
}

/// All settings that a drop-in can relax.
fn opened() -> String {
    use qvm::systemd::unit::{Scope, drop_in_of_invalid};
    drop_in_of_invalid(Path::new("/etc/qvm/vms/web.toml"), Scope::System)
}

#[test]
fn unit_is_restricted_to_vm_needs() {
    if !has("systemd-analyze") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let shipped = fs::read_to_string(root().join("systemd/qvm@.service")).unwrap();
    let unit = dir.path().join("qvm@.service");
    // docs/decisions/systemd.md gives the reason for each remaining point.
    fs::write(&unit, &shipped).unwrap();
    assert!(exposure(&unit) <= 25, "{}", exposure(&unit));
    // With every key of a VM file that relaxes the drop-in.
    let opened = opened();
    let (_, opened) = opened.split_once("[Service]\n").unwrap();
    fs::write(&unit, shipped.replace("\n[Install]", &format!("{opened}\n[Install]"))).unwrap();
    assert!(exposure(&unit) <= 40, "{}", exposure(&unit));
    // A missing setting would be reported.
    fs::write(&unit, shipped.replace("NoNewPrivileges=yes", "")).unwrap();
    assert!(exposure(&unit) > 25);
    // The network broker has almost no privileges.
    assert!(exposure(&root().join("systemd/qvm-network.service")) <= 16);
}

#[test]
fn network_broker_has_no_start_limit() {
    let unit = |name: &str| fs::read_to_string(root().join("systemd").join(name)).unwrap();
    let (service, socket) = (unit("qvm-network.service"), unit("qvm-network.socket"));
    let has = |text: &str, section: &str, line: &str| {
        let (_, rest) = text.split_once(&format!("[{section}]\n")).unwrap();
        let own = rest.split("\n[").next().unwrap();
        assert!(own.lines().any(|other| other == line), "[{section}] {line}: {text}");
    };
    has(&service, "Unit", "StartLimitIntervalSec=0");
    has(&service, "Service", "Restart=on-failure");
    has(&service, "Service", "RestartSec=1");
    has(&socket, "Unit", "StartLimitIntervalSec=0");
    has(&socket, "Socket", "TriggerLimitIntervalSec=0");
}

#[test]
fn unit_and_supervisor_have_equal_capabilities() {
    let unit = fs::read_to_string(root().join("systemd/qvm@.service")).unwrap();
    let opened = opened();
    let lines = unit.lines().chain(opened.lines());
    let words = lines.filter_map(|line| line.strip_prefix("CapabilityBoundingSet="));
    let mut of_unit: Vec<&str> = words.flat_map(str::split_whitespace).collect();
    let kept = qvm::sandbox::capabilities::KEPT;
    let mut kept: Vec<String> = kept.iter_names().map(|(name, _)| format!("CAP_{name}")).collect();
    of_unit.sort();
    kept.sort();
    assert_eq!(of_unit, kept);
}

#[test]
fn generator_is_recognized_by_its_name() {
    let dir = tempfile::tempdir().unwrap();
    let generator = dir.path().join("qvm-generator");
    symlink(QVM, &generator).unwrap();
    let vms = dir.path().join("vms");
    fs::create_dir(&vms).unwrap();
    fs::write(vms.join("web.toml"), "autostart = true\nvcpu = ").unwrap();
    let run = |arguments: &[&str]| {
        let mut command = Command::new(&generator);
        command.args(arguments).env("QVM_CONFIG_DIR", dir.path()).env("SYSTEMD_SCOPE", "system");
        command.current_dir(dir.path()).stdin(Stdio::null()).output().unwrap()
    };
    let output = run(&["n", "e", "l"]);
    assert_eq!(output.status.code(), Some(0));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let check = Command::new(QVM)
        .args(["check", vms.join("web.toml").to_str().unwrap()])
        .env("QVM_CONFIG_DIR", dir.path())
        .output()
        .unwrap();
    let checked = String::from_utf8_lossy(&check.stderr).into_owned();
    assert!(said.starts_with("error: ") && checked.contains(said.trim()), "{said}\n{checked}");
    assert!(dir.path().join("n/qvm.target.wants/qvm@web.service").symlink_metadata().is_ok());
    assert!(!dir.path().join("e").exists() && !dir.path().join("l").exists());
    assert_eq!(run(&[]).status.code(), Some(2));
    assert_eq!(run(&["n", "e", "l", "x"]).status.code(), Some(2));
}

#[test]
fn prefix_is_used_everywhere() {
    if !has("make") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    install(dir.path(), "/usr/local");
    let local = dir.path().join("usr/local");
    for kind in ["system", "user"] {
        let unit = local.join("lib/systemd").join(kind).join("qvm@.service");
        let unit = fs::read_to_string(unit).unwrap();
        for line in [
            "ExecStart=/usr/local/bin/qvm run %i",
            "ExecStopPost=/usr/local/bin/qvm exec-stop-post %i",
        ] {
            assert!(unit.lines().any(|found| found == line), "{unit}");
        }
        let generator = local.join("lib/systemd").join(format!("{kind}-generators/qvm-generator"));
        let program = fs::canonicalize(generator).unwrap();
        assert_eq!(program, fs::canonicalize(local.join("bin/qvm")).unwrap());
    }
    // The output of the program, in the places where readers search for it.
    for (file, arguments) in [
        ("man/man1/qvm.1", ["man", "qvm"]),
        ("man/man5/qvm.toml.5", ["man", "qvm.toml"]),
        ("bash-completion/completions/qvm", ["completions", "bash"]),
        ("zsh/site-functions/_qvm", ["completions", "zsh"]),
        ("fish/vendor_completions.d/qvm.fish", ["completions", "fish"]),
    ] {
        let printed = done(Command::new(QVM).args(arguments)).stdout;
        assert!(printed.len() > 100, "{arguments:?}");
        assert_eq!(fs::read(local.join("share").join(file)).unwrap(), printed, "{file}");
    }
}

#[test]
fn debian_package_is_complete() {
    if !has("dpkg-deb") || !has("make") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut build = Command::new(root().join("packaging/debian/build"));
    done(build.arg(QVM).arg(dir.path()).env_remove("MAKEFLAGS").env_remove("MAKELEVEL"));
    let deb = fs::read_dir(dir.path()).unwrap().next().unwrap().unwrap().path();
    let field = |name: &str| {
        let output = done(Command::new("dpkg-deb").arg("--field").arg(&deb).arg(name));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    assert_eq!(field("Package"), "qvm");
    assert_eq!(field("Version"), env!("CARGO_PKG_VERSION"));
    let depends = field("Depends");
    for package in ["qemu-system-x86", "qemu-utils", "systemd (>= 252)", "libc6 (>= 2."] {
        assert!(depends.contains(package), "{depends}");
    }
    let at = dir.path().join("x");
    done(Command::new("dpkg-deb").arg("--extract").arg(&deb).arg(&at));
    done(Command::new("dpkg-deb").arg("--control").arg(&deb).arg(at.join("DEBIAN")));
    for file in [
        "usr/bin/qvm",
        "usr/lib/systemd/system/qvm@.service",
        "usr/lib/systemd/system/qvm.target",
        "usr/lib/systemd/system/qvm.slice",
        "usr/lib/systemd/user/qvm@.service",
        "usr/lib/systemd/user/qvm.target",
        "usr/lib/systemd/system-generators/qvm-generator",
        "usr/lib/systemd/user-generators/qvm-generator",
        "usr/lib/sysusers.d/qvm.conf",
        "usr/lib/tmpfiles.d/qvm.conf",
        "usr/share/qvm/io.qvm.Vm.varlink",
        "usr/share/doc/qvm/copyright",
        "usr/share/doc/qvm/LICENSE-MIT",
        "usr/share/doc/qvm/qvm.toml.md",
        "usr/share/doc/qvm/reference/vm-file.md",
        "usr/share/doc/qvm/decisions/systemd.md",
        "usr/share/doc/qvm/docs/operations.md",
        "usr/share/doc/qvm/examples/web.toml",
        "usr/share/man/man1/qvm.1.gz",
        "usr/share/man/man5/qvm.toml.5.gz",
        "usr/share/bash-completion/completions/qvm",
        "usr/share/zsh/vendor-completions/_qvm",
        "usr/share/fish/vendor_completions.d/qvm.fish",
    ] {
        // Through symbolic links, whose targets must be in the package.
        let meta = fs::metadata(at.join(file)).unwrap_or_else(|error| panic!("{file}: {error}"));
        let wanted =
            if file.contains("bin/") || file.contains("generators/") { 0o755 } else { 0o644 };
        assert_eq!(meta.permissions().mode() & 0o7777, wanted, "{file}");
    }
    let listed = done(Command::new("dpkg-deb").arg("--contents").arg(&deb)).stdout;
    let listed = String::from_utf8(listed).unwrap();
    assert!(listed.lines().all(|line| line.contains(" root/root ")), "{listed}");
    for script in ["postinst", "prerm", "postrm"] {
        done(Command::new("sh").arg("-n").arg(at.join("DEBIAN").join(script)));
    }
}

#[test]
fn purge_keeps_disks_and_base_images() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("var");
    let script = fs::read_to_string(root().join("packaging/debian/postrm")).unwrap();
    // The script with directories of this test, and without systemd.
    let moved = script
        .replace("/var/lib/qvm", &state.display().to_string())
        .replace("/etc/qvm", &dir.path().join("etc").display().to_string())
        .replace("/run/qvm", &dir.path().join("run").display().to_string())
        .replace("/run/systemd/system", "/nowhere");
    let purge = || done(Command::new("sh").args(["-c", &moved, "postrm", "purge"]));
    fs::create_dir_all(state.join("vms/web")).unwrap();
    fs::create_dir_all(state.join("images")).unwrap();
    fs::create_dir_all(dir.path().join("etc/vms")).unwrap();
    fs::write(dir.path().join("etc/vms/web.toml"), "vcpu = 1\n").unwrap();
    fs::write(state.join("vms/web/root.qcow2"), "disk").unwrap();
    fs::write(state.join("images/base.qcow2"), "image").unwrap();
    fs::write(state.join("qemu.json"), "{}").unwrap();
    purge();
    assert!(state.join("vms/web/root.qcow2").exists() && state.join("images/base.qcow2").exists());
    assert!(dir.path().join("etc/vms/web.toml").exists());
    assert!(!state.join("qemu.json").exists());
    fs::remove_dir_all(state.join("vms/web")).unwrap();
    purge();
    assert!(!state.exists());
    assert!(dir.path().join("etc/vms/web.toml").exists());
}

#[test]
fn upgrade_signals_only_supervisors() {
    let dir = tempfile::tempdir().unwrap();
    let asked = dir.path().join("asked");
    for program in ["systemctl", "systemd-sysusers", "systemd-tmpfiles"] {
        let units = "[ \"$1\" != list-units ] || echo 'qvm@web.service loaded active running web'";
        let script = format!("#!/bin/sh\necho \"{program} $*\" >>{}\n{units}\n", asked.display());
        fs::write(dir.path().join(program), script).unwrap();
        let mode = fs::Permissions::from_mode(0o755);
        fs::set_permissions(dir.path().join(program), mode).unwrap();
    }
    let run = |script: &str, arguments: &[&str]| {
        let _ = fs::remove_file(&asked);
        let text = fs::read_to_string(root().join("packaging/debian").join(script)).unwrap();
        let text = text.replace("/run/systemd/system", "/");
        let path = format!("{}:{}", dir.path().display(), std::env::var("PATH").unwrap());
        let mut sh = Command::new("sh");
        done(sh.args(["-c", &text, script]).args(arguments).env("PATH", path));
        fs::read_to_string(&asked).unwrap_or_default()
    };
    let first = run("postinst", &["configure", ""]);
    assert!(first.contains("systemctl daemon-reload\n") && !first.contains("kill"), "{first}");
    assert!(first.contains("systemd-sysusers qvm.conf\nsystemd-tmpfiles --create qvm.conf\n"));
    let upgrade = run("postinst", &["configure", "0.0.9"]);
    let kill = "systemctl kill --kill-whom=main --signal=SIGUSR2 qvm@web.service\n";
    assert!(upgrade.contains("--state=running") && upgrade.ends_with(kill), "{upgrade}");
    assert_eq!(run("prerm", &["upgrade", "0.2.0"]), "");
    let stops = "systemctl stop qvm.target qvm@*.service\n\
                 systemctl stop qvm-network.socket qvm-network.service\n";
    assert_eq!(run("prerm", &["remove"]), stops);
}
