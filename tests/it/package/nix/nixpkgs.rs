//! With a real nixpkgs (QVM_NIXPKGS): whole systems, the NixOS test, the flake, the manual. Needs
//! Nix 2.18.

use serde_json::Value;

use super::{evaluate, required};

/// The directory of nixpkgs, if it is set.
pub(super) fn path() -> Option<String> {
    let path = std::env::var("QVM_NIXPKGS").ok().filter(|path| !path.is_empty());
    if path.is_none() {
        assert!(!required("nixpkgs"), "QVM_NIXPKGS does not name a nixpkgs");
        println!("skipped: QVM_NIXPKGS does not name a nixpkgs");
    }
    path
}

/// One attribute of tests/nix/real.nix.
fn attribute(nixpkgs: &str, name: &str, arguments: &[&str]) -> Option<Result<Value, String>> {
    let all = [&["-A", name, "--arg", "nixpkgs", nixpkgs], arguments].concat();
    evaluate("tests/nix/real.nix", &all)
}

/// A configuration that evaluates to the derivation of a system.
fn builds(nixpkgs: &str, arguments: &[&str]) -> String {
    let toplevel = attribute(nixpkgs, "toplevel", arguments).unwrap();
    let toplevel = toplevel.unwrap_or_else(|error| panic!("{arguments:?}: {error}"));
    assert!(toplevel.as_str().unwrap().ends_with(".drv"));
    toplevel.as_str().unwrap().to_owned()
}

#[test]
fn package_evaluates_in_nixpkgs() {
    let Some(nixpkgs) = path() else { return };
    let Some(version) = attribute(&nixpkgs, "version", &[]) else { return };
    assert_eq!(version.unwrap(), env!("CARGO_PKG_VERSION"));
    attribute(&nixpkgs, "drvPath", &[]).unwrap().unwrap();
}

#[test]
fn systems_evaluate_in_nixpkgs() {
    let Some(nixpkgs) = path() else { return };
    let none = builds(&nixpkgs, &[]);
    let vms = "{
        web = {
            autostart = true; mem = \"4G\"; cpuWeight = 300; bridge = \"br0\"; ip = \"10.0.0.2/24\";
            image.path = \"/srv/web.qcow2\"; cloudInit.userData = \"/run/secrets/web\";
            disk.data.size = \"1G\"; display = { vnc = \"127.0.0.1:5901\"; \
            passwordFile = \"/run/secrets/vnc\"; };
        };
        db.nic = { };
    }";
    let some =
        builds(&nixpkgs, &["--arg", "vms", vms, "--arg", "settings", "{ reserveMem = \"4G\"; }"]);
    assert_ne!(none, some);
    attribute(&nixpkgs, "disabled", &[]).unwrap().unwrap();
    // The drop-in of a declared VM, as NixOS writes it.
    let units = attribute(&nixpkgs, "units", &["--arg", "vms", vms]).unwrap().unwrap();
    for unit in ["qvm@.service", "qvm@web.service", "qvm@db.service"] {
        let text = units[unit].as_str().unwrap();
        for line in [
            "X-ReloadIfChanged=true",
            "ExecStart=/etc/qvm/bin/qvm run %i",
            "ExecReload=/etc/qvm/bin/qvm reload %i",
            "After=qvm-replace.service",
        ] {
            assert!(text.lines().any(|found| found == line), "{unit}: {line}\n{text}");
        }
        assert!(text.contains("\nEnvironment=\"QVM_QEMU="), "{text}");
        assert_eq!(text.contains("\nX-StopOnRemoval=false\n"), unit != "qvm@.service", "{text}");
    }
    let users = attribute(&nixpkgs, "userUnits", &[]).unwrap().unwrap();
    let text = users["qvm@.service"].as_str().unwrap();
    assert!(text.contains("X-ReloadIfChanged=true") && text.contains("QVM_QEMU="), "{text}");
}

