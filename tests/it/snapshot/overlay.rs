//! Overlay snapshots of a stopped VM: content, chains, merges, and a guest that boots from them.

use std::{fs, os::unix::fs::PermissionsExt, path::Path};

use super::place::{content, disk, files, lab_with, refused, run, snapshots, tree, write};
use crate::lab::{Lab, guest, old_qemu};

const ROOT: [(&str, &str); 1] = [("root", "qcow2")];

#[test]
fn rollback_restores_all_disks_and_keeps_the_present() {
    let lab = lab_with(&[("root", "qcow2"), ("data", "qcow2")]);
    for file in ["root.qcow2", "data.qcow2"] {
        write(&lab, file, 0, 1);
    }
    let out = lab.ok(&["snapshot", "create", "web", "one", "--comment", "before it"]);
    assert_eq!(out, "web: snapshot one created (overlay, stopped)\n");
    let frozen = lab.state("web", "root@one.qcow2");
    assert_eq!(fs::metadata(&frozen).unwrap().permissions().mode() & 0o777, 0o400);
    for file in ["root.qcow2", "data.qcow2"] {
        assert_eq!(disk(&lab, file), [1, 0, 0, 0]);
        write(&lab, file, 1, 2);
    }
    assert_eq!(content(&frozen), [1, 0, 0, 0]);
    let out = lab.ok(&["snapshot", "rollback", "web", "one"]);
    let kept = out.lines().nth(1).unwrap().rsplit(' ').next().unwrap().to_owned();
    assert!(kept.starts_with("before-rollback-"), "{out}");
    for name in ["root", "data"] {
        assert_eq!(disk(&lab, &format!("{name}.qcow2")), [1, 0, 0, 0]);
        assert_eq!(disk(&lab, &format!("{name}@{kept}.qcow2")), [1, 2, 0, 0]);
    }
    assert_eq!(tree(&lab), ["one *".to_owned(), format!("{kept} < one")]);
    // And back again.
    write(&lab, "root.qcow2", 2, 3);
    lab.ok(&["snapshot", "rollback", "web", &kept, "--discard-current"]);
    for file in ["root.qcow2", "data.qcow2"] {
        assert_eq!(disk(&lab, file), [1, 2, 0, 0]);
    }
    assert_eq!(tree(&lab), ["one".to_owned(), format!("{kept} < one *")]);
    let all = snapshots(&lab);
    assert_eq!((&all[0]["comment"], &all[0]["kind"]), (&"before it".into(), &"overlay".into()));
    assert_eq!(all[0]["disks"].as_array().unwrap().len(), 2);
    assert!(all[0]["ownBytes"].as_u64().unwrap() > 2 << 20);
    assert!(lab.ok(&["snapshot", "list"]).contains("before it"));
    // A snapshot keeps the VM file of its time.
    let record = fs::read_to_string(lab.state("web", "snapshots/one.toml")).unwrap();
    let record: toml::Table = record.parse().unwrap();
    assert_eq!(record["vmFile"].as_str().unwrap(), fs::read_to_string(lab.file("web")).unwrap());
}

