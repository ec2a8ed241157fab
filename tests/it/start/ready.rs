//! Readiness: each kind of `ready` on real guests, and guests that never become ready.

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    os::unix::net::UnixDatagram,
};

use qvm::value::ErrorCode;

use crate::lab::{Lab, guest, notes_of, signal, until};

const SIGTERM: i32 = 15;
/// A readiness that a guest without an agent never reaches, with a long time limit.
const NEVER: &str = "ready = \"agent\"\nreadyTimeoutSec = 600\n";

fn lab(image: &str, more: &str) -> Option<Lab> {
    let image = guest(image)?;
    let lab = Lab::new();
    lab.vm("web", &image, more);
    Some(lab)
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn is_ready(lab: &Lab, word: &str) -> bool {
    lab.status("web")["ready"] == word
}

#[test]
fn running_guest_is_ready() {
    let Some(lab) = lab("boot.qcow2", "") else { return };
    lab.ok(&["start", "web"]);
    assert!(is_ready(&lab, "yes"));
    assert!(lab.ok(&["status", "web"]).contains("\nready:       yes\n"));
    lab.ok(&["stop", "web"]);
    assert!(lab.status("web")["ready"].is_null());
}

#[test]
fn start_returns_when_agent_answers() {
    let Some(lab) = lab("tiny.qcow2", "mem = \"256M\"\nready = \"agent\"\n") else { return };
    assert_eq!(lab.ok(&["start", "web"]), "web: running\n");
    lab.ok(&["exec", "web", "--", "true"]);
    assert!(is_ready(&lab, "yes"));
}

#[test]
fn start_returns_when_port_accepts() {
    let port = free_port();
    let more = format!("mem = \"256M\"\nready = \"tcp:7\"\nforward = [\"{port}:7\"]\n");
    let Some(lab) = lab("tiny.qcow2", &more) else { return };
    lab.ok(&["start", "web"]);
    assert!(is_ready(&lab, "yes"));
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(crate::lab::LONG)).unwrap();
    stream.write_all(b"hello").unwrap();
    let mut back = [0; 5];
    stream.read_exact(&mut back).unwrap();
    assert_eq!(&back, b"hello");
}

/// QEMU listens on the port and accepts connections long before the guest does, or although it
/// never does.
#[test]
fn connection_only_to_qemu_is_not_ready() {
    let port = free_port();
    let more = format!("ready = \"tcp:7\"\nreadyTimeoutSec = 5\nforward = [\"{port}:7\"]\n");
    let Some(lab) = lab("boot.qcow2", &more) else { return };
    lab.ok(&["start", "web"]);
    assert!(TcpStream::connect(("127.0.0.1", port)).is_ok());
    assert!(is_ready(&lab, "no"));
}

#[test]
fn late_guest_continues_with_a_note() {
    let more = "ready = \"agent\"\nreadyTimeoutSec = 1\n";
    let Some(mut lab) = lab("boot.qcow2", more) else { return };
    let one = lab.run("web");
    until("it is given up", || is_ready(&lab, "no"));
    let status = lab.status("web");
    assert_eq!(status["state"], "running");
    assert_eq!(notes_of(&status).iter().filter(|note| *note == "not-ready ready").count(), 1);
    // The next supervisor neither waits for it again nor forgets the failure.
    lab.supervisor(one).kill().unwrap();
    lab.supervisor(one).wait().unwrap();
    lab.run("web");
    lab.wait_state("web", "running");
    // Until it answers, readiness is not reported.
    until("it is known to the next one", || is_ready(&lab, "no"));
    lab.ok(&["stop", "web"]);
}

#[test]
fn late_guest_fails_the_start() {
    let more = "ready = \"agent\"\nreadyTimeoutSec = 1\nreadyFailure = \"fail\"\n";
    let Some(mut lab) = lab("boot.qcow2", more) else { return };
    let start = lab.qvm(&["start", "web"]);
    lab.refusal(&start).is(ErrorCode::NotReady, 1).golden("start", "not-ready");
    assert!(lab.console("web").contains("BOOT-GUEST-POWEROFF"), "it was not asked");
    assert_eq!(lab.last_reason("web"), "not-ready");
    assert_eq!(lab.status("web")["state"], "failed");
    let one = lab.run("web");
    assert_eq!(lab.exit_code(one), Some(1));
}