#[test]
fn wrong_values_are_refused_in_nixpkgs() {
    let Some(nixpkgs) = path() else { return };
    for (kind, value, message) in [
        ("vms", "{ web.memm = \"4G\"; }", "The option `services.qvm.vms.web.memm' does not exist"),
        ("vms", "{ web.mem = \"\"; }", "option `services.qvm.vms.web.mem' is not of type"),
        ("vms", "{ web.mem = 1; }", "option `services.qvm.vms.web.mem' is not of type"),
        ("vms", "{ web.memoryMax = 1; }", "option `services.qvm.vms.web.memoryMax' is not of type"),
        (
            "vms",
            "{ web.ready = \"tcp:99999\"; }",
            "option `services.qvm.vms.web.ready' is not of type",
        ),
        (
            "vms",
            "{ web.cloudInit.userdata = ./Cargo.toml; }",
            "The option `services.qvm.vms.web.cloudInit.userdata' does not exist",
        ),
        (
            "vms",
            "{ web.cloudInit.userData = \"${./Cargo.toml}\"; }",
            "option `services.qvm.vms.web.cloudInit.userData' is not of type",
        ),
        (
            "vms",
            "{ web.display.passwordFile = ./Cargo.toml; }",
            "option `services.qvm.vms.web.display.passwordFile' is not of type",
        ),
        (
            "vms",
            "{ web.image.path = ./Cargo.toml; }",
            "option `services.qvm.vms.web.image.path' is not of type",
        ),
        ("vms", "{ \"bad name\" = { }; }", "services.qvm.vms.\"bad name\": invalid name of a VM"),
        ("vms", "{ \"x/y\" = { }; }", "services.qvm.vms.\"x/y\": invalid name of a VM"),
        ("vms", "{ \"w;touch x\" = { }; }", "services.qvm.vms.\"w;touch x\": invalid name of a VM"),
        ("vms", "{ web.nic.LAN = { }; }", "services.qvm.vms.web.nic.LAN: invalid name of a NIC"),
        (
            "vms",
            "{ web.cloudInit.passwordHash = \"x\"; }",
            "services.qvm.vms.web.cloudInit.passwordHash:",
        ),
        (
            "settings",
            "{ reserve = 1; }",
            "The option `services.qvm.settings.reserve' does not exist",
        ),
        (
            "settings",
            "{ uidRange = \"1-2\"; }",
            "option `services.qvm.settings.uidRange' is not of type",
        ),
        (
            "guests",
            "{ web.services.nginx.enabl = true; }",
            "The option `services.qvm.guests.web.services.nginx.enabl' does not exist",
        ),
    ] {
        let Some(made) = attribute(&nixpkgs, "options", &["--arg", kind, value]) else { return };
        let found = match made {
            Ok(options) => options["failed"].to_string().replace("\\\"", "\""),
            Err(error) => error,
        };
        assert!(found.contains(message), "{value}: {found}");
    }
    // A failed assertion is a failure of the whole system.
    let arguments = ["--arg", "vms", "{ \"bad name\" = { }; }"];
    let error = attribute(&nixpkgs, "toplevel", &arguments).unwrap().unwrap_err();
    assert!(error.contains("services.qvm.vms.\"bad name\": invalid name of a VM"), "{error}");
}

#[test]
fn guests_evaluate_in_nixpkgs() {
    let Some(nixpkgs) = path() else { return };
    let guests = "{
        web = { services.nginx.enable = true; system.stateVersion = \"25.11\"; };
        efi = { pkgs, ... }: { environment.systemPackages = [ pkgs.hello ]; \
        system.stateVersion = \"25.11\"; };
    }";
    let vms = "{ efi = { firmware = \"uefi\"; cloudInit = { }; }; }";
    let arguments = ["--arg", "guests", guests, "--arg", "vms", vms];
    builds(&nixpkgs, &arguments);
    let paths = attribute(&nixpkgs, "imagePaths", &arguments).unwrap().unwrap();
    for (vm, efi) in [("web", false), ("efi", true)] {
        let path = paths[vm].as_str().unwrap();
        assert!(path.ends_with(".qcow2") && path.contains("-efi-") == efi, "{path}");
    }
    let facts = attribute(&nixpkgs, "guestFacts", &arguments).unwrap().unwrap();
    for (vm, cloud_init) in [("web", false), ("efi", true)] {
        let fact = &facts[vm];
        assert_eq!(fact["hostName"], vm);
        assert_eq!(fact["cloudInit"], cloud_init);
        // Without them the guest does not find its disk, or `qvm console` shows nothing.
        assert_eq!(fact["virtioDisk"], true);
        assert_eq!(fact["serialConsole"], true);
        assert!(fact["toplevel"].as_str().unwrap().ends_with(".drv"));
    }
}

#[test]
fn nixos_test_flake_and_manual_evaluate() {
    let Some(nixpkgs) = path() else { return };
    for name in ["vmTest", "flake", "documentation"] {
        let Some(made) = attribute(&nixpkgs, name, &[]) else { return };
        made.unwrap_or_else(|error| panic!("{name}: {error}"));
    }
}
