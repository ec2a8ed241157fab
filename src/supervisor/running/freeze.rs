//! Freezing the guest's file systems, and thawing them: asked for, at the deadline, or before the guest has to shut down.
//!
//! The deadline is the supervisor's, and is written down before anything is frozen: neither a caller that dies nor a supervisor
//! that dies leaves a guest frozen. A thaw that fails is tried again for as long as the guest runs.

use crate::supervisor::{limits::AGENT_LIMIT, refusal::agent_refusal};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio::{sync::oneshot, task::AbortHandle};
use tracing::{info, warn};

use crate::control::types::{self, Refusal};
use crate::supervisor::{Supervisor, input::Fact};

/// The longest that file systems are frozen: a record is not believed more.
const LONGEST: Duration = Duration::from_secs(600);
/// How long a thaw may take: the agent may run programs of the guest's.
const THAW_LIMIT: Duration = Duration::from_secs(10);
/// How long a freeze waits until its deadline is written down.
const DEADLINE_WRITE_LIMIT: Duration = Duration::from_secs(5);
/// When a thaw that failed is tried again.
const AGAIN: Duration = Duration::from_secs(5);

/// The answer to whoever asked.
pub(crate) type Reply = oneshot::Sender<Result<u64, Refusal>>;

/// The guest's file systems are frozen, or are being frozen.
#[derive(Debug)]
pub(crate) struct Frozen {
    until: Timestamp,
    /// Why they are frozen still, though they should not be.
    stuck: Option<String>,
    timer: AbortHandle,
}

impl Drop for Frozen {
    fn drop(&mut self) {
        self.timer.abort();
    }
}

/// Why file systems are thawed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Why {
    Asked,
    Deadline,
    /// The guest is to shut down, or to be saved.
    Stop,
}

impl Why {
    const fn word(self) -> &'static str {
        match self {
            Self::Asked => "asked",
            Self::Deadline => "deadline",
            Self::Stop => "stop",
        }
    }
}

/// Why nothing was frozen, as far as is known.
#[derive(Debug)]
pub(crate) struct NotFrozen {
    why: Refusal,
    /// The guest may freeze them all the same.
    unsure: bool,
}

/// How long from `now` on until `until`; none when it is past, and never longer than anything may be frozen: clocks are set.
fn left(until: Timestamp, now: Timestamp) -> Duration {
    let left = until.duration_since(now).max(SignedDuration::ZERO).unsigned_abs();
    left.min(LONGEST)
}

impl Supervisor {
    pub(crate) fn freeze(&mut self, thaw_after: Duration, reply: Reply) {
        let state = self.told_state();
        let refused = if let Some(left) = self.frozen_for() {
            Some(Refusal::Frozen { left })
        } else if self.told_ready() == Some(types::Ready::Waiting) {
            Some(Refusal::Failed("the guest is not ready yet".into()))
        } else {
            (state != types::State::Running).then(|| Refusal::NotNow(state.word()))
        };
        let sync = self.next_sync();
        let until = (self.settings.now)()
            .saturating_add(SignedDuration::try_from(thaw_after).unwrap_or_default());
        let (Some(qemu), None, Ok(until)) = (&mut self.qemu, &refused, until) else {
            let _ = reply.send(Err(refused.unwrap_or(Refusal::NotNow("starting"))));
            return;
        };
        qemu.record.frozen_until = Some(until.to_string());
        let written = self.records.write(&qemu.record);
        let (agent, facts, generation) = (qemu.agent.clone(), self.facts.clone(), self.generation);
        self.frozen = Some(Frozen { until, stuck: None, timer: self.thaw_in(thaw_after) });
        self.tasks.spawn(async move {
            // Nothing is frozen before a later supervisor would know when to thaw it.
            let written = tokio::time::timeout(DEADLINE_WRITE_LIMIT, written).await;
            let written = written.unwrap_or_else(|_| Err("the storage does not answer".into()));
            let done = match written {
                Ok(()) => freeze(&agent, sync, thaw_after).await,
                Err(why) => Err(NotFrozen {
                    why: Refusal::Failed(format!(
                        "cannot write the thaw deadline to the run record: {why}"
                    )),
                    unsure: false,
                }),
            };
            let _ = facts.send(Fact::Froze(generation, thaw_after, done, reply)).await;
        });
    }

    pub(crate) fn froze(&mut self, after: Duration, done: Result<u64, NotFrozen>, reply: Reply) {
        let told = match done {
            Ok(0) => {
                self.forget_freeze();
                Err(Refusal::Failed("the guest has no file system that can be frozen".into()))
            }
            Ok(_) if self.frozen.is_none() => {
                // Somebody had them thawed before they were frozen: it is not wanted any more.
                let until = (self.settings.now)();
                self.frozen = Some(Frozen { until, stuck: None, timer: self.thaw_in(AGAIN) });
                self.thaw(Why::Asked, None);
                Err(Refusal::Failed("the guest's file systems were thawed meanwhile".into()))
            }
            Ok(count) => {
                info!(
                    "{count} of the guest's file systems are frozen for at most {} s",
                    after.as_secs()
                );
                let data =
                    serde_json::json!({ "filesystems": count, "thawAfterSec": after.as_secs() });
                self.publish("QVM_FROZEN", data);
                Ok(count)
            }
            Err(NotFrozen { why, unsure }) => {
                if unsure {
                    self.thaw(Why::Deadline, None);
                } else {
                    self.forget_freeze();
                }
                Err(why)
            }
        };
        let _ = reply.send(told);
    }