#[test]
fn service_manager_waits_for_readiness() {
    let more = "mem = \"256M\"\nready = \"agent\"\nreadyTimeoutSec = 600\n";
    let Some(lab) = lab("tiny.qcow2", more) else { return };
    let path = lab.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(crate::lab::LONG)).unwrap();
    let mut child = lab.command(&["run", "web"]).env("NOTIFY_SOCKET", &path).spawn().unwrap();
    let next = || {
        let mut buffer = [0; 4096];
        let count = socket.recv(&mut buffer).unwrap();
        String::from_utf8_lossy(&buffer[..count]).into_owned()
    };
    let mut before = String::new();
    while !before.contains("READY=1") {
        before.push_str(&next());
    }
    // 600 s, and the further time of the stop ladder.
    assert!(before.contains("EXTEND_TIMEOUT_USEC=610000000\n"), "{before}");
    assert!(before.contains("STATUS=running, not ready yet: waiting for agent\n"), "{before}");
    assert!(before.ends_with("READY=1\nSTATUS=running\n"), "{before}");
    assert!(is_ready(&lab, "yes"));
    signal(child.id().cast_signed(), SIGTERM);
    while !before.contains("STOPPING=1") {
        before.push_str(&next());
    }
    assert!(child.wait().unwrap().success());
    assert_eq!(before.matches("READY=1").count(), 1);
}

#[test]
fn stop_works_while_awaiting_readiness() {
    for by_signal in [true, false] {
        let Some(mut lab) = lab("boot.qcow2", NEVER) else { return };
        let one = lab.run("web");
        lab.says("web", "BOOT-GUEST-READY", 1);
        until("it waits", || is_ready(&lab, "waiting"));
        match by_signal {
            true => signal(lab.supervisor(one).id().cast_signed(), SIGTERM),
            false => drop(lab.ok(&["stop", "web"])),
        }
        assert_eq!(lab.exit_code(one), Some(0));
        assert_eq!(lab.last_reason("web"), "stopped");
        assert!(lab.console("web").contains("BOOT-GUEST-POWEROFF"));
    }
}

#[test]
fn next_supervisor_continues_awaiting() {
    let Some(mut lab) = lab("boot.qcow2", NEVER) else { return };
    let one = lab.run("web");
    until("it waits", || is_ready(&lab, "waiting"));
    lab.supervisor(one).kill().unwrap();
    lab.supervisor(one).wait().unwrap();
    let two = lab.run("web");
    until("it waits again", || is_ready(&lab, "waiting"));
    lab.ok(&["stop", "web"]);
    assert_eq!(lab.exit_code(two), Some(0));
}

/// The guest gets a fake `cloud-init`, and a successor of its supervisor queries it.
#[test]
fn cloud_init_is_polled_until_done() {
    let more = "mem = \"256M\"\nready = \"cloud-init\"\nreadyTimeoutSec = 600\n[cloudInit]\n";
    let Some(mut lab) = lab("tiny.qcow2", more) else { return };
    let mut one = lab.run("web");
    lab.says("web", "QVM-TINY READY", 1);
    // A guest without cloud-init never becomes ready.
    until("it is given up", || is_ready(&lab, "no"));
    assert!(lab.has_note("web", "not-ready ready"), "{:?}", lab.notes("web"));
    for (count, (last, word, note)) in [
        ("echo status: done", "yes", ""),
        ("echo status: done; exit 2", "yes", "is done, with errors"),
        ("echo status: error; exit 1", "no", "cloud-init failed"),
        ("echo status: disabled", "no", "cloud-init is disabled"),
    ]
    .into_iter()
    .enumerate()
    {
        let says = |lab: &Lab, text: &str, count: usize| {
            let script = format!(
                "sh printf '#!/bin/sh\\n%s\\n' '{text}' >/bin/ci; chmod 755 /bin/ci; \
                 mv /bin/ci /bin/cloud-init\n"
            );
            lab.types("web", script.as_bytes());
            lab.says("web", "QVM-TINY EXIT 0", count);
        };
        says(&lab, "echo status: running", 2 * count + 1);
        lab.supervisor(one).kill().unwrap();
        lab.supervisor(one).wait().unwrap();
        // Like the record of a supervisor that dies while it waits.
        let record = lab.runtime("web", "record.json");
        let mut written: serde_json::Value =
            serde_json::from_slice(&std::fs::read(&record).unwrap()).unwrap();
        written["ready"] = false.into();
        written["missed"] = serde_json::Value::Null;
        std::fs::write(&record, written.to_string()).unwrap();
        one = lab.run("web");
        until("it waits", || is_ready(&lab, "waiting"));
        says(&lab, last, 2 * count + 2);
        until("it is over", || is_ready(&lab, word));
        let notes = lab.status("web")["notes"].to_string();
        assert!(notes.contains(note), "{last}: {notes}");
    }
}
