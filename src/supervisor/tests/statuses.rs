//! The status in each phase of a VM, and what a watchdog of the service manager sees.

use serde_json::json;

use super::{
    Answer, Host, Unit, record,
    scene::{Scene, TEXT},
};
use crate::{
    control::types::{Ready, State},
    life::Guest,
    store::record::Record,
    supervisor::{input::Input, running::event::VmEvent},
    sys::pidfd::Exit,
    value::{Note, NoteCode},
};

#[tokio::test]
async fn status_of_a_starting_vm_has_no_guest() {
    let text = "mem = \"1G\"\nvcpu = 3\nautostart = true\ndescription = \"d\"\n[nic.net]\n\
                bridge = \"br0\"\nmac = \"52:54:00:00:00:01\"\nip = \"10.0.0.5/24\"\n";
    let mut scene = Scene::new(text);
    scene.until_admitting();
    let status = scene.supervisor.status();
    assert_eq!((status.state, status.ready), (State::Starting, None));
    assert_eq!((status.vcpu, status.mem_bytes), (3, 1 << 30));
    assert_eq!((status.pid, status.started_at, status.qemu_version), (None, None, None));
    assert_eq!((status.accel, status.machine, status.isolation), (None, None, None));
    assert_eq!(status.supervisor_pid, Some(std::process::id()));
    // What the VM file names is known before QEMU runs.
    assert_eq!(status.mac.as_deref(), Some("52:54:00:00:00:01"));
    assert_eq!(status.ip.as_deref(), Some("10.0.0.5/24"));
    assert_eq!(status.tap.as_deref(), Some("qvm-web"));
    assert_eq!(status.description.as_deref(), Some("d"));
    assert!(status.autostart && !status.orphan);
}

#[tokio::test]
async fn status_of_a_running_vm_is_that_of_its_record() {
    let own = Record {
        mac: Some("52:54:00:aa:bb:cc".into()),
        tap: Some("tap7".into()),
        started_at: "2026-01-01T00:00:00Z".into(),
        qemu_version: "9.9.9".into(),
        machine: "pc-q35-9.9".into(),
        accel: "kvm".into(),
        ..record()
    };
    let (mut scene, peer) = Scene::launched(TEXT, Guest::Running, own).await;
    let status = scene.supervisor.status();
    assert_eq!((status.state, status.ready), (State::Running, Some(Ready::Yes)));
    assert_eq!(status.mac.as_deref(), Some("52:54:00:aa:bb:cc"));
    assert_eq!(status.tap.as_deref(), Some("tap7"));
    assert_eq!(status.started_at.as_deref(), Some("2026-01-01T00:00:00Z"));
    assert_eq!(status.qemu_version.as_deref(), Some("9.9.9"));
    assert_eq!(status.machine.as_deref(), Some("pc-q35-9.9"));
    assert_eq!(status.accel.as_deref(), Some("kvm"));
    // The balloon reports by itself.
    assert_eq!(status.mem_actual_bytes, None);
    peer.send_event("BALLOON_CHANGE", json!({ "actual": 7 << 20 })).await;
    scene.until(|scene| scene.supervisor.status().mem_actual_bytes == Some(7 << 20)).await;
}

#[tokio::test]
async fn age_of_the_state_changes_with_it() {
    let (mut scene, peer) = Scene::running(TEXT).await;
    let since = scene.supervisor.status().since;
    peer.send_event("RTC_CHANGE", json!({ "offset": 1 })).await;
    peer.send_event("STOP", json!({})).await;
    scene.until(|scene| scene.state() == State::Paused).await;
    assert_ne!(scene.supervisor.status().since, since);
}

#[tokio::test]
async fn guest_that_is_waited_for_is_not_ready() {
    let text = format!("{TEXT}ready = \"agent\"\n");
    let (mut scene, peer) = Scene::launched(&text, Guest::Running, record()).await;
    // An agent that does not answer, until it does.
    assert_eq!(scene.supervisor.status().ready, Some(Ready::Waiting));
    let (reply, refused) = tokio::sync::oneshot::channel();
    let limit = std::time::Duration::from_secs(9);
    let freeze = crate::control::types::Request::Freeze { thaw_after: limit, reply };
    scene.supervisor.handle_input(Input::Request(freeze));
    assert!(refused.await.unwrap().is_err(), "a guest that is not ready is not frozen");
    scene.until(|scene| scene.supervisor.status().ready == Some(Ready::Yes)).await;
    peer.calls.until("guest-ping").await;
    assert!(scene.published().contains(&"QVM_READY".to_owned()));
}

