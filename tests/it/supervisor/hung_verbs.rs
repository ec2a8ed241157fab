//! Verbs during hung storage: known information is printed, unknown is refused, and each verb ends.

use std::{
    fs,
    io::{BufRead, BufReader},
    os::unix::process::ExitStatusExt,
    path::Path,
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use crate::lab::{
    Lab, guest,
    hanging::{Hanging, Storage},
    notes_of, signal,
    terminal::Terminal,
    until, until_within,
};

const SIGINT: i32 = 2;
const SIGTERM: i32 = 15;
/// The time limit of a verb on a busy machine; its own time limits are 2 s, and 10 s for a
/// supervisor.
const BOUND: Duration = Duration::from_secs(60);

/// The directory on the hung storage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Of {
    State,
    OneVm,
    Config,
}

/// The running `web`, and the stopped `idle`, whose directory of this kind hangs.
fn vms(of: Of) -> Option<(Lab, Hanging)> {
    let image = guest("boot-deaf.qcow2")?;
    let mut lab = Lab::new();
    lab.mounts()?;
    let (at, below) = (
        lab.path().join(match of {
            Of::State => "s",
            Of::OneVm => "s/vms/idle",
            Of::Config => "c",
        }),
        lab.path().join("below"),
    );
    match of {
        Of::State => fs::create_dir_all(below.join("vms/idle")).unwrap(),
        Of::OneVm => {}
        Of::Config => {
            fs::create_dir_all(lab.path().join("s/vms/idle")).unwrap();
            fs::create_dir_all(below.join("vms")).unwrap();
        }
    }
    let Some(storage) = Hanging::mount(lab.mounts.as_ref().unwrap(), &at, &below) else {
        assert!(!crate::lab::required("fuse"), "no /dev/fuse");
        println!("skipped: no /dev/fuse");
        return None;
    };
    for name in ["web", "idle"] {
        lab.vm(name, &image, "shutdownTimeoutSec = 3\n");
        if of == Of::Config {
            fs::rename(lab.file(name), storage.past(&format!("vms/{name}.toml"))).unwrap();
        }
    }
    lab.run("web");
    lab.wait_state("web", "running");
    storage.is(Storage::Hangs);
    Some((lab, storage))
}

