//! Steps of the loop: a launched QEMU, its events, its exit, and what clients see of them.

use std::sync::Arc;

use serde_json::json;
use tokio::{net::UnixStream, sync::mpsc};

use super::{Answer, Host, Peer, record, vm};
use crate::{
    control::types::State,
    life::{self, Guest, Life, Mode, PreviousQemu, SavedState, StartEvent},
    store::record::Record,
    supervisor::{
        Supervisor,
        config::Config,
        effects::Effects,
        file_reading::FileReader,
        history::History,
        input::Input,
        machined::Registration,
        outcome::Outcome,
        running::{
            console::Console,
            event::{HostShareGiven, VmEvent},
            resources::HostShare,
        },
        start::launch::LaunchedQemu,
        supervise::next_report,
    },
    sys::{
        pidfd::{Exit, Process},
        signal::Signal,
        tasks::Reporters,
    },
    value::NoteCode,
};

/// The VM file of the tests.
pub(super) const TEXT: &str = "mem = \"1G\"\n";

/// A supervisor without its control socket, signals and timers.
pub(super) struct Scene {
    pub(super) supervisor: Supervisor,
    pub(super) inputs: mpsc::Receiver<Input>,
    pub(super) events:
        tokio::sync::broadcast::Receiver<std::sync::Arc<crate::control::types::Event>>,
    _dir: tempfile::TempDir,
}

impl Scene {
    /// A supervisor without a QEMU process of an earlier one.
    pub(super) fn new(text: &str) -> Self {
        Self::on(Host::new(), text)
    }

    /// The same on this host.
    pub(super) fn on(host: Host, text: &str) -> Self {
        let Host { dir, ctx, events } = host;
        let file = ctx.settings().layout.vm_file(&ctx.settings().name);
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(&file, text).unwrap();
        let (tasks, inputs) = Reporters::new(64);
        let (life, _) = Life::new(Mode::Run);
        let supervisor = Supervisor {
            console: Console::new(ctx.paths().console_log(), ctx.settings().now),
            history: History::new(ctx.now()),
            ctx,
            tasks,
            life,
            config: Config::new(vm(text), text.to_owned()),
            files: FileReader::default(),
            start: None,
            vm: None,
            effects: Effects::default(),
            host_share: HostShare::default(),
            registration: Registration::default(),
        };
        Self { supervisor, inputs, events, _dir: dir }
    }

    /// Has the life machine wait for its admission, without one.
    pub(super) fn until_admitting(&mut self) {
        self.step_life([StartEvent::PreviousFound {
            qemu: PreviousQemu::None,
            saved: SavedState::None,
        }]);
    }

    /// Has the life machine wait for a launch, without one.
    fn until_launching(&mut self) {
        self.until_admitting();
        self.step_life([StartEvent::Admitted, StartEvent::Prepared]);
    }

    /// Steps the life machine without its actions.
    fn step_life(&mut self, events: impl IntoIterator<Item = StartEvent>) {
        let policy = crate::supervisor::running::ready::policy(self.supervisor.config.vm());
        for event in events {
            let now = self.supervisor.ctx.elapsed();
            let _ = self.supervisor.life.step(event.into(), now, &policy);
        }
    }

    /// Writes the VM file.
    pub(super) fn write_file(&self, text: &str) {
        let settings = self.supervisor.ctx.settings();
        std::fs::write(settings.layout.vm_file(&settings.name), text).unwrap();
    }

    /// QEMU exits.
    pub(super) fn exit(&mut self, exit: Exit) {
        self.supervisor.handle_vm_event(VmEvent::Exited { exit, oom: false });
    }

    /// Handles inputs and events until QEMU has got this command.
    pub(super) async fn until_command(&mut self, peer: &Peer, name: &str) {
        loop {
            tokio::select! {
                biased;
                () = peer.commands.until(name) => return,
                () = self.step() => {}
            }
        }
    }

    /// A supervisor of a guest that runs, and its QEMU.
    pub(super) async fn running(text: &str) -> (Self, Peer) {
        Self::launched(text, Guest::Running, record()).await
    }

    /// The same, with how QEMU was found.
    pub(super) async fn launched(text: &str, found: Guest, record: Record) -> (Self, Peer) {
        Self::launched_on(Host::new(), text, found, record).await
    }