#[test]
fn removal_of_any_snapshot_keeps_all_other_content() {
    for order in [["a", "b", "c"], ["c", "b", "a"], ["b", "a", "c"], ["b", "c", "a"]] {
        let lab = lab_with(&ROOT);
        for (nr, name) in ["a", "b", "c"].into_iter().enumerate() {
            write(&lab, "root.qcow2", nr as u32, nr as u8 + 1);
            lab.ok(&["snapshot", "create", "web", name]);
        }
        write(&lab, "root.qcow2", 0, 9);
        let expected = [("a", [1, 0, 0, 0]), ("b", [1, 2, 0, 0]), ("c", [1, 2, 3, 0])];
        let mut left: Vec<_> = expected.to_vec();
        for name in order {
            lab.ok(&["snapshot", "rm", "web", name]);
            left.retain(|(other, _)| *other != name);
            for (other, bytes) in &left {
                let file = format!("root@{other}.qcow2");
                assert_eq!(disk(&lab, &file), *bytes, "{other} without {name} of {order:?}");
                let mode = fs::metadata(lab.state("web", &file)).unwrap().permissions().mode();
                assert_eq!(mode & 0o777, 0o400, "{file}");
            }
            assert_eq!(disk(&lab, "root.qcow2"), [9, 2, 3, 0], "without {name} of {order:?}");
            assert_eq!(files(&lab).len(), left.len() + 1, "{:?}", files(&lab));
        }
        // The disk is one file again, which the guest can write to.
        let root = lab.state("web", "root.qcow2");
        assert!(!run("qemu-img", &["info", root.to_str().unwrap()]).contains("backing file"));
        assert_eq!(fs::metadata(root).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(tree(&lab).is_empty());
    }
}

#[test]
fn snapshot_with_two_dependents_is_not_removed() {
    let lab = lab_with(&ROOT);
    write(&lab, "root.qcow2", 0, 1);
    lab.ok(&["snapshot", "create", "web", "a"]);
    write(&lab, "root.qcow2", 1, 2);
    lab.ok(&["snapshot", "rollback", "web", "a"]);
    let kept = snapshots(&lab)[1]["name"].as_str().unwrap().to_owned();
    let (code, err) = refused(&lab, &["snapshot", "rm", "web", "a"]);
    assert_eq!(code, Some(1), "{err}");
    assert!(err.contains(&format!("the snapshot `{kept}` and the present are based on")), "{err}");
    // Without the other one it is merged into the present.
    lab.ok(&["snapshot", "rm", "web", &kept, "a"]);
    assert_eq!((disk(&lab, "root.qcow2"), files(&lab)), ([1, 0, 0, 0], vec!["root.qcow2".into()]));
}

#[test]
fn chain_has_a_maximum_length() {
    let lab = lab_with(&ROOT);
    for number in 0..16 {
        write(&lab, "root.qcow2", 0, number + 1);
        lab.ok(&["snapshot", "create", "web", &format!("s{number}")]);
    }
    let (code, err) = refused(&lab, &["snapshot", "create", "web", "more"]);
    assert_eq!(code, Some(1), "{err}");
    assert!(err.contains("is based on 16 snapshots, the maximum"), "{err}");
    assert_eq!(files(&lab).len(), 17);
    lab.ok(&["snapshot", "rm", "web", "s3"]);
    lab.ok(&["snapshot", "create", "web", "more"]);
    assert_eq!(disk(&lab, "root@s4.qcow2"), [5, 0, 0, 0]);
    assert_eq!(disk(&lab, "root@s2.qcow2"), [3, 0, 0, 0]);
}

#[test]
fn firmware_variables_are_rolled_back() {
    let lab = lab_with(&ROOT);
    let variables = lab.state("web", "efivars.fd");
    fs::write(&variables, "old").unwrap();
    lab.ok(&["snapshot", "create", "web", "a"]);
    fs::write(&variables, "new").unwrap();
    lab.ok(&["snapshot", "rollback", "web", "a"]);
    assert_eq!(fs::read_to_string(&variables).unwrap(), "old");
    let kept = snapshots(&lab)[1]["name"].as_str().unwrap().to_owned();
    lab.ok(&["snapshot", "rollback", "web", &kept]);
    assert_eq!(fs::read_to_string(&variables).unwrap(), "new");
}

/// A guest counts its boots nowhere: its disk is compared with the image.
fn boots_through(lab: &Lab, image: &Path) {
    lab.vm("web", image, "diskSizeG = 1\n");
    let boots = |lab: &Lab, count| {
        lab.ok(&["start", "web"]);
        lab.says("web", "BOOT-GUEST-READY", count);
        lab.ok(&["kill", "web"]);
    };
    boots(lab, 1);
    lab.ok(&["snapshot", "create", "web", "a"]);
    lab.ok(&["snapshot", "create", "web", "b"]);
    boots(lab, 2);
    // A disk on snapshots grows, and the snapshots do not.
    lab.vm("web", image, "diskSizeG = 2\n");
    boots(lab, 3);
    let size = |file: &str| {
        let path = lab.state("web", file);
        let json = run("qemu-img", &["info", "-U", "--output=json", path.to_str().unwrap()]);
        let json: serde_json::Value = json.parse().unwrap();
        json["virtual-size"].as_u64().unwrap() >> 30
    };
    assert_eq!((size("root.qcow2"), size("root@b.qcow2")), (2, 1));
    write(lab, "root.qcow2", 1500, 7);
    lab.ok(&["snapshot", "rollback", "web", "a", "--start"]);
    lab.says("web", "BOOT-GUEST-READY", 4);
    let (code, err) = refused(lab, &["snapshot", "create", "web", "c"]);
    assert!(code == Some(1) && err.contains("it is running"), "{err}");
    lab.ok(&["kill", "web"]);
    // The larger file is merged into the smaller one.
    let kept = snapshots(lab).last().unwrap()["name"].as_str().unwrap().to_owned();
    assert!(kept.starts_with("before-rollback-"), "{:?}", tree(lab));
    lab.ok(&["snapshot", "rollback", "web", &kept, "--discard-current"]);
    lab.ok(&["snapshot", "rm", "web", &kept, "b", "a"]);
    assert_eq!((size("root.qcow2"), files(lab).len()), (2, 1));
    let root = lab.state("web", "root.qcow2");
    let read = ["-f", "qcow2", "-c", "read -P 7 1500M 1M", root.to_str().unwrap()];
    assert!(!run("qemu-io", &read).contains("failed"));
    boots(lab, 5);
}

#[test]
fn guest_boots_from_chains() {
    let Some(image) = guest("boot.qcow2") else { return };
    boots_through(&Lab::new(), &image);
}

#[test]
fn guest_boots_from_chains_on_qemu_7_2() {
    let (Some(image), Some(lab)) = (guest("boot.qcow2"), old_qemu::lab()) else { return };
    boots_through(&lab, &image);
}

#[test]
fn overlay_of_an_image_can_have_snapshots() {
    let Some(image) = guest("boot.qcow2") else { return };
    let lab = Lab::new();
    lab.vm("web", &image, "");
    let text = fs::read_to_string(lab.file("web")).unwrap();
    fs::write(lab.file("web"), format!("{text}clone = \"overlay\"\n")).unwrap();
    lab.ok(&["start", "web"]);
    lab.says("web", "BOOT-GUEST-READY", 1);
    lab.ok(&["kill", "web"]);
    lab.ok(&["snapshot", "create", "web", "a"]);
    lab.ok(&["start", "web"]);
    lab.says("web", "BOOT-GUEST-READY", 2);
    // The image is in use by the frozen file.
    assert!(lab.ok(&["image", "list"]).contains("web"));
    lab.ok(&["kill", "web"]);
    lab.ok(&["snapshot", "rm", "web", "a"]);
    lab.ok(&["start", "web"]);
    lab.says("web", "BOOT-GUEST-READY", 3);
    lab.ok(&["kill", "web"]);
}

#[test]
fn snapshots_follow_a_rename() {
    let lab = lab_with(&ROOT);
    write(&lab, "root.qcow2", 0, 1);
    lab.ok(&["snapshot", "create", "web", "a"]);
    write(&lab, "root.qcow2", 0, 2);
    lab.ok(&["rename", "web", "other"]);
    lab.ok(&["snapshot", "rollback", "other", "a", "--discard-current"]);
    assert_eq!(content(&lab.state("other", "root.qcow2")), [1, 0, 0, 0]);
}