    /// Has them thawed, also where nobody here froze them.
    pub(crate) fn thaw(&mut self, why: Why, reply: Option<Reply>) {
        let sync = self.next_sync();
        let Some(qemu) = &self.qemu else {
            if let Some(reply) = reply {
                let _ = reply.send(Err(Refusal::NotNow("starting")));
            }
            return;
        };
        let (agent, facts, generation) = (qemu.agent.clone(), self.facts.clone(), self.generation);
        self.tasks.spawn(async move {
            let done = agent.thaw(sync, THAW_LIMIT).await.map_err(|error| agent_refusal(&error));
            let _ = facts.send(Fact::Thawed(generation, why, done, reply)).await;
        });
    }

    pub(crate) fn thawed(&mut self, why: Why, done: Result<u64, Refusal>, reply: Option<Reply>) {
        match &done {
            Ok(count) => {
                let was = self.frozen.is_some();
                self.forget_freeze();
                if was || *count > 0 {
                    info!("the guest's file systems are thawed, {}: {count}", why.word());
                    let data = serde_json::json!({ "filesystems": count, "why": why.word() });
                    self.publish("QVM_THAWED", data);
                }
            }
            Err(error) => {
                let timer = self.thaw_in(AGAIN);
                if let Some(frozen) = &mut self.frozen {
                    if frozen.stuck.replace(error.to_string()).is_none() {
                        warn!("cannot thaw the guest's file systems, and goes on trying: {error}");
                    }
                    std::mem::replace(&mut frozen.timer, timer).abort();
                } else {
                    timer.abort();
                }
            }
        }
        if let Some(reply) = reply {
            let _ = reply.send(done);
        }
    }

    /// Thaws what is frozen; to be awaited before the guest is shut down, or saved.
    pub(crate) fn thaw_first(
        &mut self,
    ) -> impl Future<Output = Result<(), Refusal>> + Send + 'static {
        let thawed = self.frozen.is_some().then(|| {
            let (reply, thawed) = oneshot::channel();
            self.thaw(Why::Stop, Some(reply));
            thawed
        });
        async move {
            match thawed {
                // Where nobody answers any more, there is no QEMU any more.
                Some(thawed) => thawed.await.map_or(Ok(()), |thawed| thawed.map(drop)),
                None => Ok(()),
            }
        }
    }

    /// Goes on where an earlier supervisor left off.
    pub(crate) fn recall_freeze(&mut self) {
        let until = self.qemu.as_ref().and_then(|qemu| qemu.record.frozen_until.as_ref());
        if let Some(until) = until {
            // What cannot be read is due.
            let until = until.parse().unwrap_or(Timestamp::MIN);
            let left = left(until, (self.settings.now)());
            info!("the guest's file systems are frozen, for {} s more", left.as_secs());
            self.frozen = Some(Frozen { until, stuck: None, timer: self.thaw_in(left) });
        }
    }

    /// They are not frozen any more: thawed, or the guest has booted since.
    pub(crate) fn forget_freeze(&mut self) {
        self.frozen = None;
        let Some(qemu) = &mut self.qemu else { return };
        if qemu.record.frozen_until.take().is_some() {
            drop(self.records.write(&qemu.record));
        }
    }

    /// How long they are frozen still, where they are.
    pub(crate) fn frozen_for(&self) -> Option<Duration> {
        self.frozen.as_ref().map(|frozen| left(frozen.until, (self.settings.now)()))
    }

    /// What an operator should know.
    pub(crate) fn freeze_note(&self) -> Option<String> {
        let frozen = self.frozen.as_ref()?;
        Some(match &frozen.stuck {
            Some(why) => {
                format!("the guest's file systems are frozen, and cannot be thawed: {why}")
            }
            None => format!(
                "the guest's file systems are frozen, for {} s more at most",
                left(frozen.until, (self.settings.now)()).as_secs()
            ),
        })
    }

    fn thaw_in(&mut self, left: Duration) -> AbortHandle {
        let (facts, generation) = (self.facts.clone(), self.generation);
        self.tasks.spawn(async move {
            tokio::time::sleep(left).await;
            let _ = facts.send(Fact::ThawDue(generation)).await;
        })
    }
}

/// Where no agent runs, that is found out first, and soon.
async fn freeze(agent: &qmp::agent::Agent, sync: u32, limit: Duration) -> Result<u64, NotFrozen> {
    let not = |unsure| move |error: qmp::Error| NotFrozen { why: agent_refusal(&error), unsure };
    agent.ping(sync, AGENT_LIMIT).await.map_err(not(false))?;
    // Of a refusal, too, nobody knows: that they are frozen already is one.
    agent.freeze(sync.wrapping_add(1), limit).await.map_err(not(true))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadline_is_kept_whatever_the_clock_does() {
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        let until = at("2026-01-01T00:01:00Z");
        for (now, seconds) in [
            ("2026-01-01T00:00:18Z", 42),
            ("2026-01-01T00:01:00Z", 0),
            ("2026-01-01T00:01:01Z", 0),
            ("2027-01-01T00:00:00Z", 0),
            // The clock was set back.
            ("2025-01-01T00:00:00Z", 600),
        ] {
            assert_eq!(left(until, at(now)), Duration::from_secs(seconds), "{now}");
        }
        assert_eq!(left(Timestamp::MIN, Timestamp::MAX), Duration::ZERO);
        assert_eq!(left(Timestamp::MAX, Timestamp::MIN), LONGEST);
    }
}
