//! The conversation with the service manager: sd_notify(3), where NOTIFY_SOCKET is there.

use std::time::Duration;

use sd_notify::NotifyState;

/// Tells the service manager, or nobody.
#[derive(Debug, Clone)]
pub struct Notifier {
    listened_to: bool,
    under_systemd: bool,
    watchdog: Option<Duration>,
}

impl Notifier {
    /// What the environment says.
    pub fn new(env: fn(&str) -> Option<String>) -> Self {
        let ours = env("WATCHDOG_PID").is_none_or(|pid| pid == std::process::id().to_string());
        let interval = env("WATCHDOG_USEC").and_then(|usec| usec.parse().ok()).filter(|_| ours);
        let listened_to = env("NOTIFY_SOCKET").is_some();
        Self {
            listened_to,
            under_systemd: listened_to || env("INVOCATION_ID").is_some(),
            watchdog: interval.filter(|usec| *usec > 0).map(Duration::from_micros),
        }
    }

    /// Whether a service manager started us, and so owns our cgroup.
    pub fn under_systemd(&self) -> bool {
        self.under_systemd
    }

    /// How often the watchdog must be fed at least.
    pub fn watchdog(&self) -> Option<Duration> {
        self.watchdog
    }

    /// The VM is up.
    pub fn ready(&self) {
        self.tell(NotifyState::Ready);
    }

    /// What it is doing, in words.
    pub fn status(&self, text: &str) {
        // One line: what follows a newline would be read as another assignment.
        self.tell(NotifyState::Status(text.lines().next().unwrap_or_default()));
    }

    /// The VM goes down.
    pub fn stopping(&self) {
        self.tell(NotifyState::Stopping);
    }

    /// The present phase may take so much longer, from now on.
    pub fn extend_timeout(&self, by: Duration) {
        self.tell(NotifyState::ExtendTimeoutUsec(
            u32::try_from(by.as_micros()).unwrap_or(u32::MAX),
        ));
    }

    /// All is well.
    pub fn feed_watchdog(&self) {
        self.tell(NotifyState::Watchdog);
    }

    fn tell(&self, state: NotifyState<'_>) {
        if self.listened_to
            && let Err(error) = sd_notify::notify(&[state])
        {
            tracing::debug!("the service manager does not listen: {error}");
        }
    }
}
