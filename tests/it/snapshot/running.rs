//! Snapshots of a running VM: QEMU writes to the new overlay, the chain is right after a start, and
//! a supervisor that dies at any step leaves nothing undone.

use std::{fs, path::Path};

use serde_json::{Value, json};

use super::place::{content, files, refused, snapshots, tree};
use crate::lab::{Lab, guest, old_qemu, until};

/// Runs a command of `qemu-io` on the disk of the running guest.
fn io(lab: &Lab, disk: &str, command: &str) {
    let path = format!("/machine/peripheral/disk-{disk}/virtio-backend");
    let line = format!("qemu-io -d {path} \"{command}\"");
    let socket = lab.runtime("web", "qmp.sock");
    // The supervisor's connection is the only one until it ends.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let text = runtime.block_on(async {
        let limit = std::time::Duration::from_secs(60);
        let session = qmp::connect(&socket, limit).await.unwrap();
        let arguments = json!({ "command-line": line });
        session.client.raw("human-monitor-command", arguments, limit).await.unwrap()
    });
    let text = text.as_str().unwrap_or_default().to_owned();
    assert!(!text.contains("failed") && !text.contains("rror"), "{command}: {text}");
}

const DISKS: &str = "[disk.data]\nsize = \"8M\"\n";

/// Kills the supervisor, lets `work` use QEMU's monitor, and has QEMU adopted again.
fn between_supervisors(lab: &mut Lab, index: usize, work: impl FnOnce(&Lab)) -> usize {
    lab.supervisor(index).kill().unwrap();
    lab.supervisor(index).wait().unwrap();
    work(lab);
    let next = lab.run("web");
    lab.wait_state("web", "running");
    next
}

fn phase(lab: &Lab) -> Option<String> {
    let text = fs::read_to_string(lab.state("web", "snapshots.toml")).ok()?;
    let present: toml::Table = text.parse().unwrap();
    Some(present.get("switch")?["phase"].as_str().unwrap().to_owned())
}

/// What the guest wrote before a snapshot is in it, what it wrote afterward is not, and all of it
/// is in the present.
fn writes_go_to_the_overlay(mut lab: Lab, image: &Path) {
    lab.vm("web", image, DISKS);
    let mut one = lab.run("web");
    lab.wait_state("web", "running");
    one = between_supervisors(&mut lab, one, |lab| io(lab, "data", "write -P 1 0 1M"));
    let out = lab.ok(&["snapshot", "create", "web", "a", "--comment", "live"]);
    assert_eq!(out, "web: snapshot a created (overlay, paused)\n");
    one = between_supervisors(&mut lab, one, |lab| {
        io(lab, "data", "write -P 2 1M 1M");
        io(lab, "data", "read -P 1 0 1M");
    });
    lab.ok(&["snapshot", "create", "web", "b", "--no-freeze"]);
    one = between_supervisors(&mut lab, one, |lab| io(lab, "data", "write -P 3 2M 1M"));
    assert_eq!(tree(&lab), ["a", "b < a *"]);
    let all = snapshots(&lab);
    let disks: Vec<&Value> =
        all[0]["disks"].as_array().unwrap().iter().map(|disk| &disk["disk"]).collect();
    assert_eq!(disks, ["data", "root"]);
    let (code, err) = refused(&lab, &["snapshot", "create", "web", "b"]);
    assert!(code == Some(1) && err.contains("the snapshot `b` already exists"), "{err}");
    // The guest runs as before, and its disk grows.
    lab.vm("web", image, "[disk.data]\nsize = \"16M\"\n");
    lab.ok(&["apply", "web"]);
    lab.ok(&["kill", "web"]);
    lab.exit_code(one);
    assert_eq!(content(&lab.state("web", "data@a.qcow2")), [1, 0, 0, 0]);
    assert_eq!(content(&lab.state("web", "data@b.qcow2")), [1, 2, 0, 0]);
    assert_eq!(content(&lab.state("web", "data.qcow2")), [1, 2, 3, 0]);
    // The chain is that of the records at the next start, and another snapshot is on top.
    let two = lab.run("web");
    lab.wait_state("web", "running");
    lab.ok(&["snapshot", "create", "web", "c"]);
    lab.ok(&["kill", "web"]);
    lab.exit_code(two);
    lab.ok(&["snapshot", "rm", "web", "b", "a", "c"]);
    assert_eq!(files(&lab), ["data.qcow2", "root.qcow2"]);
    assert_eq!(content(&lab.state("web", "data.qcow2")), [1, 2, 3, 0]);
}

#[test]
fn guest_writes_to_the_overlay() {
    let Some(image) = guest("boot.qcow2") else { return };
    writes_go_to_the_overlay(Lab::new(), &image);
}

#[test]
fn guest_writes_to_the_overlay_on_qemu_7_2() {
    let (Some(image), Some(lab)) = (guest("boot.qcow2"), old_qemu::lab()) else { return };
    writes_go_to_the_overlay(lab, &image);
}

