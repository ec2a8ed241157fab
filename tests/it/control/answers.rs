//! Control replies against a real QEMU: a reply arrives after the effect, or with the reason of the
//! failure.

use std::{
    fs,
    io::{Read, Write},
    os::unix::net::UnixStream,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use crate::lab::{LONG, Lab, guest, long, runs, signal, until};
use serde_json::{Value, json};

const SIGKILL: i32 = 9;
const SIGUSR2: i32 = 12;
const SIGCONT: i32 = 18;
const SIGSTOP: i32 = 19;
/// The number of comparisons of replies with the state.
const ROUNDS: usize = 200;
/// The time limit of a reply: less than that of a client of qvm.
const BOUND: Duration = Duration::from_secs(29);

/// One connection to a control socket.
struct Control(UnixStream);

impl Control {
    fn open(lab: &Lab) -> Self {
        Self::at(&lab.runtime("web", "control.sock")).expect("the control socket takes callers")
    }

    fn at(socket: &Path) -> Option<Self> {
        let stream = UnixStream::connect(socket).ok()?;
        stream.set_read_timeout(Some(LONG)).unwrap();
        Some(Self(stream))
    }

    /// The parameters of a reply, or the name and parameters of an error; `None` if the connection
    /// was closed.
    fn try_call(
        &mut self,
        method: &str,
        parameters: &Value,
    ) -> Option<Result<Value, (String, Value)>> {
        let call = json!({ "method": method, "parameters": parameters });
        self.0.write_all(format!("{call}\0").as_bytes()).ok()?;
        let mut bytes = vec![];
        loop {
            let mut more = [0; 4096];
            let count = self.0.read(&mut more).ok().filter(|count| *count > 0)?;
            bytes.extend_from_slice(&more[..count]);
            if bytes.last() == Some(&0) {
                bytes.pop();
                break;
            }
        }
        let reply: Value = serde_json::from_slice(&bytes).unwrap();
        Some(match reply["error"].as_str() {
            Some(error) => Err((error.to_owned(), reply["parameters"].clone())),
            None => Ok(reply["parameters"].clone()),
        })
    }

    fn call(&mut self, method: &str, parameters: &Value) -> Result<Value, (String, Value)> {
        self.try_call(method, parameters).expect("an answer")
    }

    fn ok(&mut self, method: &str) -> Value {
        self.call(method, &json!({})).unwrap_or_else(|error| panic!("{method}: {error:?}"))
    }

    fn word(&mut self) -> String {
        let told = self.ok("io.systemd.MachineInstance.Describe");
        assert_eq!(told["running"] == true, told["status"] == "running");
        told["status"].as_str().unwrap().to_owned()
    }
}

/// A reply or an error, `None` if the connection was closed; and the duration.
type Asked = (Option<Result<Value, (String, Value)>>, Duration);

/// Calls a method on a new connection; returns the reply and the duration.
fn ask(lab: &Lab, method: &'static str) -> JoinHandle<Asked> {
    let mut control = Control::open(lab);
    thread::spawn(move || {
        let begun = Instant::now();
        (control.try_call(method, &json!({})), begun.elapsed())
    })
}

fn error(answer: Option<Result<Value, (String, Value)>>) -> String {
    answer.expect("an answer").expect_err("an error").0
}

fn running(image: &str, more: &str) -> Option<Lab> {
    let image = guest(image)?;
    let lab = Lab::new();
    lab.vm("web", &image, more);
    lab.ok(&["start", "web"]);
    Some(lab)
}

#[test]
fn pause_and_resume_answer_after_qemu() {
    let Some(lab) = running("boot.qcow2", "") else { return };
    let (mut asks, mut looks) = (Control::open(&lab), Control::open(&lab));
    for interface in ["io.systemd.MachineInstance", "io.qvm.Vm"] {
        for round in 0..ROUNDS {
            asks.ok(&format!("{interface}.Pause"));
            assert_eq!(looks.word(), "paused", "{interface} {round}");
            // A state that is already reached is no error.
            if round % 10 == 0 {
                asks.ok(&format!("{interface}.Pause"));
                assert_eq!(looks.word(), "paused");
            }
            asks.ok(&format!("{interface}.Resume"));
            assert_eq!(looks.word(), "running", "{interface} {round}");
        }
    }
    asks.ok("io.qvm.Vm.Resume");
    assert_eq!(looks.ok("io.qvm.Vm.Status")["status"]["state"], "running");
}

#[test]
fn opposite_requests_each_get_a_reply() {
    let Some(lab) = running("boot.qcow2", "") else { return };
    let asker = |method: &'static str| {
        let mut control = Control::open(&lab);
        thread::spawn(move || {
            for _ in 0..ROUNDS {
                if let Err((name, _)) = control.call(method, &json!({})) {
                    // The other client was faster, which is reported.
                    assert_eq!(name, "io.qvm.Vm.Failed");
                }
            }
        })
    };
    let methods = ["io.qvm.Vm.Pause", "io.qvm.Vm.Resume", "io.qvm.Vm.Pause", "io.qvm.Vm.Resume"];
    let askers: Vec<JoinHandle<()>> = methods.into_iter().map(asker).collect();
    askers.into_iter().for_each(|asker| asker.join().unwrap());
    let mut control = Control::open(&lab);
    control.ok("io.qvm.Vm.Pause");
    assert_eq!(Control::open(&lab).word(), "paused");
    control.ok("io.qvm.Vm.Resume");
    assert_eq!(Control::open(&lab).word(), "running");
    let begins = control.ok("io.qvm.Vm.RecentEvents")["events"][0]["event"].clone();
    assert!(begins.is_string());
}

