//! Doing what the life machine wants done.

use std::time::Duration;

use tracing::{error, info, warn};

use super::{
    launch, record,
    set_out::Starting,
    supervise::{AGENT_LIMIT, LAST_WORDS, Left, QMP_LIMIT, STOP_SLACK, Supervisor},
};
use crate::{
    control::types,
    host::pidfd,
    life::{self, Action, Rung},
    value::chain,
};

impl Supervisor {
    pub(super) fn act(&mut self, action: Action) {
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
                self.tell_qemu("reset the guest", |q| async move { q.reset(QMP_LIMIT).await });
            }
            Action::Hold => {
                self.tell_qemu("pause the guest", |q| async move { q.stop(QMP_LIMIT).await });
            }
            Action::Continue => {
                self.tell_qemu("resume the guest", |q| async move { q.cont(QMP_LIMIT).await });
            }
            Action::Record(end) => self.record_end(&end),
            Action::Exit(code) => {
                self.left = Some(match self.start_failure.take() {
                    Some(why) => Left::NotStarted { fault: self.fault, why },
                    None => Left::Exit(code),
                });
            }
        }
    }

    fn launch(&mut self) {
        // A relaunch takes up the VM file as it is now, so it is prepared anew.
        let Some(prepared) = self.prepared.take() else {
            if let Some(watching) = &mut self.watching
                && let Err(error) = watching.begin()
            {
                warn!("changes of the VM file will be seen only by `qvm reload`: {error}");
            }
            self.reread();
            self.runs(self.written.clone());
            self.text.clone_from(&self.written_text);
            self.pending.clear();
            self.reboot_relaunches = false;
            self.life.state = life::State::Preparing;
            self.ask_to_start();
            return;
        };
        let settings = self.settings.clone();
        let (text, restore) = (self.text.clone(), self.restoring.is_some());
        self.start_task(async move { launch::launch(&settings, prepared, &text, restore).await });
    }

    fn cancel_start(&mut self) {
        self.cancel.set();
        match self.starting.take() {
            // Nothing was started yet. What prepares sees the cancellation by itself.
            None => {}
            Some(Starting::Admission(task)) => {
                task.abort();
                self.feed(life::Event::StartFailed("canceled".into()));
            }
            // The run record stays until the task's end says that QEMU is gone, see `start_task`.
            Some(Starting::Qemu(task)) => task.abort(),
        }
    }

    fn announce(&mut self, rung: Rung) {
        info!("{rung}");
        self.notifier.status(&rung.to_string());
        let data = serde_json::json!({ "rung": rung.word(), "text": rung.to_string() });
        self.publish("QVM_STOP_RUNG", data);
    }

    /// Sends one QMP command without waiting for it; a failure is logged, and the ladder goes on.
    pub(super) fn tell_qemu<F, W>(&self, what: &'static str, command: F)
    where
        F: FnOnce(qmp::Client) -> W,
        W: Future<Output = Result<(), qmp::Error>> + Send + 'static,
    {
        if let Some(qemu) = &self.qemu {
            let work = command(qemu.client.clone());
            tokio::spawn(async move {
                match work.await {
                    Ok(()) | Err(qmp::Error::Closed) => {}
                    Err(error) => warn!("cannot {what}: {error}"),
                }
            });
        }
    }

    /// A number that no recent call to the agent had.
    pub(super) fn next_sync(&mut self) -> u32 {
        self.sync = self.sync.wrapping_add(10_000);
        self.sync
    }

    fn ask_agent_to_shut_down(&mut self) {
        let thawed = self.thaw_first();
        let sync = self.next_sync();
        let Some(qemu) = &self.qemu else { return };
        let agent = qemu.agent.clone();
        tokio::spawn(async move {
            let _ = thawed.await;
            match agent.shutdown(sync, AGENT_LIMIT).await {
                Ok(()) => info!("the guest agent was asked to shut down as well"),
                Err(why) => tracing::debug!("no guest agent took part: {why}"),
            }
        });
    }

    /// QMP `quit`; SIGTERM, which QEMU takes as the same, where the monitor does not answer.
    fn quit(&self) {
        let Some(qemu) = &self.qemu else { return };
        let (client, process) = (qemu.client.clone(), qemu.process.clone());
        tokio::spawn(async move {
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

    pub(super) fn record_end(&mut self, end: &life::End) {
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
        match record::keep(&self.paths, kept) {
            Ok(ends) => self.ends = ends,
            Err(error) => error!("cannot keep how it ended: {}", chain(&error)),
        }
    }
}
