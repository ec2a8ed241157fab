//! The fixture of the loop tests: a supervisor without its control socket, signals and timers.

use std::sync::Arc;

use tokio::{net::UnixStream, sync::mpsc};

use super::{Host, Peer, record, vm};
use crate::{
    control::types::State,
    life::{Guest, Life, Mode, PreviousQemu, SavedState, StartEvent},
    store::record::Record,
    supervisor::{
        Supervisor,
        config::Config,
        effects::Effects,
        file_reading::FileReader,
        history::History,
        input::Input,
        machined::Registration,
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
        tasks::Reporters,
    },
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
    /// Creates a supervisor without a QEMU process.
    pub(super) fn new(text: &str) -> Self {
        Self::on(Host::new(), text)
    }

    /// Creates a supervisor without a QEMU process on this host.
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

    /// Steps the life machine until it waits for an admission.
    pub(super) fn until_admitting(&mut self) {
        self.step_life([StartEvent::PreviousFound {
            qemu: PreviousQemu::None,
            saved: SavedState::None,
        }]);
    }

    /// Steps the life machine until it waits for a launch.
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

    /// Handles inputs and events until the peer has read this command.
    pub(super) async fn until_command(&mut self, peer: &Peer, name: &str) {
        loop {
            tokio::select! {
                biased;
                () = peer.commands.until(name) => return,
                () = self.step() => {}
            }
        }
    }

    /// Creates a supervisor of a running guest, and the peer of its QEMU process.
    pub(super) async fn running(text: &str) -> (Self, Peer) {
        Self::launched(text, Guest::Running, record()).await
    }

    /// Creates a supervisor of a QEMU process in this state, with this run record.
    pub(super) async fn launched(text: &str, found: Guest, record: Record) -> (Self, Peer) {
        Self::launched_on(Host::new(), text, found, record).await
    }

    /// Creates a supervisor of a running guest on this host.
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
