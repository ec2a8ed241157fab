//! Steps of the loop: a launched QEMU process, its events, its exit, and the public state.

use serde_json::json;

use super::{
    Answer, record,
    scene::{Scene, TEXT},
};
use crate::{
    control::types::State,
    life::{self, Guest},
    store::record::Record,
    supervisor::{Supervisor, input::Input, outcome::Outcome, running::event::VmEvent},
    sys::{pidfd::Exit, signal::Signal},
    value::NoteCode,
};

#[tokio::test]
async fn launched_guest_runs_and_is_ready() {
    let (mut scene, _peer) = Scene::running(TEXT).await;
    assert_eq!(scene.state(), State::Running);
    let status = scene.supervisor.status();
    assert_eq!(status.pid, Some(std::process::id()));
    assert_eq!(status.ready, Some(crate::control::types::Ready::Yes));
    assert_eq!(status.mem_bytes, 1 << 30);
    let published = scene.published();
    assert!(published.contains(&"QVM_READY".to_owned()), "{published:?}");
    assert!(scene.supervisor.start.is_none());
}

#[tokio::test]
async fn stop_and_resume_events_change_the_state() {
    let (mut scene, peer) = Scene::running(TEXT).await;
    peer.send_event("STOP", json!({})).await;
    scene.until(|scene| scene.state() == State::Paused).await;
    peer.send_event("RESUME", json!({})).await;
    scene.until(|scene| scene.state() == State::Running).await;
    let published = scene.published();
    for event in ["STOP", "RESUME", "QVM_STATE"] {
        assert!(published.contains(&event.to_owned()), "{published:?}");
    }
}

#[tokio::test]
async fn exit_of_qemu_ends_the_run() {
    let (mut scene, _peer) = Scene::running(TEXT).await;
    scene.supervisor.handle_vm_event(VmEvent::Exited { exit: Exit::Code(1), oom: false });
    assert!(scene.supervisor.vm.is_none());
    assert_eq!(scene.supervisor.history.outcome(), Some(&Outcome::Exit(1)));
    assert_eq!(scene.state(), State::Failed);
    let last = scene.supervisor.history.last_end().unwrap();
    assert!(last.failed, "{last:?}");
    scene.supervisor.ctx.lanes().run.flush().await.unwrap();
    assert!(!scene.supervisor.ctx.paths().record().exists());
    let status = scene.supervisor.status();
    assert_eq!((status.pid, status.mem_actual_bytes, status.vnc), (None, None, None));
}

#[tokio::test]
async fn events_of_an_exited_qemu_are_lost() {
    let (mut scene, peer) = Scene::running(TEXT).await;
    peer.send_event("STOP", json!({})).await;
    scene.supervisor.handle_vm_event(VmEvent::Exited { exit: Exit::Code(0), oom: false });
    // A queued event has no VM any longer.
    let event = Supervisor::next_vm_event(&mut scene.supervisor.vm);
    let none = tokio::time::timeout(std::time::Duration::from_millis(50), event).await;
    assert!(none.is_err(), "{none:?}");
    assert_ne!(scene.state(), State::Paused);
}

#[tokio::test]
async fn guest_shutdown_makes_qemu_quit() {
    let (mut scene, peer) = Scene::running(TEXT).await;
    peer.send_event("SHUTDOWN", json!({ "guest": true, "reason": "guest-shutdown" })).await;
    scene.until(|scene| scene.state() == State::Stopping).await;
    peer.commands.until("quit").await;
    scene.supervisor.handle_vm_event(VmEvent::Exited { exit: Exit::Code(0), oom: false });
    assert_eq!(scene.supervisor.history.outcome(), Some(&Outcome::Exit(0)));
    assert_eq!(scene.supervisor.history.last_end().unwrap().reason, "guest-shutdown");
}

#[tokio::test]
async fn sigterm_presses_the_power_button() {
    let (mut scene, peer) = Scene::running(TEXT).await;
    scene.supervisor.handle_input(Input::Signal(Signal::Stop));
    assert_eq!(scene.state(), State::Stopping);
    peer.commands.until("system_powerdown").await;
    peer.calls.until("guest-shutdown").await;
    // A second SIGTERM shortens the stop.
    scene.supervisor.handle_input(Input::Signal(Signal::Interrupt));
    peer.commands.until("quit").await;
}

#[tokio::test]
async fn host_shutdown_stops_the_guest() {
    let (mut scene, peer) = Scene::running(TEXT).await;
    scene.supervisor.handle_input(Input::StopSignal { host_down: false });
    assert_eq!(scene.state(), State::Stopping);
    peer.commands.until("system_powerdown").await;
}

#[tokio::test]
async fn adopted_paused_guest_is_queried() {
    let (mut scene, peer) = Scene::launched(TEXT, Guest::Paused, record()).await;
    assert_eq!(scene.state(), State::Paused);
    peer.commands.until("query-status").await;
    scene.supervisor.handle_input(Input::HostSlept(std::time::Duration::from_secs(9)));
    peer.calls.until("guest-set-time").await;
}

#[tokio::test]
async fn full_disk_is_reported_and_resumed() {
    let (mut scene, peer) = Scene::running(TEXT).await;
    let node = crate::machine::device::node(&"root".parse().unwrap());
    let blocks = json!([{ "io-status": "nospace", "inserted": { "node-name": node } }]);
    let status = json!({ "status": "io-error", "running": false });
    peer.script.on("query-block", Answer::Return(blocks));
    peer.script.on("query-status", Answer::Return(status));
    peer.send_event("STOP", json!({})).await;
    scene.until(|scene| scene.supervisor.status().trouble.is_some()).await;
    assert_eq!(scene.supervisor.status().trouble.as_deref(), Some("no-space"));
    // The temporary directory has space.
    scene.until(|_| peer.commands.names().iter().any(|name| name == "cont")).await;
}

