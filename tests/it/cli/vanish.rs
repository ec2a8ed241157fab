//! Verbs that follow output, and an operator who disconnects: each verb with each kind of
//! disconnection, on real terminals and real guests.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    os::unix::process::ExitStatusExt,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use crate::lab::{LONG, Lab, guest, signal, terminal::Terminal, until};

const SIGHUP: i32 = 1;
const SIGINT: i32 = 2;
const SIGTERM: i32 = 15;
/// The CPU time limit of a process without a reader: far below that of a busy loop.
const CPU: Duration = Duration::from_secs(2);

/// A verb that runs until it is ended.
struct Verb {
    words: &'static [&'static str],
    /// Its output when it follows; empty without output.
    shows: &'static str,
    /// It requires a terminal.
    terminal: bool,
    /// Its exit code after the reader has closed.
    unread: i32,
}

const fn verb(words: &'static [&'static str], shows: &'static str, unread: i32) -> Verb {
    Verb { words, shows, terminal: false, unread }
}

const SLEEP: &str = "echo follows; exec sleep 1000";

const VERBS: [Verb; 11] = [
    Verb { words: &["top"], shows: "quit", terminal: true, unread: 0 },
    verb(&["console", "--scrollback", "64", "web"], "READY", 0),
    verb(&["console", "--read-only", "--scrollback", "64", "web"], "READY", 0),
    verb(&["log", "-f", "web"], "READY", 0),
    verb(&["events", "-f", "--json", "web"], "\"READY\"", 0),
    verb(&["list", "--watch", "3600"], "NAME", 0),
    verb(&["wait", "--for", "stopped", "web"], "", 141),
    verb(&["exec", "-n", "web", "--", "sh", "-c", SLEEP], "follows", 141),
    verb(&["cp", "-", "web:/tmp/copied"], "", 141),
    verb(&["stop", "--timeout", "3600", "deaf"], "to shut down", 141),
    verb(&["fsfreeze", "web", "--", "sh", "-c", SLEEP], "follows", 141),
];

/// The guests of all verbs: one with an agent and a file system that can be frozen, and one that
/// ignores the power button.
fn lab() -> Option<Lab> {
    let deaf = guest("boot-deaf.qcow2")?;
    let lab = Lab::tiny_with_data()?;
    lab.vm("deaf", &deaf, "");
    lab.ok(&["start", "deaf"]);
    Some(lab)
}

/// The CPU time of a process, even of a zombie.
fn cpu(pid: u32) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
    let ticks = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    Duration::from_millis(ticks * 1000 / rustix::param::clock_ticks_per_second())
}

/// The verb watches its standard streams.
fn watches(pid: u32) -> bool {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let names = threads.map(|thread| fs::read_to_string(thread.path().join("comm")));
    names.flatten().any(|name| name.trim() == "session")
}

/// Waits for the end, which must be soon and use little CPU time; returns the exit code of a shell.
fn ended(what: &str, child: &mut Child, before: Duration) -> i32 {
    let pid = child.id();
    until(&format!("the end of {what}"), || {
        fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| stat.contains(") Z "))
    });
    let used = cpu(pid).saturating_sub(before);
    assert!(used < CPU, "{what} used {used:?} of CPU time at its end");
    let status = child.wait().unwrap();
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap())
}

/// The leftovers of an ended verb in the guest.
fn nothing_is_left(lab: &Lab, what: &str) {
    // The only directory is that of this command.
    let script = "ls -d /tmp/.qvm-* 2>/dev/null; ls -d /tmp/tmp.* | wc -l";
    assert_eq!(lab.ok(&["exec", "-n", "web", "--", "sh", "-c", script]), "1\n", "{what}");
}

fn on_a_terminal(lab: &Lab, verb: &Verb) -> Terminal {
    let mut terminal = Terminal::open(&mut lab.command(verb.words));
    if !verb.shows.is_empty() {
        terminal.shows(verb.shows, 1);
    }
    let pid = terminal.child.id();
    until(&format!("{:?} follows", verb.words), || {
        terminal.child.try_wait().unwrap().is_none() && watches(pid)
    });
    terminal
}

