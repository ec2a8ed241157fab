//! The running VM: everything that belongs to one QEMU process, dropped after its exit.

pub mod console;
pub(crate) mod console_log;
pub(crate) mod disk_space;
pub(crate) mod event;
pub(crate) mod freeze;
pub(crate) mod hotplug;
pub(crate) mod installed_qemu;
mod intention;
pub(crate) mod live_update;
pub(crate) mod memory;
mod overlay_switch;
pub(crate) mod qemu;
pub(crate) mod qmp_watchdog;
pub(crate) mod ready;
pub(crate) mod resources;
pub(crate) mod screen;
pub(crate) mod snapshot;
pub(crate) mod statistics;
pub(crate) mod suspend;
pub mod taps;
pub mod viewer;
pub mod vnc_listener;

use futures_util::future::BoxFuture;
use tokio::sync::mpsc;
use tracing::info;

use self::{
    disk_space::DiskSpace,
    event::{Applied, Devices, VmEvent},
    freeze::Freeze,
    installed_qemu::InstalledQemu,
    live_update::{AfterUpdate, LiveUpdate},
    memory::Memory,
    qemu::Qemu,
    qmp_watchdog::QmpWatchdog,
    ready::ReadinessProbe,
    snapshot::{Saves, SnapshotCreation},
    suspend::StateSave,
    taps::Taps,
    viewer::Screen,
    vnc_listener::VncListener,
};
use super::{
    config::{Config, Examining, RunningQemu, ScreenOwner},
    context::Context,
    limits::QMP_LIMIT,
    refusal::Reply,
};
use crate::{
    control::types::{Refusal, State},
    life,
    spec::Vm,
    store::record::Record,
    value::Note,
};

/// One QEMU process and its components. Dropping it aborts the tasks and discards their events, but
/// does not end the process.
#[derive(Debug)]
pub(crate) struct RunningVm {
    qemu: Qemu,
    events: mpsc::Receiver<VmEvent>,
    taps: Taps,
    freeze: Freeze,
    disk_space: DiskSpace,
    qmp_watchdog: QmpWatchdog,
    live_update: LiveUpdate,
    readiness: ReadinessProbe,
    screen: Screen,
    memory: Memory,
    saves: Saves,
    installed: InstalledQemu,
}

/// The state of the supervisor for the handling of an event.
pub(crate) struct Surroundings<'a> {
    pub(crate) config: &'a mut Config,
    pub(crate) state: &'a life::State,
    /// The public state of the VM.
    pub(crate) public: State,
    pub(crate) ctx: &'a Context,
}

/// The components that a request or an action of the life machine concerns, with the QEMU process
/// that each of them needs.
pub(crate) struct Components<'a> {
    pub(crate) qemu: &'a mut Qemu,
    /// The freeze of the guest's file systems.
    pub(crate) freeze: &'a mut Freeze,
    /// The balloon.
    pub(crate) memory: &'a mut Memory,
    /// Whether the guest is ready.
    pub(crate) readiness: &'a mut ReadinessProbe,
    /// The save of the guest's state.
    pub(crate) state_save: &'a mut StateSave,
    pub(crate) snapshot: &'a mut SnapshotCreation,
    pub(crate) is_updating: bool,
    /// Whether the host has space for the disks.
    pub(crate) disk_space: &'a mut DiskSpace,
    /// Whether QMP answers.
    pub(crate) qmp_watchdog: &'a mut QmpWatchdog,
}

impl RunningVm {
    /// Creates the VM of a launched or adopted QEMU process. `tap_notes` are those of its taps'
    /// attachment.
    pub(crate) fn new(
        (mut qemu, events): (Qemu, mpsc::Receiver<VmEvent>),
        owner: ScreenOwner,
        tap_notes: Vec<Note>,
        config: &mut Config,
        ctx: &Context,
    ) -> Self {
        config.recall(qemu.record());
        let mut memory = Memory::default();
        memory.query(&mut qemu);
        memory.note_target(config.memory_target());
        let taps = Taps::keep(config.wanted_taps(Examining::Active), tap_notes, &mut qemu, ctx);
        Self {
            qemu,
            events,
            taps,
            freeze: Freeze::default(),
            disk_space: DiskSpace::default(),
            qmp_watchdog: QmpWatchdog::default(),
            live_update: LiveUpdate::default(),
            readiness: ReadinessProbe::default(),
            screen: Screen::new(owner),
            memory,
            saves: Saves::default(),
            installed: InstalledQemu::default(),
        }
    }

    /// Returns the next event of the process or of a task.
    pub(crate) async fn next(&mut self) -> VmEvent {
        match self.events.recv().await {
            Some(event) => event,
            // Never closed: `qemu` has a sender.
            None => std::future::pending().await,
        }
    }