#[tokio::test]
async fn lost_connection_is_reestablished() {
    let (mut scene, peer) = Scene::running(TEXT).await;
    let paths = scene.supervisor.ctx.paths().clone();
    drop(peer);
    for socket in [paths.qmp_socket(), paths.agent_socket()] {
        std::fs::remove_file(socket).unwrap();
    }
    let reconnected = super::peer_at(&paths);
    let status = json!({ "status": "paused", "running": false });
    reconnected.script.on("query-status", Answer::Return(status));
    scene.until(|scene| scene.state() == State::Paused).await;
}

#[tokio::test]
async fn reset_clears_a_freeze() {
    let frozen = Some("2999-01-01T00:00:00Z".to_owned());
    let record = Record { frozen_until: frozen, ..record() };
    let (mut scene, peer) = Scene::launched(TEXT, Guest::Running, record).await;
    peer.send_event("RESET", json!({ "guest": true, "reason": "guest-reset" })).await;
    let is_thawed =
        |scene: &Scene| scene.supervisor.vm.as_ref().unwrap().record().frozen_until.is_none();
    scene.until(is_thawed).await;
    assert_eq!(scene.state(), State::Running);
}

#[tokio::test]
async fn changed_vm_file_is_compared() {
    let (mut scene, _peer) = Scene::running(TEXT).await;
    let settings = scene.supervisor.ctx.settings();
    let file = settings.layout.vm_file(&settings.name);
    std::fs::write(&file, TEXT.replace("1G", "2G")).unwrap();
    scene.supervisor.handle_input(Input::FileChanged);
    scene.until(|scene| !scene.supervisor.status().pending.is_empty()).await;
    assert_eq!(scene.supervisor.status().pending[0].key, "mem");
    std::fs::write(&file, "nonsense").unwrap();
    scene.supervisor.handle_input(Input::FileChanged);
    let is_noted = |scene: &Scene| {
        scene.supervisor.status().notes.iter().any(|note| note.code == NoteCode::VmFileInvalid)
    };
    scene.until(is_noted).await;
    std::fs::remove_file(&file).unwrap();
    scene.supervisor.handle_input(Input::FileChanged);
    scene.until(|scene| scene.supervisor.status().orphan).await;
}

#[tokio::test]
async fn pending_change_makes_a_reboot_wait() {
    let (mut scene, peer) = Scene::running(TEXT).await;
    let settings = scene.supervisor.ctx.settings();
    let file = settings.layout.vm_file(&settings.name);
    std::fs::write(&file, format!("{TEXT}vcpu = 3\n")).unwrap();
    scene.supervisor.handle_input(Input::FileChanged);
    scene.until(|scene| !scene.supervisor.status().pending.is_empty()).await;
    peer.commands.until("set-action").await;
    assert_eq!(peer.commands.arguments("set-action")["reboot"], json!("shutdown"));
}

#[tokio::test]
async fn reexec_waits_for_writes() {
    let (mut scene, _peer) = Scene::running(TEXT).await;
    scene.supervisor.handle_input(Input::Signal(Signal::Reexec));
    scene.until(|scene| scene.supervisor.history.outcome().is_some()).await;
    assert_eq!(scene.supervisor.history.outcome(), Some(&Outcome::Reexec));
}

#[tokio::test]
async fn starting_supervisor_refuses_reexec() {
    let mut scene = Scene::new(TEXT);
    scene.supervisor.handle_input(Input::Signal(Signal::Reexec));
    scene.supervisor.handle_input(Input::Written(true));
    assert_eq!(scene.supervisor.history.outcome(), None);
    assert_eq!(scene.state(), State::Starting);
}

#[tokio::test]
async fn hung_storage_prevents_reexec() {
    let (mut scene, _peer) = Scene::running(TEXT).await;
    scene.supervisor.handle_input(Input::Written(false));
    assert_eq!(scene.supervisor.history.outcome(), None);
}

#[tokio::test]
async fn end_removes_socket_and_reservation() {
    let (mut scene, _peer) = Scene::running(TEXT).await;
    let paths = scene.supervisor.ctx.paths().clone();
    std::fs::write(paths.control_socket(), "").unwrap();
    scene.supervisor.feed(life::Event::QemuExited(life::QemuExit::Code(0)));
    scene.supervisor.leave().await;
    assert!(!paths.control_socket().exists());
}

#[tokio::test]
async fn watchdog_queries_qemu() {
    let (mut scene, peer) = Scene::running(TEXT).await;
    scene.supervisor.on_watchdog_beat();
    peer.commands.until("query-status").await;
    let mut idle = Scene::new(TEXT);
    idle.supervisor.on_watchdog_beat();
    assert!(idle.supervisor.vm.is_none());
}

#[tokio::test]
async fn unknown_operators_are_noted() {
    let mut scene = Scene::new(&format!("{TEXT}operators = [\"nosuchuser-qvm\"]\n"));
    scene.supervisor.begin(vec![]);
    let is_noted = |scene: &Scene| {
        scene
            .supervisor
            .status()
            .notes
            .iter()
            .any(|note| note.is_of(NoteCode::UnknownOperator, "operators"))
    };
    scene.until(is_noted).await;
}
