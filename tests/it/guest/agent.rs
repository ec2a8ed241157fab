//! Operations by the guest agent, on real QEMU with the real agent: commands, files, frozen file
//! systems.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    os::unix::fs::PermissionsExt,
    process::{Child, ChildStdout, Command, Stdio},
};

use qvm::value::ErrorCode;

use crate::lab::{Lab, signal, until};

const SIGINT: i32 = 2;
const SIGKILL: i32 = 9;
const SIGTERM: i32 = 15;

/// The tiny guest with its agent.
fn started() -> Option<Lab> {
    Lab::tiny("plain", "", "")
}

/// Runs a command of the guest's shell; returns its output.
fn shell(lab: &Lab, command: &str) -> String {
    lab.ok(&["exec", "web", "--", "sh", "-c", command]).trim().to_owned()
}

/// A running `qvm`, which is ended with the test.
struct Running(Child);

impl Running {
    fn begin(lab: &Lab, arguments: &[&str], input: Stdio) -> (Self, BufReader<ChildStdout>) {
        let mut command = lab.command(arguments);
        command.stdin(input).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        (Self(child), out)
    }

    fn signal(&self, number: i32) {
        signal(self.0.id().try_into().unwrap(), number);
    }

    /// Its exit code and standard error.
    fn end(&mut self) -> (Option<i32>, String) {
        let mut ended = None;
        until("the end of qvm", || {
            ended = self.0.try_wait().unwrap();
            ended.is_some()
        });
        let mut said = String::new();
        self.0.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        (ended.unwrap().code(), said)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn line(out: &mut impl BufRead) -> String {
    let mut line = String::new();
    out.read_line(&mut line).unwrap();
    line.trim_end().to_owned()
}

/// No file of qvm remains in the guest.
fn nothing_is_left(lab: &Lab) {
    until("what was made in the guest is gone", || {
        // The directory of this command exists while it runs.
        shell(lab, "ls -d /tmp/tmp.* | wc -l") == "1"
    });
}

/// The guest has no such process, except zombies of the tiny guest's init.
fn none_runs(lab: &Lab, name: &str) {
    let script = format!(
        "for p in /proc/[0-9]*/stat; do read -r _ c s _ <$p && [ $c = '({name})' ] && \
         [ $s != Z ] && echo $p; done 2>/dev/null; true"
    );
    assert_eq!(shell(lab, &script), "");
}

/// The peak memory of a process, in kB.
fn peak(pid: u64) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// Bytes with a long period, so that each missing byte is found.
fn bytes(count: usize) -> Vec<u8> {
    let mut state = 1_u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    (0..count).map(|_| next()).collect()
}

#[test]
fn command_output_is_streamed() {
    let Some(lab) = started() else { return };
    let script =
        "echo one; echo wrong >&2; while [ ! -e /tmp/go ]; do sleep 0.1; done; echo two; exit 7";
    let (mut exec, mut out) =
        Running::begin(&lab, &["exec", "web", "--", "sh", "-c", script], Stdio::null());
    // It cannot have ended, because it waits for a continuation.
    assert_eq!(line(&mut out), "one");
    // Other commands run meanwhile, each with its own output.
    let others: Vec<_> = (0..3)
        .map(|number| {
            let script = format!("for i in 1 2 3; do echo {number}; done; exit 1{number}");
            Running::begin(&lab, &["exec", "web", "--", "sh", "-c", &script], Stdio::null())
        })
        .collect();
    for (number, (mut exec, mut out)) in others.into_iter().enumerate() {
        let mut said = String::new();
        out.read_to_string(&mut said).unwrap();
        assert_eq!(said, format!("{number}\n").repeat(3));
        assert_eq!(exec.end(), (Some(10 + number as i32), String::new()));
    }
    assert_eq!(exec.0.try_wait().unwrap(), None);
    lab.ok(&["exec", "web", "--", "touch", "/tmp/go"]);
    assert_eq!(line(&mut out), "two");
    assert_eq!(exec.end(), (Some(7), "wrong\n".into()));
    nothing_is_left(&lab);
}

#[test]
fn command_survives_the_supervisor() {
    let Some(mut lab) = started() else { return };
    let script = "i=0; while [ ! -e /tmp/go ]; do echo $i; i=$((i + 1)); done; echo last; exit 7";
    let (mut exec, mut out) =
        Running::begin(&lab, &["exec", "web", "--", "sh", "-c", script], Stdio::null());
    assert_eq!(line(&mut out), "0");
    let pid = lab.status("web")["supervisorPid"].as_i64().unwrap().try_into().unwrap();
    signal(pid, SIGKILL);
    until("the supervisor is gone", || !crate::lab::runs(pid));
    lab.run("web");
    lab.wait_state("web", "running");
    shell(&lab, "touch /tmp/go");
    // No output is lost or repeated.
    for expected in 1.. {
        let said = line(&mut out);
        if said == "last" {
            break;
        }
        assert_eq!(said, expected.to_string());
    }
    assert_eq!(exec.end(), (Some(7), String::new()));
    nothing_is_left(&lab);

    // A command without a guest ends soon.
    let (mut exec, mut out) = Running::begin(
        &lab,
        &["exec", "web", "--", "sh", "-c", "echo on; sleep 1000"],
        Stdio::null(),
    );
    assert_eq!(line(&mut out), "on");
    lab.ok(&["kill", "web"]);
    let (code, message) = exec.end();
    assert_eq!(code, Some(1), "{message}");
    // Either of the two can be first.
    let code = message.lines().last();
    assert!(matches!(code, Some("code: supervisor-ended" | "code: not-now")), "{message}");
}

#[test]
fn command_streams_are_binary_safe() {
    let Some(lab) = started() else { return };
    let sent = bytes(3 << 20);
    let (mut exec, mut out) = Running::begin(&lab, &["exec", "web", "--", "cat"], Stdio::piped());
    let mut input = exec.0.stdin.take().unwrap();
    let to_send = sent.clone();
    let writer = std::thread::spawn(move || input.write_all(&to_send));
    let mut back = Vec::new();
    out.read_to_end(&mut back).unwrap();
    writer.join().unwrap().unwrap();
    assert_eq!(exec.end(), (Some(0), String::new()));
    assert!(back == sent, "{} of {} bytes", back.len(), sent.len());

    // -n leaves standard input to the next command.
    let (mut exec, mut out) =
        Running::begin(&lab, &["exec", "web", "-n", "--", "cat"], Stdio::piped());
    assert_eq!(line(&mut out), "");
    assert_eq!(exec.end().0, Some(0));

    // Large output. The memory for it is freed; busybox's fallocate punches no holes, so only a
    // message is possible here.
    shell(
        &lab,
        "rm /bin/fallocate; printf '#!/bin/sh\necho \"$*\" >>/run/asked\n\
         ' >/bin/fallocate; chmod +x /bin/fallocate",
    );
    let count = 64_usize << 20;
    let script = format!("head -c {count} /dev/zero; echo end >&2");
    let (mut exec, mut out) =
        Running::begin(&lab, &["exec", "web", "--", "sh", "-c", &script], Stdio::null());
    let (mut piece, mut all) = (vec![1; 1 << 20], 0);
    while let read @ 1.. = out.read(&mut piece).unwrap() {
        assert!(piece[..read].iter().all(|byte| *byte == 0));
        all += read;
        if all > count / 2 && all - read <= count / 2 {
            let supervisor = lab.status("web")["supervisorPid"].as_u64().unwrap();
            for pid in [u64::from(exec.0.id()), supervisor] {
                assert!(peak(pid) < 48 << 10, "{} kB", peak(pid));
            }
        }
    }
    assert_eq!(exec.end(), (Some(0), "end\n".into()));
    assert_eq!(all, count);
    let asked = shell(&lab, "cat /run/asked");
    let asked: Vec<&str> = asked.lines().collect();
    let lengths = asked.iter().map(|line| {
        let words: Vec<&str> = line.split(' ').collect();
        assert_eq!((&words[..4], words[5].ends_with("/out")), (&["-p", "-o", "0", "-l"][..], true));
        words[4].parse::<usize>().unwrap()
    });
    // Every 16 MiB, and the output of one call.
    let lengths: Vec<usize> = std::iter::once(0).chain(lengths).collect();
    assert!(lengths.len() > 3, "{lengths:?}");
    for pair in lengths.windows(2) {
        assert!((16 << 20..17 << 20).contains(&(pair[1] - pair[0])), "{lengths:?}");
    }
    nothing_is_left(&lab);
}

#[test]
fn command_ends_with_its_client() {
    let Some(lab) = started() else { return };
    // A program, its child, and a program that ignores SIGTERM.
    let script = "trap '' TERM; sleep 1000 & echo $$ $!; while :; do sleep 1; done";
    for (number, code) in [(SIGINT, 130), (SIGTERM, 143)] {
        let (mut exec, mut out) =
            Running::begin(&lab, &["exec", "web", "--", "sh", "-c", script], Stdio::null());
        let pids = line(&mut out);
        exec.signal(number);
        assert_eq!(exec.end(), (Some(code), String::new()));
        for pid in pids.split(' ') {
            // A zombie, which this guest's init may leave, does not run.
            let state = format!("grep -c '^State:.[^Z]' /proc/{pid}/status; true");
            assert!(matches!(shell(&lab, &state).as_str(), "0" | ""), "{pid} runs");
        }
    }
    // No process reads it now.
    let (mut exec, mut out) = Running::begin(&lab, &["exec", "web", "--", "yes"], Stdio::null());
    assert_eq!(line(&mut out), "y");
    drop(out);
    assert_eq!(exec.end(), (Some(141), String::new()));
    none_runs(&lab, "yes");
    // While the input is still being written, there is nothing to end.
    let (mut exec, _out) = Running::begin(&lab, &["exec", "web", "--", "cat"], Stdio::piped());
    exec.0.stdin.as_mut().unwrap().write_all(&bytes(2 << 20)).unwrap();
    exec.signal(SIGINT);
    assert_eq!(exec.end(), (Some(130), String::new()));
    // In the background of a script, Ctrl-C does not end it.
    let run = lab.command(&[
        "exec",
        "web",
        "--",
        "sh",
        "-c",
        "echo on; while [ ! -e /tmp/go ]; do sleep 0.1; done",
    ]);
    let mut script = Command::new("sh");
    script
        .args(["-c", "trap '' INT; exec \"$0\" \"$@\""])
        .arg(run.get_program())
        .args(run.get_args());
    script.envs(run.get_envs().filter_map(|(key, value)| Some((key, value?))));
    let mut script =
        script.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut out = BufReader::new(script.stdout.take().unwrap());
    let mut exec = Running(script);
    assert_eq!(line(&mut out), "on");
    exec.signal(SIGINT);
    shell(&lab, "touch /tmp/go");
    assert_eq!(exec.end(), (Some(0), String::new()));
    // The time limit has passed.
    let slow = lab.refused(&["exec", "--timeout", "1", "web", "--", "sleep", "1000"]);
    slow.is(ErrorCode::GuestTimeout, 1).golden("guest", "exec-timeout");
    none_runs(&lab, "sleep");
    nothing_is_left(&lab);
}

#[test]
fn exec_without_temporary_directory() {
    let Some(lab) = started() else { return };
    shell(&lab, "rm /bin/mktemp");
    let sent = bytes(300 << 10);
    let script = "cat; echo wrong >&2; kill -9 $$";
    let (mut exec, mut out) =
        Running::begin(&lab, &["exec", "web", "--", "sh", "-c", script], Stdio::piped());
    let mut input = exec.0.stdin.take().unwrap();
    let to_send = sent.clone();
    let writer = std::thread::spawn(move || input.write_all(&to_send));
    let mut back = Vec::new();
    out.read_to_end(&mut back).unwrap();
    writer.join().unwrap().unwrap();
    assert_eq!(exec.end(), (Some(137), "wrong\n".into()));
    assert!(back == sent, "{} of {} bytes", back.len(), sent.len());

    let (mut exec, _out) = Running::begin(&lab, &["exec", "web", "--", "cat"], Stdio::piped());
    let mut input = exec.0.stdin.take().unwrap();
    // The client disconnects in the middle.
    let writer = std::thread::spawn(move || drop(input.write_all(&bytes(3 << 20))));
    let (code, message) = exec.end();
    assert_eq!(code, Some(1));
    assert!(message.contains("at most 500 KiB of standard input"), "{message}");
    writer.join().unwrap();

    let output = lab.qvm(&["exec", "--timeout", "1", "web", "--", "sleep", "1000"]);
    assert_eq!(output.status.code(), Some(1));
    none_runs(&lab, "sleep");
    let message =
        String::from_utf8_lossy(&lab.qvm(&["exec", "web", "--", "no-such-program"]).stderr)
            .into_owned();
    assert!(message.starts_with("error: web: guest agent: "), "{message}");
}

#[test]
fn files_are_copied_in_and_out() {
    let Some(lab) = started() else { return };
    let here = |name: &str| lab.path().join(name).to_str().unwrap().to_owned();
    let fails = |arguments: &[&str], text: &str| {
        let output = lab.qvm(arguments);
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{message}");
        assert!(message.contains(text), "no `{text}`:\n{message}");
    };
    let sent = bytes(2 << 20);
    fs::write(here("file"), &sent).unwrap();
    fs::set_permissions(here("file"), fs::Permissions::from_mode(0o751)).unwrap();

    // To a file name, and into a directory.
    shell(&lab, "mkdir /tmp/dir && ln -s /tmp/real /tmp/link && echo old >/tmp/real");
    lab.ok(&["cp", &here("file"), "web:/tmp/dir/name"]);
    lab.ok(&["cp", &here("file"), "web:/tmp/dir"]);
    lab.ok(&["cp", &here("file"), "web:/tmp/link"]);
    assert_eq!(
        shell(&lab, "cmp /tmp/dir/name /tmp/dir/file && cmp /tmp/dir/name /tmp/real && echo same"),
        "same"
    );
    assert_eq!(shell(&lab, "stat -c %a /tmp/dir/file /tmp/link"), "751\n777");
    assert_eq!(shell(&lab, "ls -A /tmp/dir"), "file\nname");

    // Back to the host, over an existing file.
    fs::create_dir(here("back")).unwrap();
    lab.ok(&["cp", "web:/tmp/dir/name", &here("back")]);
    fs::write(here("back/other"), "old").unwrap();
    lab.ok(&["cp", "web:/tmp/dir/name", &here("back/other")]);
    for name in ["back/name", "back/other"] {
        assert!(fs::read(here(name)).unwrap() == sent, "{name}");
        assert_eq!(fs::metadata(here(name)).unwrap().permissions().mode() & 0o7777, 0o751);
    }
    assert_eq!(fs::read_dir(here("back")).unwrap().count(), 2);
    // A file of unknown size, and streams.
    assert!(lab.ok(&["cp", "web:/proc/mounts", "-"]).contains("proc /proc "));
    let (mut cp, _out) = Running::begin(&lab, &["cp", "-", "web:/tmp/dir/stream"], Stdio::piped());
    cp.0.stdin.take().unwrap().write_all(b"typed").unwrap();
    assert_eq!(cp.end(), (Some(0), String::new()));
    assert_eq!(shell(&lab, "cat /tmp/dir/stream; stat -c %a /tmp/dir/stream"), "typed644");
    lab.ok(&["cp", "web:/tmp/dir/stream", "/dev/null"]);
    assert!(!fs::metadata("/dev/null").unwrap().is_file());

    fails(&["cp", "web:/no/such", &here("x")], "/no/such");
    fails(&["cp", &here("file"), "web:/no/such"], "there is no directory `/no`");
    fails(&["cp", &here("no-file"), "web:/tmp/x"], "no-file");
    fails(
        &["cp", "web:/tmp/dir", &here("x")],
        "hint: `qvm exec web -- tar -C /tmp/dir -c . | tar -x`",
    );
    fails(&["cp", &here("back"), "web:/tmp/x"], "| qvm exec web -- tar -C /tmp/x -x`");
    fails(&["cp", &here("file"), "web:/dev/null"], "not a regular file");
    fails(&["cp", "web:/tmp/dir/name", &here("no/x")], "cannot create a temporary file for");
    assert!(!fs::exists(here("x")).unwrap());
    for wrong in [["cp", "a", "b"], ["cp", "web:/a", "web:/b"], ["cp", "a", "web:b"]] {
        assert_eq!(lab.qvm(&wrong).status.code(), Some(2), "{wrong:?}");
    }

    // No space there: the existing file is unchanged.
    shell(
        &lab,
        "mkdir /tmp/small && mount -t tmpfs -o size=1m small /tmp/small && echo old >/tmp/small/x",
    );
    fails(&["cp", &here("file"), "web:/tmp/small/x"], "No space left on device");
    assert_eq!(shell(&lab, "cat /tmp/small/x; ls -A /tmp/small"), "old\nx");

    // Ended in the middle: neither side has a partial file.
    fs::create_dir(here("out")).unwrap();
    let (mut cp, _out) =
        Running::begin(&lab, &["cp", "web:/dev/zero", &here("out/x")], Stdio::null());
    let written =
        || fs::read_dir(here("out")).unwrap().any(|e| e.unwrap().metadata().unwrap().len() > 0);
    until("it is being written", written);
    cp.signal(SIGINT);
    assert_eq!(cp.end(), (Some(130), String::new()));
    assert_eq!(fs::read_dir(here("out")).unwrap().count(), 0);
    let (mut cp, _out) = Running::begin(&lab, &["cp", "-", "web:/tmp/small/x"], Stdio::piped());
    cp.0.stdin.as_mut().unwrap().write_all(&bytes(600 << 10)).unwrap();
    until("it is being written", || shell(&lab, "ls -A /tmp/small").contains(".qvm-"));
    cp.signal(SIGINT);
    assert_eq!(cp.end(), (Some(130), String::new()));
    assert_eq!(shell(&lab, "cat /tmp/small/x; ls -A /tmp/small"), "old\nx");
    nothing_is_left(&lab);
}

/// A guest with a file system that can be frozen, on /data.
fn with_a_file_system() -> Option<Lab> {
    Lab::tiny_with_data()
}

/// Starts a write there, which ends only at a thaw: `qvm exec` is refused meanwhile, the console is
/// not.
fn writes(lab: &Lab, file: &str) {
    let command = format!("(touch /data/{file}; echo WROTE {file} >/dev/console) &");
    lab.types("web", format!("sh {command}\n").as_bytes());
    // The guest has received the complete line, even if the supervisor ends: its terminal has
    // echoed it.
    lab.says("web", &format!("{command}\r\n"), 1);
}

fn wrote(lab: &Lab, file: &str) -> bool {
    lab.console("web").contains(&format!("\nWROTE {file}"))
}

#[test]
fn file_systems_are_frozen_for_a_command() {
    let Some(lab) = with_a_file_system() else { return };
    let follow = ["events", "-f", "--json", "web"];
    let (mut events, mut told) = Running::begin(&lab, &follow, Stdio::null());
    while !line(&mut told).contains("\"READY\"") {}
    let mut next = |what: &str| loop {
        let event: serde_json::Value = serde_json::from_str(&line(&mut told)).unwrap();
        if event["event"] == what {
            return event["data"].clone();
        }
    };

    // The command continues when it is allowed to.
    let script = "echo frozen; read -r _; exit 9";
    let (mut freeze, mut out) = Running::begin(
        &lab,
        &["fsfreeze", "web", "--thaw-after", "600", "--", "sh", "-c", script],
        Stdio::piped(),
    );
    assert_eq!(line(&mut out), "frozen");
    assert_eq!(next("QVM_FROZEN"), serde_json::json!({ "filesystems": 1, "thawAfterSec": 600 }));
    writes(&lab, "one");
    assert_eq!(lab.notes("web"), ["frozen"]);
    for refused in
        [&["exec", "web", "--", "true"][..], &["cp", "web:/x", "-"], &["fsfreeze", "web"]]
    {
        let output = lab.qvm(refused);
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{message}");
        assert!(message.contains("the guest's file systems are frozen, for 59"), "{message}");
        assert!(message.contains("hint: `qvm fsfreeze --thaw web`"), "{message}");
    }
    // The agent answers the safe commands.
    lab.ok(&["wait", "web", "--for", "agent", "--timeout", "120"]);
    assert!(!wrote(&lab, "one"));
    freeze.0.stdin.take().unwrap().write_all(b"\n").unwrap();
    assert_eq!(freeze.end(), (Some(9), String::new()));
    assert_eq!(next("QVM_THAWED"), serde_json::json!({ "filesystems": 1, "why": "asked" }));
    until("what was written meanwhile is there", || wrote(&lab, "one"));
    assert_eq!(lab.notes("web"), [""; 0]);

    // A command that has started before continues afterward.
    let script = "echo on; while [ ! -e /tmp/go ]; do sleep 0.1; done; echo off";
    let (mut exec, mut said) =
        Running::begin(&lab, &["exec", "web", "--", "sh", "-c", script], Stdio::null());
    assert_eq!(line(&mut said), "on");
    assert_eq!(lab.ok(&["fsfreeze", "web"]), "web: 1 file system is frozen, for at most 60 s\n");
    assert_eq!(next("QVM_FROZEN")["thawAfterSec"], 60);
    assert_eq!(lab.ok(&["fsfreeze", "--thaw", "web"]), "web: 1 file system is thawed\n");
    assert_eq!(next("QVM_THAWED")["why"], "asked");
    assert_eq!(lab.ok(&["fsfreeze", "--thaw", "web"]), "web: 0 file systems are thawed\n");
    shell(&lab, "touch /tmp/go");
    assert_eq!(line(&mut said), "off");
    assert_eq!(exec.end(), (Some(0), String::new()));

    // The deadline applies even if the caller has disconnected.
    let (mut freeze, mut out) = Running::begin(
        &lab,
        &["fsfreeze", "web", "--thaw-after", "3", "--", "sh", "-c", "echo frozen; exec cat"],
        Stdio::piped(),
    );
    assert_eq!(line(&mut out), "frozen");
    writes(&lab, "two");
    freeze.signal(SIGKILL);
    // The command is alive, and is continued.
    drop(freeze.0.stdin.take());
    freeze.end();
    assert_eq!(next("QVM_THAWED"), serde_json::json!({ "filesystems": 1, "why": "deadline" }));
    until("what was written meanwhile is there", || wrote(&lab, "two"));

    // A command that exceeds the deadline has not protected the file systems.
    let (mut freeze, mut out) = Running::begin(
        &lab,
        &["fsfreeze", "web", "--thaw-after", "1", "--", "sh", "-c", "echo frozen; read -r _"],
        Stdio::piped(),
    );
    assert_eq!(line(&mut out), "frozen");
    assert_eq!(next("QVM_THAWED")["why"], "deadline");
    freeze.0.stdin.take().unwrap().write_all(b"\n").unwrap();
    let (code, message) = freeze.end();
    assert_eq!(code, Some(1));
    assert!(
        message.contains("thawed before `sh` ended: the result is not consistent"),
        "{message}"
    );

    // A signal ends the command first.
    let (mut freeze, mut out) = Running::begin(
        &lab,
        &["fsfreeze", "web", "--", "sh", "-c", "echo frozen; exec sleep 1000"],
        Stdio::null(),
    );
    assert_eq!(line(&mut out), "frozen");
    freeze.signal(SIGTERM);
    assert_eq!(freeze.end(), (Some(143), String::new()));
    assert_eq!(next("QVM_THAWED")["why"], "asked");
    assert_eq!(lab.notes("web"), [""; 0]);

    // A guest is thawed before it shuts down.
    lab.ok(&["fsfreeze", "web", "--thaw-after", "600"]);
    writes(&lab, "three");
    let said = lab.ok(&["stop", "web"]);
    assert!(said.contains("guest has shut down"), "{said}");
    assert_eq!(next("QVM_THAWED"), serde_json::json!({ "filesystems": 1, "why": "stop" }));
    assert_eq!(lab.last_reason("web"), "stopped");
    assert_eq!(events.end().0, Some(0));
}

#[test]
fn next_supervisor_thaws_file_systems() {
    let Some(mut lab) = with_a_file_system() else { return };
    let supervisor = |lab: &Lab| -> i32 {
        lab.status("web")["supervisorPid"].as_i64().unwrap().try_into().unwrap()
    };
    let left_behind = |lab: &Lab| {
        let pid = supervisor(lab);
        signal(pid, SIGKILL);
        until("the supervisor is gone", || !crate::lab::runs(pid));
    };
    // Before the deadline.
    lab.ok(&["fsfreeze", "web", "--thaw-after", "600"]);
    writes(&lab, "one");
    left_behind(&lab);
    lab.run("web");
    // Until the agent answers, its state is reported as none.
    until("the next supervisor knows", || lab.has_note("web", "frozen"));
    assert!(!wrote(&lab, "one"));
    assert_eq!(lab.ok(&["fsfreeze", "--thaw", "web"]), "web: 1 file system is thawed\n");
    until("what was written meanwhile is there", || wrote(&lab, "one"));
    // At the deadline.
    lab.ok(&["fsfreeze", "web", "--thaw-after", "1"]);
    left_behind(&lab);
    lab.run("web");
    // One query: before the supervisor answers there are no notes.
    until("it is thawed", || {
        let status = lab.status("web");
        status["state"] == "running" && status["notes"].as_array().is_some_and(Vec::is_empty)
    });
    assert_eq!(shell(&lab, "touch /data/two && echo done"), "done");
    // A suspended guest is not frozen after its resume.
    lab.ok(&["fsfreeze", "web", "--thaw-after", "600"]);
    lab.ok(&["suspend", "web"]);
    lab.ok(&["start", "web"]);
    assert_eq!(lab.notes("web"), [""; 0]);
    assert_eq!(shell(&lab, "touch /data/three && echo done"), "done");
    // A reset thaws.
    lab.ok(&["fsfreeze", "web", "--thaw-after", "600"]);
    lab.ok(&["reboot", "--force", "web"]);
    lab.says("web", "QVM-TINY READY", 2);
    assert_eq!(lab.notes("web"), [""; 0]);
    // The guest has no file system that can be frozen.
    lab.ok(&["wait", "web", "--for", "agent", "--timeout", "120"]);
    let output = lab.qvm(&["fsfreeze", "web", "--", "true"]);
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{message}");
    assert!(message.contains("no file system that can be frozen"), "{message}");
    assert_eq!(lab.notes("web"), [""; 0]);
}
