//! The phases that are interrupted: the state before each, the operation, and the checks after it.

use std::{
    fs,
    io::Write,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::{
    lab::{Lab, guest, network::Network, until},
    scene::{Before, GUEST, Scene},
    trace::{Call, Cut, Traced},
};

/// Kills the process if it is still running.
fn end(pid: i32) {
    let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
}

/// An operation of qvm.
pub(crate) struct Phase {
    pub(crate) name: &'static str,
    /// Writes the VM file.
    file: fn(&Lab),
    /// The preparation: none, or the last command of a run.
    before: Option<&'static [&'static str]>,
    /// A supervisor was killed before, and its QEMU is running.
    left_behind: bool,
    /// The run record of that QEMU was truncated.
    truncated: bool,
    bridged: bool,
    /// Performed once before the command.
    first: fn(&Scene),
    /// The traced command.
    command: &'static [&'static str],
    /// The calls count only after `act` starts counting.
    later: bool,
    /// Performs the operation until its end or until the program is killed.
    act: fn(&Scene, &Traced),
    /// Checks the state afterward.
    after: fn(&Scene, &Cutting),
}

/// The kind and position of the interruption.
pub(crate) struct Cutting {
    pub(crate) cut: Cut,
    /// The processes at the end of the program.
    qemus: Vec<i32>,
    /// Whether a saved state existed then.
    saved: bool,
    /// Whether the guest was seen to count before.
    ran: bool,
}

/// The time of the interruption.
#[derive(Debug, Clone, Copy)]
pub(crate) enum When {
    /// Before this call.
    Before(usize),
    /// This time after its beginning.
    After(Duration),
}

/// The result of one run of a phase.
pub(crate) struct Run {
    /// The calls.
    pub(crate) calls: Vec<Call>,
    /// The number of calls until the end of the operation.
    pub(crate) counted: usize,
    /// The duration until then.
    pub(crate) took: Duration,
}

impl Run {
    /// Returns the calls until the end of the operation.
    pub(crate) fn counted(&self) -> &[Call] {
        &self.calls[..self.counted]
    }
}

impl Phase {
    /// Whether the requirements of the phase are met.
    pub(crate) fn is_possible(&self) -> bool {
        !self.bridged || Network::new().is_some()
    }

    /// Prepares the state before the phase.
    pub(crate) fn prepare(&self) -> Option<Before> {
        // A change of the VM file takes effect later.
        self.before.map(|end| Scene::kept(&|lab| plain(lab, ""), end))
    }

    /// Runs the phase with this interruption, and checks the result.
    pub(crate) fn run(&self, before: Option<&Before>, cut: Option<(Cut, When)>) -> Run {
        let file = |lab: &Lab| (self.file)(lab);
        let mut scene = match before {
            None => Scene::new(&file),
            Some(before) => Scene::after(before, &file),
        };
        if self.bridged {
            scene.lab.network = Network::new();
        }
        let mut others = vec![];
        if self.left_behind {
            let one = scene.lab.run("web");
            until("the guest counts", || scene.counts());
            scene.lab.supervisor(one).kill().unwrap();
            scene.lab.supervisor(one).wait().unwrap();
            others.push(scene.lab.qemu_pid("web"));
            fs::remove_file(scene.lab.log_path("web")).unwrap();
            if self.truncated {
                fs::write(scene.lab.runtime("web", "record.json"), "{\"pid\":").unwrap();
            }
        }
        (self.first)(&scene);
        let mut command = scene.lab.command(self.command);
        let log = fs::OpenOptions::new().create(true).append(true).open(scene.lab.log_path("web"));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log.unwrap());
        let at = match cut {
            Some((cut, When::Before(nth))) => Some((cut, nth)),
            Some((_, When::After(_))) | None => None,
        };
        let begun = Instant::now();
        let traced = Traced::begin(command, at, self.later, &others);
        if let Some((_, When::After(time))) = cut {
            traced.end_after(time);
        }
        (self.act)(&scene, &traced);
        let (counted, took) = (traced.counted(), begun.elapsed());
        let finished = traced.has_ended();
        if !finished {
            end(traced.pid);
        }
        let ended = traced.ended();
        if let Some((Cut::Everything, _)) = cut {
            until("nothing runs", || {
                let qemus = scene.qemus();
                qemus.iter().copied().for_each(end);
                qemus.is_empty()
            });
        }
        // Clients and helper processes exit without a signal.
        until("only QEMU is left", || scene.has_only_qemu());
        let cut = cut.map_or(Cut::Program, |(cut, _)| cut);
        let qemus = scene.qemus();
        assert!(qemus.len() <= 1, "{qemus:?}");
        let saved = scene.lab.state("web", "saved.state").exists();
        scene.remember();
        (self.after)(&scene, &Cutting { cut, qemus, saved, ran: scene.counts() });
        Run { calls: ended.calls, counted, took }
    }
}

