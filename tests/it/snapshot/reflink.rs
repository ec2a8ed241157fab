//! Reflink snapshots, on btrfs and XFS of loop devices.

use std::{fs, process::Command};

use super::place::{disk, files, make_disks, refused, run, snapshots, tree, write, write_vm_file};
use crate::lab::{Lab, required};

/// A VM whose state directory is on this file system; `None` where there is none.
fn lab_on(make: &str, disks: &[(&str, &str)]) -> Option<Lab> {
    if Command::new(make).arg("-V").output().is_err() {
        assert!(!required(make), "{make} is missing");
        println!("skipped: no {make}");
        return None;
    }
    let mut lab = Lab::new();
    write_vm_file(&lab, disks);
    let image = lab.path().join("fs.img");
    fs::File::create(&image).unwrap().set_len(400 << 20).unwrap();
    run(make, &["-q", image.to_str().unwrap()]);
    let state = lab.state("web", "");
    let mounts = lab.mounts()?;
    mounts.sh(&format!("mount -o loop '{}' '{}'", image.display(), state.display()));
    make_disks(&lab, disks);
    Some(lab)
}

#[test]
fn raw_and_qcow2_disks_are_kept_and_restored() {
    for make in ["mkfs.btrfs", "mkfs.xfs"] {
        let disks = [("root", "qcow2"), ("data", "raw")];
        let Some(lab) = lab_on(make, &disks) else { continue };
        write(&lab, "root.qcow2", 0, 1);
        write(&lab, "data.raw", 0, 1);
        let out = lab.ok(&["snapshot", "create", "web", "one"]);
        assert_eq!(out, "web: snapshot one created (reflink, stopped)\n");
        write(&lab, "root.qcow2", 1, 2);
        write(&lab, "data.raw", 1, 2);
        assert_eq!(disk(&lab, "data@one.raw"), [1, 0, 0, 0]);
        lab.ok(&["snapshot", "rollback", "web", "one"]);
        for file in ["root.qcow2", "data.raw"] {
            assert_eq!(disk(&lab, file), [1, 0, 0, 0]);
        }
        let kept = snapshots(&lab)[1]["name"].as_str().unwrap().to_owned();
        assert_eq!(disk(&lab, &format!("data@{kept}.raw")), [1, 2, 0, 0]);
        assert_eq!(tree(&lab), ["one *".to_owned(), format!("{kept} < one")]);
        // Each file is whole without the others.
        lab.ok(&["snapshot", "rm", "web", "one"]);
        assert_eq!(tree(&lab), std::slice::from_ref(&kept));
        lab.ok(&["snapshot", "rollback", "web", &kept, "--discard-current"]);
        assert_eq!(disk(&lab, "root.qcow2"), [1, 2, 0, 0]);
        lab.ok(&["snapshot", "rm", "web", &kept]);
        assert_eq!(files(&lab), ["data.raw", "root.qcow2"]);
        // A copy has the present only.
        lab.ok(&["snapshot", "create", "web", "two"]);
        let copy = lab.path().join("web.qvm");
        lab.ok(&["export", "web", copy.to_str().unwrap()]);
    }
}

#[test]
fn full_file_system_changes_nothing() {
    let Some(lab) = lab_on("mkfs.btrfs", &[("root", "raw")]) else { return };
    write(&lab, "root.raw", 0, 1);
    lab.ok(&["snapshot", "create", "web", "one"]);
    let mounts = lab.mounts.as_ref().unwrap();
    mounts.fill(&lab.path().join("s/vms/web"), 0);
    let (code, err) = refused(&lab, &["snapshot", "create", "web", "two"]);
    let tree = tree(&lab);
    match code {
        // The metadata of btrfs may have had room.
        Some(0) => assert_eq!(tree, ["one", "two < one *"]),
        _ => assert_eq!((code, tree), (Some(75), vec!["one *".to_owned()]), "{err}"),
    }
    let root = lab.state("web", "root.raw");
    assert!(fs::read(root).unwrap()[..1 << 20].iter().all(|byte| *byte == 1));
}
