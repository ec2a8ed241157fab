//! Executes the actions of the life machine.

use crate::supervisor::{
    limits::{AGENT_LIMIT, LAST_WORDS, QMP_LIMIT, STOP_SLACK},
    outcome::Outcome,
};
use std::time::Duration;

use tracing::{error, info, warn};

use super::{Supervisor, running::ready::policy};
use crate::{
    control::types,
    life::{self, Action, Exit, Rung},
    store::record,
    sys::pidfd,
    value::chain,
};

impl Supervisor {
    /// Reports an event to the life machine, and executes the actions that follow.
    pub(crate) fn feed(&mut self, event: life::Event) {
        let before = self.public_state();
        let actions = self.life.step(event, self.origin.elapsed(), &policy(&self.vm));
        if self.public_state() != before {
            self.since = (self.settings.now)();
            let state = self.public_state();
            self.publish("QVM_STATE", serde_json::json!({ "state": state }));
            if let (types::State::Stopping, Some(watching)) = (state, &mut self.watching) {
                watching.end();
            }
            if matches!(state, types::State::Running | types::State::Paused) {
                self.notifier.status(&format!("{state:?}").to_lowercase());
            }
        }
        for action in actions {
            self.execute(action);
        }
        self.answer_effects();
        if self.life.answers_requests() {
            for request in std::mem::take(&mut self.waiting_requests) {
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
            Action::RemoveRecord => self.records.remove(),
            Action::CancelStart => self.cancel_start(),
            Action::AwaitReady(limit) => self.await_ready(limit),
            Action::StopAwaiting => self.awaiting = None,
            Action::GiveUpReady(why) => self.give_up_ready(&why),
            Action::NotifyReady => self.notify_ready(),
            Action::NotifyStopping(limit) => {
                self.notifier.stopping("stopping");
                self.notifier.extend_timeout(limit + STOP_SLACK);
            }
            Action::Announce(rung) => self.announce(rung),
            Action::PressPowerButton => {
                // A guest whose file systems are frozen cannot shut down.
                let thawed = self.thaw_first();
                self.tell_qemu("press the power button", |q| async move {
                    let _ = thawed.await;
                    q.powerdown(QMP_LIMIT).await
                });
            }
            Action::AgentShutdown => self.ask_agent_to_shut_down(),
            Action::Save => self.save(),
            Action::CancelSave => self.cancel_save(),
            Action::Quit => self.quit(),
            Action::Kill => self.signal_qemu(pidfd::Signal::KILL),
            Action::Reset => {
                self.command_qemu("reset the guest", |q| async move { q.reset(QMP_LIMIT).await });
            }
            Action::Pause => {
                self.command_qemu("pause the guest", |q| async move { q.stop(QMP_LIMIT).await });
            }
            Action::Resume => {
                self.command_qemu("resume the guest", |q| async move { q.cont(QMP_LIMIT).await });
            }
            Action::Record(end) => self.record_end(&end),
            Action::Exit(Exit::Code(code)) => self.outcome = Some(Outcome::Exit(code)),
            Action::Exit(Exit::NotStarted(failure)) => {
                self.outcome = Some(Outcome::NotStarted(failure));
            }
        }
    }

    fn announce(&mut self, rung: Rung) {
        info!("{rung}");
        self.notifier.status(&rung.to_string());
        let data = serde_json::json!({ "rung": rung.word(), "text": rung.to_string() });
        self.publish("QVM_STOP_RUNG", data);
    }

    /// Sends one QMP command without waiting for the reply; a failure is logged.
    pub(crate) fn tell_qemu<F, W>(&mut self, what: &'static str, command: F)
    where
        F: FnOnce(qmp::Client) -> W,
        W: Future<Output = Result<(), qmp::Error>> + Send + 'static,
    {
        if let Some(qemu) = &self.qemu {
            let work = command(qemu.client.clone());
            self.tasks.spawn(async move {
                match work.await {
                    Ok(()) | Err(qmp::Error::Closed) => {}
                    Err(error) => warn!("cannot {what}: {error}"),
                }
            });
        }
    }

    /// A number that no recent agent call had.
    pub(crate) fn next_sync(&mut self) -> u32 {
        self.sync = self.sync.wrapping_add(10_000);
        self.sync
    }

    fn ask_agent_to_shut_down(&mut self) {
        let thawed = self.thaw_first();
        let sync = self.next_sync();
        let Some(qemu) = &self.qemu else { return };
        let agent = qemu.agent.clone();
        self.tasks.spawn(async move {
            let _ = thawed.await;
            match agent.shutdown(sync, AGENT_LIMIT).await {
                Ok(()) => info!("the guest agent was asked to shut down as well"),
                Err(why) => tracing::debug!("no guest agent took part: {why}"),
            }
        });
    }

    /// Sends QMP `quit`; SIGTERM, which does the same, if the monitor does not answer.
    fn quit(&mut self) {
        let Some(qemu) = &self.qemu else { return };
        let (client, process) = (qemu.client.clone(), qemu.process.clone());
        self.tasks.spawn(async move {
            match client.quit(Duration::from_secs(3)).await {
                Ok(()) | Err(qmp::Error::Closed) => {}
                Err(error) => {
                    warn!("cannot send `quit` to QEMU, sending SIGTERM: {error}");
                    let _ = process.signal(pidfd::Signal::TERM);
                }
            }
        });
    }

    fn signal_qemu(&self, signal: pidfd::Signal) {
        if let Some(qemu) = &self.qemu
            && let Err(error) = qemu.process.signal(signal)
        {
            error!("cannot send a signal to QEMU: {error}");
        }
    }

    pub(crate) fn record_end(&mut self, end: &life::End) {
        let console = if end.failed() { self.console.last_lines(LAST_WORDS) } else { vec![] };
        let kept = types::End {
            reason: end.reason().to_owned(),
            at: (self.settings.now)().to_string(),
            detail: end.to_string(),
            failed: end.failed(),
            console,
        };
        match &end.cause {
            // The command line reports it, as the last line.
            life::Cause::StartFailed(_) | life::Cause::NotReady(_) => {}
            _ if end.failed() => error!("{}", kept.detail),
            _ => info!("{}", kept.detail),
        }
        self.publish("QVM_END", serde_json::json!(kept));
        self.notifier.status(&kept.detail);
        record::put(&mut self.ends, kept.clone());
        let paths = self.paths.clone();
        let queued = self.lanes.state.run(move || {
            if let Err(error) = record::keep(&paths, kept) {
                error!("cannot record how the VM ended: {}", chain(&error));
            }
        });
        if let Err(refused) = queued {
            error!("cannot record how the VM ended: {refused}");
        }
    }
}
