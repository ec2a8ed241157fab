//! The start through the loop: phases and their reports, a previous QEMU process, a relaunch.

use std::{fs, process::Child};

use serde_json::json;
use tokio::{net::UnixListener, sync::oneshot};

use super::{
    Answer, Host, Peer, Unit, peer_at, record,
    requests::command,
    scene::{Scene, TEXT},
};
use crate::{
    control::types::{Command, Refusal, Request, State},
    life::{self, Boot, Fault, Life, Mode, Phase, StartEvent, StartFailure},
    store::{identity::Identity, saved_header::Saved, saved_state},
    supervisor::{input::Input, outcome::Outcome, start::Report},
    sys::{
        pidfd::{self, Exit},
        signal::Signal,
    },
};

/// Kills the process also where the test fails.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A QEMU process of an earlier supervisor, started from this VM file, and its sockets.
fn previous(scene: &Scene, text: &str) -> (Killed, Peer, UnixListener) {
    let paths = scene.supervisor.ctx.paths();
    let child = std::process::Command::new("sleep").arg("600").spawn().unwrap();
    let mut record = record();
    record.pid = child.id();
    record.start_time = pidfd::start_time(child.id()).unwrap();
    record.boot_id = pidfd::boot_id().unwrap();
    record.write(paths, text).unwrap();
    let peer = peer_at(paths);
    peer.script.on("query-status", Answer::Return(json!({ "status": "running" })));
    let serial = UnixListener::bind(paths.serial_socket()).unwrap();
    (Killed(child), peer, serial)
}

/// Begins the run, as `supervise` does.
fn begin(scene: &mut Scene) {
    let (life, actions) = Life::new(Mode::Run);
    scene.supervisor.life = life;
    scene.supervisor.begin(actions);
}

fn is_in(scene: &Scene, phase: Phase) -> bool {
    *scene.supervisor.life.state() == life::State::Starting(phase)
}

fn outcome(scene: &Scene) -> Option<&Outcome> {
    scene.supervisor.history.outcome()
}

#[tokio::test]
async fn start_without_qemu_fails() {
    let mut scene = Scene::new(TEXT);
    begin(&mut scene);
    assert!(is_in(&scene, Phase::FindingPrevious));
    scene.until(|scene| outcome(scene).is_some()).await;
    let Some(Outcome::NotStarted(failure)) = outcome(&scene) else {
        panic!("{:?}", outcome(&scene));
    };
    assert!(failure.why.text.contains("qemu-system-x86_64"), "{}", failure.why);
    assert_eq!(scene.state(), State::Failed);
    let end = scene.supervisor.history.last_end().unwrap();
    assert_eq!(end.reason, "start-failed");
}

#[tokio::test]
async fn progress_reaches_the_service_manager() {
    let unit = Unit::new();
    let mut scene = Scene::on(Host::in_unit(&unit), TEXT);
    scene.supervisor.on_start_report(Report::Progress("copying the disk".into()));
    unit.until("STATUS=copying the disk").await;
    unit.until("EXTEND_TIMEOUT_USEC=").await;
}

#[tokio::test]
async fn waiting_start_is_explained() {
    let mut scene = Scene::new(TEXT);
    scene.until_admitting();
    for _ in 0..2 {
        scene.supervisor.on_start_report(Report::Waiting("waits for memory".into()));
        let notes = scene.supervisor.status().notes;
        assert!(notes.len() == 1 && notes[0].text == "waits for memory", "{notes:?}");
    }
    scene.supervisor.on_start_report(Report::Admitted(None));
    assert!(scene.supervisor.status().notes.is_empty());
    assert!(is_in(&scene, Phase::Preparing(Boot::Cold)));
}

#[tokio::test]
async fn refused_admission_is_explained_by_its_end() {
    let mut scene = Scene::new(TEXT);
    scene.until_admitting();
    scene.supervisor.on_start_report(Report::Waiting("waits for memory".into()));
    let failure = StartFailure { fault: Fault::InsufficientMemory, why: "not enough".into() };
    let event = StartEvent::Failed { failure, leftover: life::Leftover::None };
    scene.supervisor.on_start_report(Report::Ended(event));
    assert!(scene.supervisor.status().notes.is_empty());
    let Some(Outcome::NotStarted(failure)) = outcome(&scene) else {
        panic!("{:?}", outcome(&scene));
    };
    assert_eq!(failure.fault, Fault::InsufficientMemory);
}

