//! A stopped VM with disks whose content tests write and read.

use std::{fs, path::Path, process::Command};

use serde_json::Value;

use crate::lab::Lab;

pub(super) fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {text}{errors}");
    text
}

/// A VM `web` with these disks in its state directory, of 8 MiB each.
pub(super) fn lab_with(disks: &[(&str, &str)]) -> Lab {
    let lab = Lab::new();
    write_vm_file(&lab, disks);
    make_disks(&lab, disks);
    lab
}

pub(super) fn write_vm_file(lab: &Lab, disks: &[(&str, &str)]) {
    let table = |(name, format): &(&str, &str)| {
        format!("[disk.{name}]\nsize = \"8M\"\nformat = \"{format}\"\n")
    };
    let tables: String = disks.iter().map(table).collect();
    fs::write(lab.file("web"), format!("accel = \"tcg\"\nmem = \"64M\"\n{tables}")).unwrap();
    fs::create_dir_all(lab.state("web", "")).unwrap();
}

pub(super) fn make_disks(lab: &Lab, disks: &[(&str, &str)]) {
    for (name, format) in disks {
        let path = lab.state("web", &format!("{name}.{format}"));
        run("qemu-img", &["create", "-q", "-f", format, path.to_str().unwrap(), "8M"]);
    }
}

/// Writes a byte to the first MiB at this offset in MiB.
pub(super) fn write(lab: &Lab, file: &str, mib: u32, byte: u8) {
    let path = lab.state("web", file);
    let format = path.extension().unwrap().to_str().unwrap();
    let command = format!("write -q -P {byte} {mib}M 1M");
    run("qemu-io", &["-f", format, "-c", &command, path.to_str().unwrap()]);
}

/// The bytes at the beginning of each of the first four MiB, through all backing files. The file is
/// checked, too.
pub(super) fn content(path: &Path) -> [u8; 4] {
    let format = path.extension().unwrap().to_str().unwrap();
    let name = path.to_str().unwrap();
    if format == "qcow2" {
        run("qemu-img", &["check", "-q", "-f", "qcow2", name]);
    }
    let raw = tempfile::NamedTempFile::new().unwrap();
    let to = raw.path().to_str().unwrap();
    run("qemu-img", &["convert", "-U", "-f", format, "-O", "raw", name, to]);
    let bytes = fs::read(raw.path()).unwrap();
    std::array::from_fn(|mib| {
        let block = &bytes[mib << 20..(mib + 1) << 20];
        assert!(block.iter().all(|byte| *byte == block[0]), "{name}: mixed content");
        block[0]
    })
}

pub(super) fn disk(lab: &Lab, file: &str) -> [u8; 4] {
    content(&lab.state("web", file))
}

pub(super) fn snapshots(lab: &Lab) -> Vec<Value> {
    let text = lab.ok(&["snapshot", "list", "web", "--json"]);
    serde_json::from_str::<Value>(&text).unwrap().as_array().unwrap().clone()
}

/// `name < parent`, and `*` for the parent of the present.
pub(super) fn tree(lab: &Lab) -> Vec<String> {
    let line = |one: &Value| {
        let parent = one["parent"].as_str().map_or_else(String::new, |name| format!(" < {name}"));
        let mark = if one["isParentOfPresent"] == true { " *" } else { "" };
        format!("{}{parent}{mark}", one["name"].as_str().unwrap())
    };
    snapshots(lab).iter().map(line).collect()
}

/// The names in the state directory that snapshots make, and the disks.
pub(super) fn files(lab: &Lab) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(lab.state("web", ""))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| {
            name.starts_with(".qvm") || name.ends_with(".qcow2") || name.ends_with(".raw")
        })
        .collect();
    names.sort();
    names
}

/// Exit code and standard error.
pub(super) fn refused(lab: &Lab, arguments: &[&str]) -> (Option<i32>, String) {
    let output = lab.qvm(arguments);
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}
