//! Whether QEMU's monitor answers: asked as often as the service manager's watchdog wants to know, and when an operator asks how the VM is.
//!
//! A QEMU that is silent may hold a guest that only waits for its storage. So nothing is done about it but telling: it is ended by `qvm
//! stop` and `qvm kill` alone, whose ladder has its bounds.

use crate::supervisor::limits::{FOREVER, QMP_LIMIT};
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;
use tracing::{info, warn};

use crate::supervisor::{
    Supervisor,
    input::{Fact, Trouble},
};

/// How long an answer is good for who asks how the VM is: who lists all of a host's VMs over and over wakes no QEMU for it.
const FRESH: Duration = Duration::from_secs(1);

/// What is known of the monitor.
#[derive(Debug, Default)]
pub(crate) struct Monitor {
    /// When it was asked what it has not answered yet.
    asked: Option<Timestamp>,
    /// When it has answered.
    answered: Option<Instant>,
    /// It has not for longer than it may.
    silent: bool,
}

impl Monitor {
    pub(crate) fn is_silent(&self) -> bool {
        self.silent
    }
}

impl Supervisor {
    /// The watchdog is fed only while QEMU's monitor answers.
    pub(crate) fn feed_watchdog(&mut self) {
        match &self.qemu {
            Some(_) => self.ask_monitor(),
            None => self.notifier.watchdog(),
        }
    }

    /// Somebody asks how the VM is.
    pub(crate) fn look_at_monitor(&mut self) {
        if self.monitor.answered.is_none_or(|at| at.elapsed() >= FRESH) {
            self.ask_monitor();
        }
    }

    /// Asks once; while no answer has come, not again.
    fn ask_monitor(&mut self) {
        let Some(qemu) = &self.qemu else { return };
        if self.monitor.asked.is_some() {
            return;
        }
        self.monitor.asked = Some((self.settings.now)());
        let client = qemu.client.clone();
        let (facts, generation) = (self.facts.clone(), self.generation);
        self.tasks.spawn(async move {
            let mut asked = std::pin::pin!(client.query_status(FOREVER));
            let answer = match tokio::time::timeout(QMP_LIMIT, &mut asked).await {
                Ok(answer) => answer,
                Err(_) => {
                    let _ = facts.send(Fact::Trouble(generation, Trouble::Silent)).await;
                    asked.await
                }
            };
            // A connection that closed is no answer; whoever makes a new one asks again.
            let told = Trouble::Answered(answer.is_ok());
            let _ = facts.send(Fact::Trouble(generation, told)).await;
        });
    }

    /// It does not answer in time.
    pub(crate) fn monitor_is_silent(&mut self) {
        let Some(asked) = self.monitor.asked else { return };
        self.monitor.silent = true;
        warn!(
            "QEMU's monitor does not answer since {asked}; the watchdog is not fed until it does"
        );
        self.notifier.status("QEMU's monitor does not answer");
        self.publish("QVM_MONITOR_SILENT", serde_json::json!({ "since": asked.to_string() }));
    }

    /// It does; or its connection has closed.
    pub(crate) fn monitor_answered(&mut self, well: bool) {
        let asked = self.monitor.asked.take();
        if !well {
            return;
        }
        self.monitor.answered = Some(Instant::now());
        self.notifier.watchdog();
        if std::mem::take(&mut self.monitor.silent) {
            let since = asked.map(|at| at.to_string());
            info!("QEMU's monitor answers again");
            self.notifier.status(self.told_state().word());
            self.publish("QVM_MONITOR_ANSWERS", serde_json::json!({ "since": since }));
        }
    }

    /// What an operator should know.
    pub(crate) fn monitor_note(&self) -> Option<String> {
        let since = self.monitor.asked.filter(|_| self.monitor.silent)?;
        Some(format!(
            "QEMU's monitor does not answer since {since}: its process is stopped, or its storage hangs; the guest is left as it is"
        ))
    }
}