#[tokio::test]
async fn canceled_start_does_not_wait() {
    let mut scene = Scene::new(TEXT);
    scene.until_admitting();
    scene.supervisor.handle_input(Input::Signal(Signal::Stop));
    scene.supervisor.on_start_report(Report::Waiting("waits for memory".into()));
    assert!(scene.supervisor.status().notes.is_empty());
    assert_eq!(scene.state(), State::Stopping);
    let aborted = StartEvent::Aborted(life::Leftover::None);
    scene.supervisor.on_start_report(Report::Ended(aborted));
    assert_eq!(outcome(&scene), Some(&Outcome::Exit(0)));
    assert_eq!(scene.supervisor.history.last_end().unwrap().reason, "start-cancelled");
}

#[tokio::test]
async fn notes_of_the_preparation_are_the_vms() {
    let mut scene = Scene::new(TEXT);
    scene.until_admitting();
    scene.supervisor.on_start_report(Report::Admitted(None));
    let identity = Identity {
        uuid: "6f1ed002-ab5d-42b7-8d6e-5e1c2f3a4b5c".into(),
        instance_id: "web-1".into(),
        machine: "pc-q35-8.2".into(),
        uid: None,
        macs: std::collections::BTreeMap::new(),
        hostname: None,
    };
    let note = crate::value::Note::new(crate::value::NoteCode::DiskNotShrunk, "a note");
    let report = Report::Prepared { notes: vec![note.clone()], identity };
    scene.supervisor.on_start_report(report);
    assert_eq!(*scene.supervisor.status().notes, [note]);
    // Nothing was prepared by a phase of this start: the launch is refused.
    let Some(Outcome::NotStarted(failure)) = outcome(&scene) else {
        panic!("{:?}", outcome(&scene));
    };
    assert_eq!(failure.fault, Fault::Host);
}

#[tokio::test]
async fn previous_qemu_is_adopted_with_its_vm_file() {
    let mut scene = Scene::new("mem = \"2G\"\ndescription = \"new\"\n");
    let (qemu, peer, _serial) = previous(&scene, "mem = \"1G\"\ndescription = \"old\"\n");
    begin(&mut scene);
    scene.until(|scene| scene.state() == State::Running).await;
    let status = scene.supervisor.status();
    assert_eq!((status.pid, status.mem_bytes), (Some(qemu.0.id()), 1 << 30));
    // Keys that take effect at once are not applied before a reload.
    assert_eq!(status.description.as_deref(), Some("old"));
    scene.until(|scene| scene.supervisor.status().pending.len() == 2).await;
    assert!(!peer.commands.names().contains(&"cont".to_owned()));
    assert!(scene.supervisor.ctx.paths().reservation().exists());
}

#[tokio::test]
async fn reloaded_keys_survive_the_supervisor() {
    let mut scene = Scene::new("mem = \"1G\"\ndescription = \"newest\"\n");
    let (_qemu, _peer, _serial) = previous(&scene, "mem = \"1G\"\ndescription = \"old\"\n");
    fs::write(scene.supervisor.ctx.paths().reloaded(), "mem = \"1G\"\ndescription = \"new\"\n")
        .unwrap();
    begin(&mut scene);
    scene.until(|scene| scene.state() == State::Running).await;
    assert_eq!(scene.supervisor.status().description.as_deref(), Some("new"));
}

#[tokio::test]
async fn early_stop_stops_the_previous_qemu() {
    let mut scene = Scene::new(TEXT);
    let (_qemu, peer, _serial) = previous(&scene, TEXT);
    begin(&mut scene);
    scene.supervisor.handle_input(Input::Signal(Signal::Stop));
    scene.until_command(&peer, "system_powerdown").await;
    assert_eq!(scene.state(), State::Stopping);
    assert!(outcome(&scene).is_none(), "QEMU is running");
    scene.exit(Exit::Code(0));
    assert_eq!(outcome(&scene), Some(&Outcome::Exit(0)));
}

