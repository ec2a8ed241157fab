//! The stop ladder and other ends through the loop: what QEMU, the guest, the record and the
//! service manager get.

use std::time::Duration;

use serde_json::json;

use super::{
    Answer, Host, Unit,
    requests::{ask, command},
    scene::{Scene, TEXT},
};
use crate::{
    control::types::{Command, Refusal, Request, State},
    life::{self, Guest},
    store::record::Record,
    supervisor::{input::Input, outcome::Outcome},
    sys::{pidfd::Exit, signal::Signal},
    value::ErrorCode,
};

fn outcome(scene: &Scene) -> Option<&Outcome> {
    scene.supervisor.history.outcome()
}

/// Lets the deadline of the life machine's state pass, as the loop does.
async fn pass_deadline(scene: &mut Scene) {
    let deadline = scene.supervisor.life.deadline().expect("no deadline");
    tokio::time::sleep_until(scene.supervisor.ctx.instant(deadline)).await;
    scene.supervisor.feed(life::Event::DeadlinePassed);
}

fn written_record(scene: &Scene) -> Record {
    let text = std::fs::read(scene.supervisor.ctx.paths().record()).unwrap();
    serde_json::from_slice(&text).unwrap()
}

#[tokio::test]
async fn intention_precedes_the_request() {
    let (mut scene, peer) = Scene::running(TEXT).await;
    scene.supervisor.handle_input(Input::Signal(Signal::Stop));
    peer.commands.until("system_powerdown").await;
    let intention = written_record(&scene).intention.expect("not recorded");
    let now = scene.supervisor.ctx.now();
    let intention = intention.intention(now, Duration::ZERO).unwrap();
    assert!(intention.deadline.is_some(), "the guest is forced off at a time");
}

#[tokio::test]
async fn thaw_precedes_the_power_button() {
    let (mut scene, peer) = Scene::running(TEXT).await;
    peer.script.on("guest-fsfreeze-freeze", Answer::Return(json!(1)));
    peer.script.on("guest-fsfreeze-thaw", Answer::Return(json!(1)));
    let thaw_after = Duration::from_secs(600);
    assert_eq!(ask(&mut scene, |reply| Request::Freeze { thaw_after, reply }).await, Ok(1));
    scene.supervisor.handle_input(Input::Signal(Signal::Stop));
    scene.until_command(&peer, "system_powerdown").await;
    let calls = peer.calls.names();
    assert!(calls.iter().any(|name| name == "guest-fsfreeze-thaw"), "{calls:?}");
}

#[tokio::test]
async fn paused_guest_is_resumed_to_shut_down() {
    let (mut scene, peer) = Scene::launched(TEXT, Guest::Paused, super::record()).await;
    scene.supervisor.handle_input(Input::Signal(Signal::Stop));
    peer.commands.until("cont").await;
    peer.commands.until("system_powerdown").await;
}

#[tokio::test]
async fn ladder_ends_with_quit() {
    let (mut scene, peer) = Scene::running(&format!("{TEXT}shutdownTimeoutSec = 1\n")).await;
    scene.supervisor.handle_input(Input::Signal(Signal::Stop));
    peer.commands.until("system_powerdown").await;
    // The guest does not react.
    while !matches!(scene.supervisor.life.state(), life::State::Quitting { .. }) {
        pass_deadline(&mut scene).await;
    }
    peer.commands.until("quit").await;
    let rungs = scene.published();
    assert!(rungs.iter().filter(|name| *name == "QVM_STOP_RUNG").count() >= 2, "{rungs:?}");
    scene.exit(Exit::Code(0));
    assert_eq!(outcome(&scene), Some(&Outcome::Exit(0)));
    assert_eq!(scene.supervisor.history.last_end().unwrap().reason, "forced-off");
}

#[tokio::test]
async fn service_manager_follows_the_stop() {
    let unit = Unit::new();
    let (mut scene, _peer) = Scene::running_on(Host::in_unit(&unit), TEXT).await;
    unit.until("READY=1").await;
    scene.supervisor.handle_input(Input::Signal(Signal::Stop));
    let messages = unit.until("EXTEND_TIMEOUT_USEC=").await;
    assert!(messages.iter().any(|message| message.contains("STOPPING=1")), "{messages:?}");
}

#[tokio::test]
async fn interrupt_of_a_unit_reboots_the_guest() {
    let unit = Unit::new();
    let (mut scene, peer) = Scene::running_on(Host::in_unit(&unit), TEXT).await;
    scene.supervisor.handle_input(Input::Signal(Signal::Interrupt));
    peer.commands.until("system_powerdown").await;
    scene.exit(Exit::Code(0));
    assert_eq!(outcome(&scene), None, "a new QEMU process follows");
    // From a terminal, SIGINT is a stop.
    let (mut scene, _peer) = Scene::running(TEXT).await;
    scene.supervisor.handle_input(Input::Signal(Signal::Interrupt));
    assert_eq!(scene.state(), State::Stopping);
    scene.exit(Exit::Code(0));
    assert_eq!(outcome(&scene), Some(&Outcome::Exit(0)));
}

