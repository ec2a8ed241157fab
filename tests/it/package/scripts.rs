//! The shell scripts that build and demonstrate: progress, limits and errors. `make test-setup`
//! tests tests/setup.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Command, Output},
};

fn tests() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests"))
}

/// Runs a script that has sourced progress.sh, with a progress line every second.
fn bash(dir: &Path, script: &str) -> Output {
    let library = tests().join("progress.sh");
    let mut bash = Command::new("bash");
    bash.args(["-euo", "pipefail", "-c", &format!(". '{}'; {script}", library.display())]);
    bash.env("PROGRESS_SEC", "1").env("TMPDIR", dir).current_dir(dir).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn steps_run_together_with_progress() {
    let dir = tempfile::tempdir().unwrap();
    // Each waits for the other: a sequential run would never end.
    let one = "echo first line; touch one; until [ -e two ]; do sleep 0.1; done; sleep 2.5";
    let two = "touch two; until [ -e one ]; do sleep 0.1; done";
    let output =
        bash(dir.path(), &format!("timeout 600 true; run_steps guest '{one}' compiler '{two}'"));
    let said = text(&output.stdout);
    assert!(output.status.success(), "{output:?}");
    assert!(said.contains("s  guest: first line\n"), "{said}");
    assert!(said.contains("guest: done") && said.contains("compiler: done"), "{said}");
}

#[test]
fn failed_step_prints_its_last_error() {
    let dir = tempfile::tempdir().unwrap();
    let fails = "seq 50; echo mkfs: No space left on device; echo more chatter; sleep 0.5; exit 3";
    let waits = "echo $$ >pid; exec sleep 1000";
    let output = bash(dir.path(), &format!("run_steps guest '{fails}' compiler '{waits}'"));
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("guest: failed with 3"), "{said}");
    assert!(said.contains("\n  mkfs: No space left on device\n"), "{said}");
    assert!(!said.contains("chatter") && !said.contains("\n  50"), "{said}");
    // The other one was ended.
    let pid = fs::read_to_string(dir.path().join("pid")).unwrap();
    let command = fs::read(format!("/proc/{}/cmdline", pid.trim())).unwrap_or_default();
    assert!(!text(&command).contains("1000"), "it still runs");
}

#[test]
fn last_error_is_that_of_the_tool() {
    let dir = tempfile::tempdir().unwrap();
    for (log, error) in [
        ("a\nE: Unable to locate package x\nI: cleaning\n", "E: Unable to locate package x"),
        (
            "x.sh: line 3: qemu-img: command not found\nI: bye\n",
            "x.sh: line 3: qemu-img: command not found",
        ),
        (
            "error[E0308]: mismatched types\n --> src/a.rs:1:2\n  |\n\
             error: could not compile `qvm`\n",
            "error[E0308]: mismatched types\n --> src/a.rs:1:2",
        ),
        (
            "-: 3: mount: not found\nE: setup failed: E: command failed: unshare\nI: bye\n",
            "-: 3: mount: not found",
        ),
        ("make: *** [x] Error 2\n", "make: *** [x] Error 2"),
        ("one\ntwo\n\n", "two"),
        ("", "no output"),
    ] {
        fs::write(dir.path().join("log"), log).unwrap();
        let output = bash(dir.path(), "last_error log");
        assert_eq!(text(&output.stdout).trim_end(), error, "{log}");
    }
}

#[test]
fn guest_with_progress_is_awaited() {
    let dir = tempfile::tempdir().unwrap();
    let grows = "for n in 1 2 3 4 5 6 7 8; do echo line $n >>console; sleep 0.5; done";
    let output =
        bash(dir.path(), &format!("QUIET_SEC=2; while_progress console bash -c '{grows}'"));
    assert!(output.status.success(), "{output:?}");
    assert!(text(&output.stdout).contains("console: line"), "{output:?}");
    let output = bash(dir.path(), "QUIET_SEC=1; while_progress console sleep 1000");
    assert_eq!(output.status.code(), Some(124), "{output:?}");
    assert!(text(&output.stderr).contains("no output on the console"), "{output:?}");
    let output = bash(dir.path(), "TOTAL_SEC=1; while_progress console sleep 1000");
    assert!(text(&output.stderr).contains("not done after"), "{output:?}");
    assert_eq!(bash(dir.path(), "while_progress console bash -c 'exit 3'").status.code(), Some(3));
}

/// Builds a guest whose script prints `error` and fails; returns the number of attempts, and the
/// output.
fn failing_build(error: &str) -> (usize, String) {
    let dir = tempfile::tempdir().unwrap();
    let guest = dir.path().join("tests/guest/broken");
    fs::create_dir_all(&guest).unwrap();
    for file in ["progress.sh", "guest/build"] {
        fs::copy(tests().join(file), dir.path().join("tests").join(file)).unwrap();
    }
    let script = guest.join("build");
    let tries = dir.path().join("tries");
    fs::write(
        &script,
        format!(
            "#!/bin/sh\necho x >>{}\nseq 50\necho '{error}' >&2\necho chatter\nexit 1\n",
            tries.display()
        ),
    )
    .unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    let mut build = Command::new(dir.path().join("tests/guest/build"));
    let output = build.arg(dir.path().join("out")).arg("broken").output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    (fs::read_to_string(tries).unwrap().lines().count(), text(&output.stderr))
}

#[test]
fn expected_failure_is_tried_once() {
    let (tries, said) = failing_build("build: line 48: qemu-img: command not found");
    assert_eq!(tries, 1, "{said}");
    assert!(said.contains("qemu-img: command not found"), "{said}");
    assert!(!said.contains("chatter") && !said.contains("\n50\n"), "{said}");
    let (tries, said) =
        failing_build("E: Failed to fetch http://mirror.example/x  Connection timed out");
    assert_eq!(tries, 2, "{said}");
}
