//! Tests of captured runs, with `sh` as the program.

use std::{
    fs,
    io::Read,
    os::unix::process::ExitStatusExt,
    path::Path,
    time::{Duration, Instant},
};

use super::*;
use crate::value::{ErrorCode, Explain};

/// Longer than any test may take.
const LONG: Duration = Duration::from_secs(600);

fn sh(script: &str) -> Program {
    Program::new("sh").args(["-c", script])
}

/// A script that starts a process beside itself, writes the pids of both and never ends.
fn endless(pids: &Path) -> Program {
    sh(&format!("sleep 600 & echo $! $$ > '{0}.new'; mv '{0}.new' '{0}'; wait", pids.display()))
}

/// Waits until none of the processes in the file exists, a zombie not counted.
fn assert_ended(pids: &Path) {
    let begun = Instant::now();
    let pids = fs::read_to_string(pids).unwrap();
    assert_eq!(pids.split_whitespace().count(), 2);
    let runs = |pid: &str| {
        fs::read_to_string(format!("/proc/{pid}/stat"))
            .is_ok_and(|stat| !stat.rsplit_once(") ").unwrap().1.starts_with('Z'))
    };
    while pids.split_whitespace().any(runs) {
        assert!(begun.elapsed() < Duration::from_secs(30), "a process of {pids} is running");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn output_and_status_are_captured() {
    let output = sh("echo out; echo err >&2; exit 3").run().unwrap();
    assert_eq!((output.stdout.as_str(), output.stderr.as_str()), ("out\n", "err\n"));
    assert_eq!(output.status.code(), Some(3));
    let error = output.success().unwrap_err();
    let text = "`sh -c echo out; echo err >&2; exit 3` failed (exit status: 3): err";
    assert_eq!(error.to_string(), text);
    assert_eq!(sh("echo out").run().unwrap().success().unwrap(), "out\n");
}

#[test]
fn signal_is_reported() {
    let output = sh("kill -9 $$").run().unwrap();
    assert_eq!(output.status.signal(), Some(9));
    let error = output.success().unwrap_err().to_string();
    assert_eq!(error, "`sh -c kill -9 $$` failed (signal: 9 (SIGKILL)): ");
}

#[test]
fn error_quotes_last_lines() {
    let script = "for n in 1 2 3 4; do echo line $n >&2; echo >&2; done; exit 1";
    let Err(Error::Failed { stderr, .. }) = sh(script).run().unwrap().success() else { panic!() };
    assert_eq!(stderr, "line 2; line 3; line 4");
}

#[test]
fn missing_program_is_named() {
    let error = Program::new("/nowhere/program").arg("x").run().unwrap_err();
    assert_eq!(error.to_string(), "cannot run `/nowhere/program`");
}

#[test]
fn environment_and_stdin_are_fixed() {
    let script = "cat; echo $LC_ALL.$NOTIFY_SOCKET.$MORE";
    let program = sh(script).env("NOTIFY_SOCKET", "/n").env("LC_ALL", "de_DE").env("MORE", "more");
    assert_eq!(program.run().unwrap().stdout, "C..more\n");
}

#[test]
fn process_group_is_killed_at_time_limit() {
    let dir = tempfile::tempdir().unwrap();
    let pids = dir.path().join("pids");
    let begun = Instant::now();
    // The pipes stay open in the second process.
    let error = endless(&pids).time_limit(Duration::from_secs(2)).run().unwrap_err();
    assert!(matches!(error, Error::TimedOut { .. }), "{error}");
    assert_eq!(error.code(), ErrorCode::ProgramTimeout);
    assert!(begun.elapsed() >= Duration::from_secs(2));
    assert_ended(&pids);
}

#[test]
fn endless_output_ends_at_time_limit() {
    let error = sh("exec yes >&2").time_limit(Duration::from_millis(300)).run().unwrap_err();
    assert!(matches!(error, Error::TimedOut { .. }), "{error}");
}

#[test]
fn stdout_over_limit_is_an_error() {
    let error = sh("exec yes").output_limit(100_000).run().unwrap_err();
    assert_eq!(error.to_string(), "`sh -c exec yes` printed more than 100000 bytes and was killed");
    let exact = sh("head -c 100000 /dev/zero").output_limit(100_000).run().unwrap();
    assert_eq!(exact.stdout.len(), 100_000);
    assert_eq!(sh("echo lost").discard_stdout().run().unwrap().stdout, "");
}

#[test]
fn stderr_over_limit_keeps_both_ends() {
    let script =
        "echo first >&2; head -c 1000000 /dev/zero | tr '\\0' x >&2; echo last >&2; exit 1";
    let output = sh(script).output_limit(4096).run().unwrap();
    assert_eq!(output.stderr.len(), 4096);
    assert!(output.stderr.starts_with("first\nx"), "{}", output.stderr);
    assert!(output.stderr.ends_with("xlast\n"), "{}", output.stderr);
}

#[test]
fn run_ends_with_the_program_alone() {
    // The second process keeps the pipes open, and is not waited for.
    let begun = Instant::now();
    let output = sh("sleep 20 & echo $!").run().unwrap();
    assert!(begun.elapsed() < Duration::from_secs(20));
    let pid: i32 = output.stdout.trim().parse().unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGKILL).unwrap();
}

#[test]
fn closure_cancels_the_process_group() {
    let dir = tempfile::tempdir().unwrap();
    let pids = dir.path().join("pids");
    let error = endless(&pids).run_while(&mut || !pids.exists()).unwrap_err();
    assert!(matches!(error, Error::Canceled { .. }), "{error}");
    assert_ended(&pids);
}

#[test]
fn canceled_run_starts_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let made = dir.path().join("made");
    let error = sh(&format!("touch '{}'", made.display())).run_while(&mut || false).unwrap_err();
    assert!(matches!(error, Error::Canceled { .. }) && !made.exists(), "{error}");
}