#[test]
fn reset_answers_after_the_reset() {
    let Some(lab) = running("boot.qcow2", "") else { return };
    let (mut asks, mut looks) = (Control::open(&lab), Control::open(&lab));
    let last = |looks: &mut Control| {
        let told = looks.ok("io.qvm.Vm.RecentEvents");
        let resets = told["events"].as_array().unwrap().iter().cloned();
        // The firmware resets the machine again.
        let ours = |one: &Value| one["data"]["reason"] == "host-qmp-system-reset";
        resets.into_iter().find(ours).unwrap_or_default()
    };
    for round in 0..ROUNDS {
        let before = last(&mut looks);
        if round % 4 == 0 {
            asks.ok("io.qvm.Vm.Pause");
        }
        asks.ok("io.qvm.Vm.Reset");
        assert_eq!(looks.word(), "running", "{round}");
        assert_ne!(before, last(&mut looks), "{round}");
    }
}

#[test]
fn reset_with_a_pending_change_starts_a_new_qemu() {
    let Some(lab) = running("boot.qcow2", "") else { return };
    let qemu = lab.qemu_pid("web");
    let text = fs::read_to_string(lab.file("web")).unwrap();
    fs::write(lab.file("web"), text.replace("64M", "96M")).unwrap();
    lab.ok(&["reload", "web"]);
    until("the change is pending", || lab.status("web")["pending"][0]["key"] == "mem");
    lab.ok(&["reboot", "--force", "web"]);
    assert!(!runs(qemu), "the QEMU that was to be reset is still there");
    lab.wait_state("web", "running");
    assert_eq!(lab.status("web")["memBytes"], 96 << 20);
}

#[test]
fn set_memory_answers_after_the_target_is_set() {
    let Some(lab) = running("tiny.qcow2", "mem = \"256M\"\nready = \"agent\"\n") else { return };
    let (mut asks, mut looks) = (Control::open(&lab), Control::open(&lab));
    for round in 0..ROUNDS as u64 {
        let bytes = (128 + round % 64) << 20;
        asks.call("io.systemd.MachineInstance.SetMemory", &json!({ "bytes": bytes })).unwrap();
        let told = looks.ok("io.systemd.MachineInstance.Describe");
        assert_eq!(told["memory"]["targetBytes"], bytes, "{round}");
    }
    let refused = asks.call("io.systemd.MachineInstance.SetMemory", &json!({ "bytes": 1 }));
    assert_eq!(refused.unwrap_err().0, "org.varlink.service.InvalidParameter");
}

#[test]
fn ends_reply_when_complete() {
    let Some(lab) = running("boot.qcow2", "") else { return };
    let rounds = if long() { 21 } else { 9 };
    let mut first = true;
    for method in ["Kill", "Suspend", "PowerOff"].into_iter().cycle().take(rounds) {
        if !std::mem::take(&mut first) {
            lab.ok(&["start", "web"]);
        }
        let qemu = lab.qemu_pid("web");
        let (mut asks, mut looks) = (Control::open(&lab), Control::open(&lab));
        asks.ok(&format!("io.qvm.Vm.{method}"));
        if method == "PowerOff" {
            // The power button was pressed; events report the progress.
            let word = looks.try_call("io.systemd.MachineInstance.Describe", &json!({}));
            assert!(
                matches!(word, None | Some(Err(_)))
                    || word.unwrap().unwrap()["status"] == "shutdown"
            );
            until("it is down", || lab.status("web")["state"] == "stopped");
        } else {
            assert!(!runs(qemu), "{method}");
            assert_eq!(lab.status("web")["state"], "stopped", "{method}");
            let reason = if method == "Kill" { "killed" } else { "suspended" };
            assert_eq!(lab.last_reason("web"), reason);
        }
    }
}