#[tokio::test]
async fn stop_of_a_silent_adoption_fails() {
    for command in [Command::PowerOff { timeout_sec: None }, Command::Terminate] {
        let mut scene = Scene::new(TEXT);
        let (qemu, peer, _serial) = previous(&scene, TEXT);
        peer.script.on("query-vnc-servers", Answer::Silence);
        begin(&mut scene);
        scene.until(|scene| is_in(scene, Phase::Adopting)).await;
        let (reply, mut answer) = oneshot::channel();
        scene.supervisor.handle_input(Input::Request(Request::Command(command, reply)));
        if command == Command::Terminate {
            // It waits for the adoption, up to this deadline.
            assert!(answer.try_recv().is_err());
            scene.supervisor.start.as_mut().unwrap().cancel();
        }
        scene.until(|scene| outcome(scene).is_some()).await;
        let refused = answer.await.unwrap().unwrap_err();
        assert!(matches!(&refused, Refusal::Failed(_, why) if why.contains("QEMU")), "{refused:?}");
        assert!(pidfd::start_time(qemu.0.id()).is_ok(), "QEMU has exited");
        assert!(scene.supervisor.ctx.paths().record().exists());
    }
}

#[tokio::test]
async fn pid_of_an_adoption_is_shown() {
    let mut scene = Scene::new(TEXT);
    let (qemu, peer, _serial) = previous(&scene, TEXT);
    // It does not answer yet.
    peer.script.on("query-vnc-servers", Answer::Silence);
    begin(&mut scene);
    scene.until(|scene| is_in(scene, Phase::Adopting)).await;
    assert_eq!(scene.state(), State::Starting);
    assert_eq!(scene.supervisor.status().pid, Some(qemu.0.id()));
}

#[tokio::test]
async fn request_is_answered_once_the_state_is_known() {
    let mut scene = Scene::new(TEXT);
    let (_qemu, _peer, _serial) = previous(&scene, TEXT);
    let (reply, mut answer) = oneshot::channel();
    scene.supervisor.handle_input(Input::Request(Request::Status(reply)));
    begin(&mut scene);
    assert!(answer.try_recv().is_err());
    scene.until(|scene| scene.state() == State::Running).await;
    assert_eq!(answer.await.unwrap().name, "web");
}

#[tokio::test]
async fn unreadable_previous_run_ends_the_start() {
    let mut scene = Scene::new(TEXT);
    // A record that cannot be read, and locks that a QEMU holds.
    let paths = scene.supervisor.ctx.paths().clone();
    let liveness = crate::store::liveness::Liveness::for_qemu(&paths).unwrap();
    let _held = liveness.into_fds([40, 41]).unwrap();
    fs::write(paths.record(), "{").unwrap();
    begin(&mut scene);
    scene.until(|scene| outcome(scene).is_some()).await;
    let Some(Outcome::NotStarted(failure)) = outcome(&scene) else {
        panic!("{:?}", outcome(&scene));
    };
    assert_eq!(failure.fault, Fault::Host);
    assert!(paths.record().exists());
}

#[tokio::test]
async fn saved_state_brings_its_vm_file() {
    let mut scene = Scene::new("mem = \"2G\"\ndescription = \"new\"\n");
    let paths = scene.supervisor.ctx.paths().clone();
    let head = Saved {
        vm_file: "mem = \"1G\"\ndescription = \"old\"\n".into(),
        at: "2026-01-01T00:00:00Z".into(),
        qemu_version: "8.2.1".into(),
        held: false,
        ready: true,
    };
    saved_state::Writing::begin(&paths.saved(), &head).unwrap().0.commit().unwrap();
    begin(&mut scene);
    scene.until(|scene| is_in(scene, Phase::Admitting(Boot::Restore))).await;
    let status = scene.supervisor.status();
    assert_eq!(status.mem_bytes, 1 << 30, "the machine is that of the saved state");
    assert_eq!(status.description.as_deref(), Some("new"), "the host's side is as it is written");
}

