//! The NixOS module: what it makes of a configuration, by Nix itself with a stand-in for nixpkgs, and whether qvm takes the VM files.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::{
    collections::BTreeSet,
    fs,
    path::Path,
    process::{Command, Output, Stdio},
};

use serde_json::{Value, json};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Nix with a store of its own, which it never writes to.
fn nix(arguments: &[&str]) -> Option<Output> {
    let own = tempfile::tempdir().unwrap();
    let mut nix = Command::new("nix-instantiate");
    nix.args(arguments).current_dir(root()).stdin(Stdio::null()).env("HOME", own.path());
    for (key, place) in
        [("NIX_STORE_DIR", "store"), ("NIX_STATE_DIR", "state"), ("NIX_LOG_DIR", "log")]
    {
        nix.env(key, own.path().join(place));
    }
    let output = nix.env("NIX_REMOTE", "dummy://").env("NIX_PATH", "").output();
    if output.is_err() {
        let all = std::env::var("QVM_TEST_REQUIRE").unwrap_or_default();
        assert!(!all.split(',').any(|word| word == "nix"), "nix-instantiate is missing");
        println!("skipped: no nix-instantiate");
    }
    output.ok()
}

fn evaluated(file: &str, arguments: &[&str]) -> Option<Result<Value, String>> {
    let output = nix(&[&["--eval", "--strict", "--json"], arguments, &[file]].concat())?;
    Some(match output.status.success() {
        true => Ok(serde_json::from_slice(&output.stdout).unwrap()),
        false => Err(String::from_utf8(output.stderr).unwrap()),
    })
}

/// The module with these VMs, which are written as Nix has JSON.
fn configured(vms: &Value) -> Option<Result<Value, String>> {
    let text = format!(
        "builtins.fromJSON {}",
        serde_json::to_string(&vms.to_string()).unwrap().replace("${", "\\${")
    );
    evaluated("tests/nix/eval.nix", &["--arg", "vms", &text])
}