#[tokio::test]
async fn missed_readiness_of_an_earlier_run_is_shown() {
    let own = Record { missed: Some("no answer".into()), ready: true, ..record() };
    let text = format!("{TEXT}ready = \"agent\"\n");
    let (mut scene, _peer) = Scene::launched(&text, Guest::Running, own).await;
    scene.supervisor.feed(crate::life::Event::GuestNotReady("no answer".into()));
    let status = scene.supervisor.status();
    if status.state == State::Running {
        assert_eq!(status.ready, Some(Ready::No));
        let is_named =
            |note: &Note| note.code == NoteCode::NotReady && note.text.contains("no answer");
        assert!(status.notes.iter().any(is_named), "{:?}", status.notes);
    }
}

#[tokio::test]
async fn status_of_an_ended_vm_has_its_end() {
    for (code, state) in [(0, State::Failed), (1, State::Failed)] {
        let (mut scene, _peer) = Scene::running(TEXT).await;
        scene.exit(Exit::Code(code));
        let status = scene.supervisor.status();
        assert_eq!(status.state, state, "{code}");
        assert_eq!(status.last_stop, status.ends.first().cloned());
        assert_eq!((status.ready, status.pid), (None, None));
    }
}

#[tokio::test]
async fn watchdog_of_a_starting_unit_is_fed() {
    let unit = Unit::new();
    let mut scene = Scene::on(Host::in_unit(&unit), TEXT);
    assert!(scene.supervisor.ctx.notifier().watchdog_interval().is_some());
    scene.supervisor.on_watchdog_beat();
    unit.until("WATCHDOG=1").await;
}

#[tokio::test]
async fn watchdog_of_a_running_unit_is_fed_by_qemu() {
    let unit = Unit::new();
    let (mut scene, peer) = Scene::running_on(Host::in_unit(&unit), TEXT).await;
    unit.until("READY=1").await;
    peer.script.on("query-status", Answer::Return(json!({ "status": "running" })));
    scene.supervisor.on_watchdog_beat();
    let steps = async {
        loop {
            scene.step().await;
        }
    };
    tokio::select! {
        messages = unit.until("WATCHDOG=1") => assert!(!messages.is_empty()),
        () = steps => {}
    }
    assert!(peer.commands.names().contains(&"query-status".to_owned()));
}

#[tokio::test]
async fn silent_qemu_is_trouble() {
    let (mut scene, peer) = Scene::running(TEXT).await;
    peer.script.on("query-status", Answer::Silence);
    scene.supervisor.on_watchdog_beat();
    let silent = crate::supervisor::running::event::WatchdogEvent::Silent;
    scene.supervisor.handle_vm_event(VmEvent::Watchdog(silent));
    let status = scene.supervisor.status();
    assert_eq!(status.trouble.as_deref(), Some("monitor-silent"));
    assert!(!status.notes.is_empty());
    let recovered = crate::supervisor::running::event::WatchdogEvent::Recovered;
    scene.supervisor.handle_vm_event(VmEvent::Watchdog(recovered));
    assert_eq!(scene.supervisor.status().trouble, None);
}

#[tokio::test]
async fn taps_and_newer_qemu_are_noted() {
    let (mut scene, _peer) = Scene::running(TEXT).await;
    let note = Note::new(NoteCode::TapOffBridge, "a tap");
    let report = crate::supervisor::running::event::TapsReport {
        notes: vec![note.clone()],
        events: vec![("QVM_TAP_LOST", json!({ "tap": "qvm-web" }))],
    };
    scene.supervisor.handle_vm_event(VmEvent::Taps(report));
    assert!(scene.supervisor.status().notes.contains(&note));
    assert!(scene.published().contains(&"QVM_TAP_LOST".to_owned()));
    scene.supervisor.handle_vm_event(VmEvent::InstalledQemu("99.0.0".into()));
    let pending = scene.supervisor.status().pending;
    assert!(pending.iter().any(|one| one.key == "qemu"), "{pending:?}");
}