    /// A guest that runs on this host.
    pub(super) async fn running_on(host: Host, text: &str) -> (Self, Peer) {
        Self::launched_on(host, text, Guest::Running, record()).await
    }

    async fn launched_on(host: Host, text: &str, found: Guest, record: Record) -> (Self, Peer) {
        let mut scene = Self::on(host, text);
        scene.until_launching();
        let paths = scene.supervisor.ctx.paths().clone();
        record.write(&paths, text).unwrap();
        let peer = super::peer_at(&paths);
        let limit = std::time::Duration::from_secs(60);
        let session = qmp::connect(&paths.qmp_socket(), limit).await.unwrap();
        let (serial, _guest) = UnixStream::pair().unwrap();
        let launched = LaunchedQemu {
            process: Arc::new(Process::open(std::process::id()).unwrap()),
            record,
            client: session.client,
            agent: qmp::agent::Agent::new(paths.agent_socket()),
            events: session.events,
            serial,
            vnc: None,
            tap_notes: vec![],
            listens: false,
            found,
            adopted: false,
        };
        scene.supervisor.on_launched(launched, HostShareGiven::default());
        (scene, peer)
    }

    pub(super) fn state(&self) -> State {
        self.supervisor.public_state()
    }

    /// Handles the next input or event, whichever comes first.
    pub(super) async fn step(&mut self) {
        let limit = std::time::Duration::from_secs(60);
        let step = async {
            tokio::select! {
                Some(input) = self.inputs.recv() => self.supervisor.handle_input(input),
                event = Supervisor::next_vm_event(&mut self.supervisor.vm) => {
                    self.supervisor.handle_vm_event(event);
                }
                report = next_report(&mut self.supervisor.start) => {
                    self.supervisor.on_start_report(report);
                }
            }
        };
        assert!(tokio::time::timeout(limit, step).await.is_ok(), "nothing happens");
    }

    /// Handles inputs and events until `done`.
    pub(super) async fn until(&mut self, done: impl Fn(&Self) -> bool) {
        while !done(self) {
            self.step().await;
        }
    }

    pub(super) fn published(&mut self) -> Vec<String> {
        std::iter::from_fn(|| self.events.try_recv().ok())
            .map(|event| event.event.clone())
            .collect()
    }
}

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
async fn exit_of_qemu_ends_the_run_and_drops_what_was_its() {
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
    // An event that was on its way finds no VM.
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
async fn host_that_goes_down_stops_the_guest() {
    let (mut scene, peer) = Scene::running(TEXT).await;
    scene.supervisor.handle_input(Input::StopSignal { host_down: false });
    assert_eq!(scene.state(), State::Stopping);
    peer.commands.until("system_powerdown").await;
}

#[tokio::test]
async fn paused_guest_is_asked_for_its_disks() {
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
async fn lost_connection_is_made_again_and_the_state_is_read() {
    let (mut scene, peer) = Scene::running(TEXT).await;
    let paths = scene.supervisor.ctx.paths().clone();
    drop(peer);
    for socket in [paths.qmp_socket(), paths.agent_socket()] {
        std::fs::remove_file(socket).unwrap();
    }
    let again = super::peer_at(&paths);
    let status = json!({ "status": "paused", "running": false });
    again.script.on("query-status", Answer::Return(status));
    scene.until(|scene| scene.state() == State::Paused).await;
}

#[tokio::test]
async fn reset_forgets_a_freeze() {
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
async fn changed_file_is_compared() {
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
async fn replacement_waits_until_all_is_written() {
    let (mut scene, _peer) = Scene::running(TEXT).await;
    scene.supervisor.handle_input(Input::Signal(Signal::Reexec));
    scene.until(|scene| scene.supervisor.history.outcome().is_some()).await;
    assert_eq!(scene.supervisor.history.outcome(), Some(&Outcome::Reexec));
}

#[tokio::test]
async fn starting_supervisor_is_not_replaced() {
    let mut scene = Scene::new(TEXT);
    scene.supervisor.handle_input(Input::Signal(Signal::Reexec));
    scene.supervisor.handle_input(Input::Written(true));
    assert_eq!(scene.supervisor.history.outcome(), None);
    assert_eq!(scene.state(), State::Starting);
}

#[tokio::test]
async fn hung_storage_prevents_the_replacement() {
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
async fn watchdog_is_fed_by_an_answer_of_qemu() {
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
