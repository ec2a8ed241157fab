//! Faults of the host, on real QEMU: what is seen of each, and that nothing is lost.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod lab;

use std::{
    fs,
    path::{Path, PathBuf},
};

use lab::{Lab, guest, runs, signal, until};

const SIGTERM: i32 = 15;
const SIGKILL: i32 = 9;
const MIB: u64 = 1 << 20;

/// A VM of the tiny guest with a disk `data` of 64 MiB on a file system of its own, that has 40 MiB.
fn tight(more: &str) -> Option<(Lab, PathBuf, usize)> {
    let image = guest("tiny.qcow2")?;
    let mut lab = Lab::new();
    let small = lab.path().join("small");
    lab.mounts()?.tmpfs(&small, "size=40m");
    let data = small.join("data.raw");
    let seen = lab.mounts.as_ref().unwrap().seen(&data);
    fs::File::create(seen).unwrap().set_len(64 * MIB).unwrap();
    let disk = format!("[disk.data]\npath = \"{}\"\nformat = \"raw\"\n", data.display());
    lab.vm("web", &image, &format!("mem = \"128M\"\n{more}{disk}"));
    let one = lab.run("web");
    lab.says("web", "QVM-TINY READY", 1);
    lab.wait_state("web", "running");
    Some((lab, small, one))
}

/// The guest writes 24 MiB of these lines to the disk `data`, and says when that is done.
fn writes(lab: &Lab, word: &str) {
    let line = format!(
        "sh yes {word} | dd of=/dev/vdb bs=64k count=384 iflag=fullblock conv=fsync 2>/dev/null && echo WRI\"\"TTEN {word}\n"
    );
    lab.types("web", line.as_bytes());
}

/// What was written is there, every byte.
fn is_whole(lab: &Lab, small: &Path, word: &str) {
    let bytes = fs::read(lab.mounts.as_ref().unwrap().seen(&small.join("data.raw"))).unwrap();
    let line = format!("{word}\n").into_bytes();
    let written = &bytes[..24 * MIB as usize];
    assert!(written.chunks(line.len()).all(|chunk| line.starts_with(chunk)), "bytes are lost");
}

fn notes(lab: &Lab) -> String {
    lab.status("web")["notes"].to_string()
}

/// What happened last, newest first.
fn events(lab: &Lab) -> String {
    lab.ok(&["events", "--recent", "web"])
}

#[test]
fn a_guest_is_held_while_the_disk_is_full_and_goes_on_by_itself() {
    let Some((mut lab, small, one)) = tight("") else { return };
    lab.mounts.as_ref().unwrap().fill(&small, 8 * MIB);
    writes(&lab, "qvm");
    lab.wait_state("web", "paused");
    until("the reason is told", || notes(&lab).contains("no space left on"));
    println!("{}", notes(&lab));
    println!("{}", lab.log("web"));
    lab.mounts.as_ref().unwrap().make_room(&small);
    lab.says("web", "WRITTEN qvm", 1);
    println!("{}", lab.log("web"));
    is_whole(&lab, &small, "qvm");
    signal(lab.supervisor(one).id().cast_signed(), SIGTERM);
    assert_eq!(lab.exit_code(one), Some(0));
    println!("{}", lab.log("web"));
    let _ = (runs(1), SIGKILL, events as fn(&Lab) -> String);
}
