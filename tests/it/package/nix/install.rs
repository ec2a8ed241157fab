//! The package: its build and its installed files.

use std::{
    fs,
    os::unix::fs::symlink,
    path::Path,
    process::{Command, Stdio},
};

use serde_json::json;

use super::{evaluate, required, root};

const QVM: &str = env!("CARGO_BIN_EXE_qvm");

#[test]
fn package_evaluates_with_the_program_version() {
    let Some(package) = evaluate("tests/nix/package.nix", &[]) else { return };
    let package = package.unwrap();
    assert_eq!(package["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(package["pname"], env!("CARGO_PKG_NAME"));
    assert_eq!(package["meta"]["description"], env!("CARGO_PKG_DESCRIPTION"));
    // Every source exists.
    let sources = package["sources"].as_array().unwrap();
    assert!(sources.len() > 10 && sources.iter().all(|exists| *exists == json!(true)));
    // Without the hook of nixpkgs, `make install` installs the completions and manual pages.
    assert_eq!(package["dontCargoInstall"], true);
}

/// Installs below `prefix` by `make install`.
pub(super) fn make_install(prefix: &Path) {
    let mut make = Command::new("make");
    make.current_dir(root()).args(["--no-print-directory", "install"]);
    make.arg(format!("PREFIX={}", prefix.display())).arg(format!("BINARY={QVM}"));
    let output = make.env_remove("MAKEFLAGS").env_remove("MAKELEVEL").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// The sandbox of Nix has /bin/sh and no other shell outside of PATH.
#[test]
fn make_install_needs_no_bin_bash() {
    let dir = tempfile::tempdir().unwrap();
    let bin = dir.path().join("bin");
    fs::create_dir(&bin).unwrap();
    crate::lab::copy_program("/bin/bash", &bin.join("bash"));
    // The copy stays /bin/sh, even if that is bash.
    symlink("bash", bin.join("sh")).unwrap();
    let out = dir.path().join("out");
    let script = r#"
        set -eu
        mount --bind "$1/bin/sh" /bin/sh
        for bash in /bin/bash /usr/bin/bash; do
            [ "$(readlink -f "$bash")" = "$(readlink -f /bin/sh)" ] ||
                mount --bind /dev/null "$bash"
        done
        if /bin/bash -c true 2>/dev/null; then exit 99; fi
        PATH="$1/bin:$PATH" exec make --no-print-directory install PREFIX="$1/out" BINARY="$2"
    "#;
    let mut unshare = Command::new("unshare");
    if !nix::unistd::geteuid().is_root() {
        unshare.args(["--user", "--map-root-user"]);
    }
    unshare.args(["--mount", "sh", "-c", script, "sh"]).arg(dir.path()).arg(QVM);
    unshare.current_dir(root()).stdin(Stdio::null());
    unshare.env_remove("MAKEFLAGS").env_remove("MAKELEVEL");
    // Whether namespaces can be created.
    let mut probe = Command::new("unshare");
    if !nix::unistd::geteuid().is_root() {
        probe.args(["--user", "--map-root-user"]);
    }
    if !probe.args(["--mount", "true"]).output().is_ok_and(|output| output.status.success()) {
        assert!(!required("netns"), "cannot make a mount namespace");
        println!("skipped: cannot make a mount namespace");
        return;
    }
    let output = unshare.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(out.join("bin/qvm").exists());
    for unit in ["system/qvm@.service", "user/qvm@.service"] {
        let text = fs::read_to_string(out.join("lib/systemd").join(unit)).unwrap();
        assert!(
            text.contains(&format!("\nExecStart={}/bin/qvm run %i\n", out.display())),
            "{text}"
        );
    }
    assert!(fs::metadata(out.join("share/man/man1/qvm.1")).unwrap().len() > 0);
}