#[tokio::test]
async fn host_shutdown_may_save_the_guest() {
    let (mut scene, peer) = Scene::running(&format!("{TEXT}hostShutdown = \"suspend\"\n")).await;
    scene.supervisor.handle_input(Input::StopSignal { host_down: true });
    assert!(matches!(scene.supervisor.life.state(), life::State::Suspending(_)));
    scene.until_command(&peer, "migrate-set-parameters").await;
    assert_eq!(written_record(&scene).saving, Some(false));
}

#[tokio::test]
async fn failed_suspend_is_reported_and_continues() {
    let (mut scene, peer) = Scene::running(TEXT).await;
    peer.script.on("getfd", Answer::Refuse("no descriptors"));
    let refused = command(&mut scene, Command::Suspend).await.unwrap_err();
    assert_eq!(refused.code(), ErrorCode::NotSuspended);
    assert!(scene.published().contains(&"QVM_NOT_SUSPENDED".to_owned()));
    assert!(!scene.supervisor.ctx.paths().saved().exists());
    peer.commands.until("cont").await;
}

#[tokio::test]
async fn replugged_machine_cannot_be_suspended() {
    let with_nic = format!("{TEXT}[nic.net]\n[nic.lan]\n");
    let (mut scene, peer) = Scene::running(&with_nic).await;
    let removed = crate::machine::diff::LiveChange::RemoveNic("lan".parse().unwrap());
    scene.supervisor.config.record_change(&removed);
    let refused = command(&mut scene, Command::Suspend).await.unwrap_err();
    assert!(matches!(&refused, Refusal::Failed(_, why) if why.contains("plugged")), "{refused:?}");
    assert!(!peer.commands.names().contains(&"migrate".to_owned()));
}

#[tokio::test]
async fn guest_panic_follows_the_vm_file() {
    for (on_panic, is_down) in [("stop", true), ("restart", false)] {
        let text = format!("{TEXT}onPanic = \"{on_panic}\"\n");
        let (mut scene, peer) = Scene::running(&text).await;
        peer.send_event("GUEST_PANICKED", json!({ "action": "pause" })).await;
        scene.until_command(&peer, "quit").await;
        scene.exit(Exit::Code(0));
        // systemd restarts what has failed.
        assert_eq!(outcome(&scene) == Some(&Outcome::Exit(0)), is_down, "{on_panic}");
        assert!(outcome(&scene).is_some(), "{on_panic}");
    }
    let (mut scene, peer) = Scene::running(&format!("{TEXT}onPanic = \"pause\"\n")).await;
    peer.send_event("GUEST_PANICKED", json!({ "action": "pause" })).await;
    scene.until(|scene| scene.state() == State::Paused).await;
    // It has nothing that could shut it down.
    scene.supervisor.handle_input(Input::Signal(Signal::Stop));
    scene.until_command(&peer, "quit").await;
    assert!(!peer.commands.names().contains(&"system_powerdown".to_owned()));
}

#[tokio::test]
async fn oom_kill_is_reported_with_its_cause() {
    let (mut scene, _peer) = Scene::running(TEXT).await;
    let killed =
        crate::supervisor::running::event::VmEvent::Exited { exit: Exit::Signal(9), oom: true };
    scene.supervisor.handle_vm_event(killed);
    let end = scene.supervisor.history.last_end().unwrap();
    assert!(end.failed, "{end:?}");
    assert_eq!(end.reason, "oom-killed");
    assert_ne!(outcome(&scene), Some(&Outcome::Exit(0)));
}

#[tokio::test]
async fn end_keeps_the_reservation_of_a_running_qemu() {
    for (exited, kept) in [(false, true), (true, false)] {
        let (mut scene, _peer) = Scene::running(TEXT).await;
        let paths = scene.supervisor.ctx.paths().clone();
        std::fs::create_dir_all(paths.reservation().parent().unwrap()).unwrap();
        std::fs::write(paths.reservation(), "{}").unwrap();
        if exited {
            scene.exit(Exit::Code(0));
        }
        scene.supervisor.leave().await;
        assert_eq!(paths.reservation().exists(), kept);
    }
}

#[tokio::test]
async fn every_end_is_kept_for_the_status() {
    let (mut scene, _peer) = Scene::running(TEXT).await;
    scene.exit(Exit::Code(3));
    scene.supervisor.ctx.lanes().flush(Duration::from_secs(60)).await;
    let ends = crate::store::record::ends(scene.supervisor.ctx.paths());
    assert_eq!(ends.len(), 1);
    assert_eq!(scene.supervisor.status().last_stop, ends.first().cloned());
    assert_eq!(scene.supervisor.status().ends, ends);
}
