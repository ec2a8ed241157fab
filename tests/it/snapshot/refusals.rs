//! What has no snapshot, and what a VM with snapshots refuses.

use std::fs;

use super::place::{disk, files, lab_with, refused, run, snapshots, tree, write};
use crate::lab::{Lab, guest};

const ROOT: [(&str, &str); 1] = [("root", "qcow2")];

fn says(lab: &Lab, arguments: &[&str], code: i32, text: &str) {
    let (found, err) = refused(lab, arguments);
    assert_eq!(found, Some(code), "{arguments:?}: {err}");
    assert!(err.contains(text), "{arguments:?}: {err}");
}

#[test]
fn unknown_names_exit_with_3() {
    let lab = lab_with(&ROOT);
    says(&lab, &["snapshot", "create", "other"], 3, "there is no VM `other`");
    says(&lab, &["snapshot", "list", "other"], 3, "there is no VM `other`");
    for verb in ["rollback", "rm"] {
        says(&lab, &["snapshot", verb, "web", "a"], 3, "there is no snapshot `a`");
    }
    for name in ["a/b", "auto-1", "before-rollback-1"] {
        assert_ne!(refused(&lab, &["snapshot", "create", "web", name]).0, Some(0), "{name}");
    }
    lab.ok(&["snapshot", "create", "web", "a"]);
    says(&lab, &["snapshot", "create", "web", "a"], 1, "the snapshot `a` already exists");
    fs::write(lab.file("web"), "mem = 1\n").unwrap();
    assert_eq!(refused(&lab, &["snapshot", "create", "web", "b"]).0, Some(78));
    assert_eq!(tree(&lab), ["a *"]);
}

#[test]
fn raw_disk_without_reflinks_is_refused() {
    let lab = lab_with(&[("root", "qcow2"), ("data", "raw")]);
    says(&lab, &["snapshot", "create", "web"], 1, "does not support reflinks");
    assert_eq!(files(&lab), ["data.raw", "root.qcow2"]);
    assert!(snapshots(&lab).is_empty());
}

#[test]
fn other_disks_are_refused() {
    let lab = lab_with(&ROOT);
    let text = fs::read_to_string(lab.file("web")).unwrap();
    let own = lab.path().join("own.qcow2");
    run("qemu-img", &["create", "-q", "-f", "qcow2", own.to_str().unwrap(), "8M"]);
    let with = |more: &str| fs::write(lab.file("web"), format!("{text}{more}")).unwrap();
    with(&format!("[disk.own]\npath = \"{}\"\n", own.display()));
    says(&lab, &["snapshot", "create", "web"], 1, "was not created by qvm");
    with("[disk.own]\ndevice = \"/dev/nonexistent\"\n");
    says(&lab, &["snapshot", "create", "web"], 1, "is a block device");
    with("[disk.new]\nsize = \"8M\"\n");
    says(&lab, &["snapshot", "create", "web"], 1, "does not exist yet");
    // A read-only disk is no part of a snapshot.
    with(&format!("[disk.own]\npath = \"{}\"\nreadOnly = true\n", own.display()));
    lab.ok(&["snapshot", "create", "web", "a"]);
    assert_eq!(snapshots(&lab)[0]["disks"].as_array().unwrap().len(), 1);
    let link = lab.state("web", "root.qcow2");
    fs::rename(&link, lab.path().join("elsewhere.qcow2")).unwrap();
    std::os::unix::fs::symlink(lab.path().join("elsewhere.qcow2"), &link).unwrap();
    says(&lab, &["snapshot", "create", "web"], 1, "is a symbolic link");
}

#[test]
fn disks_that_differ_from_the_snapshot_are_reported() {
    let lab = lab_with(&[("root", "qcow2"), ("data", "qcow2")]);
    let both = fs::read_to_string(lab.file("web")).unwrap();
    let (root, _) = both.split_once("[disk.data]").unwrap();
    fs::write(lab.file("web"), root).unwrap();
    lab.ok(&["snapshot", "create", "web", "root-only"]);
    fs::write(lab.file("web"), &both).unwrap();
    lab.ok(&["snapshot", "create", "web", "both"]);
    write(&lab, "data.qcow2", 0, 1);
    let out = lab.ok(&["snapshot", "rollback", "web", "root-only"]);
    assert!(out.contains("disk data is unchanged"), "{out}");
    assert_eq!(disk(&lab, "data.qcow2"), [1, 0, 0, 0]);
    fs::write(lab.file("web"), root).unwrap();
    let out = lab.ok(&["snapshot", "rollback", "web", "both"]);
    assert!(out.contains("disk data of the snapshot is not restored"), "{out}");
    fs::write(lab.file("web"), &both).unwrap();
    // The chain of the other disk is as it was.
    assert_eq!(disk(&lab, "data.qcow2"), [1, 0, 0, 0]);
    lab.ok(&["snapshot", "rollback", "web", "both", "--discard-current"]);
    assert_eq!(disk(&lab, "data.qcow2"), [0; 4]);
}

