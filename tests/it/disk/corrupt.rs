//! Disks and images with QEMU's corrupt bit: refused before a copy or a start of QEMU.

use std::{
    fs,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use qvm::value::ErrorCode;

use crate::lab::{Lab, guest};

/// `incompatible_features` of a qcow2 header: its last byte, and the dirty and corrupt bits.
const FEATURES: u64 = 79;
const DIRTY: u8 = 1;
const CORRUPT: u8 = 2;

/// Sets the feature bits of a qcow2 file.
fn mark(path: &Path, bits: u8) {
    let file = fs::File::options().read(true).write(true).open(path).unwrap();
    file.write_all_at(&[bits], FEATURES).unwrap();
}

fn features(path: &Path) -> u8 {
    let mut byte = [0];
    fs::File::open(path).unwrap().read_exact_at(&mut byte, FEATURES).unwrap();
    byte[0]
}

/// A lab with a copy of the boot guest that has these bits.
fn marked(bits: u8) -> Option<(Lab, PathBuf)> {
    let image = guest("boot.qcow2")?;
    let lab = Lab::new();
    let copy = lab.path().join("marked.qcow2");
    fs::copy(image, &copy).unwrap();
    mark(&copy, bits);
    Some((lab, copy))
}

/// Starts `web`, which must be refused; returns the error.
#[track_caller]
fn refused(lab: &Lab, code: ErrorCode, section: &str) {
    lab.refused(&["start", "web"]).without_log().is(code, 1).golden("disk", section);
}

#[test]
fn corrupt_image_is_refused() {
    let Some((lab, image)) = marked(CORRUPT) else { return };
    for clone in ["copy", "overlay"] {
        lab.vm("web", &image, "");
        let text = fs::read_to_string(lab.file("web")).unwrap();
        fs::write(lab.file("web"), format!("{text}clone = \"{clone}\"\n")).unwrap();
        refused(&lab, ErrorCode::ImageCorrupt, "corrupt-image");
        assert!(!lab.state("web", "root.qcow2").exists(), "{clone}: a disk was made");
    }
}

#[test]
fn corrupt_disk_of_operator_is_named() {
    let Some((lab, disk)) = marked(CORRUPT) else { return };
    let path = disk.display();
    let text = format!("accel = \"tcg\"\nmem = \"64M\"\n[nic]\n[disk.root]\npath = \"{path}\"\n");
    fs::write(lab.file("web"), &text).unwrap();
    refused(&lab, ErrorCode::DiskCorrupt, "corrupt-disk-of-operator");
    // QEMU can read it nevertheless, so its data can be saved.
    fs::write(lab.file("web"), format!("{text}readOnly = true\n")).unwrap();
    lab.ok(&["start", "web"]);
    assert!(lab.has_note("web", "disk-corrupt disk.root"), "{:?}", lab.notes("web"));
    lab.says("web", "BOOT-GUEST-READY", 1);
    lab.ok(&["kill", "web"]);
    // After a repair, it is like any other disk.
    let mut repair = std::process::Command::new("qemu-img");
    assert!(repair.args(["check", "-q", "-r", "all"]).arg(&disk).status().unwrap().success());
    fs::write(lab.file("web"), &text).unwrap();
    lab.ok(&["start", "web"]);
    lab.says("web", "BOOT-GUEST-READY", 2);
    lab.ok(&["kill", "web"]);
}

#[test]
fn corrupt_disk_prevents_start_and_export() {
    let Some(image) = guest("boot.qcow2") else { return };
    let lab = Lab::new();
    lab.vm("web", &image, "[disk.data]\nsize = \"1M\"\n");
    lab.ok(&["start", "web"]);
    lab.ok(&["kill", "web"]);
    let disk = lab.state("web", "data.qcow2");
    mark(&disk, CORRUPT);
    refused(&lab, ErrorCode::DiskCorrupt, "corrupt-disk");
    let tar = lab.path().join("web.tar");
    let refusal = lab.refused(&["export", "web", tar.to_str().unwrap()]);
    refusal.is(ErrorCode::DiskCorrupt, 1).golden("disk", "export-of-a-corrupt-disk");
    assert!(!tar.exists());
}

/// A power failure leaves the dirty bit in a file with `lazy_refcounts`; QEMU repairs it when it
/// opens the file for writing.
#[test]
fn dirty_disk_starts_and_is_repaired() {
    let Some((lab, disk)) = marked(DIRTY) else { return };
    let path = disk.display();
    let text = format!("accel = \"tcg\"\nmem = \"64M\"\n[nic]\n[disk.root]\npath = \"{path}\"\n");
    fs::write(lab.file("web"), text).unwrap();
    lab.ok(&["start", "web"]);
    lab.says("web", "BOOT-GUEST-READY", 1);
    lab.ok(&["kill", "web"]);
    assert_eq!(features(&disk), 0);
    mark(&disk, DIRTY);
    lab.vm("copy", &disk, "");
    lab.ok(&["start", "copy"]);
    lab.says("copy", "BOOT-GUEST-READY", 1);
    lab.ok(&["kill", "copy"]);
}
