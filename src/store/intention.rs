//! How a supervisor is ending QEMU, stored in the run record: the next supervisor continues after a
//! crash.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use crate::life::{AfterQemu, Cause, End, Intention, Requester};

/// The value of `then` for a relaunch.
const RELAUNCH: &str = "relaunch";
/// The value of `then` for a panic that leaves the VM stopped; other ends have the names of their
/// reasons.
const PANIC_STOPPED: &str = "guest-panic-stopped";

/// What follows a QEMU process that is being ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RecordedIntention {
    /// `relaunch`, or the reason of the end. A newer version may write other values.
    then: String,
    /// `signal` or `operator`, if the reason is a request.
    #[serde(default)]
    by: Option<String>,
    /// The text that belongs to the reason.
    #[serde(default)]
    why: Option<String>,
    /// When the guest, which was asked to shut down, is forced off (RFC 3339); `None` means that
    /// QEMU is being ended.
    #[serde(default)]
    until: Option<String>,
    /// Fields of a newer version.
    #[serde(flatten)]
    other: serde_json::Map<String, serde_json::Value>,
}

impl RecordedIntention {
    /// Returns the form for the record. `now` is the time of day at `elapsed` of the life machine's
    /// time. A deadline beyond the range of timestamps is omitted.
    pub fn new(intention: &Intention, now: Timestamp, elapsed: Duration) -> Self {
        let (word, by, why) = match &intention.then {
            AfterQemu::Relaunch => (RELAUNCH, None, None),
            AfterQemu::End(end) => match &end.cause {
                Cause::PanicStopped => (PANIC_STOPPED, None, None),
                Cause::Stopped(by)
                | Cause::Suspended(by)
                | Cause::ForcedOff(by)
                | Cause::StartCanceled(by) => (end.reason(), Some(*by), None),
                Cause::NotReady(why) => (end.reason(), None, Some(why.clone())),
                Cause::Killed
                | Cause::GuestShutdown
                | Cause::Panicked
                | Cause::QemuDied(_)
                | Cause::StartFailed(_)
                | Cause::QemuNotExited { .. } => (end.reason(), None, None),
            },
        };
        let by = by.map(|by| match by {
            Requester::Signal => "signal".to_owned(),
            Requester::Operator => "operator".to_owned(),
        });
        let until = intention.deadline.and_then(|deadline| {
            let left = SignedDuration::try_from(deadline.saturating_sub(elapsed)).ok()?;
            now.checked_add(left).ok()
        });
        let until = until.map(|until| until.to_string());
        Self { then: word.to_owned(), by, why, until, other: serde_json::Map::new() }
    }

    /// Returns what follows; `None` for an unknown value of a newer version.
    pub fn outcome(&self) -> Option<AfterQemu> {
        let by = match self.by.as_deref() {
            Some("operator") => Requester::Operator,
            _ => Requester::Signal,
        };
        let cause = match self.then.as_str() {
            RELAUNCH => return Some(AfterQemu::Relaunch),
            PANIC_STOPPED => Cause::PanicStopped,
            "stopped" => Cause::Stopped(by),
            "suspended" => Cause::Suspended(by),
            "forced-off" => Cause::ForcedOff(by),
            "start-cancelled" => Cause::StartCanceled(by),
            "killed" => Cause::Killed,
            "guest-shutdown" => Cause::GuestShutdown,
            "guest-panic" => Cause::Panicked,
            "not-ready" => Cause::NotReady(self.why.clone().unwrap_or_default()),
            _ => return None,
        };
        Some(AfterQemu::End(End { cause }))
    }

    /// Returns the intention in the life machine's time, which is `elapsed` at the time of day
    /// `now`; `None` for an unknown value of a newer version.
    pub fn intention(&self, now: Timestamp, elapsed: Duration) -> Option<Intention> {
        let deadline = self.left(now).map(|left| elapsed.saturating_add(left));
        Some(Intention { then: self.outcome()?, deadline })
    }

    /// Returns true if the state of the guest is saved and QEMU is no longer needed.
    pub fn is_suspended(&self) -> bool {
        self.then == "suspended"
    }

    /// Returns the remaining time of the guest; `None` if QEMU is being ended.
    fn left(&self, now: Timestamp) -> Option<Duration> {
        let until: Timestamp = self.until.as_deref()?.parse().ok()?;
        Some(Duration::try_from(until.duration_since(now)).unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outcomes_survive_the_record() {
        let now: Timestamp = "2026-01-02T03:04:05Z".parse().unwrap();
        let causes = [
            Cause::Stopped(Requester::Signal),
            Cause::Stopped(Requester::Operator),
            Cause::Suspended(Requester::Operator),
            Cause::ForcedOff(Requester::Signal),
            Cause::StartCanceled(Requester::Operator),
            Cause::Killed,
            Cause::GuestShutdown,
            Cause::PanicStopped,
            Cause::Panicked,
            Cause::NotReady("no agent".into()),
        ];
        let seconds = Duration::from_secs;
        let ends = causes.map(|cause| AfterQemu::End(End { cause }));
        for then in ends.into_iter().chain([AfterQemu::Relaunch]) {
            for deadline in [None, Some(seconds(100))] {
                let intention = Intention { then: then.clone(), deadline };
                let recorded = RecordedIntention::new(&intention, now, seconds(10));
                let json = serde_json::to_string(&recorded).unwrap();
                let recorded: RecordedIntention = serde_json::from_str(&json).unwrap();
                assert_eq!(recorded.outcome().as_ref(), Some(&then));
                // The time of the next supervisor begins at its own start.
                let next = recorded.intention(now + seconds(30), seconds(1)).unwrap();
                let deadline = deadline.map(|_| seconds(61));
                assert_eq!(next, Intention { then: then.clone(), deadline });
                let late = recorded.intention(now + seconds(3600), seconds(1)).unwrap();
                assert_eq!(late.deadline, deadline.map(|_| seconds(1)));
            }
        }
    }

    #[test]
    fn intention_of_a_newer_version_is_kept() {
        let json = r#"{"then":"move","by":null,"why":null,"until":null,"to":"host-b"}"#;
        let recorded: RecordedIntention = serde_json::from_str(json).unwrap();
        assert_eq!(recorded.outcome(), None);
        let again = serde_json::to_value(&recorded).unwrap();
        assert_eq!(again, serde_json::from_str::<serde_json::Value>(json).unwrap());
    }
}
