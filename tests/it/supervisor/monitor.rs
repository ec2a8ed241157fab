//! Connections to QEMU's monitor that close while QEMU lives: a relay between a supervisor and a real QEMU cuts them.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    os::unix::net::{UnixListener, UnixStream},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        mpsc::{Receiver, Sender, channel},
    },
    thread,
};

use crate::lab::{LONG, Lab, guest, runs, signal, until};
use serde_json::{Value, json};

const HOST: Option<i32> = Some(75);

/// Where a connection is cut: at a command of this name, which QEMU still gets or does not get.
#[derive(Clone, Copy, PartialEq)]
enum Cut {
    Before(&'static str),
    Behind(&'static str),
}

impl Cut {
    fn command(self) -> &'static str {
        let (Self::Before(command) | Self::Behind(command)) = self;
        command
    }
}

/// A VM whose supervisor was killed, with a relay in the place of its monitor. Its QEMU is killed when this is dropped.
struct Relayed {
    lab: Lab,
    qemu: i32,
    real: PathBuf,
    next: Arc<Mutex<Option<Cut>>>,
    cuts: Receiver<()>,
    go: Sender<()>,
}

impl Drop for Relayed {
    fn drop(&mut self) {
        if runs(self.qemu) {
            signal(self.qemu, 9);
        }
    }
}

impl Relayed {
    fn new() -> Option<Self> {
        let image = guest("boot.qcow2")?;
        let mut lab = Lab::new();
        lab.vm("web", &image, "");
        let supervisor = lab.run("web");
        lab.wait_state("web", "running");
        let qemu = lab.qemu_pid("web");
        lab.supervisor(supervisor).kill().unwrap();
        lab.supervisor(supervisor).wait().unwrap();
        let (socket, real) = (lab.runtime("web", "qmp.sock"), lab.runtime("web", "qmp.real"));
        fs::rename(&socket, &real).unwrap();
        let listener = UnixListener::bind(&socket).unwrap();
        let next = Arc::new(Mutex::new(None));
        let ((told, cuts), (go, goes)) = (channel(), channel());
        thread::spawn({
            let (real, next) = (real.clone(), next.clone());
            move || {
                while let Ok((supervisor, _)) = listener.accept() {
                    let Ok(monitor) = UnixStream::connect(&real) else { return };
                    let is_cut = relay(&supervisor, &monitor, &next);
                    if is_cut && (told.send(()).is_err() || goes.recv().is_err()) {
                        return;
                    }
                }
            }
        });
        Some(Self { lab, qemu, real, next, cuts, go })
    }

    fn cut(&self, cut: Cut) {
        *self.next.lock().unwrap() = Some(cut);
    }

    /// Waits until the connection was cut. No supervisor gets another one before `goes_on`.
    fn is_cut(&self) {
        self.cuts.recv_timeout(LONG).unwrap();
    }

