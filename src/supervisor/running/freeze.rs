//! Freezes the guest's file systems, and thaws them on request, at a deadline, or before a
//! shutdown.
//!
//! The deadline is written to the run record before the freeze, so neither a dead client nor a dead
//! supervisor leaves a guest frozen. A failed thaw is repeated as long as the guest runs.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio::{sync::oneshot, task::AbortHandle};
use tracing::{info, warn};

use super::{
    event::{FreezeEvent, FreezeFailure, FreezeState, ThawReason, VmEvent},
    qemu::Qemu,
};
use crate::{
    control::types::Refusal,
    supervisor::{
        context::Context,
        limits::AGENT_LIMIT,
        refusal::{Reply, agent_refusal},
    },
    value::{ErrorCode, Note, NoteCode},
};

/// The maximum time of a freeze, whatever the run record contains.
const LONGEST: Duration = Duration::from_secs(600);
/// The time limit of a thaw: the agent may run hook programs.
const THAW_LIMIT: Duration = Duration::from_secs(10);
/// How long a freeze waits for the write of its deadline.
const DEADLINE_WRITE_LIMIT: Duration = Duration::from_secs(5);
/// The delay before a failed thaw is repeated.
const AGAIN: Duration = Duration::from_secs(5);

/// Whether the guest's file systems are frozen.
#[derive(Debug, Default)]
pub(crate) struct Freeze(Option<Deadline>);

/// The guest's file systems are or may be frozen.
#[derive(Debug)]
struct Deadline {
    until: Timestamp,
    /// Why the last thaw failed.
    stuck: Option<String>,
    timer: AbortHandle,
}

impl Drop for Deadline {
    fn drop(&mut self) {
        self.timer.abort();
    }
}

/// Returns the time from `now` to `until`, from zero to [`LONGEST`], because clocks may be set.
fn left(until: Timestamp, now: Timestamp) -> Duration {
    let left = until.duration_since(now).max(SignedDuration::ZERO).unsigned_abs();
    left.min(LONGEST)
}

impl Freeze {
    /// Continues with the recorded deadline of an earlier supervisor.
    pub(crate) fn recall(&mut self, qemu: &mut Qemu, ctx: &Context) {
        if let Some(until) = qemu.record().frozen_until.as_ref() {
            // An unreadable deadline is due.
            let until = until.parse().unwrap_or(Timestamp::MIN);
            let left = left(until, ctx.now());
            info!("the guest's file systems are frozen, for {} s more", left.as_secs());
            self.0 = Some(Deadline { until, stuck: None, timer: thaw_in(left, qemu) });
        }
    }

    /// Freezes the file systems, unless the VM's state refuses it with `refused`.
    pub(crate) fn freeze(
        &mut self,
        thaw_after: Duration,
        refused: Option<Refusal>,
        reply: Reply<u64>,
        qemu: &mut Qemu,
        ctx: &Context,
    ) {
        let refused = match self.left(ctx) {
            Some(left) => Some(Refusal::Frozen { left }),
            None => refused,
        };
        let sync = qemu.next_sync();
        let until =
            ctx.now().saturating_add(SignedDuration::try_from(thaw_after).unwrap_or_default());
        let (None, Ok(until)) = (&refused, until) else {
            let refused = refused.unwrap_or(Refusal::NotNow("starting"));
            return drop(reply.send(Err(refused)));
        };
        let written = qemu.change_record(|record| record.frozen_until = Some(until.to_string()));
        self.0 = Some(Deadline { until, stuck: None, timer: thaw_in(thaw_after, qemu) });
        let agent = qemu.agent();
        qemu.report(async move {
            // Frozen only after the next supervisor can read the deadline.
            let written = tokio::time::timeout(DEADLINE_WRITE_LIMIT, written).await;
            let written = written.unwrap_or_else(|_| Err("the storage does not answer".into()));
            let done = match written {
                Ok(()) => freeze(&agent, sync, thaw_after).await,
                Err(why) => Err(FreezeFailure {
                    refusal: Refusal::Failed(
                        ErrorCode::FileError,
                        format!("cannot write the thaw deadline to the run record: {why}"),
                    ),
                    state: FreezeState::Untouched,
                }),
            };
            VmEvent::Freeze(FreezeEvent::Frozen { thaw_after, done, reply })
        });
    }