#[tokio::test]
async fn dropped_future_kills_the_process_group() {
    let dir = tempfile::tempdir().unwrap();
    let pids = dir.path().join("pids");
    let appears = async {
        while !pids.exists() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::select! {
        output = endless(&pids).time_limit(LONG).run_async() => panic!("{output:?}"),
        () = appears => {}
    }
    assert_ended(&pids);
}

#[tokio::test]
async fn async_run_returns_output() {
    let output = sh("echo out; exit 2").run_async().await.unwrap();
    assert_eq!((output.stdout.as_str(), output.status.code()), ("out\n", Some(2)));
}

#[test]
fn child_ends_with_the_waiting_thread() {
    // The closure panics, which ends the thread.
    let dir = tempfile::tempdir().unwrap();
    let pids = dir.path().join("pids");
    let (program, file) = (endless(&pids), pids.clone());
    let thread = std::thread::spawn(move || {
        program.run_while(&mut || if file.exists() { panic!("as the test wants") } else { true })
    });
    assert!(thread.join().is_err());
    assert_ended(&pids);
}

#[test]
fn background_output_goes_to_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let file = fs::File::create(dir.path().join("log")).unwrap();
    let mut child = sh("cat; pwd; echo err >&2; cut -d' ' -f5 /proc/$$/stat")
        .spawn_in_background(Some(file))
        .unwrap();
    let group = child.id().to_string();
    assert!(child.wait().unwrap().success());
    let mut text = String::new();
    fs::File::open(dir.path().join("log")).unwrap().read_to_string(&mut text).unwrap();
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    assert_eq!(lines, ["/", "err", group.as_str()]);
}

#[test]
fn background_needs_no_file() {
    assert!(sh("echo lost").spawn_in_background(None).unwrap().wait().unwrap().success());
}

#[test]
fn shell_command_has_options_and_one_argument() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a b.toml");
    fs::write(&file, "x = 1\n").unwrap();
    let run = |command: &str| {
        let program = by_shell(command.as_ref(), &file);
        program.spawn_in_foreground().unwrap().wait().unwrap()
    };
    assert!(run("sed -i -e 's/1/2/'").success());
    assert_eq!(fs::read_to_string(&file).unwrap(), "x = 2\n");
    assert_eq!(run("exit 3;").code(), Some(3));
    assert_eq!(run("no-such-editor 2>&-").code(), Some(127));
}
