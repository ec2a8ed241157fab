//! Requests of the control socket, and their answers.

use std::time::Duration;

use serde_json::json;
use tokio::sync::oneshot;

use super::{
    Answer,
    scene::{Scene, TEXT},
};
use crate::{
    control::types::{Command, Refusal, Request, State},
    supervisor::{input::Input, running::event::VmEvent},
    sys::pidfd::Exit,
};

pub(super) type Answered<T = ()> = Result<T, Refusal>;

/// Sends a request and handles what follows until it is answered.
pub(super) async fn ask<T>(
    scene: &mut Scene,
    request: impl FnOnce(oneshot::Sender<T>) -> Request,
) -> T {
    let (reply, mut answer) = oneshot::channel();
    scene.supervisor.handle_input(Input::Request(request(reply)));
    loop {
        match answer.try_recv() {
            Ok(answer) => return answer,
            Err(oneshot::error::TryRecvError::Empty) => {}
            Err(oneshot::error::TryRecvError::Closed) => panic!("no answer"),
        }
        tokio::select! {
            answer = &mut answer => return answer.expect("no answer"),
            () = scene.step() => {}
        }
    }
}

pub(super) async fn command(scene: &mut Scene, command: Command) -> Answered {
    ask(scene, |reply| Request::Command(command, reply)).await
}

#[tokio::test]
async fn request_before_the_state_is_known_waits() {
    let mut scene = Scene::new(TEXT);
    let (reply, mut answer) = oneshot::channel();
    scene.supervisor.handle_input(Input::Request(Request::Status(reply)));
    assert!(answer.try_recv().is_err());
    assert_eq!(scene.supervisor.effects.take_early().len(), 1);
}

#[tokio::test]
async fn pause_is_recorded_and_answered_when_paused() {
    let (mut scene, peer) = Scene::running(TEXT).await;
    // QEMU sends the event before the reply.
    peer.script.on("stop", Answer::After("STOP")).on("cont", Answer::After("RESUME"));
    for (asked, state) in [(Command::Pause, State::Paused), (Command::Resume, State::Running)] {
        assert_eq!(command(&mut scene, asked).await, Ok(()));
        assert_eq!(scene.state(), state);
        let held = scene.supervisor.vm.as_ref().unwrap().record().held;
        assert_eq!(held, state == State::Paused);
    }
}

#[tokio::test]
async fn refused_pause_is_refused() {
    let (mut scene, peer) = Scene::running(TEXT).await;
    peer.script.on("stop", Answer::Refuse("busy"));
    let answer = command(&mut scene, Command::Pause).await;
    assert!(matches!(&answer, Err(Refusal::Failed(_, why)) if why.contains("busy")), "{answer:?}");
}

#[tokio::test]
async fn terminate_is_answered_when_qemu_has_exited() {
    let (mut scene, peer) = Scene::running(TEXT).await;
    let (reply, mut answer) = oneshot::channel();
    let request = Request::Command(Command::Terminate, reply);
    scene.supervisor.handle_input(Input::Request(request));
    peer.commands.until("quit").await;
    assert!(answer.try_recv().is_err());
    scene.supervisor.handle_vm_event(VmEvent::Exited { exit: Exit::Code(0), oom: false });
    assert_eq!(answer.await.unwrap(), Ok(()));
}

#[tokio::test]
async fn power_off_is_answered_when_sent() {
    let (mut scene, peer) = Scene::running(TEXT).await;
    let answer = command(&mut scene, Command::PowerOff { timeout_sec: Some(5) }).await;
    assert_eq!(answer, Ok(()));
    peer.commands.until("system_powerdown").await;
    // The VM is stopping.
    let answer = command(&mut scene, Command::Pause).await;
    assert_eq!(answer, Err(Refusal::NotNow("stopping")));
}

#[tokio::test]
async fn starting_vm_refuses_what_needs_a_guest() {
    let mut scene = Scene::new(TEXT);
    scene.supervisor.feed(
        crate::life::StartEvent::PreviousFound {
            qemu: crate::life::PreviousQemu::None,
            saved: crate::life::SavedState::None,
        }
        .into(),
    );
    let starting = Refusal::NotNow("starting");
    let memory = Command::SetMemory { bytes: 1 << 29 };
    assert_eq!(command(&mut scene, memory).await, Err(starting.clone()));
    assert_eq!(command(&mut scene, Command::Pause).await, Err(starting.clone()));
    let answer = ask(&mut scene, Request::Statistics).await;
    assert_eq!(answer.unwrap_err(), starting);
    let answer = ask(&mut scene, Request::Guest).await;
    assert_eq!(answer.unwrap_err(), starting);
    let answer = ask(&mut scene, Request::Screenshot).await;
    assert_eq!(answer.unwrap_err(), starting);
    let answer = ask(&mut scene, Request::Thaw).await;
    assert_eq!(answer.unwrap_err(), starting);
    let frozen = |reply| Request::Freeze { thaw_after: Duration::from_secs(1), reply };
    assert_eq!(ask(&mut scene, frozen).await.unwrap_err(), starting);
}