#[test]
fn stopped_qemu_is_a_bounded_error() {
    let Some(lab) = running("boot.qcow2", "") else { return };
    let qemu = lab.qemu_pid("web");
    signal(qemu, SIGSTOP);
    let asked = ["io.qvm.Vm.Pause", "io.systemd.MachineInstance.Pause", "io.qvm.Vm.Reset"];
    let asked: Vec<_> = asked.into_iter().map(|method| ask(&lab, method)).collect();
    let mut control = Control::open(&lab);
    let memory = thread::spawn(move || {
        let bytes = json!({ "bytes": 32 << 20 });
        control.try_call("io.systemd.MachineInstance.SetMemory", &bytes)
    });
    let cli = lab.qvm(&["pause", "web"]);
    assert_eq!(cli.status.code(), Some(75), "{cli:?}");
    for asked in asked {
        let (answer, took) = asked.join().unwrap();
        assert_eq!(error(answer), "io.qvm.Vm.Unconfirmed");
        assert!(took < BOUND, "{took:?}");
    }
    assert_eq!(error(memory.join().unwrap()), "io.qvm.Vm.Unconfirmed");
    let target = || Control::open(&lab).ok("io.qvm.Vm.Status")["status"]["memTargetBytes"].clone();
    assert_eq!(target(), Value::Null);
    // The loop is not blocked: requests that do not need QEMU are answered.
    assert_eq!(Control::open(&lab).word(), "running");
    // According to the reply, the command takes effect when QEMU answers again.
    signal(qemu, SIGCONT);
    until("the pause has taken effect", || Control::open(&lab).word() == "paused");
    until("the target has taken effect", || target() == 32 << 20);
    lab.ok(&["resume", "web"]);
}

#[test]
fn kill_ends_a_waiting_pause() {
    let Some(lab) = running("boot.qcow2", "") else { return };
    let qemu = lab.qemu_pid("web");
    signal(qemu, SIGSTOP);
    let pause = ask(&lab, "io.qvm.Vm.Pause");
    // The next request on another connection is handled after the first one.
    until("the pause is with QEMU", || Control::open(&lab).word() == "running");
    let kill = ask(&lab, "io.qvm.Vm.Kill");
    let (answer, _) = pause.join().unwrap();
    assert_eq!(error(answer), "io.qvm.Vm.NotNow");
    let (answer, took) = kill.join().unwrap();
    assert!(answer.unwrap().is_ok() && took < BOUND, "{took:?}");
    assert!(!runs(qemu));
}

#[test]
fn reexec_replies_first() {
    let Some(lab) = running("boot.qcow2", "") else { return };
    let qemu = lab.qemu_pid("web");
    let supervisor: i32 = lab.status("web")["supervisorPid"].as_i64().unwrap().try_into().unwrap();
    signal(qemu, SIGSTOP);
    let pause = ask(&lab, "io.qvm.Vm.Pause");
    until("the pause is with QEMU", || Control::open(&lab).word() == "running");
    let mut kept = Control::open(&lab);
    assert_eq!(kept.word(), "running");
    signal(supervisor, SIGUSR2);
    signal(qemu, SIGCONT);
    let (answer, _) = pause.join().unwrap();
    assert_eq!(answer, Some(Ok(json!({}))));
    // Clients of the replaced program lose the connection without a wrong reply.
    until("the old program is gone", || {
        kept.try_call("io.systemd.MachineInstance.Describe", &json!({})).is_none()
    });
    lab.wait_state("web", "paused");
    let status = lab.status("web");
    assert_eq!((status["state"].clone(), status["pid"].clone()), (json!("paused"), json!(qemu)));
    assert_eq!(status["supervisorPid"], supervisor);
}

/// Runs `qvm status` and `qvm list` repeatedly until it is stopped; every reply is complete.
fn watched(
    lab: &Arc<Lab>,
    verb: &'static str,
    end: &Arc<AtomicBool>,
    qemu: i32,
) -> JoinHandle<usize> {
    let (lab, end) = (lab.clone(), end.clone());
    thread::spawn(move || {
        let mut looks = 0;
        while !end.load(Ordering::Relaxed) {
            let output = lab.qvm(&[verb, "--json"]);
            let all: Value = serde_json::from_slice(&output.stdout).unwrap();
            let status = &all[0];
            let state = status["state"].as_str().unwrap();
            // During the replacement, its supervisor reports it.
            assert!(["running", "starting"].contains(&state), "{verb}: {status}");
            assert_eq!(status["pid"], qemu, "{verb}: {status}");
            looks += 1;
        }
        looks
    })
}

#[test]
fn status_is_complete_during_adoptions() {
    let Some(lab) = running("boot.qcow2", "") else { return };
    let (lab, end) = (Arc::new(lab), Arc::new(AtomicBool::new(false)));
    let qemu = lab.qemu_pid("web");
    let watchers = ["status", "list"].map(|verb| watched(&lab, verb, &end, qemu));
    let supervisor = || -> i32 {
        let mut pid = None;
        until("a supervisor has it", || {
            let status = lab.status("web");
            pid = status["supervisorPid"].as_i64().filter(|_| status["state"] == "running");
            pid.is_some()
        });
        pid.unwrap().try_into().unwrap()
    };
    for _ in 0..20 {
        let pid = supervisor();
        signal(pid, SIGUSR2);
        thread::sleep(Duration::from_millis(30));
    }
    for _ in 0..20 {
        signal(supervisor(), SIGKILL);
        lab.ok(&["start", "web"]);
    }
    end.store(true, Ordering::Relaxed);
    for watcher in watchers {
        assert!(watcher.join().unwrap() > 20);
    }
    assert_eq!(lab.qemu_pid("web"), qemu);
}