/// Waits for the end of the phase or of the program.
fn over(traced: &Traced, what: &str, mut so: impl FnMut() -> bool) {
    until(what, || so() || traced.has_ended());
}

/// The compressed image of the guest, so that it passes through the cache.
fn packed(lab: &Lab) -> PathBuf {
    let path = lab.path().join("image.qcow2.gz");
    let mut gz = flate2::write::GzEncoder::new(
        fs::File::create(&path).unwrap(),
        flate2::Compression::fast(),
    );
    gz.write_all(&fs::read(guest(GUEST).unwrap()).unwrap()).unwrap();
    gz.finish().unwrap();
    path
}

fn write(lab: &Lab, more: &str, image: &Path) {
    // Replaces a file like an editor.
    let _ = fs::remove_file(lab.file("web"));
    lab.vm("web", image, more);
}

fn plain(lab: &Lab, more: &str) {
    write(lab, more, &packed(lab));
}

fn grown(lab: &Lab) {
    plain(lab, "diskSizeG = 1\n");
}

fn with_everything(lab: &Lab) {
    let image = packed(lab);
    let tables = "[disk.data]\nsize = \"1M\"\nformat = \"raw\"\n[cloudInit]\nhostname = \"web\"\n";
    write(lab, tables, &image);
}

fn comes_up(scene: &Scene, traced: &Traced) {
    over(traced, "the guest counts", || scene.counts());
}

/// The guest is running; calls count from here.
fn up(scene: &Scene, traced: &Traced) {
    comes_up(scene, traced);
    over(traced, "it is running", || scene.lab.status("web")["state"] == "running");
    traced.count();
}

fn ask(scene: &Scene, verb: &str) {
    scene.lab.qvm(&[verb, "web"]);
}

/// The VM starts, with the remaining QEMU if there is one, and can be stopped.
fn works(scene: &Scene, cutting: &Cutting) {
    scene.starts();
    if let [qemu] = cutting.qemus[..] {
        assert_eq!(scene.lab.qemu_pid("web"), qemu, "the guest is another");
    } else if cutting.cut == Cut::Program {
        // A QEMU that was never executed has no recorded end.
        let last = &scene.lab.status("web")["lastStop"]["reason"];
        assert!(last.is_null() || last == "stopped", "{last}");
    }
    scene.stops();
}

/// As above, and a running guest that was not killed was not started again.
fn goes_on(scene: &Scene, cutting: &Cutting) {
    scene.starts();
    if cutting.cut == Cut::Program && cutting.ran {
        assert_eq!(scene.boots(), 1, "the guest has booted again");
        assert_eq!([scene.lab.qemu_pid("web")], cutting.qemus[..], "the guest is another");
    }
    scene.stops();
}

/// A start of a VM that has run before, for comparison.
const PLAIN: Phase = Phase {
    name: "start",
    file: |lab| plain(lab, ""),
    before: Some(&[]),
    left_behind: false,
    truncated: false,
    bridged: false,
    first: |_| {},
    command: &["run", "web"],
    later: false,
    act: comes_up,
    after: works,
};