/// Waits for a command; `None` if it does not end.
fn ends(mut child: Child) -> Option<Output> {
    let begun = Instant::now();
    while begun.elapsed() < BOUND {
        if child.try_wait().unwrap().is_some() {
            return Some(child.wait_with_output().unwrap());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    None
}

fn spawn(lab: &Lab, arguments: &[&str]) -> Child {
    let mut command = lab.command(arguments);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Checks that every verb of a list ends as expected, all in parallel, and collects the failures.
fn end_with(lab: &Lab, storage: &Hanging, verbs: &[(&str, i32)]) {
    let words = |verb: &str| verb.split(' ').map(str::to_owned).collect::<Vec<_>>();
    let mut wrong = vec![];
    for (verb, code) in verbs {
        let words = words(verb);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let begun = Instant::now();
        let ended = ends(spawn(lab, &words));
        println!("qvm {verb}: {:?}", begun.elapsed());
        match ended {
            None => wrong.push(format!("qvm {verb} hangs")),
            Some(ended) if ended.status.code() != Some(*code) => {
                let (out, err) = (text(&ended.stdout), text(&ended.stderr));
                wrong.push(format!("qvm {verb}: {}, not {code}\n{out}{err}", ended.status));
            }
            Some(ended) if *code == 75 && !verb.starts_with("status") => {
                let said = text(&ended.stderr);
                if !(said.contains("answer") && said.starts_with("error: ")) {
                    wrong.push(format!("qvm {verb} prints only: {said}"));
                }
            }
            Some(_) => {}
        }
    }
    // Before the assertion: a test that ends must leave no hung process.
    if !wrong.is_empty() {
        storage.is(Storage::Answers);
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The output of `qvm list --json`: `web` is known completely, `idle` is not.
fn is_listed(lab: &Lab, directory: &str) {
    let ended = ends(spawn(lab, &["list", "--json"])).expect("qvm list hangs");
    let all: Vec<serde_json::Value> = serde_json::from_slice(&ended.stdout).unwrap();
    let of =
        |name: &str| all.iter().find(|vm| vm["name"] == name).unwrap_or(&serde_json::Value::Null);
    assert_eq!((&of("web")["state"], &of("web")["vcpu"]), (&"running".into(), &1.into()));
    assert!(of("web")["pid"].is_u64());
    assert_eq!(of("idle")["state"], "unknown", "{all:?}");
    assert_eq!(notes_of(of("idle")), ["unknown"]);
    let reason = of("idle")["notes"][0].as_str().unwrap();
    assert!(reason.contains(directory) && reason.contains("no answer within 2 s"), "{reason}");
    let table = text(&ends(spawn(lab, &["list"])).unwrap().stdout);
    assert!(table.contains("unknown") && table.contains("running"), "{table}");
    let metrics = text(&ends(spawn(lab, &["metrics"])).unwrap().stdout);
    assert!(metrics.contains("qvm_vm_state{vm=\"idle\",state=\"unknown\"} 1"), "{metrics}");
    assert!(metrics.contains("qvm_vm_state{vm=\"web\",state=\"running\"} 1"), "{metrics}");
}

/// Verbs with the same result for any hung directory.
const ALWAYS: [(&str, i32); 15] = [
    ("list", 0),
    ("list --json", 0),
    ("status", 0),
    ("status web", 0),
    ("status idle", 75),
    ("metrics", 0),
    ("doctor", 1),
    ("events web", 0),
    ("start web", 0),
    ("start idle", 75),
    ("start --no-wait idle", 75),
    ("restart idle", 75),
    ("apply", 75),
    ("diff web", 0),
    ("wait --for running web", 0),
];

/// Verbs that need to know whether `idle` runs.
const OF_STATE: [(&str, i32); 9] = [
    ("start --discard-state idle", 75),
    ("stop idle", 75),
    ("suspend idle", 75),
    ("apply idle", 75),
    ("pause idle", 75),
    ("kill idle", 75),
    ("diff idle", 75),
    ("wait --for stopped idle", 75),
    ("ip idle", 75),
];

#[test]
fn verbs_end_while_state_directory_hangs() {
    let Some((lab, storage)) = vms(Of::State) else { return };
    is_listed(&lab, "/s/vms/idle");
    end_with(&lab, &storage, &ALWAYS);
    end_with(&lab, &storage, &OF_STATE);
    // The supervisor is running, and cannot do it.
    end_with(&lab, &storage, &[("suspend web", 75), ("apply web", 75), ("status web", 0)]);
    assert_eq!(lab.status("web")["state"], "running");
    end_with(&lab, &storage, &[("stop web", 0)]);
}

#[test]
fn verbs_end_while_one_vm_hangs() {
    let Some((lab, storage)) = vms(Of::OneVm) else { return };
    is_listed(&lab, "/s/vms/idle");
    end_with(&lab, &storage, &ALWAYS);
    end_with(&lab, &storage, &OF_STATE);
    end_with(
        &lab,
        &storage,
        &[("apply web", 0), ("suspend web", 0), ("start web", 0), ("stop web", 0)],
    );
}

#[test]
fn verbs_end_while_config_directory_hangs() {
    let Some((lab, storage)) = vms(Of::Config) else { return };
    is_listed(&lab, "/c/vms");
    end_with(&lab, &storage, &ALWAYS);
    // `idle` is known not to run.
    let down = ["stop idle", "suspend idle", "apply idle", "pause idle"].map(|verb| (verb, 3));
    end_with(&lab, &storage, &down);
    end_with(&lab, &storage, &[("apply web", 75), ("suspend web", 0), ("start web", 75)]);
}

/// A thread of the process waits for an answer of FUSE.
fn waits_for_storage(pid: u32) -> bool {
    let tasks = fs::read_dir(format!("/proc/{pid}/task"));
    let waits = |task: &Path| {
        fs::read_to_string(task.join("wchan")).is_ok_and(|at| at.contains("request_wait_answer"))
    };
    tasks.into_iter().flatten().flatten().any(|entry| waits(&entry.path()))
}

/// Sends a signal to a verb that waits for storage; returns whether the signal ended the verb.
fn is_ended_by(lab: &Lab, verb: &[&str], number: i32) -> bool {
    let mut child = spawn(lab, verb);
    let begun = Instant::now();
    while !waits_for_storage(child.id()) && child.try_wait().unwrap().is_none() {
        assert!(begun.elapsed() < BOUND, "{verb:?} does not read its storage");
        std::thread::sleep(Duration::from_millis(1));
    }
    signal(child.id().cast_signed(), number);
    let status = ends(child).unwrap_or_else(|| panic!("{verb:?} hangs after a signal")).status;
    status.signal() == Some(number) || status.code() == Some(128 + number)
}

#[test]
fn signals_end_verbs_that_wait() {
    for of in [Of::State, Of::OneVm, Of::Config] {
        let Some((lab, storage)) = vms(of) else { return };
        let mut wrong = vec![];
        for verb in ["list", "list --watch", "status", "metrics", "doctor", "start idle", "apply"] {
            for number in [SIGINT, SIGTERM] {
                let words: Vec<&str> = verb.split(' ').collect();
                // A verb that a busy machine has delayed may have ended normally.
                if !(0..5).any(|_| is_ended_by(&lab, &words, number)) {
                    wrong.push(format!("{of:?}: qvm {verb} is not ended by signal {number}"));
                }
            }
        }
        storage.is(Storage::Answers);
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
        lab.ok(&["kill", "web"]);
    }
}

fn shown(terminal: &Terminal) -> String {
    text(&terminal.written())
}

fn threads(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count)
}

/// A verb that repeats its output prints the VMs each time, and does not collect threads.
#[test]
fn watch_keeps_the_same_threads() {
    for of in [Of::State, Of::OneVm, Of::Config] {
        let Some((lab, storage)) = vms(of) else { return };
        let mut command: Command = lab.command(&["list", "--watch", "1"]);
        let mut watch = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(watch.stdout.take().unwrap()).lines();
        let mut table = || {
            let idle = lines.find(|line| line.as_ref().unwrap().starts_with("idle"));
            idle.unwrap().unwrap()
        };
        let mut counts = vec![];
        for _ in 0..4 {
            assert!(table().contains("unknown"));
            counts.push(threads(watch.id()));
        }
        assert!(counts.iter().all(|count| *count <= counts[0]), "{counts:?}");
        storage.is(Storage::Answers);
        until("it is known again", || !table().contains("unknown"));
        signal(watch.id().cast_signed(), SIGTERM);
        until("it ends", || watch.try_wait().unwrap().is_some());

        storage.is(Storage::Hangs);
        let mut top = Terminal::open(&mut lab.command(&["top"]));
        until_within(BOUND, "top shows what runs", || shown(&top).contains("web"));
        assert!(shown(&top).contains("idle"));
        top.types(b"q");
        until_within(BOUND, "top ends", || top.child.try_wait().unwrap().is_some());
        let mut top = Terminal::open(&mut lab.command(&["top"]));
        until_within(BOUND, "top waits", || waits_for_storage(top.child.id()));
        signal(top.child.id().cast_signed(), SIGTERM);
        until_within(BOUND, "top ends by a signal", || top.child.try_wait().unwrap().is_some());
        storage.is(Storage::Answers);
        lab.ok(&["kill", "web"]);
    }
}
