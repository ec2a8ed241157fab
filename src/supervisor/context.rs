//! What every part of the supervisor may use: settings, paths, storage lanes, the service manager and the watchers of events.

use std::{
    collections::VecDeque,
    ffi::OsString,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::sync::broadcast;
use tracing::warn;

use super::settings::Settings;
use crate::{
    control::types::Event,
    store::{layout::VmPaths, record::Record, record_writer::RecordWriter},
    sys::lane::Lanes,
    systemd::notify::{Notifier, under_systemd},
};

/// How many events a watcher may be behind before it loses the oldest.
const EVENT_QUEUE: usize = 256;
/// How many events are kept for a client that asks later.
const RECENT: usize = 64;
/// Events that do not change what the VM does; a guest can cause them as often as it likes.
const CHATTY: [&str; 4] =
    ["BALLOON_CHANGE", "RTC_CHANGE", "NIC_RX_FILTER_CHANGED", "VSERPORT_CHANGE"];

/// What every part of the supervisor may use.
#[derive(Debug)]
pub(crate) struct Context {
    settings: Settings,
    paths: VmPaths,
    lanes: Lanes,
    notifier: Notifier,
    under_systemd: bool,
    /// The queue has its slots from the start: one with the event itself takes four times as much.
    watchers: broadcast::Sender<Arc<Event>>,
    /// The last events, newest first.
    recent: Mutex<VecDeque<Event>>,
    origin: Instant,
    /// Unused memory will be returned to the kernel.
    is_settling: AtomicBool,
}

impl Context {
    /// The context of one supervisor. Nothing is opened but the service manager's socket.
    pub(crate) fn new(settings: Settings) -> Self {
        let env = |key: &str| (settings.env)(key).map(OsString::from);
        let pid = std::process::id();
        let (watchers, _) = broadcast::channel(EVENT_QUEUE);
        Self {
            paths: settings.paths(),
            lanes: Lanes::new(),
            notifier: Notifier::new(env, pid),
            under_systemd: under_systemd(env, pid),
            watchers,
            recent: Mutex::default(),
            origin: Instant::now(),
            is_settling: AtomicBool::new(false),
            settings,
        }
    }

    /// The supervisor's settings.
    pub(crate) fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The VM's own paths.
    pub(crate) fn paths(&self) -> &VmPaths {
        &self.paths
    }

    /// Where work waits for storage.
    pub(crate) fn lanes(&self) -> &Lanes {
        &self.lanes
    }

    /// The service manager.
    pub(crate) fn notifier(&self) -> &Notifier {
        &self.notifier
    }

    /// Whether a unit started the supervisor: systemd owns the cgroup then.
    pub(crate) fn is_under_systemd(&self) -> bool {
        self.under_systemd
    }

    /// The time of day.
    pub(crate) fn now(&self) -> Timestamp {
        (self.settings.now)()
    }

    /// How long the supervisor has been running, for the life machine.
    pub(crate) fn elapsed(&self) -> Duration {
        self.origin.elapsed()
    }

    /// The instant of a time of [`Self::elapsed`].
    pub(crate) fn instant(&self, elapsed: Duration) -> tokio::time::Instant {
        tokio::time::Instant::from_std(self.origin + elapsed)
    }

    /// The queue of events, for the control socket.
    pub(crate) fn watchers(&self) -> broadcast::Sender<Arc<Event>> {
        self.watchers.clone()
    }

    /// Notes that unused memory will be returned; `false` where that was noted already.
    pub(crate) fn begin_settling(&self) -> bool {
        !self.is_settling.swap(true, Ordering::Relaxed)
    }

    /// Notes that unused memory was returned.
    pub(crate) fn end_settling(&self) {
        self.is_settling.store(false, Ordering::Relaxed);
    }

    fn recent(&self) -> MutexGuard<'_, VecDeque<Event>> {
        // Nothing that holds the lock can panic half-way through a change.
        self.recent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends an event to all watchers and keeps it for later ones.
    pub(crate) fn publish(&self, name: &str, data: Value) {
        let data = if data.is_null() { json!({}) } else { data };
        let event =
            Event { at: Some(self.now().to_string()), event: name.to_owned(), data: Some(data) };
        if !CHATTY.contains(&name) {
            let mut recent = self.recent();
            recent.truncate(RECENT - 1);
            recent.push_front(event.clone());
        }
        // Without a watcher there is no receiver.
        let _ = self.watchers.send(Arc::new(event));
    }

    /// The last events, newest first.
    pub(crate) fn recent_events(&self) -> Vec<Event> {
        self.recent().iter().cloned().collect()
    }

    /// A writer of the run record of one QEMU process.
    pub(crate) fn record_writer(&self) -> RecordWriter {
        RecordWriter::new(self.lanes.run.clone(), self.paths.clone())
    }

    /// Removes the run record, behind everything that is to be written of it.
    pub(crate) fn remove_record(&self) {
        let paths = self.paths.clone();
        if let Err(refused) = self.lanes.run.run(move || Record::remove(&paths)) {
            warn!("cannot remove the run record: {refused}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::supervisor::tests::Host;

    #[tokio::test]
    async fn events_are_kept_newest_first() {
        let mut host = Host::new();
        for name in ["A", "B"] {
            host.ctx.publish(name, Value::Null);
        }
        let recent = host.ctx.recent_events();
        assert_eq!(recent[0].event, "B");
        assert_eq!(recent[0].data, Some(json!({})));
        assert!(recent[0].at.as_ref().unwrap().parse::<Timestamp>().is_ok());
        assert_eq!(host.published(), ["A", "B"]);
    }

    #[tokio::test]
    async fn chatty_events_displace_no_others() {
        let mut host = Host::new();
        host.ctx.publish("QVM_STATE", json!({ "state": "running" }));
        for _ in 0..2 * RECENT {
            host.ctx.publish("RTC_CHANGE", Value::Null);
        }
        let recent = host.ctx.recent_events();
        assert_eq!(recent.len(), 1);
        assert_eq!(recent[0].event, "QVM_STATE");
        assert_eq!(host.published().len(), 1 + 2 * RECENT);
    }

    #[tokio::test]
    async fn kept_events_are_bounded() {
        let host = Host::new();
        for number in 0..2 * RECENT {
            host.ctx.publish("STOP", json!({ "number": number }));
        }
        let recent = host.ctx.recent_events();
        assert_eq!(recent.len(), RECENT);
        assert_eq!(recent[0].data, Some(json!({ "number": 2 * RECENT - 1 })));
    }

    #[tokio::test]
    async fn nothing_of_a_plain_process_is_systemds() {
        let host = Host::new();
        assert!(!host.ctx.is_under_systemd());
        assert_eq!(host.ctx.notifier().watchdog_interval(), None);
        let elapsed = host.ctx.elapsed();
        assert!(host.ctx.instant(elapsed) <= tokio::time::Instant::now());
    }
}
