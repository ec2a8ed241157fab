//! Handles a QEMU process: its launch or adoption, its events, its exit.

use tracing::{debug, info};

use super::{
    Supervisor,
    config::ScreenOwner,
    file_reading::AfterReading,
    running::{
        Components, RunningVm,
        event::{HostShareEvent, HostShareGiven, LiveUpdateEvent, MemoryEvent},
        qemu::Qemu,
        ready,
        suspend::set_guest_clock,
    },
    start::{Start, launch::LaunchedQemu},
};
use crate::{
    control::types::Refusal,
    life::{self, Guest, QemuExit},
    net::tap_spec::taps,
    sys::pidfd::Exit,
};

impl Supervisor {
    /// Handles a QEMU process that was launched or adopted. `share` is its share of the host.
    pub(crate) fn on_launched(&mut self, launched: LaunchedQemu, given: HostShareGiven) {
        let start = self.start.take();
        let LaunchedQemu {
            process,
            record,
            client,
            agent,
            events,
            serial,
            vnc,
            tap_notes,
            listens,
            found,
            adopted,
        } = launched;
        let restored = start.as_ref().is_some_and(Start::is_restore);
        let how = match (adopted, restored) {
            (true, _) => "taken over",
            (false, true) => "continues from the saved state",
            (false, false) => "started",
        };
        info!("QEMU {} {how}, pid {}, {}", record.qemu_version, record.pid, record.accel);
        if !adopted {
            self.console.boots();
        }
        self.console.attach(serial);
        self.history.set_notes(record.notes.clone().into());
        let was_ready = (adopted || restored) && record.ready;
        self.files.watch_program(record.binary.clone(), &self.ctx);
        let (mut qemu, queue) = Qemu::new(process, client, agent, record, &self.ctx);
        qemu.listen(events);
        let owner = if listens { ScreenOwner::Qemu } else { ScreenOwner::Supervisor };
        let (config, ctx) = (&mut self.config, &self.ctx);
        let mut vm = RunningVm::new((qemu, queue), owner, tap_notes, config, ctx);
        if adopted {
            vm.recall(config, ctx);
            let booted = start.as_ref().and_then(|start| start.booted().file.as_ref());
            if let (ScreenOwner::Qemu, Some((booted, _))) = (owner, booted) {
                config.keep_screen_of(booted);
            }
            let served = vm.open_screen_again(config.vm(), ctx);
            vm.qemu().tasks().spawn(served);
        } else {
            vm.serve_screen(vnc, config);
        }
        ready::record(self.life.readiness(), vm.qemu());
        // The threads of an adopted QEMU may be bound to CPUs that the VM file does not name any
        // more.
        self.host_share.on_launched(adopted);
        self.host_share.handle(HostShareEvent::Given(given), config.vm(), vm.qemu());
        vm.qemu().await_exit(self.host_share.was_oom_killed(ctx));
        self.registration.register(vm.record().uuid.clone(), taps(config.vm()), ctx);
        if restored {
            set_guest_clock(vm.qemu(), ctx);
        }
        let intention = vm.record().intention.as_ref();
        let intention = intention.and_then(|one| one.intention(ctx.now(), ctx.elapsed()));
        if intention.is_some() {
            info!("continuing the shutdown that the previous supervisor began");
        }
        self.vm = Some(vm);
        let launched = life::StartEvent::Launched { guest: found, ready: was_ready, intention };
        self.feed(launched.into());
        if found == Guest::Paused {
            self.on_paused();
        }
        self.compare();
        self.read_files(AfterReading::Compare);
        self.settle_later();
    }

    fn on_paused(&mut self) {
        if let Some(vm) = &mut self.vm {
            vm.on_paused(&self.config, &self.ctx);
        }
    }

    fn on_resumed(&mut self) {
        if let Some(vm) = &mut self.vm {
            vm.components().disk_space.on_resumed();
        }
    }