#[tokio::test]
async fn balloon_is_set_and_shown() {
    let (mut scene, _peer) = Scene::running(TEXT).await;
    let answer = command(&mut scene, Command::SetMemory { bytes: 1 << 29 }).await;
    assert_eq!(answer, Ok(()));
    assert_eq!(scene.supervisor.status().mem_target_bytes, Some(1 << 29));
    let answer = command(&mut scene, Command::SetMemory { bytes: 1 << 40 }).await;
    assert!(matches!(answer, Err(Refusal::BadValue(_))));
}

#[tokio::test]
async fn reload_applies_what_is_live() {
    let (mut scene, peer) = Scene::running(TEXT).await;
    let settings = scene.supervisor.ctx.settings();
    let file = settings.layout.vm_file(&settings.name);
    let text = TEXT.replace("1G", "512M") + "description = \"new\"\n";
    std::fs::write(&file, text).unwrap();
    assert_eq!(command(&mut scene, Command::Reload).await, Ok(()));
    let status = scene.supervisor.status();
    assert_eq!(status.description.as_deref(), Some("new"));
    assert_eq!(status.pending, []);
    assert_eq!(status.mem_target_bytes, Some(512 << 20));
    assert_eq!(peer.commands.arguments("balloon"), json!({ "value": 512 << 20 }));
    // The next supervisor reads what was reloaded.
    let copy = std::fs::read_to_string(scene.supervisor.ctx.paths().reloaded()).unwrap();
    assert!(copy.contains("new"), "{copy}");
}

#[tokio::test]
async fn reload_of_an_invalid_file_changes_nothing() {
    let (mut scene, _peer) = Scene::running(TEXT).await;
    let settings = scene.supervisor.ctx.settings();
    std::fs::write(settings.layout.vm_file(&settings.name), "what = 1\n").unwrap();
    let answer = command(&mut scene, Command::Reload).await;
    assert!(matches!(answer, Err(Refusal::Failed(..))));
    assert_eq!(scene.supervisor.status().pending, []);
}

#[tokio::test]
async fn status_and_recent_events_are_answered() {
    let (mut scene, peer) = Scene::running(TEXT).await;
    let status = ask(&mut scene, Request::Status).await;
    assert_eq!((status.name.as_str(), status.state), ("web", State::Running));
    // The status asks whether QEMU answers.
    peer.commands.until("query-status").await;
    let events = ask(&mut scene, Request::RecentEvents).await;
    assert!(events.iter().any(|event| event.event == "QVM_READY"), "{events:?}");
}

#[tokio::test]
async fn frozen_guest_is_asked_only_what_is_safe() {
    let (mut scene, peer) = Scene::running(TEXT).await;
    peer.script.on("guest-fsfreeze-freeze", Answer::Return(json!(1)));
    peer.script.on("guest-fsfreeze-thaw", Answer::Return(json!(1)));
    let freeze = |reply| Request::Freeze { thaw_after: Duration::from_secs(60), reply };
    assert_eq!(ask(&mut scene, freeze).await, Ok(1));
    let agent = |name: &str| {
        let command = name.to_owned();
        move |reply| Request::Agent {
            command,
            arguments: json!({}),
            limit: Duration::from_secs(60),
            reply,
        }
    };
    let refused = ask(&mut scene, agent("guest-get-users")).await;
    assert!(matches!(refused, Err(Refusal::Frozen { .. })), "{refused:?}");
    assert!(ask(&mut scene, agent("guest-ping")).await.is_ok());
    let exec =
        |reply| Request::Exec { argv: vec!["true".into()], limit: Duration::from_secs(60), reply };
    assert!(matches!(ask(&mut scene, exec).await, Err(Refusal::Frozen { .. })));
    assert_eq!(ask(&mut scene, Request::Thaw).await, Ok(1));
    assert!(ask(&mut scene, agent("guest-get-users")).await.is_ok());
}

#[tokio::test]
async fn vm_without_a_screen_has_no_picture() {
    let (mut scene, peer) = Scene::running(TEXT).await;
    let answer = ask(&mut scene, Request::Screenshot).await;
    assert!(matches!(&answer, Err(Refusal::Failed(_, why)) if why.contains("[display]")));
    let chords = vec!["ctrl-alt-delete".parse().unwrap()];
    assert_eq!(ask(&mut scene, |reply| Request::Press(chords, reply)).await, Ok(()));
    peer.commands.until("send-key").await;
}

#[tokio::test]
async fn console_has_a_viewer_without_a_guest() {
    let mut scene = Scene::new(TEXT);
    scene.supervisor.answer(Request::Console {
        read_only: true,
        scrollback: 0,
        reply: oneshot::channel().0,
    });
    let (reply, answer) = oneshot::channel();
    scene.supervisor.answer(Request::Console { read_only: false, scrollback: 9, reply });
    assert!(answer.await.unwrap().is_ok());
}