#[test]
fn isolated_paused_and_restored_guests() {
    let Some(image) = guest("boot.qcow2") else { return };
    let lab = Lab::new();
    lab.vm("web", &image, "isolation = \"on\"\n[disk.data]\nsize = \"8M\"\n");
    lab.ok(&["start", "web"]);
    lab.ok(&["snapshot", "create", "web", "a"]);
    // A paused guest writes nothing: all disks are of one moment.
    lab.ok(&["pause", "web"]);
    lab.ok(&["snapshot", "create", "web", "b"]);
    assert_eq!(lab.status("web")["state"], "paused");
    lab.ok(&["resume", "web"]);
    lab.ok(&["suspend", "web"]);
    lab.ok(&["start", "web"]);
    lab.ok(&["snapshot", "create", "web", "c"]);
    lab.ok(&["kill", "web"]);
    assert_eq!(tree(&lab), ["a", "b < a", "c < b *"]);
    lab.ok(&["snapshot", "rollback", "web", "b", "--discard-current", "--start"]);
    lab.ok(&["kill", "web"]);
}

/// The supervisor is killed while it creates a snapshot, at the steps that a slow file system or a
/// silent QEMU would show; the next one settles it.
#[test]
fn next_supervisor_settles_an_interrupted_snapshot() {
    let Some(image) = guest("boot.qcow2") else { return };
    let mut lab = Lab::new();
    lab.vm("web", &image, "");
    let mut one = lab.run("web");
    lab.wait_state("web", "running");
    lab.ok(&["snapshot", "create", "web", "a"]);
    let before = fs::read(lab.state("web", "snapshots.toml")).unwrap();
    lab.ok(&["snapshot", "create", "web", "b"]);
    let after: toml::Table =
        fs::read_to_string(lab.state("web", "snapshots/b.toml")).unwrap().parse().unwrap();
    // As if the supervisor had died before it wrote the record of `b`.
    let mut present: toml::Table = String::from_utf8(before).unwrap().parse().unwrap();
    let mut switch = present_switch(&after, "b", "a");
    switch.insert("phase".into(), "switching".into());
    present.insert("switch".into(), switch.into());
    one = between_supervisors(&mut lab, one, |lab| {
        fs::remove_file(lab.state("web", "snapshots/b.toml")).unwrap();
        fs::write(lab.state("web", "snapshots.toml"), present.to_string()).unwrap();
    });
    until("the snapshot is completed", || phase(&lab).is_none());
    assert_eq!(tree(&lab), ["a", "b < a *"]);
    // As if it had died before QEMU changed to the overlay, which QEMU does not know.
    lab.ok(&["kill", "web"]);
    lab.exit_code(one);
    let mut two = lab.run("web");
    lab.wait_state("web", "running");
    let live = lab.state("web", "root.qcow2");
    let kept = lab.state("web", "root@c.qcow2");
    two = between_supervisors(&mut lab, two, |lab| {
        let text = fs::read_to_string(lab.state("web", "snapshots.toml")).unwrap();
        let mut present: toml::Table = text.parse().unwrap();
        let mut switch = present_switch(&after, "c", "b");
        switch.insert("phase".into(), "switching".into());
        present.insert("switch".into(), switch.into());
        fs::hard_link(&live, &kept).unwrap();
        let overlay = lab.state("web", "new.qcow2");
        let arguments = ["create", "-q", "-u", "-f", "qcow2", "-b", "root@c.qcow2", "-F", "qcow2"];
        super::place::run(
            "qemu-img",
            &[&arguments[..], &[overlay.to_str().unwrap(), "1G"]].concat(),
        );
        fs::rename(&overlay, &live).unwrap();
        fs::write(lab.state("web", "snapshots.toml"), present.to_string()).unwrap();
    });
    until("the snapshot is undone", || phase(&lab).is_none());
    assert!(!kept.exists());
    assert_eq!(tree(&lab), ["a", "b < a *"]);
    lab.ok(&["snapshot", "create", "web", "d"]);
    lab.ok(&["kill", "web"]);
    lab.exit_code(two);
    lab.ok(&["snapshot", "rm", "web", "a", "b", "d"]);
    assert_eq!(files(&lab), ["root.qcow2"]);
}

/// A change of the present that makes a snapshot of this name, of which `like` is another.
fn present_switch(like: &toml::Table, name: &str, parent: &str) -> toml::Table {
    let mut keep = like.clone();
    keep.insert("name".into(), name.into());
    keep.insert("parent".into(), parent.into());
    let file = format!("root@{name}.qcow2");
    let disk = keep["disks"]["root"].as_table_mut().unwrap();
    disk.insert("file".into(), file.clone().into());
    disk.insert("backing".into(), format!("root@{parent}.qcow2").into());
    let bytes = disk["virtualBytes"].clone();
    let mut next = toml::Table::new();
    next.insert("by".into(), "overlay".into());
    next.insert("on".into(), file.clone().into());
    next.insert("format".into(), "qcow2".into());
    next.insert("virtual_bytes".into(), bytes);
    let mut root = toml::Table::new();
    root.insert("format".into(), "qcow2".into());
    root.insert("kept".into(), file.into());
    root.insert("next".into(), next.into());
    let mut disks = toml::Table::new();
    disks.insert("root".into(), root.into());
    let mut switch = toml::Table::new();
    switch.insert("phase".into(), "preparing".into());
    switch.insert("parent".into(), name.into());
    switch.insert("restoresEfiVars".into(), false.into());
    switch.insert("keep".into(), keep.into());
    switch.insert("disks".into(), disks.into());
    switch
}