#[tokio::test]
async fn unusable_saved_state_is_quarantined() {
    let mut scene = Scene::new(TEXT);
    let paths = scene.supervisor.ctx.paths().clone();
    fs::write(paths.saved(), "nonsense").unwrap();
    begin(&mut scene);
    scene.until(|scene| is_in(scene, Phase::Admitting(Boot::Cold))).await;
    scene.supervisor.ctx.lanes().state.flush().await.unwrap();
    assert!(!paths.saved().exists() && paths.unusable().exists());
}

#[tokio::test]
async fn relaunch_takes_the_vm_file_as_it_is() {
    let (mut scene, peer) = Scene::running(TEXT).await;
    scene.write_file(&format!("{TEXT}vcpu = 3\n"));
    scene.supervisor.handle_input(Input::FileChanged);
    scene.until(|scene| !scene.supervisor.status().pending.is_empty()).await;
    let reset = json!({ "guest": true, "reason": "guest-reset" });
    peer.send_event("SHUTDOWN", reset).await;
    scene.until_command(&peer, "quit").await;
    // The file changes again before QEMU has exited.
    scene.write_file(&format!("{TEXT}vcpu = 4\n"));
    scene.exit(Exit::Code(0));
    assert!(is_in(&scene, Phase::ReadingVmFile));
    scene.until(|scene| is_in(scene, Phase::Preparing(Boot::Cold))).await;
    let status = scene.supervisor.status();
    assert_eq!((status.vcpu, status.pending), (4, vec![]));
    assert_eq!((status.state, status.pid), (State::Starting, None));
    assert!(outcome(&scene).is_none());
}

/// A guest that reboots while `vcpu = 3` is pending, when QEMU was asked to quit.
async fn rebooting_with_a_pending_change() -> (Scene, Peer) {
    let (mut scene, peer) = Scene::running(TEXT).await;
    scene.write_file(&format!("{TEXT}vcpu = 3\n"));
    scene.supervisor.handle_input(Input::FileChanged);
    scene.until(|scene| !scene.supervisor.status().pending.is_empty()).await;
    peer.send_event("SHUTDOWN", json!({ "guest": true, "reason": "guest-reset" })).await;
    scene.until_command(&peer, "quit").await;
    (scene, peer)
}

#[tokio::test]
async fn relaunch_uses_the_last_valid_file() {
    let (mut scene, _peer) = rebooting_with_a_pending_change().await;
    scene.write_file("nonsense");
    scene.exit(Exit::Code(0));
    scene.until(|scene| is_in(scene, Phase::Preparing(Boot::Cold))).await;
    assert_eq!(scene.supervisor.status().vcpu, 3);
}

#[tokio::test]
async fn stop_during_a_relaunch_ends_the_run() {
    let (mut scene, _peer) = rebooting_with_a_pending_change().await;
    let (reply, answer) = oneshot::channel();
    let stop = Request::Command(Command::PowerOff { timeout_sec: None }, reply);
    scene.supervisor.handle_input(Input::Request(stop));
    scene.exit(Exit::Code(0));
    assert_eq!(outcome(&scene), Some(&Outcome::Exit(0)));
    assert_eq!(answer.await.unwrap(), Ok(()));
}

#[tokio::test]
async fn starting_vm_is_reloaded_immediately() {
    let mut scene = Scene::new(TEXT);
    scene.until_admitting();
    scene.write_file(&format!("{TEXT}description = \"new\"\n"));
    assert_eq!(command(&mut scene, Command::Reload).await, Ok(()));
    assert_eq!(scene.supervisor.status().description.as_deref(), Some("new"));
}

#[tokio::test]
async fn hung_storage_refuses_a_reload() {
    let (mut scene, _peer) = Scene::running(TEXT).await;
    let (reply, answer) = oneshot::channel();
    scene.supervisor.handle_input(Input::Request(Request::Command(Command::Reload, reply)));
    let late = crate::supervisor::file_reading::FileEvent::Late;
    scene.supervisor.handle_input(Input::Files(late));
    let refused = answer.await.unwrap().unwrap_err();
    assert!(matches!(&refused, Refusal::HostFault(why) if why.contains("storage")), "{refused:?}");
}