#[test]
fn signals_end_verbs_and_restore_terminals() {
    let Some(lab) = lab() else { return };
    for verb in &VERBS {
        for (number, code) in [(SIGHUP, 129), (SIGINT, 130), (SIGTERM, 143)] {
            let what = format!("{:?} by signal {number}", verb.words);
            let before = {
                let mut command = Command::new("true");
                let mut untouched = Terminal::open(&mut command);
                untouched.code();
                untouched.modes()
            };
            let mut terminal = on_a_terminal(&lab, verb);
            let pid = terminal.child.id();
            let used = cpu(pid);
            signal(pid.cast_signed(), number);
            assert_eq!(ended(&what, &mut terminal.child, used), code, "{what}");
            assert_eq!(terminal.modes(), before, "{what}");
            if verb.terminal {
                // The alternate screen is left, and the cursor is visible.
                let shown = String::from_utf8_lossy(&terminal.written()).into_owned();
                assert!(shown.contains("\x1b[?1049l") && shown.ends_with("\x1b[?25h"), "{what}");
            }
        }
    }
    nothing_is_left(&lab, "signals");
}

#[test]
fn terminal_hangup_ends_verbs() {
    let Some(lab) = lab() else { return };
    for verb in &VERBS {
        let what = format!("{:?} without its terminal", verb.words);
        let mut terminal = on_a_terminal(&lab, verb);
        let used = cpu(terminal.child.id());
        // It is not the controlling terminal, so there is no SIGHUP.
        terminal.hang_up();
        assert_eq!(ended(&what, &mut terminal.child, used), 129, "{what}");
    }
    nothing_is_left(&lab, "hangups");
}

/// Starts a verb with pipes.
fn in_pipes(lab: &Lab, words: &[&str]) -> (Child, BufReader<std::process::ChildStdout>) {
    let mut command = lab.command(words);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().unwrap();
    let out = BufReader::new(child.stdout.take().unwrap());
    (child, out)
}

fn reads_until(out: &mut impl BufRead, text: &str) {
    let (begun, mut seen) = (Instant::now(), String::new());
    while !text.is_empty() && !seen.contains(text) {
        assert!(begun.elapsed() < LONG && out.read_line(&mut seen).unwrap() > 0, "{seen}");
    }
}

#[test]
fn closed_standard_output_ends_verbs() {
    let Some(lab) = lab() else { return };
    for verb in VERBS.iter().filter(|verb| !verb.terminal) {
        let what = format!("{:?} without a reader", verb.words);
        let (mut child, mut out) = in_pipes(&lab, verb.words);
        reads_until(&mut out, verb.shows);
        until(&format!("{what} follows"), || watches(child.id()));
        let used = cpu(child.id());
        drop(out);
        assert_eq!(ended(&what, &mut child, used), verb.unread, "{what}");
    }
    nothing_is_left(&lab, "closed outputs");
}

#[test]
fn end_of_input_ends_a_console() {
    let Some(image) = guest("boot.qcow2") else { return };
    let lab = Lab::new();
    lab.vm("web", &image, "");
    lab.ok(&["start", "web"]);
    lab.says("web", "BOOT-GUEST-READY", 1);
    let (mut child, mut out) = in_pipes(&lab, &["console", "web"]);
    until("it follows", || watches(child.id()));
    let used = cpu(child.id());
    let mut keys = child.stdin.take().unwrap();
    keys.write_all(b"r").unwrap();
    drop(keys);
    assert_eq!(ended("a console without keys", &mut child, used), 0);
    out.read_to_string(&mut String::new()).unwrap();
    // The input has reached the guest nevertheless.
    lab.says("web", "BOOT-GUEST-READY", 2);
}

