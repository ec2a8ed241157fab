//! Whether QMP answers: probed for the service manager's watchdog and for the status.
//!
//! A guest may only wait for its storage, so a silent QEMU is reported but never ended; `qvm stop`
//! and `qvm kill` end it.

use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;
use tracing::{info, warn};

use super::{
    event::{VmEvent, WatchdogEvent},
    qemu::Qemu,
};
use crate::{
    control::types::State,
    supervisor::{
        context::Context,
        limits::{FOREVER, QMP_LIMIT},
    },
    value::{Note, NoteCode},
};

/// How long a reply remains valid for the status, so that frequent reads do not wake QEMU.
const FRESH: Duration = Duration::from_secs(1);

/// Whether QMP answers.
#[derive(Debug, Default)]
pub(crate) struct QmpWatchdog {
    /// The time of the pending query.
    asked: Option<Timestamp>,
    /// The time of the last reply.
    answered: Option<Instant>,
    /// Whether the pending query exceeds its time limit.
    silent: bool,
}

impl QmpWatchdog {
    /// Whether QMP does not answer within its time limit.
    pub(crate) fn is_silent(&self) -> bool {
        self.silent
    }

    /// Probes QMP, unless QEMU has answered recently.
    pub(crate) fn ask_if_stale(&mut self, qemu: &mut Qemu, ctx: &Context) {
        if self.answered.is_none_or(|at| at.elapsed() >= FRESH) {
            self.ask(qemu, ctx);
        }
    }

    /// Sends a query, unless one is pending. A late reply ends the silence.
    pub(crate) fn ask(&mut self, qemu: &mut Qemu, ctx: &Context) {
        if self.asked.is_some() {
            return;
        }
        self.asked = Some(ctx.now());
        let (client, reports) = (qemu.client(), qemu.tasks().sender());
        qemu.report(async move {
            let mut asked = std::pin::pin!(client.query_status(FOREVER));
            let answer = match tokio::time::timeout(QMP_LIMIT, &mut asked).await {
                Ok(answer) => answer,
                Err(_) => {
                    let _ = reports.send(VmEvent::Watchdog(WatchdogEvent::Silent)).await;
                    asked.await
                }
            };
            // A closed connection is no reply; the next connection is probed again.
            VmEvent::Watchdog(match answer {
                Ok(_) => WatchdogEvent::Recovered,
                Err(_) => WatchdogEvent::Closed,
            })
        });
    }

    /// Notifies the service manager's watchdog and reports a change; `state` is the VM's.
    pub(crate) fn handle(&mut self, event: WatchdogEvent, state: State, ctx: &Context) {
        match event {
            WatchdogEvent::Silent => self.on_silent(ctx),
            WatchdogEvent::Closed => self.asked = None,
            WatchdogEvent::Recovered => self.on_answer(state, ctx),
        }
    }

    fn on_silent(&mut self, ctx: &Context) {
        let Some(asked) = self.asked else { return };
        self.silent = true;
        warn!(
            "QEMU's monitor has not answered since {asked}; the watchdog is not notified meanwhile"
        );
        ctx.notifier().status("QEMU's monitor does not answer");
        ctx.publish("QVM_MONITOR_SILENT", serde_json::json!({ "since": asked.to_string() }));
    }

    fn on_answer(&mut self, state: State, ctx: &Context) {
        let asked = self.asked.take();
        self.answered = Some(Instant::now());
        ctx.notifier().watchdog();
        if std::mem::take(&mut self.silent) {
            let since = asked.map(|at| at.to_string());
            info!("QEMU's monitor answers again");
            ctx.notifier().status(state.word());
            ctx.publish("QVM_MONITOR_ANSWERS", serde_json::json!({ "since": since }));
        }
    }

    /// Returns the notes for the status.
    pub(crate) fn note(&self) -> Option<Note> {
        let since = self.asked.filter(|_| self.silent)?;
        let text = format!(
            "QEMU's monitor has not answered since {since}: its process is stopped, or its \
             storage hangs; qvm does not end the guest"
        );
        Some(Note::new(NoteCode::MonitorSilent, text))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::supervisor::tests::{Answer, FakeQemu, Host};

    fn running() -> Answer {
        Answer::Return(json!({ "running": true, "status": "running", "singlestep": false }))
    }

    #[tokio::test]
    async fn one_query_at_a_time() {
        let host = Host::new();
        let mut fake = FakeQemu::new(&host).await;
        fake.peer.script.on("query-status", running());
        let mut watchdog = QmpWatchdog::default();
        watchdog.ask(&mut fake.qemu, &host.ctx);
        watchdog.ask(&mut fake.qemu, &host.ctx);
        let VmEvent::Watchdog(answer) = fake.event().await else { panic!() };
        assert_eq!(answer, WatchdogEvent::Recovered);
        watchdog.handle(answer, State::Running, &host.ctx);
        assert_eq!(fake.peer.commands.names(), ["qmp_capabilities", "query-status"]);
        assert!(!watchdog.is_silent());
    }

    #[tokio::test]
    async fn recent_reply_replaces_a_query() {
        let host = Host::new();
        let mut fake = FakeQemu::new(&host).await;
        fake.peer.script.on("query-status", running());
        let fresh = Instant::now() + Duration::from_secs(3600);
        let mut watchdog = QmpWatchdog { answered: Some(fresh), ..Default::default() };
        watchdog.ask_if_stale(&mut fake.qemu, &host.ctx);
        assert!(watchdog.asked.is_none());
        watchdog.answered = None;
        watchdog.ask_if_stale(&mut fake.qemu, &host.ctx);
        assert!(watchdog.asked.is_some());
    }

    #[tokio::test]
    async fn silence_is_reported_and_its_end() {
        let mut host = Host::new();
        let mut watchdog = QmpWatchdog::default();
        // Without a query there is no silence.
        watchdog.handle(WatchdogEvent::Silent, State::Running, &host.ctx);
        assert!(!watchdog.is_silent() && watchdog.note().is_none());
        watchdog.asked = Some(Timestamp::UNIX_EPOCH);
        watchdog.handle(WatchdogEvent::Silent, State::Running, &host.ctx);
        assert!(watchdog.is_silent());
        assert!(watchdog.note().unwrap().text.contains("1970-01-01T00:00:00Z"));
        watchdog.handle(WatchdogEvent::Recovered, State::Running, &host.ctx);
        assert!(!watchdog.is_silent() && watchdog.note().is_none());
        assert_eq!(host.published(), ["QVM_MONITOR_SILENT", "QVM_MONITOR_ANSWERS"]);
    }

    #[tokio::test]
    async fn closed_connection_is_no_answer() {
        let host = Host::new();
        let mut watchdog = QmpWatchdog { asked: Some(Timestamp::UNIX_EPOCH), ..Default::default() };
        watchdog.handle(WatchdogEvent::Closed, State::Running, &host.ctx);
        assert!(watchdog.asked.is_none() && watchdog.answered.is_none());
    }

    #[tokio::test]
    async fn unanswered_query_times_out_once() {
        let host = Host::new();
        let mut fake = FakeQemu::new(&host).await;
        fake.peer.script.on("query-status", Answer::Silence);
        let mut watchdog = QmpWatchdog::default();
        tokio::time::pause();
        watchdog.ask(&mut fake.qemu, &host.ctx);
        let event = fake.events.recv().await;
        assert!(matches!(event, Some(VmEvent::Watchdog(WatchdogEvent::Silent))), "{event:?}");
        assert!(fake.events.try_recv().is_err());
    }
}