#[test]
fn every_file_is_nix() {
    let mut files = vec!["flake.nix".to_owned()];
    for directory in ["nix", "tests/nix"] {
        for file in fs::read_dir(root().join(directory)).unwrap().flatten() {
            files.push(format!("{directory}/{}", file.file_name().to_str().unwrap()));
        }
    }
    assert!(files.len() > 6);
    let own = tempfile::tempdir().unwrap();
    let text = fs::read_to_string(root().join("docs/nixos.md")).unwrap();
    for (nr, block) in text.split("```nix\n").skip(1).enumerate() {
        let file = own.path().join(format!("{nr}.nix"));
        fs::write(&file, block.split("```").next().unwrap()).unwrap();
        files.push(file.to_str().unwrap().to_owned());
    }
    for file in files {
        let Some(output) = nix(&["--parse", &file]) else { return };
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn there_is_an_option_for_every_key_and_no_other() {
    let Some(keys) = evaluated("tests/nix/keys.nix", &["-A", "vm"]) else { return };
    let options: BTreeSet<String> = serde_json::from_value(keys.unwrap()).unwrap();
    let reference = fs::read_to_string(root().join("docs/qvm.toml.md")).unwrap();
    let rows = reference.lines().filter_map(|line| line.strip_prefix("| `")?.split_once("` | "));
    let keys =
        rows.filter(|(_, rest)| rest.matches('|').count() == 4).map(|(key, _)| key.to_owned());
    let keys: BTreeSet<String> = keys.collect();
    assert!(keys.len() > 60, "{keys:?}");
    assert_eq!(options, keys);
}

#[test]
fn examples_as_options_are_the_same_vm_files_and_qvm_takes_them() {
    let mut vms = serde_json::Map::new();
    for example in fs::read_dir(root().join("examples")).unwrap().flatten() {
        let path = example.path();
        if path.extension().is_some_and(|extension| extension == "toml") {
            let vm: toml::Value = toml::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
            let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
            vms.insert(name, serde_json::to_value(vm).unwrap());
        }
    }
    let Some(made) = configured(&vms.clone().into()) else { return };
    let made = made.unwrap();
    // Written as they were: nothing more, and nothing less.
    let files = made["files"].as_object().unwrap();
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("vms")).unwrap();
    for (name, vm) in &vms {
        let file = without_nulls(&files[name]);
        assert_eq!(&file, vm, "{name}");
        let text = toml::to_string(&file).unwrap();
        fs::write(dir.path().join(format!("vms/{name}.toml")), text).unwrap();
        assert_eq!(
            made["etc"][format!("qvm/vms/{name}.toml")],
            format!("/store/qvm-vms/vms/{name}.toml")
        );
    }
    let check = |more: &[&str]| {
        let mut check = Command::new(env!("CARGO_BIN_EXE_qvm"));
        check.arg("--config-dir").arg(dir.path()).arg("check").args(more).output().unwrap()
    };
    // The user-data of one of them is not where the system is built.
    assert_eq!(check(&[]).status.code(), Some(78));
    let output = check(&["--no-user-data"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn without_nulls(value: &Value) -> Value {
    match value {
        Value::Object(object) => {
            let kept = object.iter().filter(|(_, value)| !value.is_null());
            Value::Object(kept.map(|(key, value)| (key.clone(), without_nulls(value))).collect())
        }
        value => value.clone(),
    }
}

#[test]
fn the_hosts_settings_are_a_file_only_where_they_are_set() {
    let settings = |text: &str| {
        evaluated(
            "tests/nix/eval.nix",
            &["--arg", "vms", "{ web = { }; }", "--arg", "settings", text],
        )
    };
    let Some(made) = settings("{ }") else { return };
    assert_eq!(made.unwrap()["etc"].get("qvm/qvm.toml"), None);
    let text = "{ reserveMem = 512; admission = \"wait\"; uidRange = \"100000-165535\"; }";
    let made = settings(text).unwrap().unwrap();
    assert_eq!(made["etc"]["qvm/qvm.toml"], "/store/qvm-vms/qvm.toml");
    for (wrong, said) in [
        ("{ admission = \"of\"; }", "services.qvm.settings.admission: \"of\" is not one of"),
        ("{ reserveMem = true; }", "services.qvm.settings.reserveMem: true is not"),
    ] {
        let error = settings(wrong).unwrap().unwrap_err();
        assert!(error.contains(said), "{error}");
    }
    // The same keys as the program has.
    let keys = evaluated("tests/nix/keys.nix", &["-A", "host"]).unwrap().unwrap();
    let file = Path::new("qvm.toml");
    let mut written: Vec<String> = serde_json::from_value(keys).unwrap();
    written.sort();
    let problems = qvm::spec::HostSettings::read(file, "unknown = 1").unwrap_err();
    let known = problems[0].hint.clone().unwrap();
    assert_eq!(known, format!("here can be: {}", written.join(", ")));
}

#[test]
fn a_switch_restarts_no_vm() {
    let Some(made) = configured(&json!({ "web": { "mem": "1G" }, "db": {} })) else { return };
    let made = made.unwrap();
    assert_eq!(made["names"], json!(["qvm-network", "qvm-replace", "qvm@", "qvm@db", "qvm@web"]));
    assert_eq!(made["restarts"], json!([]));
    let service = &made["template"]["serviceConfig"];
    assert_eq!(service["ExecStart"], json!(["", "/run/current-system/sw/bin/qvm run %i"]));
    assert_eq!(made["template"]["environment"]["QVM_QEMU"], "/store/qemu/bin/qemu-system-x86_64");
}

#[test]
fn what_is_not_set_is_not_written_and_an_empty_table_is() {
    let vm =
        json!({ "nic": {}, "cloudInit": {}, "disk": { "data": { "size": "1G" } }, "laterKey": 7 });
    let Some(made) = configured(&json!({ "web": vm })) else { return };
    assert_eq!(without_nulls(&made.unwrap()["files"]["web"]), vm);
}

#[test]
fn wrong_types_are_refused_when_the_system_is_built() {
    for (vm, said) in [
        (json!({ "vcpu": "2" }), "services.qvm.vms.web.vcpu: \"2\" is not a number from 1 to 255"),
        (json!({ "vcpu": 256 }), "services.qvm.vms.web.vcpu: 256 is not"),
        (json!({ "mem": true }), "services.qvm.vms.web.mem: true is not"),
        (json!({ "autostart": "yes" }), "services.qvm.vms.web.autostart: \"yes\" is not a boolean"),
        (json!({ "ready": "tcp:" }), "services.qvm.vms.web.ready: \"tcp:\" is not"),
        (json!({ "firmware": "efi" }), "services.qvm.vms.web.firmware: \"efi\" is not one of"),
        (
            json!({ "disk": { "data": { "bus": "ide" } } }),
            "services.qvm.vms.web.disk.data.bus: \"ide\" is not",
        ),
        (json!({ "nic": { "lan": { "mtu": 1 } } }), "services.qvm.vms.web.nic.lan.mtu: 1 is not"),
        (json!({ "dns": "9.9.9.9" }), "services.qvm.vms.web.dns: \"9.9.9.9\" is not a list"),
        (json!({ "cpu": { "pin": [0] } }), "services.qvm.vms.web.cpu.pin: 0 is not a string"),
    ] {
        let Some(made) = configured(&json!({ "web": vm })) else { return };
        let error = made.unwrap_err();
        assert!(error.contains(said), "{vm}: {error}");
    }
}

#[test]
fn a_password_never_gets_into_the_store() {
    let vm = json!({ "cloudInit": { "passwordHash": "$6$salt$hash" } });
    let Some(made) = configured(&json!({ "web": vm, "db": {} })) else { return };
    let assertions = &made.unwrap()["assertions"];
    assert_eq!(assertions.as_array().unwrap().len(), 1);
    assert!(
        assertions[0]
            .as_str()
            .unwrap()
            .starts_with("services.qvm.vms.web.cloudInit.passwordHash would be in the store")
    );
}
