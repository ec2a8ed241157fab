//! Executes the actions of the life machine.

use std::time::Duration;

use tracing::{info, warn};

use super::{
    Supervisor,
    limits::{QMP_LIMIT, STOP_SLACK},
    outcome::Outcome,
    running::{
        Components,
        ready::{self, policy},
        suspend::StateToSave,
    },
};
use crate::{
    control::types,
    life::{self, Action, Exit, Rung},
    spec::{self, Ready},
    sys::pidfd,
};

impl Supervisor {
    /// Steps the life machine and executes its actions.
    pub(crate) fn feed(&mut self, event: life::Event) {
        let before = self.public_state();
        let actions = self.life.step(event, self.ctx.elapsed(), &policy(self.config.vm()));
        if let Some(vm) = &mut self.vm {
            // Recorded before the actions: the next supervisor must know the intended end of QEMU.
            vm.qemu().record_intention(self.life.state().intention(), &self.ctx);
        }
        let state = self.public_state();
        if state != before {
            self.history.on_state_changed(self.ctx.now());
            self.ctx.publish("QVM_STATE", serde_json::json!({ "state": state }));
            if state == types::State::Stopping {
                self.files.stop_watching();
            }
            if matches!(state, types::State::Running | types::State::Paused) {
                self.ctx.notifier().status(state.word());
            }
        }
        for action in actions {
            self.execute(action);
        }
        self.answer_effects();
        if self.life.answers_requests() {
            for request in self.effects.take_early() {
                self.answer(request);
            }
        }
    }

    pub(crate) fn execute(&mut self, action: Action) {
        match action {
            Action::FindPrevious => self.find_previous(),
            Action::ReadVmFile => self.read_vm_file(),
            Action::UseVmFile(which) => self.use_vm_file(which),
            Action::Admit => self.admit(),
            Action::RenewReservation => self.renew_reservation(),
            Action::Prepare => self.prepare(),
            Action::Launch(boot) => self.launch(boot),
            Action::Adopt => self.adopt(),
            Action::QuarantineSavedState(why) => self.quarantine_saved_state(&why),
            Action::RemoveRecord => self.ctx.remove_record(),
            Action::CancelStart => self.cancel_start(),
            Action::AwaitReady(limit) => self.await_ready(limit),
            Action::StopAwaiting => self.stop_awaiting(),
            Action::GiveUpReady(why) => self.give_up_ready(&why),
            Action::NotifyReady => self.notify_ready(),
            Action::NotifyStopping(limit) => {
                self.ctx.notifier().stopping("stopping");
                self.ctx.notifier().extend_timeout(limit + STOP_SLACK);
            }
            Action::Announce(rung) => self.announce(rung),
            Action::PressPowerButton => self.press_power_button(),
            Action::AgentShutdown => self.ask_agent_to_shut_down(),
            Action::Save => self.save(),
            Action::CancelSave => self.cancel_save(),
            Action::Quit => self.quit(),
            Action::Kill => self.kill(),
            Action::Reset => {
                self.command_qemu("reset the guest", |q| async move { q.reset(QMP_LIMIT).await });
            }
            Action::Pause => {
                self.command_qemu("pause the guest", |q| async move { q.stop(QMP_LIMIT).await });
            }
            Action::Resume => {
                self.command_qemu("resume the guest", |q| async move { q.cont(QMP_LIMIT).await });
            }
            Action::Record(end) => self.history.record_end(&end, &self.console, &self.ctx),
            Action::Exit(Exit::Code(code)) => self.history.set_outcome(Outcome::Exit(code)),
            Action::Exit(Exit::NotStarted(failure)) => {
                self.history.set_outcome(Outcome::NotStarted(failure));
            }
        }
    }

    fn announce(&self, rung: Rung) {
        info!("{rung}");
        self.ctx.notifier().status(&rung.to_string());
        let data = serde_json::json!({ "rung": rung.word(), "text": rung.to_string() });
        self.ctx.publish("QVM_STOP_RUNG", data);
    }

    fn press_power_button(&mut self) {
        let Some(vm) = &mut self.vm else { return };
        // A guest whose file systems are frozen cannot shut down.
        let Components { qemu, freeze, .. } = vm.components();
        let (written, thawed) = (qemu.intention_written(), freeze.thaw_first(qemu));
        qemu.tell("press the power button", |q| async move {
            written.await;
            let _ = thawed.await;
            q.powerdown(QMP_LIMIT).await
        });
    }

    fn ask_agent_to_shut_down(&mut self) {
        let Some(vm) = &mut self.vm else { return };
        let Components { qemu, freeze, .. } = vm.components();
        let (written, thawed) = (qemu.intention_written(), freeze.thaw_first(qemu));
        qemu.ask_agent_to_shut_down(async move {
            written.await;
            drop(thawed.await);
        });
    }

    fn quit(&mut self) {
        if let Some(vm) = &mut self.vm {
            let written = vm.qemu().intention_written();
            vm.qemu().quit(written);
        }
    }

    fn kill(&mut self) {
        if let Some(vm) = &mut self.vm {
            vm.qemu().signal(pidfd::Signal::KILL);
        }
    }

    fn save(&mut self) {
        let Some(vm) = &mut self.vm else { return };
        let (config, state) = (&self.config, self.life.state());
        // Only a machine with the same devices can restore a saved state.
        let unusable = config
            .is_replugged()
            .then(|| "disks or NICs were plugged in or out since QEMU was started".to_owned());
        let state = StateToSave {
            vm_file: config.text().to_owned(),
            memory: config.vm().mem.bytes(),
            paused: matches!(state, life::State::Suspending(life::Saving { held: true, .. })),
            unusable,
        };
        let Components { qemu, freeze, state_save, .. } = vm.components();
        state_save.begin(state, freeze, qemu, &self.ctx);
    }

    fn cancel_save(&mut self) {
        let Some(vm) = &mut self.vm else { return };
        let Components { qemu, state_save, .. } = vm.components();
        if let Some(why) = state_save.cancel(qemu, &self.ctx) {
            self.effects.on_not_saved(why);
        }
    }

    fn await_ready(&mut self, limit: Duration) {
        if let Some(vm) = &mut self.vm {
            let Components { qemu, readiness, .. } = vm.components();
            readiness.begin(limit, self.config.vm(), qemu, &self.ctx);
        }
    }

    fn stop_awaiting(&mut self) {
        if let Some(vm) = &mut self.vm {
            vm.components().readiness.stop();
        }
    }

    fn give_up_ready(&mut self, why: &str) {
        // A failure is reported by the end of the VM.
        if self.config.vm().ready_failure == spec::ReadyFailure::Continue {
            warn!("the guest is not ready: {why}");
        }
        self.record_readiness();
    }

    /// Notifies the service manager and the watchers that the VM is up.
    fn notify_ready(&mut self) {
        self.stop_awaiting();
        self.record_readiness();
        let word = self.public_state().word();
        match self.life.readiness() {
            life::Readiness::Missed(why) => {
                self.ctx.notifier().ready(&format!("{word}, not ready: {why}"));
            }
            _ => self.ctx.notifier().ready(word),
        }
        let ready = self.public_readiness();
        if self.config.vm().ready != Ready::Running {
            info!("the VM is up, and ready: {}", ready.map_or("no", types::Ready::word));
        }
        self.ctx.publish("QVM_READY", serde_json::json!({ "ready": ready }));
    }

    pub(crate) fn record_readiness(&mut self) {
        if let Some(vm) = &mut self.vm {
            ready::record(self.life.readiness(), vm.qemu());
        }
    }
}
