//! Dispatches each input of the loop.

use tracing::info;

use super::{
    Supervisor,
    file_reading::AfterReading,
    input::Input,
    limits::SETTLED_AFTER,
    running::{
        Components, RunningVm, Surroundings,
        event::{DiskSpaceEvent, VmEvent},
        suspend::set_guest_clock,
    },
};
use crate::{
    life,
    sys::{memory, signal::Signal},
};

impl Supervisor {
    /// Returns the next event of the running VM, if there is one.
    pub(crate) async fn next_vm_event(vm: &mut Option<RunningVm>) -> VmEvent {
        match vm {
            Some(vm) => vm.next().await,
            None => std::future::pending().await,
        }
    }

    /// Handles an input.
    pub(crate) fn handle_input(&mut self, input: Input) {
        if matches!(input, Input::Request(_)) {
            self.settle_later();
        }
        match input {
            Input::Signal(Signal::Stop) => self.on_stop_signal(),
            Input::Signal(Signal::Interrupt) => self.on_interrupt(),
            Input::Signal(Signal::Reload) => self.read_files(AfterReading::Reload(None)),
            Input::Signal(Signal::Reexec) => self.reexec(),
            Input::StopSignal { host_down: true } => self.feed(life::Event::HostShutdownStarted),
            Input::StopSignal { host_down: false } => self.feed(life::Event::StopSignaled),
            // The first reply must not report a running guest as starting.
            Input::Request(request) if self.life.answers_requests() => self.answer(request),
            Input::Request(request) => self.effects.on_early(request),
            Input::FileChanged => self.read_files(AfterReading::Compare),
            Input::Files(event) => self.on_file_event(event),
            Input::HostSlept(slept) => {
                info!("the host was suspended for {} s", slept.as_secs());
                if let Some(vm) = &mut self.vm {
                    set_guest_clock(vm.qemu(), &self.ctx);
                }
            }
            Input::UnknownOperators(names) => self.config.set_unknown_operators(names),
            Input::Settled => {
                self.ctx.end_settling();
                memory::trim();
            }
            Input::Written(done) => self.on_written(done),
        }
    }

    /// Schedules the return of unused memory to the kernel, some seconds after a start or a series
    /// of requests.
    pub(crate) fn settle_later(&mut self) {
        if self.ctx.begin_settling() {
            self.tasks.report(async {
                tokio::time::sleep(SETTLED_AFTER).await;
                Input::Settled
            });
        }
    }

    /// Handles an event of the running VM.
    pub(crate) fn handle_vm_event(&mut self, event: VmEvent) {
        match event {
            VmEvent::Qmp(event) => self.on_qmp_event(&event),
            VmEvent::QmpReconnected(session, run_state) => {
                self.on_qmp_reconnected(session, &run_state);
            }
            VmEvent::Executed(executed) => {
                self.effects.on_executed(executed);
                self.answer_effects();
            }
            VmEvent::Exited { exit, oom } => self.on_exit(exit, oom),
            VmEvent::StateSaved(done) => self.on_state_saved(done),
            VmEvent::LiveUpdate(event) => self.on_live_update(event),
            VmEvent::HostShare(event) => {
                if let Some(vm) = &mut self.vm {
                    self.host_share.handle(event, self.config.vm(), vm.qemu());
                }
            }
            VmEvent::Reloaded => self.on_reloaded(),
            VmEvent::DiskSpace(DiskSpaceEvent::Full { .. }) => {
                self.pass_to_vm(event);
                if let Some(vm) = &mut self.vm {
                    let Components { qemu, disk_space, .. } = vm.components();
                    disk_space.wait_for_space(self.life.state(), qemu);
                }
            }
            event => self.pass_to_vm(event),
        }
    }

    /// Passes an event to the running VM.
    fn pass_to_vm(&mut self, event: VmEvent) {
        let public = self.public_state();
        let Some(vm) = &mut self.vm else { return };
        let mut around = Surroundings {
            config: &mut self.config,
            state: self.life.state(),
            public,
            ctx: &self.ctx,
        };
        if let Some(event) = vm.handle(event, &mut around) {
            self.feed(event);
        }
    }
}
