//! Faults of the host, on real QEMU: what is seen of each, and that nothing is lost.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod lab;

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Output,
    time::Instant,
};

use lab::{Lab, guest, mounts::Mounts, runs, signal, until};

const SIGKILL: i32 = 9;
const SIGTERM: i32 = 15;
const SIGCONT: i32 = 18;
const SIGSTOP: i32 = 19;
const MIB: u64 = 1 << 20;
/// What the guest writes at a time.
const PIECE: u64 = 8 * MIB;

/// A VM of the tiny guest with a disk `data` of 64 MiB on a file system of its own that has as much, all of it taken but for 4 MiB.
fn tight(format: &str, more: &str) -> Option<(Lab, PathBuf, usize)> {
    let image = guest("tiny.qcow2")?;
    let mut lab = Lab::new();
    let small = lab.path().join("small");
    let mounts = lab.mounts()?;
    mounts.tmpfs(&small, "size=64m");
    let data = small.join(format!("data.{format}"));
    mounts.sh(&format!("qemu-img create -q -f {format} '{}' 64M", data.display()));
    let disk = format!("[disk.data]\npath = \"{}\"\nformat = \"{format}\"\n", data.display());
    lab.vm("web", &image, &format!("mem = \"128M\"\n{more}{disk}"));
    let one = lab.run("web");
    lab.says("web", "QVM-TINY READY", 1);
    lab.wait_state("web", "running");
    fill(&lab, &small);
    Some((lab, small, one))
}

fn mounts(lab: &Lab) -> &Mounts {
    lab.mounts.as_ref().unwrap()
}

fn fill(lab: &Lab, small: &Path) {
    mounts(lab).fill(small, PIECE / 2);
}

/// What the guest writes as its `nth` piece.
fn line(nth: u64) -> String {
    format!("piece-{nth}")
}

/// Has the guest write a piece, and say so when it is on the disk.
fn writes(lab: &Lab, nth: u64) {
    let (text, seek) = (line(nth), nth * PIECE / 65536);
    let command = format!(
        "sh yes {text} | dd of=/dev/vdb bs=64k count=128 seek={seek} iflag=fullblock conv=fsync 2>/dev/null && echo WRI\"\"TTEN {text}\n"
    );
    lab.types("web", command.as_bytes());
}

fn has_written(lab: &Lab, nth: u64) {
    lab.says("web", &format!("WRITTEN {}", line(nth)), 1);
}

/// What was written is there, every byte.
fn is_whole(bytes: &[u8], nth: u64) {
    let at = usize::try_from(nth * PIECE).unwrap();
    let piece = &bytes[at..at + usize::try_from(PIECE).unwrap()];
    let text = format!("{}\n", line(nth)).into_bytes();
    assert!(piece.chunks(text.len()).all(|chunk| text.starts_with(chunk)), "bytes are lost");
}

fn data(lab: &Lab, small: &Path) -> Vec<u8> {
    fs::read(mounts(lab).seen(&small.join("data.raw"))).unwrap()
}

fn notes(lab: &Lab) -> String {
    lab.status("web")["notes"].to_string()
}

/// Waits until status tells this.
fn notes_say(lab: &Lab, text: &str) {
    until(text, || notes(lab).contains(text));
}

