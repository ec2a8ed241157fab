//! The context of all components: settings, paths, storage lanes, service manager, event watchers.

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

/// How many events a slow watcher may lag behind before it loses the oldest.
const EVENT_QUEUE: usize = 256;
/// How many events are kept for a client that asks later.
const RECENT: usize = 64;
/// Events without a change of state, which a guest can cause at any rate.
const CHATTY: [&str; 4] =
    ["BALLOON_CHANGE", "RTC_CHANGE", "NIC_RX_FILTER_CHANGED", "VSERPORT_CHANGE"];

/// The context of all components.
#[derive(Debug)]
pub(crate) struct Context {
    settings: Settings,
    paths: VmPaths,
    lanes: Lanes,
    notifier: Notifier,
    under_systemd: bool,
    /// Contains pointers: the queue allocates all slots, and an event has four times that size.
    watchers: broadcast::Sender<Arc<Event>>,
    /// The last events, newest first.
    recent: Mutex<VecDeque<Event>>,
    origin: Instant,
    /// Whether a return of unused memory to the kernel is scheduled.
    is_settling: AtomicBool,
}

impl Context {
    /// Creates the context of a supervisor. Opens only the service manager's socket.
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

    pub(crate) fn settings(&self) -> &Settings {
        &self.settings
    }

    pub(crate) fn paths(&self) -> &VmPaths {
        &self.paths
    }

    /// Returns the lanes for storage I/O.
    pub(crate) fn lanes(&self) -> &Lanes {
        &self.lanes
    }

    pub(crate) fn notifier(&self) -> &Notifier {
        &self.notifier
    }

    /// Whether a unit started the supervisor, so that systemd owns the cgroup.
    pub(crate) fn is_under_systemd(&self) -> bool {
        self.under_systemd
    }

    /// The time of day.
    pub(crate) fn now(&self) -> Timestamp {
        (self.settings.now)()
    }

    /// Returns the uptime of the supervisor, the clock of the life machine.
    pub(crate) fn elapsed(&self) -> Duration {
        self.origin.elapsed()
    }

    /// Converts a time of [`Self::elapsed`].
    pub(crate) fn instant(&self, elapsed: Duration) -> tokio::time::Instant {
        tokio::time::Instant::from_std(self.origin + elapsed)
    }

    /// Returns the queue of events for the control socket.
    pub(crate) fn watchers(&self) -> broadcast::Sender<Arc<Event>> {
        self.watchers.clone()
    }

    /// Schedules a return of unused memory; `false` if one is scheduled already.
    pub(crate) fn begin_settling(&self) -> bool {
        !self.is_settling.swap(true, Ordering::Relaxed)
    }

    /// Ends the scheduled return of unused memory.
    pub(crate) fn end_settling(&self) {
        self.is_settling.store(false, Ordering::Relaxed);
    }

    fn recent(&self) -> MutexGuard<'_, VecDeque<Event>> {
        // No code can panic between two parts of a change under this lock.
        self.recent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends an event to all watchers and stores it for later ones.
    pub(crate) fn publish(&self, name: &str, data: Value) {
        let data = if data.is_null() { json!({}) } else { data };
        let event =
            Event { at: Some(self.now().to_string()), event: name.to_owned(), data: Some(data) };
        if !CHATTY.contains(&name) {
            let mut recent = self.recent();
            recent.truncate(RECENT - 1);
            recent.push_front(event.clone());
        }
        // Fails only without a watcher.
        let _ = self.watchers.send(Arc::new(event));
    }

    /// The last events, newest first.
    pub(crate) fn recent_events(&self) -> Vec<Event> {
        self.recent().iter().cloned().collect()
    }

    /// Returns a writer of the run record of one QEMU process.
    pub(crate) fn record_writer(&self) -> RecordWriter {
        RecordWriter::new(self.lanes.run.clone(), self.paths.clone())
    }

    /// Removes the run record after all pending writes.
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
    async fn process_outside_a_unit_has_no_manager() {
        let host = Host::new();
        assert!(!host.ctx.is_under_systemd());
        assert_eq!(host.ctx.notifier().watchdog_interval(), None);
        let elapsed = host.ctx.elapsed();
        assert!(host.ctx.instant(elapsed) <= tokio::time::Instant::now());
    }
}