    /// Handles an event of QEMU.
    pub(crate) fn on_qmp_event(&mut self, event: &qmp::Event) {
        use qmp::{Kind, ShutdownReason as Reason};
        debug!("QMP event {}", event.name);
        self.ctx.publish(&event.name, event.data.clone());
        match event.kind() {
            // Also a host reset, if a reset requires a new QEMU process.
            Kind::Shutdown { reason: Reason::GuestReset | Reason::HostQmpSystemReset, .. } => {
                self.feed(life::Event::GuestReboot);
            }
            Kind::Shutdown { guest: true, .. } => self.feed(life::Event::GuestShutdown),
            Kind::Reset { reason, .. } => self.on_reset(reason),
            Kind::GuestPanicked { .. } => self.feed(life::Event::GuestPanicked),
            Kind::Stop => {
                self.feed(life::Event::VcpusStopped);
                self.on_paused();
            }
            Kind::Resume => {
                self.on_resumed();
                self.feed(life::Event::VcpusResumed);
            }
            Kind::BalloonChange { actual } => {
                if let Some(vm) = &mut self.vm {
                    vm.components().memory.handle(MemoryEvent::Actual(actual));
                }
            }
            Kind::DeviceDeleted { .. } => {
                if let Some(vm) = &mut self.vm {
                    vm.settle_devices(&self.config, &self.ctx);
                }
            }
            _ => {}
        }
    }

    fn on_reset(&mut self, reason: qmp::ShutdownReason) {
        if reason == qmp::ShutdownReason::HostQmpSystemReset {
            self.effects.on_reset();
        }
        if let Some(vm) = &mut self.vm {
            let Components { qemu, freeze, .. } = vm.components();
            freeze.forget(qemu);
        }
        self.console.boots();
        self.feed(life::Event::GuestReset);
    }

    /// Handles a new QMP connection; `run_state` is QEMU's.
    pub(crate) fn on_qmp_reconnected(&mut self, session: qmp::Session, run_state: &str) {
        let Some(vm) = &mut self.vm else { return };
        vm.use_connection(session);
        // Events between the two connections were lost.
        self.feed(match run_state {
            "running" => life::Event::VcpusResumed,
            "shutdown" => life::Event::GuestShutdown,
            "guest-panicked" => life::Event::GuestPanicked,
            _ => life::Event::VcpusStopped,
        });
        self.on_paused();
        if run_state == "running" {
            self.on_resumed();
        }
        if let Some(vm) = &mut self.vm {
            vm.resynchronize(&self.config, &self.ctx);
        }
    }

    /// Handles a change of the machine.
    pub(crate) fn on_live_update(&mut self, event: LiveUpdateEvent) {
        let Some(vm) = &mut self.vm else { return };
        match event {
            LiveUpdateEvent::Settled { number, done } => {
                vm.on_settled(number, done, &mut self.config, &self.ctx);
            }
            LiveUpdateEvent::Applied(results) => {
                let Some(mut after) = vm.on_applied(results, &mut self.config) else { return };
                self.compare();
                // A new NIC changes the VM's identity.
                self.read_files(AfterReading::Compare);
                for client in std::mem::take(&mut after.again) {
                    self.read_files(AfterReading::Reload(Some(client)));
                }
                if let Some(vm) = &mut self.vm {
                    vm.finish_update(after, &self.config, &self.ctx);
                }
            }
        }
    }

    /// Handles the result of a save of the guest's state.
    pub(crate) fn on_state_saved(&mut self, done: Result<(), Refusal>) {
        // The save was canceled meanwhile.
        if !matches!(self.life.state(), life::State::Suspending(_)) {
            return;
        }
        let Some(vm) = &mut self.vm else { return };
        let event = vm.components().state_save.on_saved(&done, &self.ctx);
        if let Err(refusal) = done {
            self.effects.on_not_saved(refusal);
        }
        self.feed(event);
    }

    /// Handles the exit of QEMU.
    pub(crate) fn on_exit(&mut self, exit: Exit, oom: bool) {
        let gone = match exit {
            Exit::Code(code) => QemuExit::Code(code),
            Exit::Signal(signal) => QemuExit::Signal { signal, oom },
            Exit::Unknown => QemuExit::Unknown,
        };
        if let Some(vm) = self.vm.take() {
            vm.close();
        }
        self.files.stop_watching();
        self.ctx.remove_record();
        self.feed(life::Event::QemuExited(gone));
    }
}