pub(crate) const PHASES: &[Phase] = &[
    Phase { name: "first start", file: with_everything, before: None, ..PLAIN },
    Phase {
        name: "first start, overlay",
        file: |lab| {
            plain(lab, "");
            let text = fs::read_to_string(lab.file("web")).unwrap();
            fs::write(lab.file("web"), format!("{text}clone = \"overlay\"\n")).unwrap();
        },
        before: None,
        ..PLAIN
    },
    PLAIN,
    Phase {
        name: "start on a bridge",
        file: |lab| plain(lab, "bridge = \"br0\"\n"),
        bridged: true,
        ..PLAIN
    },
    Phase {
        name: "start, disk grown",
        file: grown,
        after: |scene, cutting| {
            works(scene, cutting);
            assert_eq!(scene.virtual_size(), 1 << 30);
        },
        ..PLAIN
    },
    Phase {
        name: "start from a saved state",
        before: Some(&["suspend", "web"]),
        act: |scene, traced| {
            over(traced, "the guest continues", || {
                scene.lab.log("web").contains("continues from the saved state")
            });
        },
        after: |scene, cutting| {
            scene.starts();
            let kept = cutting.cut == Cut::Program || cutting.saved;
            assert_eq!(scene.boots(), usize::from(!kept), "saved state there: {}", cutting.saved);
            assert!(!scene.lab.state("web", "saved.state").exists());
            scene.stops();
        },
        ..PLAIN
    },
    Phase {
        name: "adoption",
        left_behind: true,
        act: |scene, traced| {
            over(traced, "it is taken over", || scene.lab.log("web").contains("taken over"));
        },
        ..PLAIN
    },
    Phase {
        name: "start, an earlier QEMU without a record",
        left_behind: true,
        truncated: true,
        act: |_, traced| over(traced, "it has ended", || false),
        after: |scene, cutting| {
            let lab = &scene.lab;
            if let [qemu] = cutting.qemus[..] {
                // Nothing was changed, regardless of the point.
                for socket in ["qmp.sock", "agent.sock", "serial.sock"] {
                    assert!(lab.runtime("web", socket).exists(), "{socket} is gone");
                }
                assert_eq!(lab.qvm(&["start", "web"]).status.code(), Some(75));
                assert_eq!(lab.qvm(&["rm", "web", "--disks", "--yes"]).status.code(), Some(75));
                assert_eq!(scene.qemus(), [qemu], "the guest is another");
                lab.ok(&["kill", "web"]);
            }
            scene.starts();
            scene.stops();
        },
        ..PLAIN
    },
    Phase {
        name: "re-execution",
        before: None,
        later: true,
        act: |scene, traced| {
            up(scene, traced);
            if !traced.has_ended() {
                let _ = kill(Pid::from_raw(traced.pid), Signal::SIGUSR2);
            }
            over(traced, "it is taken over", || scene.lab.log("web").contains("taken over"));
        },
        after: goes_on,
        ..PLAIN
    },
    Phase {
        name: "pause and resume",
        before: None,
        later: true,
        act: |scene, traced| {
            up(scene, traced);
            ask(scene, "pause");
            ask(scene, "resume");
        },
        after: |scene, cutting| {
            scene.lab.ok(&["start", "web"]);
            if scene.lab.status("web")["state"] == "paused" {
                scene.lab.ok(&["resume", "web"]);
            }
            goes_on(scene, cutting);
        },
        ..PLAIN
    },
    Phase {
        name: "apply, a disk plugged in",
        before: None,
        later: true,
        act: |scene, traced| {
            up(scene, traced);
            let lab = &scene.lab;
            write(
                lab,
                "[disk.data]\nsize = \"1M\"\nformat = \"raw\"\n",
                &lab.path().join("image.qcow2.gz"),
            );
            ask(scene, "apply");
        },
        after: |scene, cutting| {
            scene.starts();
            scene.lab.ok(&["apply", "web"]);
            let status = scene.lab.status("web");
            assert_eq!(status["pending"], serde_json::json!([]), "{status}");
            assert!(scene.lab.state("web", "data.raw").exists());
            goes_on(scene, cutting);
        },
        ..PLAIN
    },
    Phase {
        name: "suspend",
        before: None,
        later: true,
        act: |scene, traced| {
            up(scene, traced);
            ask(scene, "suspend");
        },
        after: |scene, cutting| {
            scene.starts();
            if cutting.ran && (cutting.cut == Cut::Program || cutting.saved) {
                assert_eq!(scene.boots(), 1, "the guest has booted again");
            }
            assert!(!scene.lab.state("web", "saved.state").exists());
            scene.stops();
        },
        ..PLAIN
    },
    Phase {
        name: "stop during launch",
        later: true,
        act: |scene, traced| {
            let record = scene.lab.runtime("web", "record.json");
            over(traced, "QEMU is being started", || record.exists());
            traced.count();
            if !traced.has_ended() {
                let _ = kill(Pid::from_raw(traced.pid), Signal::SIGTERM);
            }
            over(traced, "it has ended", || false);
        },
        after: comes_up_again,
        ..PLAIN
    },
    Phase {
        name: "stop",
        before: None,
        later: true,
        act: |scene, traced| {
            up(scene, traced);
            ask(scene, "stop");
            over(traced, "it has ended", || false);
        },
        after: comes_up_again,
        ..PLAIN
    },
    Phase {
        name: "exec-stop-post",
        left_behind: true,
        command: &["exec-stop-post", "web"],
        act: |_, traced| over(traced, "it has ended", || false),
        after: comes_up_again,
        ..PLAIN
    },
    Phase {
        name: "snapshot create",
        first: |scene| scene.write_second_mark(),
        command: &["snapshot", "create", "web", "one"],
        act: |_, traced| over(traced, "it has ended", || false),
        after: |scene, _| {
            snapshots_are_whole(scene);
            assert!(scene.has_second_mark("root.qcow2"));
            for (name, file) in scene.snapshots() {
                assert!(name == "one" && scene.has_second_mark(&file), "{name}");
            }
            merges_all(scene, Some(true));
        },
        ..PLAIN
    },
    Phase {
        name: "snapshot rollback",
        first: |scene| {
            scene.lab.ok(&["snapshot", "create", "web", "one"]);
            scene.write_second_mark();
        },
        command: &["snapshot", "rollback", "web", "one"],
        act: |_, traced| over(traced, "it has ended", || false),
        after: |scene, _| {
            snapshots_are_whole(scene);
            let all = scene.snapshots();
            assert!(all.iter().any(|(name, _)| name == "one"), "{all:?}");
            for (name, file) in &all {
                assert_eq!(scene.has_second_mark(file), name != "one", "{name}");
            }
            // Either it was rolled back, and the present of before is kept, or nothing was done.
            assert_eq!(scene.has_second_mark("root.qcow2"), all.len() == 1);
            merges_all(scene, None);
        },
        ..PLAIN
    },
    Phase {
        name: "snapshot rm",
        first: |scene| {
            scene.lab.ok(&["snapshot", "create", "web", "one"]);
            scene.write_second_mark();
        },
        command: &["snapshot", "rm", "web", "one"],
        act: |_, traced| over(traced, "it has ended", || false),
        after: |scene, _| {
            snapshots_are_whole(scene);
            assert!(scene.has_second_mark("root.qcow2"));
            merges_all(scene, Some(true));
        },
        ..PLAIN
    },
    Phase {
        name: "rm --disks",
        command: &["rm", "web", "--disks", "--yes"],
        act: |_, traced| over(traced, "it has ended", || false),
        after: all_or_nothing,
        ..PLAIN
    },
    Phase {
        name: "gc --disks",
        file: |lab| {
            plain(lab, "");
            // An orphan, beside a VM with a VM file.
            fs::rename(lab.file("web"), lab.file("other")).unwrap();
        },
        command: &["gc", "--disks", "--yes"],
        act: |_, traced| over(traced, "it has ended", || false),
        after: |scene, cutting| {
            fs::rename(scene.lab.file("other"), scene.lab.file("web")).unwrap();
            all_or_nothing(scene, cutting);
        },
        ..PLAIN
    },
];