/// How often this happened, of late.
fn events(lab: &Lab, name: &str) -> usize {
    lab.ok(&["events", "web"]).matches(name).count()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Ends the supervisor as the kernel would; QEMU goes on.
fn crashes(lab: &mut Lab, supervisor: usize) {
    signal(lab.supervisor(supervisor).id().cast_signed(), SIGKILL);
    assert_eq!(lab.exit_code(supervisor), None);
}

#[test]
fn a_guest_is_held_while_a_disk_is_full_and_goes_on_by_itself() {
    let Some((mut lab, small, one)) = tight("raw", "") else { return };
    writes(&lab, 0);
    lab.wait_state("web", "paused");
    let why = format!("no space left on `{0}` for disk `data` (`{0}/data.raw`)", small.display());
    notes_say(&lab, &format!("{why}; the guest goes on when 16 MiB are free"));
    assert!(lab.log("web").contains(&format!("the guest is held: {why}")), "{}", lab.log("web"));
    assert_eq!(events(&lab, "QVM_NO_SPACE"), 1);
    mounts(&lab).make_room(&small);
    has_written(&lab, 0);
    lab.wait_state("web", "running");
    assert_eq!((events(&lab, "QVM_ROOM"), notes(&lab).as_str()), (1, "[]"));
    is_whole(&data(&lab, &small), 0);
    signal(lab.supervisor(one).id().cast_signed(), SIGTERM);
    assert_eq!(lab.exit_code(one), Some(0));
    assert_eq!(lab.last_reason("web"), "stopped");
}

#[test]
#[ignore = "make test-faults"]
fn whoever_comes_between_a_full_disk_and_its_room() {
    let Some((mut lab, small, one)) = tight("raw", "") else { return };
    // An operator who is too early: it is told again.
    writes(&lab, 0);
    notes_say(&lab, "no space left on");
    lab.ok(&["resume", "web"]);
    until("it is told again", || events(&lab, "QVM_NO_SPACE") == 2);
    notes_say(&lab, "no space left on");
    // A supervisor that crashes meanwhile: the next one knows, and waits as this one did.
    crashes(&mut lab, one);
    let two = lab.run("web");
    lab.wait_state("web", "paused");
    notes_say(&lab, "the guest goes on when 16 MiB are free");
    mounts(&lab).make_room(&small);
    has_written(&lab, 0);

    // An operator who wants it held: room alone is not enough, not for a later supervisor either.
    fill(&lab, &small);
    writes(&lab, 1);
    notes_say(&lab, "no space left on");
    lab.ok(&["pause", "web"]);
    notes_say(&lab, "`qvm resume` lets the guest go on");
    mounts(&lab).make_room(&small);
    crashes(&mut lab, two);
    let three = lab.run("web");
    lab.wait_state("web", "paused");
    notes_say(&lab, "`qvm resume` lets the guest go on");
    assert_eq!(events(&lab, "QVM_ROOM"), 0);
    lab.ok(&["resume", "web"]);
    has_written(&lab, 1);
    assert_eq!(notes(&lab), "[]");

    // A stop: the guest cannot shut down before it can write, and does then.
    fill(&lab, &small);
    writes(&lab, 2);
    notes_say(&lab, "no space left on");
    signal(lab.supervisor(three).id().cast_signed(), SIGTERM);
    lab.wait_state("web", "stopping");
    notes_say(&lab, "no space left on");
    mounts(&lab).make_room(&small);
    assert_eq!(lab.exit_code(three), Some(0));
    assert_eq!(lab.last_reason("web"), "stopped");
    let bytes = data(&lab, &small);
    (0..3).for_each(|nth| is_whole(&bytes, nth));
}

#[test]
#[ignore = "make test-faults"]
fn a_stop_while_a_disk_stays_full_is_bounded_and_the_disk_stays_good() {
    let Some((mut lab, small, one)) = tight("qcow2", "shutdownTimeoutSec = 3\n") else { return };
    writes(&lab, 0);
    notes_say(&lab, "no space left on");
    let output = lab.qvm(&["stop", "web"]);
    assert!(output.status.success(), "{}", said(&output));
    assert_eq!(lab.exit_code(one), Some(0));
    assert_eq!(lab.last_reason("web"), "forced-off");
    let image = small.join("data.qcow2");
    let checked = mounts(&lab).command("qemu-img").arg("check").arg(&image).output().unwrap();
    // Clusters that were taken and not used yet are no damage: 3 tells of such alone.
    assert!(matches!(checked.status.code(), Some(0 | 3)), "{checked:?}");
    mounts(&lab).make_room(&small);
    let again = lab.run("web");
    lab.says("web", "QVM-TINY READY", 2);
    writes(&lab, 0);
    has_written(&lab, 0);
    signal(lab.supervisor(again).id().cast_signed(), SIGTERM);
    assert_eq!(lab.exit_code(again), Some(0));
}

/// A VM of the boot-sector guest, which has run once and is off. Its state directory is a file system of its own.
fn prepared(options: &str) -> Option<Lab> {
    let image = guest("boot.qcow2")?;
    let mut lab = Lab::new();
    lab.vm("web", &image, "");
    let (state, runtime) = (lab.path().join("s"), lab.path().join("r"));
    let mounts = lab.mounts()?;
    mounts.tmpfs(&state, "size=32m");
    mounts.tmpfs(&runtime, options);
    Some(lab)
}

#[test]
fn nothing_is_begun_where_the_runtime_directory_is_full_and_what_runs_goes_on() {
    let Some(mut lab) = prepared("size=256k") else { return };
    let runtime = lab.path().join("r");
    mounts(&lab).fill(&runtime, 0);
    let output = lab.qvm(&["run", "web"]);
    println!("{}", said(&output));
    assert_eq!(output.status.code(), Some(75), "{}", said(&output));
    mounts(&lab).make_room(&runtime);
    let one = lab.run("web");
    until("it runs", || lab.status("web")["state"] == "running");
    mounts(&lab).fill(&runtime, 0);
    lab.ok(&["pause", "web"]);
    lab.wait_state("web", "paused");
    println!("{}", lab.log("web"));
    lab.ok(&["resume", "web"]);
    lab.wait_state("web", "running");
    println!("{}", lab.ok(&["stop", "web"]));
    println!("{}", lab.log("web"));
    assert_eq!(lab.exit_code(one), Some(0));
}

#[test]
fn a_state_directory_that_cannot_be_written() {
    let Some(mut lab) = prepared("size=4m") else { return };
    let one = lab.run("web");
    lab.says("web", "BOOT-GUEST-READY", 1);
    let state = lab.path().join("s");
    mounts(&lab).fill(&state, 0);
    lab.types("web", b"r");
    println!("{}", lab.ok(&["stop", "web"]));
    assert_eq!(lab.exit_code(one), Some(0));
    println!("{}", lab.log("web"));
    println!("{}", lab.status("web"));
    mounts(&lab).make_room(&state);
    let remounted = |lab: &mut Lab, how: &str| {
        let line = format!("mount -o remount,{how} '{}'", state.display());
        lab.mounts.as_mut().unwrap().sh(&line);
    };
    remounted(&mut lab, "ro");
    let output = lab.qvm(&["run", "web"]);
    println!("{} {}", output.status, said(&output));
    remounted(&mut lab, "rw");
    let two = lab.run("web");
    lab.says("web", "BOOT-GUEST-READY", 2);
    remounted(&mut lab, "ro");
    let _ = (two, runs(1), SIGCONT, SIGSTOP, Instant::now(), fs::Permissions::from_mode(0o700));
}
