//! The VM's history: its last ends, the time of its state, the notes of its start, and the outcome.

use jiff::Timestamp;
use tracing::{error, info};

use super::{context::Context, limits::LAST_WORDS, outcome::Outcome, running::console::Console};
use crate::{
    control::types,
    life,
    store::record,
    value::{Note, chain},
};

#[derive(Debug)]
pub(crate) struct History {
    /// The last ends, newest first.
    ends: Vec<types::End>,
    /// The time of the last state change.
    since: Timestamp,
    /// The notes about the start of the guest.
    notes: Vec<Note>,
    outcome: Option<Outcome>,
}

impl History {
    /// Creates an empty history at `now`.
    pub(crate) fn new(now: Timestamp) -> Self {
        Self { ends: vec![], since: now, notes: vec![], outcome: None }
    }

    /// The last ends, newest first.
    pub(crate) fn ends(&self) -> &[types::End] {
        &self.ends
    }

    pub(crate) fn last_end(&self) -> Option<&types::End> {
        self.ends.first()
    }

    /// Sets the ends of earlier runs.
    pub(crate) fn set_ends(&mut self, ends: Vec<types::End>) {
        self.ends = ends;
    }

    /// The time of the last state change.
    pub(crate) fn since(&self) -> Timestamp {
        self.since
    }

    /// Sets the time of a state change.
    pub(crate) fn on_state_changed(&mut self, now: Timestamp) {
        self.since = now;
    }

    /// The notes about the start of the guest.
    pub(crate) fn notes(&self) -> &[Note] {
        &self.notes
    }

    /// Sets the notes about the start of the guest.
    pub(crate) fn set_notes(&mut self, notes: Vec<Note>) {
        self.notes = notes;
    }

    /// Returns the outcome of the loop; `None` while it runs.
    pub(crate) fn outcome(&self) -> Option<&Outcome> {
        self.outcome.as_ref()
    }

    /// Ends the loop.
    pub(crate) fn set_outcome(&mut self, outcome: Outcome) {
        self.outcome = Some(outcome);
    }

    /// Logs, publishes and records the end of a run.
    pub(crate) fn record_end(&mut self, end: &life::End, console: &Console, ctx: &Context) {
        let console = if end.failed() { console.last_lines(LAST_WORDS) } else { vec![] };
        let kept = types::End {
            reason: end.reason().to_owned(),
            at: ctx.now().to_string(),
            detail: end.to_string(),
            code: end.start_code(),
            hint: end.start_hint().map(str::to_owned),
            failed: end.failed(),
            console,
        };
        match &end.cause {
            // The command line prints it as the last line.
            life::Cause::StartFailed(_) | life::Cause::NotReady(_) => {}
            _ if end.failed() => error!("{}", kept.detail),
            _ => info!("{}", kept.detail),
        }
        ctx.publish("QVM_END", serde_json::json!(kept));
        ctx.notifier().status(&kept.detail);
        record::put(&mut self.ends, kept.clone());
        let paths = ctx.paths().clone();
        let queued = ctx.lanes().state.run(move || {
            if let Err(error) = record::keep(&paths, kept) {
                error!("cannot record how the VM ended: {}", chain(&error));
            }
        });
        if let Err(refused) = queued {
            error!("cannot record how the VM ended: {refused}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        life::{Cause, End, QemuExit, StartFailure},
        supervisor::tests::Host,
        value::NoteCode,
    };

    fn console(host: &Host) -> Console {
        Console::new(host.ctx.paths().console_log(), Timestamp::now)
    }

    #[tokio::test]
    async fn end_is_published_and_written() {
        let mut host = Host::new();
        let mut history = History::new(host.ctx.now());
        let end = End { cause: Cause::QemuDied(QemuExit::Signal { signal: 11, oom: false }) };
        history.record_end(&end, &console(&host), &host.ctx);
        assert_eq!(host.published(), ["QVM_END"]);
        let last = history.last_end().unwrap();
        assert!(last.failed);
        host.ctx.lanes().state.flush().await.unwrap();
        assert_eq!(record::ends(host.ctx.paths()), history.ends());
    }

    #[tokio::test]
    async fn repeated_failed_start_is_one_end() {
        let host = Host::new();
        let mut history = History::new(host.ctx.now());
        let failure = StartFailure { fault: life::Fault::Host, why: "no bridge".into() };
        let end = End { cause: Cause::StartFailed(failure) };
        for _ in 0..3 {
            history.record_end(&end, &console(&host), &host.ctx);
        }
        assert_eq!(history.ends().len(), 1);
        assert_eq!(history.last_end().unwrap().reason, "start-failed");
    }

    #[test]
    fn state_notes_and_outcome_are_kept() {
        let mut history = History::new(Timestamp::UNIX_EPOCH);
        assert_eq!(history.since(), Timestamp::UNIX_EPOCH);
        assert!(history.outcome().is_none() && history.last_end().is_none());
        history.on_state_changed(Timestamp::MAX);
        history.set_notes(vec![Note::new(NoteCode::NoKvm, "slow")]);
        history.set_outcome(Outcome::Exit(3));
        assert_eq!(history.since(), Timestamp::MAX);
        assert_eq!(history.notes()[0].code, NoteCode::NoKvm);
        assert_eq!(history.outcome(), Some(&Outcome::Exit(3)));
    }
}