/// The VM starts, every snapshot has its file, and no file is without a snapshot.
fn snapshots_are_whole(scene: &Scene) {
    scene.starts();
    scene.lab.ok(&["stop", "web"]);
    until("no process is left", || scene.processes().is_empty());
    let mut files: Vec<String> = scene.snapshots().into_iter().map(|(_, file)| file).collect();
    files.sort();
    let mut there: Vec<String> = fs::read_dir(scene.lab.state("web", ""))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.starts_with("root@") || name.starts_with(".qvm"))
        .collect();
    there.sort();
    assert_eq!(there, files);
}

/// All snapshots can be removed, and one file is left; whether it has the second mark.
fn merges_all(scene: &Scene, has_mark: Option<bool>) {
    let has_mark = has_mark.unwrap_or_else(|| scene.has_second_mark("root.qcow2"));
    let mut names: Vec<String> = scene.snapshots().into_iter().map(|(name, _)| name).collect();
    // Of two that are based on one, it is the last.
    names.sort();
    for name in names {
        scene.lab.ok(&["snapshot", "rm", "web", &name]);
    }
    assert_eq!(scene.snapshots(), []);
    assert_eq!(scene.has_second_mark("root.qcow2"), has_mark);
}

/// The guest may be shutting down or be down already.
fn comes_up_again(scene: &Scene, _: &Cutting) {
    // If the guest is shutting down, the next supervisor observes its exit.
    if !scene.lab.qvm(&["start", "web"]).status.success() {
        until("it is down", || scene.qemus().is_empty());
        scene.lab.ok(&["start", "web"]);
    }
    until("it is settled", || {
        let state = scene.lab.status("web")["state"].clone();
        if state == "stopped" {
            scene.lab.ok(&["start", "web"]);
        }
        state == "running"
    });
    scene.runs();
    scene.stops();
}

/// All files of a VM exist, or none.
fn all_or_nothing(scene: &Scene, _: &Cutting) {
    let mut there: Vec<String> = fs::read_dir(scene.lab.state("web", ""))
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| String::from_utf8_lossy(entry.file_name().as_bytes()).into_owned())
        .filter(|name| ["identity.toml", "root.origin.json", "root.qcow2"].contains(&&**name))
        .collect();
    there.sort();
    assert!(there.is_empty() || there.len() == 3, "only {there:?} are left");
    if there.is_empty() {
        scene.starts_anew();
    } else {
        scene.starts();
        scene.stops();
    }
}