#[test]
fn canceled_start_keeps_the_guest() {
    let Some(image) = guest("boot.qcow2") else { return };
    let lab = Lab::new();
    // No agent will answer there.
    lab.vm("web", &image, "ready = \"agent\"\nreadyTimeoutSec = 3600\n");
    let start = verb(&["start", "web"], "", 141);
    let ways: [(&str, i32); 4] = [("HUP", 129), ("INT", 130), ("TERM", 143), ("hangup", 129)];
    for (way, code) in ways {
        let mut terminal = on_a_terminal(&lab, &start);
        lab.wait_state("web", "running");
        let used = cpu(terminal.child.id());
        match way {
            "hangup" => terminal.hang_up(),
            way => {
                let number = [("HUP", SIGHUP), ("INT", SIGINT), ("TERM", SIGTERM)];
                let (_, number) = number.into_iter().find(|(name, _)| *name == way).unwrap();
                signal(terminal.child.id().cast_signed(), number);
            }
        }
        assert_eq!(ended(way, &mut terminal.child, used), code, "{way}");
        assert_eq!(lab.status("web")["state"], "running", "{way}");
        lab.ok(&["kill", "web"]);
    }
    let (mut child, out) = in_pipes(&lab, &["start", "web"]);
    lab.wait_state("web", "running");
    let used = cpu(child.id());
    drop(out);
    assert_eq!(ended("a start without a reader", &mut child, used), 141);
    assert_eq!(lab.status("web")["state"], "running");
}

/// nohup(1): a process that ignores SIGHUP outlives the terminal, and does not use CPU time for it.
#[test]
fn nohup_survives_the_terminal() {
    let Some(image) = guest("boot.qcow2") else { return };
    let lab = Lab::new();
    lab.vm("web", &image, "");
    lab.ok(&["start", "web"]);
    let wait = lab.command(&["wait", "--for", "stopped", "web"]);
    let mut command = Command::new("sh");
    command.args(["-c", "trap '' HUP; exec \"$0\" \"$@\""]).arg(wait.get_program());
    command.args(wait.get_args());
    command.envs(wait.get_envs().filter_map(|(key, value)| Some((key, value?))));
    let mut terminal = Terminal::open(&mut command);
    let pid = terminal.child.id();
    until("it is qvm", || fs::read_to_string(format!("/proc/{pid}/comm")).unwrap().trim() == "qvm");
    let used = cpu(pid);
    let begun = Instant::now();
    terminal.hang_up();
    signal(pid.cast_signed(), SIGHUP);
    std::thread::sleep(Duration::from_secs(2));
    assert!(terminal.child.try_wait().unwrap().is_none(), "it has ended");
    let (used, wall) = (cpu(pid).saturating_sub(used), begun.elapsed());
    assert!(used * 2 < wall, "{used:?} of CPU time in {wall:?}");
    lab.ok(&["kill", "web"]);
    assert_eq!(terminal.code(), Some(0));
}

/// A stopped terminal (Ctrl-S, or a hung connection of the operator) does not delay signals.
#[test]
fn stopped_terminal_delays_no_signal() {
    let Some(image) = guest("boot-flood.qcow2") else { return };
    let lab = Lab::new();
    lab.vm("web", &image, "");
    lab.ok(&["start", "web"]);
    for words in [&["console", "web"][..], &["top"], &["log", "-f", "web"]] {
        let mut terminal = Terminal::open(&mut lab.command(words));
        let pid = terminal.child.id();
        until("it follows", || watches(pid) && !terminal.written().is_empty());
        terminal.hold();
        std::thread::sleep(Duration::from_secs(2));
        let used = cpu(pid);
        signal(pid.cast_signed(), SIGTERM);
        assert_eq!(ended(&format!("{words:?}"), &mut terminal.child, used), 143);
        assert!(!terminal.is_raw(), "{words:?}");
    }
    lab.ok(&["kill", "web"]);
}