    /// Handles an event of this QEMU process. Returns the event for the life machine.
    pub(crate) fn handle(
        &mut self,
        event: VmEvent,
        around: &mut Surroundings<'_>,
    ) -> Option<life::Event> {
        let (qemu, ctx) = (&mut self.qemu, around.ctx);
        match event {
            VmEvent::QmpClosed => qemu.reconnect(ctx.paths().qmp_socket()),
            VmEvent::Watchdog(event) => self.qmp_watchdog.handle(event, around.public, ctx),
            VmEvent::DiskSpace(event) => {
                return self.disk_space.handle(event, around.state, qemu, ctx);
            }
            VmEvent::Freeze(event) => self.freeze.handle(event, qemu, ctx),
            VmEvent::Memory(event) => self.memory.handle(event),
            VmEvent::Snapshot(event) => {
                self.saves.snapshot.handle(event, &mut self.freeze, qemu, ctx);
            }
            VmEvent::Readiness(found) => return Some(self.readiness.handle(found)),
            VmEvent::Screen(opened) => {
                let authorizer = around.config.authorizer();
                if self.screen.handle(opened, authorizer, qemu).is_err() {
                    around.config.set_screen_unserved();
                }
            }
            VmEvent::Taps(report) => self.taps.handle(report, ctx),
            VmEvent::InstalledQemu(version) => {
                self.installed.handle(version);
                self.compare(around.config, ctx);
            }
            VmEvent::Qmp(_)
            | VmEvent::QmpReconnected(..)
            | VmEvent::Executed(_)
            | VmEvent::Exited { .. }
            | VmEvent::StateSaved(_)
            | VmEvent::LiveUpdate(_)
            | VmEvent::HostShare(_)
            | VmEvent::Reloaded => {}
        }
        None
    }

    pub(crate) fn qemu(&mut self) -> &mut Qemu {
        &mut self.qemu
    }