    /// Thaws the file systems, even if this supervisor did not freeze them.
    pub(crate) fn thaw(&self, why: ThawReason, reply: Option<Reply<u64>>, qemu: &mut Qemu) {
        let (sync, agent) = (qemu.next_sync(), qemu.agent());
        qemu.report(async move {
            let done = agent.thaw(sync, THAW_LIMIT).await.map_err(|error| agent_refusal(&error));
            VmEvent::Freeze(FreezeEvent::Thawed { why, done, reply })
        });
    }

    /// Thaws frozen file systems; awaited before a shutdown or a save of the state.
    pub(crate) fn thaw_first(
        &self,
        qemu: &mut Qemu,
    ) -> impl Future<Output = Result<(), Refusal>> + Send + 'static + use<> {
        let thawed = self.0.is_some().then(|| {
            let (reply, thawed) = oneshot::channel();
            self.thaw(ThawReason::Stop, Some(reply), qemu);
            thawed
        });
        async move {
            match thawed {
                // Fails only if QEMU has exited.
                Some(thawed) => thawed.await.map_or(Ok(()), |thawed| thawed.map(drop)),
                None => Ok(()),
            }
        }
    }

    /// Handles a result of the agent, or the deadline.
    pub(crate) fn handle(&mut self, event: FreezeEvent, qemu: &mut Qemu, ctx: &Context) {
        match event {
            FreezeEvent::Frozen { thaw_after, done, reply } => {
                let answer = self.on_frozen(thaw_after, done, qemu, ctx);
                let _ = reply.send(answer);
            }
            FreezeEvent::ThawDue => self.thaw(ThawReason::Deadline, None, qemu),
            FreezeEvent::Thawed { why, done, reply } => {
                self.on_thawed(why, &done, qemu, ctx);
                if let Some(reply) = reply {
                    let _ = reply.send(done);
                }
            }
        }
    }

    fn on_frozen(
        &mut self,
        thaw_after: Duration,
        done: Result<u64, FreezeFailure>,
        qemu: &mut Qemu,
        ctx: &Context,
    ) -> Result<u64, Refusal> {
        match done {
            Ok(0) => {
                self.forget(qemu);
                let why = "the guest has no file system that can be frozen";
                Err(Refusal::Failed(ErrorCode::GuestFailed, why.into()))
            }
            Ok(_) if self.0.is_none() => {
                // A client requested the thaw before the end of the freeze.
                self.0 =
                    Some(Deadline { until: ctx.now(), stuck: None, timer: thaw_in(AGAIN, qemu) });
                self.thaw(ThawReason::Asked, None, qemu);
                let why = "the guest's file systems were thawed meanwhile";
                Err(Refusal::Failed(ErrorCode::NotNow, why.into()))
            }
            Ok(count) => {
                let seconds = thaw_after.as_secs();
                info!("{count} of the guest's file systems are frozen for at most {seconds} s");
                let data = serde_json::json!({ "filesystems": count, "thawAfterSec": seconds });
                ctx.publish("QVM_FROZEN", data);
                Ok(count)
            }
            Err(FreezeFailure { refusal, state }) => {
                match state {
                    FreezeState::Unknown => self.thaw(ThawReason::Deadline, None, qemu),
                    FreezeState::Untouched => self.forget(qemu),
                }
                Err(refusal)
            }
        }
    }

    fn on_thawed(
        &mut self,
        why: ThawReason,
        done: &Result<u64, Refusal>,
        qemu: &mut Qemu,
        ctx: &Context,
    ) {
        match done {
            Ok(count) => {
                let was_frozen = self.0.is_some();
                self.forget(qemu);
                if was_frozen || *count > 0 {
                    info!("the guest's file systems are thawed, {}: {count}", why.word());
                    let data = serde_json::json!({ "filesystems": count, "why": why.word() });
                    ctx.publish("QVM_THAWED", data);
                }
            }
            Err(error) => {
                if let Some(deadline) = &mut self.0 {
                    if deadline.stuck.replace(error.to_string()).is_none() {
                        warn!("cannot thaw the guest's file systems, retrying: {error}");
                    }
                    let timer = thaw_in(AGAIN, qemu);
                    std::mem::replace(&mut deadline.timer, timer).abort();
                }
            }
        }
    }

    /// Notes that they are not frozen: thawed, or the guest has rebooted.
    pub(crate) fn forget(&mut self, qemu: &mut Qemu) {
        self.0 = None;
        if qemu.record().frozen_until.is_some() {
            drop(qemu.change_record(|record| record.frozen_until = None));
        }
    }

    /// Returns the remaining time; `None` if not frozen.
    pub(crate) fn left(&self, ctx: &Context) -> Option<Duration> {
        self.0.as_ref().map(|deadline| left(deadline.until, ctx.now()))
    }

    /// Returns the notes for the status.
    pub(crate) fn note(&self, ctx: &Context) -> Option<Note> {
        let deadline = self.0.as_ref()?;
        Some(match &deadline.stuck {
            Some(why) => {
                let text =
                    format!("the guest's file systems are frozen, and cannot be thawed: {why}");
                Note::new(NoteCode::NotThawed, text)
            }
            None => {
                let text = format!(
                    "the guest's file systems are frozen, for {} s more at most",
                    left(deadline.until, ctx.now()).as_secs()
                );
                Note::new(NoteCode::Frozen, text)
            }
        })
    }
}