#[test]
fn running_and_suspended_vms_are_refused() {
    let Some(image) = guest("boot.qcow2") else { return };
    let lab = Lab::new();
    lab.vm("web", &image, "");
    lab.ok(&["start", "web"]);
    for arguments in [
        &["snapshot", "create", "web", "a"][..],
        &["snapshot", "rollback", "web", "a"],
        &["snapshot", "rm", "web", "a"],
    ] {
        says(&lab, arguments, 1, "qvm stop web");
    }
    lab.ok(&["suspend", "web"]);
    says(&lab, &["snapshot", "create", "web", "a"], 1, "the VM is suspended");
    assert_eq!(files(&lab), ["root.qcow2"]);
}

#[test]
fn replaced_or_lost_disk_is_not_started() {
    let Some(image) = guest("boot.qcow2") else { return };
    let lab = Lab::new();
    lab.vm("web", &image, "");
    lab.ok(&["start", "web"]);
    lab.ok(&["kill", "web"]);
    lab.ok(&["snapshot", "create", "web", "a"]);
    let root = lab.state("web", "root.qcow2");
    let aside = lab.path().join("aside.qcow2");
    fs::rename(&root, &aside).unwrap();
    says(&lab, &["start", "web"], 1, "does not exist, but snapshots of it do");
    assert!(!root.exists(), "no disk is created from the image again");
    // A full image in place of the overlay would be mixed with the content of the snapshot.
    fs::copy(&image, &root).unwrap();
    says(&lab, &["start", "web"], 1, "has no backing file, not `root@a.qcow2`");
    fs::rename(&aside, &root).unwrap();
    // Without its record the snapshot's file is not known.
    let record = lab.state("web", "snapshots/a.toml");
    fs::rename(&record, lab.path().join("a.toml")).unwrap();
    says(&lab, &["start", "web"], 75, "no snapshot record has the file `root@a.qcow2`");
    fs::write(&record, "version = 9\n").unwrap();
    says(&lab, &["start", "web"], 75, "has version 9");
    says(&lab, &["snapshot", "list", "web"], 75, "has version 9");
    fs::rename(lab.path().join("a.toml"), &record).unwrap();
    lab.ok(&["start", "web"]);
    lab.ok(&["kill", "web"]);
}

#[test]
fn copies_of_a_disk_on_snapshots_are_refused() {
    let lab = lab_with(&ROOT);
    lab.ok(&["snapshot", "create", "web", "a"]);
    let archive = lab.path().join("web.qvm");
    let archive = archive.to_str().unwrap();
    says(&lab, &["clone", "web", "copy"], 1, "is based on its snapshots");
    says(&lab, &["export", "web", archive], 1, "is based on its snapshots");
    lab.ok(&["snapshot", "rm", "web", "a"]);
    lab.ok(&["clone", "web", "copy"]);
    lab.ok(&["rm", "web", "--disks", "--yes"]);
}

#[test]
fn changed_header_stops_a_merge() {
    let lab = lab_with(&ROOT);
    write(&lab, "root.qcow2", 0, 1);
    lab.ok(&["snapshot", "create", "web", "a"]);
    let root = lab.state("web", "root.qcow2");
    // A guest that took over QEMU may write any header.
    let other = lab.path().join("secret.raw");
    fs::write(&other, [5; 1 << 20]).unwrap();
    let rebase = ["rebase", "-u", "-f", "qcow2", "-F", "raw", "-b", other.to_str().unwrap()];
    run("qemu-img", &[&rebase[..], &[root.to_str().unwrap()]].concat());
    says(&lab, &["snapshot", "rm", "web", "a"], 1, "has another backing file than its record");
    assert_eq!(disk(&lab, "root@a.qcow2"), [1, 0, 0, 0]);
    assert!(snapshots(&lab)[0]["phase"] == "complete");
    assert_eq!(fs::read(&other).unwrap(), [5; 1 << 20]);
}
