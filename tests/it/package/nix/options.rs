//! The options: the keys of the VM file, their types and bounds, and the resulting VM files.

use std::{collections::BTreeSet, fs, path::Path, process::Command};

use serde_json::{Value, json};

use super::{configure, evaluate, expression, root};

const QVM: &str = env!("CARGO_BIN_EXE_qvm");

#[test]
fn every_key_has_an_option_and_the_reverse() {
    let Some(keys) = evaluate("tests/nix/keys.nix", &["-A", "vm"]) else { return };
    let options: BTreeSet<String> = serde_json::from_value(keys.unwrap()).unwrap();
    let reference = fs::read_to_string(root().join("docs/reference/vm-file.md")).unwrap();
    let rows = reference.lines().filter_map(|line| line.strip_prefix("| `")?.split_once("` | "));
    let keys =
        rows.filter(|(_, rest)| rest.matches('|').count() == 4).map(|(key, _)| key.to_owned());
    let keys: BTreeSet<String> = keys.collect();
    assert!(keys.len() > 60, "{keys:?}");
    assert_eq!(options, keys);
}

/// `qvm check` of VM files in `dir`, as the module runs it.
fn check(dir: &Path, more: &[&str]) -> (bool, String) {
    let mut check = Command::new(QVM);
    check.arg("--config-dir").arg(dir).args(["--state-dir", ".", "--runtime-dir", ".", "check"]);
    let output = check.args(more).output().unwrap();
    (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn examples_as_options_are_the_same_files() {
    let mut vms = serde_json::Map::new();
    for example in fs::read_dir(root().join("examples")).unwrap().flatten() {
        let path = example.path();
        if path.extension().is_some_and(|extension| extension == "toml") {
            let mut vm: toml::Value = toml::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
            // On NixOS the path of a secret is absolute.
            let user_data = vm.get_mut("cloudInit").and_then(|table| table.get_mut("userData"));
            if let Some(toml::Value::String(file)) = user_data {
                *file = format!("/run/secrets/{file}");
            }
            let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
            vms.insert(name, serde_json::to_value(vm).unwrap());
        }
    }
    let Some(made) = configure(&vms.clone().into()) else { return };
    let made = made.unwrap();
    assert_eq!(made["assertions"], json!([]));
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
            format!("/store/qvm-files/vms/{name}.toml")
        );
    }
    // The user-data does not exist on the build machine.
    let (valid, _) = check(dir.path(), &[]);
    assert!(!valid);
    let (valid, message) = check(dir.path(), &["--no-user-data"]);
    assert!(valid, "{message}");
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
fn empty_tables_are_written_and_nulls_are_not() {
    let vm = json!({ "nic": {}, "cloudInit": {}, "disk": { "data": { "size": "1G" } } });
    let Some(made) = configure(&json!({ "web": vm })) else { return };
    assert_eq!(without_nulls(&made.unwrap()["files"]["web"]), vm);
}

/// The output of the module for the host settings.
fn settings(text: &str) -> Option<Result<Value, String>> {
    evaluate("tests/nix/eval.nix", &["--arg", "vms", "{ web = { }; }", "--arg", "settings", text])
}

#[test]
fn host_settings_are_written_only_if_set() {
    let Some(made) = settings("{ }") else { return };
    assert_eq!(made.unwrap()["etc"].get("qvm/qvm.toml"), None);
    let text = "{ reserveMem = 512; admission = \"wait\"; uidRange = \"100000-165535\"; }";
    let made = settings(text).unwrap().unwrap();
    assert_eq!(made["etc"]["qvm/qvm.toml"], "/store/qvm-files/qvm.toml");
    let error = settings("{ admission = \"of\"; }").unwrap().unwrap_err();
    assert!(error.contains("services.qvm.settings.admission: \"of\" is not one of"), "{error}");
    // The same keys as in the program.
    let keys = evaluate("tests/nix/keys.nix", &["-A", "host"]).unwrap().unwrap();
    let mut written: Vec<String> = serde_json::from_value(keys).unwrap();
    written.sort();
    let problems = qvm::spec::HostSettings::read(Path::new("qvm.toml"), "unknown = 1").unwrap_err();
    let known = problems[0].hint.clone().unwrap();
    assert_eq!(known, format!("valid keys are: {}", written.join(", ")));
}

/// Values at the bounds of the module's types, and whether they are valid.
fn bounds() -> Vec<(&'static str, Value, bool)> {
    let sizes = |key, smallest: &[&str], largest: &[&str], outside: &[&str]| {
        let mut rows = Vec::new();
        for text in smallest.iter().chain(largest) {
            rows.push((key, json!(text), true));
        }
        rows.extend(outside.iter().map(|text| (key, json!(text), false)));
        rows
    };
    let mut rows = Vec::new();
    for key in ["mem", "memoryMax"] {
        rows.extend(sizes(
            key,
            &["16M", "016M", "16m", "16MiB", "16384K", "16384k", "16384KiB"],
            &["16T", "16TiB", "16t", "16384G", "16777216M", "17179869184K", "17179868160K"],
            &[
                "", "G", "4", "15M", "16383K", "16385K", "17T", "16385G", "4GB", "4.5G", "-4G",
                "4 G", "4Gi",
            ],
        ));
        rows.extend(sizes(key, &[], &[], &["99999999999999999999T", "17592186044417M", "4X"]));
        for (number, valid) in [
            (-1, false),
            (0, false),
            (1, false),
            (15, false),
            (16, true),
            (16_777_216, true),
            (16_777_217, false),
        ] {
            rows.push((key, json!(number), valid));
        }
        rows.push((key, json!(true), false));
        rows.push((key, json!(1.5), false));
    }
    rows.extend(sizes(
        "disk.data.size",
        &["1M", "1024K", "1025K", "1MiB"],
        &["1024T", "1048576G", "1099511627776K"],
        &["", "1023K", "1025T", "1099511627777K", "20GB", "0G", "9999999999999T"],
    ));
    rows.push(("disk.data.size", json!(20), false));
    for (text, valid) in [
        ("running", true),
        ("agent", true),
        ("tcp:1", true),
        ("tcp:65535", true),
        ("tcp:00022", true),
        ("tcp:0", false),
        ("tcp:65536", false),
        ("tcp:99999", false),
        ("tcp:", false),
        ("tcp:+22", false),
        ("tcp:ssh", false),
        ("TCP:22", false),
        ("", false),
        ("runing", false),
    ] {
        rows.push(("ready", json!(text), valid));
    }
    for (key, digits) in [("image.sha256", 64), ("image.sha512", 128)] {
        rows.push((key, json!("aF".repeat(digits / 2)), true));
        rows.push((key, json!("a".repeat(digits + 1)), false));
        rows.push((key, json!("g".repeat(digits)), false));
    }
    rows
}

/// A VM with one key, and the keys that it requires.
fn vm_with(key: &str, value: &Value) -> Value {
    let mut parts: Vec<&str> = key.split('.').collect();
    let mut table = value.clone();
    while let Some(part) = parts.pop() {
        table = json!({ part: table });
    }
    let extra = match key {
        "ready" => json!({ "bridge": "br0", "ip": "10.0.0.2/24", "cloudInit": {} }),
        "memoryMax" => json!({ "mem": "16M" }),
        _ => json!({}),
    };
    for (key, value) in extra.as_object().unwrap() {
        table[key] = value.clone();
    }
    if key.starts_with("image.") {
        table["image"]["path"] = json!("/srv/image.qcow2");
    }
    table
}

/// A value that evaluates must not be refused by the build of the system, and a value that qvm
/// accepts must evaluate.
#[test]
fn bounds_are_those_of_qvm_check() {
    let rows = bounds();
    let vms: Vec<Value> = rows.iter().map(|(key, value, _)| vm_with(key, value)).collect();
    let text = format!(
        "vms: map (vm: (builtins.tryEval (builtins.deepSeq (import {0}/tests/nix/eval.nix {{ \
         vms.web = vm; }}).files true)).success) vms",
        root().display()
    );
    let expression = format!("({text}) ({})", expression(&json!(vms)));
    let Some(output) = super::nix(&["--eval", "--strict", "--json", "--expr", &expression]) else {
        return;
    };
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let evaluated: Vec<bool> = serde_json::from_slice(&output.stdout).unwrap();
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("vms")).unwrap();
    let mut wrong = Vec::new();
    for (index, (key, value, valid)) in rows.iter().enumerate() {
        fs::write(dir.path().join("vms/web.toml"), toml::to_string(&vms[index]).unwrap()).unwrap();
        let (checked, message) = check(dir.path(), &["--no-user-data"]);
        if checked != *valid || evaluated[index] != *valid {
            wrong.push(format!(
                "{key} = {value}: evaluates {}, checks {checked}: {message}",
                evaluated[index]
            ));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn host_bounds_are_those_of_the_program() {
    let uid_ranges = [
        "1000-1000",
        "01000-65533",
        "65536-4294967294",
        "1900000000-1900065535",
        "999-2000",
        "65536-4294967295",
        "1000-65534",
        "65535-65536",
        "60000-70000",
        "2000-1000",
        "1000",
        "-",
        "1000-99999999999",
        "+1000-2000",
        "a-b",
    ];
    let sizes = ["0K", "1K", "4G", "1024T", "4GB", "", "4"];
    let rows = uid_ranges.map(|text| ("uidRange", json!(text))).into_iter();
    let rows = rows.chain(sizes.map(|text| ("reserveMem", json!(text))));
    let rows = rows.chain([-1, 0, 512].map(|number| ("reserveMem", json!(number))));
    for (key, value) in rows {
        let Some(made) = settings(&format!("{{ {key} = {}; }}", expression(&value))) else {
            return;
        };
        let text = toml::to_string(&json!({ key: value })).unwrap();
        let read = qvm::spec::HostSettings::read(Path::new("qvm.toml"), &text);
        assert_eq!(made.is_ok(), read.is_ok(), "{key} = {value}: {made:?}");
    }
}

#[test]
fn wrong_types_are_refused_with_the_option() {
    for (vm, option) in [
        (json!({ "vcpu": "2" }), "vcpu: \"2\" is not a number from 1 to 255"),
        (json!({ "vcpu": 256 }), "vcpu: 256 is not"),
        (json!({ "mem": true }), "mem: true is not size from 16M to 16T"),
        (json!({ "autostart": "yes" }), "autostart: \"yes\" is not a boolean"),
        (json!({ "ready": "tcp:" }), "ready: \"tcp:\" is not"),
        (json!({ "firmware": "efi" }), "firmware: \"efi\" is not one of"),
        (json!({ "disk": { "data": { "bus": "ide" } } }), "disk.data.bus: \"ide\" is not"),
        (json!({ "nic": { "lan": { "mtu": 1 } } }), "nic.lan.mtu: 1 is not"),
        (json!({ "dns": "9.9.9.9" }), "dns: \"9.9.9.9\" is not a list"),
        (json!({ "cpu": { "pin": [0] } }), "cpu.pin: 0 is not a string"),
    ] {
        let Some(made) = configure(&json!({ "web": vm })) else { return };
        let error = made.unwrap_err();
        assert!(error.contains(&format!("services.qvm.vms.web.{option}")), "{vm}: {error}");
    }
}

#[test]
fn unknown_keys_are_refused_at_every_depth() {
    for (vm, option) in [
        (json!({ "memm": "4G" }), "memm"),
        (json!({ "image": { "pth": "/x" } }), "image.pth"),
        (json!({ "cpu": { "pins": [] } }), "cpu.pins"),
        (json!({ "disk": { "data": { "sise": "1G" } } }), "disk.data.sise"),
        (json!({ "disk": { "data": { "image": { "clone": "copy" } } } }), "disk.data.image.clone"),
        (json!({ "nic": { "lan": { "vlan": 1 } } }), "nic.lan.vlan"),
        (json!({ "display": { "spice": "unix" } }), "display.spice"),
        (json!({ "cloudInit": { "userdata": "/x" } }), "cloudInit.userdata"),
    ] {
        let Some(made) = configure(&json!({ "web": vm })) else { return };
        let error = made.unwrap_err();
        let message = format!("The option `services.qvm.vms.web.{option}' does not exist");
        assert!(error.contains(&message), "{vm}: {error}");
    }
    let error = settings("{ reservemem = 512; }").unwrap().unwrap_err();
    assert!(error.contains("The option `services.qvm.settings.reservemem' does not exist"));
}

/// A path value or a path in the store would copy the secret to a place that every user can read.
#[test]
fn secrets_are_never_in_the_store() {
    for key in ["cloudInit.userData", "display.passwordFile"] {
        for (value, valid) in [
            ("\"/run/secrets/web\"", true),
            ("\"web.secret\"", false),
            ("./Cargo.toml", false),
            ("\"${builtins.storeDir}/abc-secret\"", false),
        ] {
            let vms = format!("{{ web.{key} = {value}; }}");
            let Some(made) = evaluate("tests/nix/eval.nix", &["--arg", "vms", &vms]) else {
                return;
            };
            assert_eq!(made.is_ok(), valid, "{vms}: {made:?}");
            if let Err(error) = made {
                assert!(error.contains(&format!("services.qvm.vms.web.{key}: ")), "{error}");
            }
        }
    }
    let vm = json!({ "cloudInit": { "passwordHash": "$6$salt$hash" } });
    let made = configure(&json!({ "web": vm, "db": {} })).unwrap().unwrap();
    let assertions = made["assertions"].as_array().unwrap();
    assert_eq!(assertions.len(), 1);
    assert!(
        assertions[0].as_str().unwrap().contains("services.qvm.vms.web.cloudInit.passwordHash")
    );
}

#[test]
fn names_are_those_of_the_program() {
    let long = "a".repeat(63);
    let too_long = "a".repeat(64);
    let names = [
        long.as_str(),
        "a",
        "0",
        "a-b",
        &too_long,
        "bad name",
        "Web",
        "a@b",
        "x/y",
        "w;touch x",
        "-a",
        "a-",
        "",
    ];
    let vms: serde_json::Map<String, Value> =
        names.iter().map(|name| ((*name).to_owned(), json!({}))).collect();
    let Some(made) = configure(&vms.into()) else { return };
    let refused = made.unwrap()["assertions"].as_array().unwrap().len();
    let invalid = names.iter().filter(|name| name.parse::<qvm::value::VmName>().is_err()).count();
    assert_eq!((refused, invalid), (9, 9));
    for (key, table) in [("disk", json!({ "size": "1G" })), ("nic", json!({}))] {
        let labels =
            ["data", "a", "a-0", "a234567890123456", "a2345678901234567", "0a", "Data", "a b", "-"];
        let tables: serde_json::Map<String, Value> =
            labels.iter().map(|name| ((*name).to_owned(), table.clone())).collect();
        let made = configure(&json!({ "web": { key: tables } })).unwrap().unwrap();
        let refused = made["assertions"].as_array().unwrap();
        let invalid = labels.iter().filter(|name| name.parse::<qvm::value::Label>().is_err());
        assert_eq!(refused.len(), invalid.count(), "{refused:?}");
        assert_eq!(refused.len(), 5);
    }
}

#[test]
fn guest_configuration_gives_the_image() {
    let guests = "{ web = { }; efi = { }; own = { }; seeded = { }; }";
    let vms = json!({
        "efi": { "firmware": "uefi", "mem": "2G" },
        "own": { "image": { "path": "/srv/own.qcow2" } },
        "seeded": { "firmware": "bios", "cloudInit": {} },
        "other": {},
    });
    let arguments = ["--arg", "guests", guests, "--arg", "vms", &expression(&vms)];
    let Some(made) = evaluate("tests/nix/eval.nix", &arguments) else { return };
    let made = made.unwrap();
    let path = |vm: &str| made["files"][vm]["image"]["path"].clone();
    assert_eq!(path("web"), "/store/qemu/nixos.qcow2");
    assert_eq!(path("efi"), "/store/qemu-efi/nixos.qcow2");
    assert_eq!(path("own"), "/srv/own.qcow2");
    assert_eq!(path("seeded"), "/store/qemu/nixos.qcow2");
    assert_eq!(path("other"), Value::Null);
    assert_eq!(made["files"]["efi"]["mem"], "2G");
    let guest = &made["guests"]["seeded"];
    assert_eq!(guest["prefix"], json!(["services", "qvm", "guests", "seeded"]));
    assert_eq!((&guest["cloudInit"], &guest["modules"]), (&json!(true), &json!(2)));
    assert_eq!(made["guests"]["web"]["cloudInit"], false);
    // The message of a guest's assertion contains the name of the guest.
    let guests = "{ web.assertions = [ { assertion = false; message = \"too small\"; } ]; }";
    let made = evaluate("tests/nix/eval.nix", &["--arg", "guests", guests]).unwrap().unwrap();
    assert_eq!(made["assertions"], json!(["services.qvm.guests.web: too small"]));
    let wrong = evaluate("tests/nix/eval.nix", &["--arg", "guests", "{ web = 3; }"]).unwrap();
    assert!(wrong.unwrap_err().contains("services.qvm.guests.web: 3 is not"));
}
