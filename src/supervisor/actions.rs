//! Doing what the life machine wants done.

use crate::supervisor::{
    limits::{AGENT_LIMIT, LAST_WORDS, QMP_LIMIT, STOP_SLACK},
    outcome::Outcome,
};
use std::time::Duration;

use tracing::{error, info, warn};

use super::{
    Supervisor,
    file_reading::AfterReading,
    input::Fact,
    running::ready::policy,
    start::{begin::end_launched, launch},
};
use crate::store::{
    record,
    running::{self, Found, PreviousQemu},
};
use crate::{
    control::types,
    life::{self, Action, Rung},
    sys::pidfd,
    value::chain,
};

impl Supervisor {
    /// One step of the life machine, and what it wants done.
    pub(crate) fn feed(&mut self, event: life::Event) {
        let before = self.told_state();
        let life = std::mem::take(&mut self.life);
        let (life, actions) = life.step(event, self.origin.elapsed(), &policy(&self.vm));
        self.life = life;
        if self.told_state() != before {
            self.since = (self.settings.now)();
            let state = self.told_state();
            self.publish("QVM_STATE", serde_json::json!({ "state": state }));
            if let (types::State::Stopping, Some(watching)) = (state, &mut self.watching) {
                watching.end();
            }
            if matches!(state, types::State::Running | types::State::Paused) {
                self.notifier.status(&format!("{state:?}").to_lowercase());
            }
        }
        for action in actions {
            self.act(action);
        }
        self.answer_effects();
    }

    pub(crate) fn act(&mut self, action: Action) {
        match action {
            Action::Launch => self.launch(),
            Action::CancelStart => self.cancel_start(),
            Action::AwaitReady(limit) => self.await_ready(limit),
            Action::StopAwaiting => self.awaiting = None,
            Action::GiveUpReady(why) => self.give_up_ready(&why),
            Action::NotifyReady => self.be_ready(),
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
            Action::Hold => {
                self.command_qemu("pause the guest", |q| async move { q.stop(QMP_LIMIT).await });
            }
            Action::Continue => {
                self.command_qemu("resume the guest", |q| async move { q.cont(QMP_LIMIT).await });
            }
            Action::Record(end) => self.record_end(&end),
            Action::Exit(code) => {
                self.left = Some(match self.start_failure.take() {
                    Some(why) => Outcome::NotStarted { fault: self.fault, why },
                    None => Outcome::Exit(code),
                });
            }
        }
    }

    fn launch(&mut self) {
        // A relaunch takes up the VM file as it is now, so it is prepared anew.
        let Some(prepared) = self.prepared.take() else {
            if let Some(watching) = &self.watching {
                let watching = watching.clone();
                let _ = self.lanes.files.run(move || {
                    if let Err(error) = watching.begin() {
                        warn!("changes of the VM file will be seen only by `qvm reload`: {error}");
                    }
                });
            }
            self.life.state = life::State::Preparing;
            self.read_files(AfterReading::Relaunch);
            return;
        };
        let settings = self.settings.clone();
        let (text, restore) = (self.text.clone(), self.restoring.is_some());
        self.start_task(async move { launch::launch(&settings, prepared, &text, restore).await });
    }

    /// Starts a guest anew that ran, by the VM file as it was read last.
    pub(crate) fn relaunch(&mut self) {
        if self.life.state != life::State::Preparing {
            // It was called off meanwhile.
            return self.feed(life::Event::StartFailed("cancelled".into()));
        }
        self.runs(self.written.clone());
        self.text.clone_from(&self.written_text);
        self.pending.clear();
        self.reboot_relaunches = false;
        self.ask_to_start();
    }

    fn cancel_start(&mut self) {
        self.cancel.set();
        if self.starting.take().is_none() {
            // Nothing was started yet. What prepares sees the cancellation by itself.
            return;
        }
        // Dropping a launch kills the QEMU that it may have spawned, on its lane; one that was being adopted goes on, and is found
        // again. The run record stays until QEMU is gone.
        let (paths, facts, adopting) = (self.paths.clone(), self.facts.clone(), self.adopting);
        let ending = self.lanes.launch.drive(async move {
            if adopting.is_none() {
                end_launched(&paths).await;
            }
            let found = running::find(&paths);
            let _ = facts.send(Fact::StartAborted(Box::new(found))).await;
        });
        // Where it is refused, the life machine ends without it.
        self.starting = ending.ok();
    }

    /// A start was called off, and nothing of it goes on.
    pub(crate) fn on_start_aborted(&mut self, found: &Found) {
        if !matches!(self.life.state, life::State::Cancelling { .. }) {
            return;
        }
        match found {
            Ok(PreviousQemu::Running(..)) => {}
            Ok(_) if self.adopting.is_none() => self.records.remove(),
            Ok(_) => {}
            Err(unknown) => warn!("the run record stays: {}", chain(unknown)),
        }
        self.feed(life::Event::StartFailed("cancelled".into()));
    }

    fn announce(&mut self, rung: Rung) {
        info!("{rung}");
        self.notifier.status(&rung.to_string());
        let data = serde_json::json!({ "rung": rung.word(), "text": rung.to_string() });
        self.publish("QVM_STOP_RUNG", data);
    }

    /// Sends one QMP command without waiting for it; a failure is logged, and the ladder goes on.
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

    /// A number that no recent call to the agent had.
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

    /// QMP `quit`; SIGTERM, which QEMU takes as the same, where the monitor does not answer.
    fn quit(&mut self) {
        let Some(qemu) = &self.qemu else { return };
        let (client, process) = (qemu.client.clone(), qemu.process.clone());
        self.tasks.spawn(async move {
            match client.quit(Duration::from_secs(3)).await {
                Ok(()) | Err(qmp::Error::Closed) => {}
                Err(error) => {
                    warn!("QEMU did not take `quit`, SIGTERM instead: {error}");
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
            // The verb tells it, as the last thing.
            life::Cause::StartFailed(why) => self.start_failure = Some(why.clone()),
            life::Cause::NotReady(_) => self.start_failure = Some(kept.detail.clone()),
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