    /// The components, each to be called with what it needs.
    pub(crate) fn components(&mut self) -> Components<'_> {
        Components {
            qemu: &mut self.qemu,
            freeze: &mut self.freeze,
            memory: &mut self.memory,
            readiness: &mut self.readiness,
            state_save: &mut self.saves.state,
            snapshot: &mut self.saves.snapshot,
            is_updating: self.live_update.is_active(),
            disk_space: &mut self.disk_space,
            qmp_watchdog: &mut self.qmp_watchdog,
        }
    }

    /// Returns the run record.
    pub(crate) fn record(&self) -> &Record {
        self.qemu.record()
    }

    /// The balloon.
    pub(crate) fn memory(&self) -> &Memory {
        &self.memory
    }

    /// Continues the operations of an earlier supervisor, after an adoption.
    pub(crate) fn recall(&mut self, config: &Config, ctx: &Context) {
        self.freeze.recall(&mut self.qemu, ctx);
        self.saves.snapshot.recall(&mut self.qemu, ctx);
        self.settle_devices(config, ctx);
    }

    /// Serves the screen of a launched QEMU process.
    pub(crate) fn serve_screen(&mut self, listener: Option<VncListener>, config: &mut Config) {
        if self.screen.serve(listener, config.authorizer(), &self.qemu).is_err() {
            config.set_screen_unserved();
        }
    }

    /// Opens the screen again. Ends with a report.
    pub(crate) fn open_screen_again(
        &mut self,
        vm: &Vm,
        ctx: &Context,
    ) -> impl Future<Output = ()> + Send + use<> {
        self.screen.open_again(vm, &mut self.qemu, ctx)
    }

    /// Returns the process that listens for viewers of the screen.
    pub(crate) fn screen_owner(&self) -> ScreenOwner {
        self.screen.owner()
    }

    /// Returns the address of the screen.
    pub(crate) fn screen_address(&self, vm: &Vm, ctx: &Context) -> Option<String> {
        self.screen.address(vm, ctx.paths())
    }

    /// Compares the VM file with the running VM. If a change requires a relaunch, QEMU shuts down
    /// at the guest's next reboot.
    pub(crate) fn compare(&mut self, config: &mut Config, ctx: &Context) {
        self.installed.compare(config.files().binary, &mut self.qemu, ctx);
        self.update_taps(config);
        config.compare(Some(self.running()));
        let relaunch = config.wants_relaunch();
        if self.qemu.set_reboot_relaunches(relaunch) {
            let action = if relaunch { "shutdown" } else { "reset" };
            self.qemu.tell("set what a reboot does", move |q| async move {
                q.set_reboot_action(action, QMP_LIMIT).await
            });
        }
    }

    fn running(&self) -> RunningQemu<'_> {
        RunningQemu {
            record: self.qemu.record(),
            installed: self.installed.version(),
            screen: self.screen.owner(),
        }
    }

    fn update_taps(&self, config: &Config) {
        let examining =
            if self.live_update.is_active() { Examining::Suspended } else { Examining::Active };
        self.taps.want(config.wanted_taps(examining));
    }

    /// Applies changes to the machine.
    pub(crate) fn apply(&mut self, client: Option<Reply>, config: &Config, ctx: &Context) {
        self.live_update.apply(client, config, &self.taps, &self.qemu, ctx);
        self.update_taps(config);
    }

    /// Handles the end of the changes. The caller then calls [`Self::finish_update`].
    pub(crate) fn on_applied(
        &mut self,
        results: Applied,
        config: &mut Config,
    ) -> Option<AfterUpdate> {
        self.live_update.on_applied(results, config, &mut self.memory, &mut self.qemu)
    }

    /// Answers the clients of the changes.
    pub(crate) fn finish_update(&mut self, after: AfterUpdate, config: &Config, ctx: &Context) {
        self.live_update.finish(after, config, &mut self.qemu, ctx);
    }

    /// Removes released devices from QEMU and the run record.
    pub(crate) fn settle_devices(&mut self, config: &Config, ctx: &Context) {
        if !self.live_update.is_active() {
            self.live_update.settle(vec![], vec![], config, &mut self.qemu, ctx);
        }
    }

    /// Handles the released devices.
    pub(crate) fn on_settled(
        &mut self,
        number: u64,
        done: Result<Devices, Refusal>,
        config: &mut Config,
        ctx: &Context,
    ) {
        let both = (&mut *config, &mut self.memory);
        self.live_update.on_settled(number, done, both, &mut self.qemu);
        self.compare(config, ctx);
    }

    /// Adds a client that waits for its reload.
    pub(crate) fn on_reload(&mut self, client: Option<Reply>) {
        self.live_update.on_reload(client);
    }

    /// Ends the earliest reload. Returns its client.
    pub(crate) fn on_reloaded(&mut self) -> Option<Reply> {
        self.live_update.on_reloaded()
    }

    /// Handles a pause of the vCPUs: queries QEMU for disks without space.
    pub(crate) fn on_paused(&mut self, config: &Config, ctx: &Context) {
        let disks = config.vm().disks.iter().chain(&config.written().disks).cloned().collect();
        self.disk_space.on_paused(disks, &mut self.qemu, ctx);
    }

    /// Records whether an operator paused the vCPUs: neither free space nor the next supervisor
    /// resumes such a guest. Returns the pending write; `None` without a change.
    pub(crate) fn set_paused_by_operator(
        &mut self,
        paused: bool,
    ) -> Option<BoxFuture<'static, Result<(), String>>> {
        let changes = self.record().held != paused;
        let written = changes.then(|| self.qemu.change_record(|record| record.held = paused));
        if paused {
            self.disk_space.stop_waiting();
        }
        written
    }

    /// Handles a new QMP connection.
    pub(crate) fn use_connection(&mut self, session: qmp::Session) {
        info!("QEMU's monitor answers again");
        self.qemu.use_connection(session);
        self.screen.use_connection(self.qemu.client());
    }

    /// Queries the state of events lost with a connection.
    pub(crate) fn resynchronize(&mut self, config: &Config, ctx: &Context) {
        self.memory.query(&mut self.qemu);
        self.settle_devices(config, ctx);
    }

    /// Answers the clients that wait for a change of the machine, after the exit of QEMU.
    pub(crate) fn close(mut self) {
        self.live_update.close();
    }

    /// Returns a problem of the host as a word.
    pub(crate) fn trouble(&self) -> Option<&'static str> {
        if self.qmp_watchdog.is_silent() {
            Some("monitor-silent")
        } else {
            self.disk_space.is_short().then_some("no-space")
        }
    }

    /// Returns the notes about the guest, except those about changes that could not be applied.
    pub(crate) fn notes(&self, state: &life::State, ctx: &Context) -> Vec<Note> {
        let mut notes: Vec<Note> = self.disk_space.notes(state).collect();
        notes.extend(self.qmp_watchdog.note());
        notes.extend(self.freeze.note(ctx));
        notes.extend_from_slice(self.taps.notes());
        notes
    }

    /// Returns the notes about the readiness.
    pub(crate) fn readiness_note(&self) -> Option<Note> {
        self.readiness.note()
    }

    /// Returns the notes about changes that could not be applied.
    pub(crate) fn update_notes(&self) -> &[Note] {
        self.live_update.notes()
    }

    /// Returns why the screen is not served.
    pub(crate) fn screen_note(&self) -> Option<Note> {
        self.screen.note()
    }
}