fn thaw_in(left: Duration, qemu: &mut Qemu) -> AbortHandle {
    qemu.report(async move {
        tokio::time::sleep(left).await;
        VmEvent::Freeze(FreezeEvent::ThawDue)
    })
}

/// Freezes, after a short probe for the agent.
async fn freeze(
    agent: &qmp::agent::Agent,
    sync: u32,
    limit: Duration,
) -> Result<u64, FreezeFailure> {
    let failed =
        |state| move |error: qmp::Error| FreezeFailure { refusal: agent_refusal(&error), state };
    agent.ping(sync, AGENT_LIMIT).await.map_err(failed(FreezeState::Untouched))?;
    // A refusal proves nothing: "already frozen" is one, too.
    agent.freeze(sync.wrapping_add(1), limit).await.map_err(failed(FreezeState::Unknown))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        store::record::Record,
        supervisor::tests::{Answer, FakeQemu, Host, record},
    };

    #[test]
    fn deadline_ignores_clock_changes() {
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        let until = at("2026-01-01T00:01:00Z");
        for (now, seconds) in [
            ("2026-01-01T00:00:18Z", 42),
            ("2026-01-01T00:01:00Z", 0),
            ("2026-01-01T00:01:01Z", 0),
            ("2027-01-01T00:00:00Z", 0),
            // The clock was set backwards.
            ("2025-01-01T00:00:00Z", 600),
        ] {
            assert_eq!(left(until, at(now)), Duration::from_secs(seconds), "{now}");
        }
        assert_eq!(left(Timestamp::MIN, Timestamp::MAX), Duration::ZERO);
        assert_eq!(left(Timestamp::MAX, Timestamp::MIN), LONGEST);
    }

    async fn frozen(host: &Host, fake: &mut FakeQemu, freeze: &mut Freeze) -> Result<u64, Refusal> {
        let (reply, answer) = oneshot::channel();
        freeze.freeze(Duration::from_secs(60), None, reply, &mut fake.qemu, &host.ctx);
        let VmEvent::Freeze(event) = fake.event().await else { panic!() };
        freeze.handle(event, &mut fake.qemu, &host.ctx);
        answer.await.unwrap()
    }

    fn counts(fake: &FakeQemu, frozen: u64, thawed: u64) {
        let script = &fake.peer.script;
        script.on("guest-fsfreeze-freeze", Answer::Return(frozen.into()));
        script.on("guest-fsfreeze-thaw", Answer::Return(thawed.into()));
    }

    #[tokio::test]
    async fn freeze_records_and_thaw_clears_deadline() {
        let mut host = Host::new();
        let mut fake = FakeQemu::new(&host).await;
        counts(&fake, 2, 2);
        let mut freeze = Freeze::default();
        assert_eq!(frozen(&host, &mut fake, &mut freeze).await, Ok(2));
        let until: Timestamp = fake.qemu.record().frozen_until.as_ref().unwrap().parse().unwrap();
        assert!(until > host.ctx.now());
        assert!(freeze.left(&host.ctx).unwrap() <= Duration::from_secs(60));
        assert!(freeze.note(&host.ctx).unwrap().code == NoteCode::Frozen);
        let (reply, answer) = oneshot::channel();
        freeze.thaw(ThawReason::Asked, Some(reply), &mut fake.qemu);
        let VmEvent::Freeze(event) = fake.event().await else { panic!() };
        freeze.handle(event, &mut fake.qemu, &host.ctx);
        assert_eq!(answer.await.unwrap(), Ok(2));
        assert_eq!(fake.qemu.record().frozen_until, None);
        assert!(freeze.left(&host.ctx).is_none() && freeze.note(&host.ctx).is_none());
        assert_eq!(host.published(), ["QVM_FROZEN", "QVM_THAWED"]);
    }

    #[tokio::test]
    async fn second_freeze_is_refused() {
        let host = Host::new();
        let mut fake = FakeQemu::new(&host).await;
        counts(&fake, 1, 1);
        let mut freeze = Freeze::default();
        assert_eq!(frozen(&host, &mut fake, &mut freeze).await, Ok(1));
        let (reply, answer) = oneshot::channel();
        freeze.freeze(Duration::from_secs(1), None, reply, &mut fake.qemu, &host.ctx);
        assert!(matches!(answer.await.unwrap(), Err(Refusal::Frozen { .. })));
    }

    #[tokio::test]
    async fn vm_that_refuses_is_not_frozen() {
        let host = Host::new();
        let mut fake = FakeQemu::new(&host).await;
        let mut freeze = Freeze::default();
        let (reply, answer) = oneshot::channel();
        let refused = Some(Refusal::NotNow("stopping"));
        freeze.freeze(Duration::from_secs(1), refused, reply, &mut fake.qemu, &host.ctx);
        assert_eq!(answer.await.unwrap(), Err(Refusal::NotNow("stopping")));
        assert!(freeze.left(&host.ctx).is_none());
        assert_eq!(fake.peer.calls.names(), Vec::<String>::new());
    }

    #[tokio::test]
    async fn guest_without_file_systems_is_not_frozen() {
        let host = Host::new();
        let mut fake = FakeQemu::new(&host).await;
        counts(&fake, 0, 0);
        let mut freeze = Freeze::default();
        assert!(matches!(frozen(&host, &mut fake, &mut freeze).await, Err(Refusal::Failed(..))));
        assert!(freeze.left(&host.ctx).is_none());
        assert_eq!(fake.qemu.record().frozen_until, None);
    }

    #[tokio::test]
    async fn refused_freeze_is_thawed_to_be_sure() {
        let host = Host::new();
        let mut fake = FakeQemu::new(&host).await;
        counts(&fake, 0, 1);
        fake.peer.script.on("guest-fsfreeze-freeze", Answer::Refuse("already frozen"));
        let mut freeze = Freeze::default();
        let refused = frozen(&host, &mut fake, &mut freeze).await;
        assert!(matches!(refused, Err(Refusal::Guest { .. })), "{refused:?}");
        // The state of the file systems is unknown.
        assert!(freeze.left(&host.ctx).is_some());
        let VmEvent::Freeze(event) = fake.event().await else { panic!() };
        assert!(matches!(event, FreezeEvent::Thawed { why: ThawReason::Deadline, .. }));
        freeze.handle(event, &mut fake.qemu, &host.ctx);
        assert!(freeze.left(&host.ctx).is_none());
    }

    #[tokio::test]
    async fn guest_without_agent_is_untouched() {
        let host = Host::new();
        let mut fake = FakeQemu::new(&host).await;
        fake.peer.script.on("guest-ping", Answer::Refuse("no"));
        let mut freeze = Freeze::default();
        assert!(frozen(&host, &mut fake, &mut freeze).await.is_err());
        assert!(freeze.left(&host.ctx).is_none());
        assert_eq!(fake.peer.calls.names(), ["guest-ping"]);
    }

    #[tokio::test]
    async fn deadline_thaws() {
        let host = Host::new();
        let mut fake = FakeQemu::new(&host).await;
        counts(&fake, 1, 1);
        let mut freeze = Freeze::default();
        let (reply, answer) = oneshot::channel();
        freeze.freeze(Duration::from_millis(1), None, reply, &mut fake.qemu, &host.ctx);
        while freeze.left(&host.ctx).is_some() {
            let VmEvent::Freeze(event) = fake.event().await else { panic!() };
            freeze.handle(event, &mut fake.qemu, &host.ctx);
        }
        drop(answer);
        fake.peer.calls.until("guest-fsfreeze-thaw").await;
    }

    #[tokio::test]
    async fn failed_thaw_is_noted_and_tried_again() {
        let host = Host::new();
        let mut fake = FakeQemu::new(&host).await;
        counts(&fake, 1, 1);
        let mut freeze = Freeze::default();
        frozen(&host, &mut fake, &mut freeze).await.unwrap();
        let failed = FreezeEvent::Thawed {
            why: ThawReason::Deadline,
            done: Err(Refusal::Failed(ErrorCode::Other, "broken".into())),
            reply: None,
        };
        freeze.handle(failed, &mut fake.qemu, &host.ctx);
        let note = freeze.note(&host.ctx).unwrap();
        assert!(note.code == NoteCode::NotThawed && note.text.contains("broken"), "{note}");
        freeze.handle(FreezeEvent::ThawDue, &mut fake.qemu, &host.ctx);
        let VmEvent::Freeze(event) = fake.event().await else { panic!() };
        freeze.handle(event, &mut fake.qemu, &host.ctx);
        assert_eq!(freeze.note(&host.ctx), None);
    }

    #[tokio::test]
    async fn recorded_deadline_continues() {
        let host = Host::new();
        let until = (host.ctx.now() + SignedDuration::from_secs(100)).to_string();
        let mut fake = FakeQemu::of(&host, Record { frozen_until: Some(until), ..record() }).await;
        let mut freeze = Freeze::default();
        freeze.recall(&mut fake.qemu, &host.ctx);
        assert!(freeze.left(&host.ctx).unwrap() > Duration::from_secs(30));
    }

    #[tokio::test]
    async fn unreadable_deadline_is_due() {
        let host = Host::new();
        let record = Record { frozen_until: Some("soon".into()), ..record() };
        let mut fake = FakeQemu::of(&host, record).await;
        let mut freeze = Freeze::default();
        freeze.recall(&mut fake.qemu, &host.ctx);
        assert!(matches!(fake.event().await, VmEvent::Freeze(FreezeEvent::ThawDue)));
    }

    #[tokio::test]
    async fn shutdown_waits_for_the_thaw() {
        let host = Host::new();
        let mut fake = FakeQemu::new(&host).await;
        counts(&fake, 1, 1);
        let mut freeze = Freeze::default();
        // Without frozen file systems there is no wait.
        assert_eq!(freeze.thaw_first(&mut fake.qemu).await, Ok(()));
        frozen(&host, &mut fake, &mut freeze).await.unwrap();
        let thawed = freeze.thaw_first(&mut fake.qemu);
        let VmEvent::Freeze(event) = fake.event().await else { panic!() };
        freeze.handle(event, &mut fake.qemu, &host.ctx);
        assert_eq!(thawed.await, Ok(()));
    }

    #[tokio::test]
    async fn thaw_of_an_exited_qemu_is_done() {
        let host = Host::new();
        let mut fake = FakeQemu::new(&host).await;
        counts(&fake, 1, 1);
        let mut freeze = Freeze::default();
        frozen(&host, &mut fake, &mut freeze).await.unwrap();
        let thawed = freeze.thaw_first(&mut fake.qemu);
        drop((fake, freeze));
        assert_eq!(thawed.await, Ok(()));
    }

    #[tokio::test]
    async fn thaw_overtakes_a_freeze() {
        let host = Host::new();
        let mut fake = FakeQemu::new(&host).await;
        counts(&fake, 1, 1);
        let mut freeze = Freeze::default();
        let (reply, answer) = oneshot::channel();
        let late = FreezeEvent::Frozen { thaw_after: Duration::from_secs(9), done: Ok(1), reply };
        freeze.handle(late, &mut fake.qemu, &host.ctx);
        assert!(matches!(answer.await.unwrap(), Err(Refusal::Failed(..))));
        let VmEvent::Freeze(event) = fake.event().await else { panic!() };
        assert!(matches!(event, FreezeEvent::Thawed { why: ThawReason::Asked, .. }));
    }
}