    fn goes_on(&self) {
        self.go.send(()).unwrap();
    }
}

/// Passes lines on until one side closes, or the connection is to be cut: `true` then.
fn relay(supervisor: &UnixStream, monitor: &UnixStream, next: &Mutex<Option<Cut>>) -> bool {
    let (said, replies) = channel::<String>();
    thread::scope(|scope| {
        scope.spawn(move || {
            for line in BufReader::new(monitor).lines().map_while(Result::ok) {
                let _ = (&*supervisor).write_all(format!("{line}\r\n").as_bytes());
                let _ = said.send(line);
            }
            let _ = supervisor.shutdown(std::net::Shutdown::Both);
        });
        let mut is_cut = false;
        for line in BufReader::new(supervisor).lines().map_while(Result::ok) {
            let command: Value = serde_json::from_str(&line).unwrap();
            let cut = next.lock().unwrap().take_if(|cut| command["execute"] == cut.command());
            is_cut = cut.is_some();
            if is_cut {
                supervisor.shutdown(std::net::Shutdown::Both).unwrap();
            }
            if !matches!(cut, Some(Cut::Before(_))) {
                (&*monitor).write_all(format!("{line}\n").as_bytes()).unwrap();
            }
            if matches!(cut, Some(Cut::Behind(_))) {
                // QEMU forgets the commands of a connection that closes.
                let id = command["id"].clone();
                let is_reply = |line: &String| {
                    let line: Value = serde_json::from_str(line).unwrap();
                    line["id"] == id
                };
                assert!(replies.iter().any(|line| is_reply(&line)));
            }
            if is_cut {
                break;
            }
        }
        let _ = monitor.shutdown(std::net::Shutdown::Both);
        is_cut
    })
}

/// Does one command at the monitor, and waits for an event that comes of it.
fn command_qemu(real: &Path, command: &str, event: &str) {
    let stream = UnixStream::connect(real).unwrap();
    stream.set_read_timeout(Some(LONG)).unwrap();
    for command in ["qmp_capabilities", command] {
        (&stream).write_all(format!("{}\n", json!({ "execute": command })).as_bytes()).unwrap();
    }
    let mut lines = BufReader::new(&stream).lines().map_while(Result::ok);
    let is_it = |line: &String| {
        let line: Value = serde_json::from_str(line).unwrap();
        assert!(line["error"].is_null(), "{line}");
        line["event"] == event
    };
    assert!(lines.any(|line| is_it(&line)), "no event {event}");
}

#[test]
fn shutdown_during_a_lost_connection_ends_the_run() {
    let Some(mut vm) = Relayed::new() else { return };
    let supervisor = vm.lab.run("web");
    vm.lab.wait_state("web", "running");
    vm.cut(Cut::Before("query-status"));
    until("the connection is cut", || {
        vm.lab.status("web");
        vm.cuts.try_recv().is_ok()
    });
    // Its events go to another connection.
    command_qemu(&vm.real, "system_powerdown", "SHUTDOWN");
    vm.goes_on();
    assert_eq!(vm.lab.exit_code(supervisor), Some(0));
    assert_eq!(vm.lab.last_reason("web"), "guest-shutdown");
    assert!(!runs(vm.qemu));
}

#[test]
fn pause_during_a_lost_connection_is_seen() {
    let Some(mut vm) = Relayed::new() else { return };
    vm.lab.run("web");
    vm.lab.wait_state("web", "running");
    for (command, event, state) in [("stop", "STOP", "paused"), ("cont", "RESUME", "running")] {
        vm.cut(Cut::Before("query-status"));
        until("the connection is cut", || {
            vm.lab.status("web");
            vm.cuts.try_recv().is_ok()
        });
        command_qemu(&vm.real, command, event);
        vm.goes_on();
        vm.lab.wait_state("web", state);
    }
    vm.lab.ok(&["stop", "web"]);
}

#[test]
fn pause_is_answered_over_the_next_connection() {
    let Some(mut vm) = Relayed::new() else { return };
    vm.lab.run("web");
    vm.lab.wait_state("web", "running");
    for (verb, command, state) in [("pause", "stop", "paused"), ("resume", "cont", "running")] {
        vm.cut(Cut::Behind(command));
        thread::scope(|scope| {
            let asked = scope.spawn(|| vm.lab.ok(&[verb, "web"]));
            vm.is_cut();
            vm.goes_on();
            asked.join().unwrap();
        });
        assert_eq!(vm.lab.status("web")["state"], state, "{verb}");
    }
    vm.lab.ok(&["stop", "web"]);
}

/// Code 1 would have the unit's ExecStopPost= end the guest.
#[test]
fn monitor_that_closes_during_adoption_is_the_hosts_fault() {
    let Some(mut vm) = Relayed::new() else { return };
    for command in ["qmp_capabilities", "query-status"] {
        vm.cut(Cut::Before(command));
        let supervisor = vm.lab.run("web");
        vm.is_cut();
        assert_eq!(vm.lab.exit_code(supervisor), HOST, "{command}: {}", vm.lab.log("web"));
        assert!(runs(vm.qemu) && vm.lab.runtime("web", "record.json").exists(), "{command}");
        vm.goes_on();
    }
    vm.lab.run("web");
    vm.lab.wait_state("web", "running");
    assert_eq!(vm.lab.qemu_pid("web"), vm.qemu);
    vm.lab.ok(&["stop", "web"]);
}
