//! Events from QEMU: their names, data and meaning for a supervisor.

use serde_json::Value;

/// A received event.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// QMP's name, such as `SHUTDOWN`.
    pub name: String,
    /// Its data; null if there is none.
    pub data: Value,
    /// The time in seconds and microseconds since 1970.
    pub at: (i64, i64),
}

/// The meaning of an event
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// The machine is to be shut down, also by a reboot that is configured as shutdown.
    Shutdown {
        /// Requested by the guest.
        guest: bool,
        /// The reason.
        reason: ShutdownReason,
    },
    /// The guest was reset within the same process.
    Reset {
        /// Requested by the guest.
        guest: bool,
        /// The reason.
        reason: ShutdownReason,
    },
    /// The guest's kernel panicked.
    GuestPanicked {
        /// The action of QEMU: `pause`, `poweroff` or `run` for a panic.
        action: String,
    },
    /// The vCPUs are stopped.
    Stop,
    /// The vCPUs are running again.
    Resume,
    /// The power button was pressed.
    Powerdown,
    /// A disk I/O error.
    BlockIoError {
        /// The host's file system is full.
        nospace: bool,
    },
    /// The size of the balloon changed.
    BalloonChange {
        /// The guest's memory in bytes.
        actual: u64,
    },
    /// A device was removed.
    DeviceDeleted {
        /// The device ID; empty if it has none.
        device: String,
    },
    /// The watchdog device fired.
    Watchdog {
        /// The action of QEMU: `pause`, `poweroff` or `run` for a panic.
        action: String,
    },
    /// Any other event.
    Other,
}

/// The reason of a shutdown or reset: QEMU's `ShutdownCause`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ShutdownReason {
    /// The guest powered itself off.
    GuestShutdown,
    /// The guest reset itself.
    GuestReset,
    /// The guest panicked.
    GuestPanic,
    /// QMP `quit`.
    HostQmpQuit,
    /// QMP `system_reset`.
    HostQmpSystemReset,
    /// A signal to QEMU.
    HostSignal,
    /// Any other reason, in QEMU's notation.
    Other(String),
}

impl From<&str> for ShutdownReason {
    fn from(word: &str) -> Self {
        match word {
            "guest-shutdown" => Self::GuestShutdown,
            "guest-reset" => Self::GuestReset,
            "guest-panic" => Self::GuestPanic,
            "host-qmp-quit" => Self::HostQmpQuit,
            "host-qmp-system-reset" => Self::HostQmpSystemReset,
            "host-signal" => Self::HostSignal,
            other => Self::Other(other.to_owned()),
        }
    }
}

impl Event {
    fn text(&self, key: &str) -> String {
        self.data[key].as_str().unwrap_or_default().to_owned()
    }

    fn flag(&self, key: &str) -> bool {
        self.data[key].as_bool().unwrap_or_default()
    }

    /// Returns the meaning of the event.
    pub fn kind(&self) -> Kind {
        let reason = || ShutdownReason::from(self.text("reason").as_str());
        match self.name.as_str() {
            "SHUTDOWN" => Kind::Shutdown { guest: self.flag("guest"), reason: reason() },
            "RESET" => Kind::Reset { guest: self.flag("guest"), reason: reason() },
            "GUEST_PANICKED" => Kind::GuestPanicked { action: self.text("action") },
            "STOP" => Kind::Stop,
            "RESUME" => Kind::Resume,
            "POWERDOWN" => Kind::Powerdown,
            "BLOCK_IO_ERROR" => Kind::BlockIoError { nospace: self.flag("nospace") },
            "BALLOON_CHANGE" => {
                Kind::BalloonChange { actual: self.data["actual"].as_u64().unwrap_or_default() }
            }
            "DEVICE_DELETED" => Kind::DeviceDeleted { device: self.text("device") },
            "WATCHDOG" => Kind::Watchdog { action: self.text("action") },
            _ => Kind::Other,
        }
    }

    /// Returns true if the event reports a change of the machine's state and must not be lost.
    /// Others may be dropped under load.
    pub(crate) fn matters(&self) -> bool {
        match self.kind() {
            Kind::Shutdown { .. }
            | Kind::Reset { .. }
            | Kind::GuestPanicked { .. }
            | Kind::Stop
            | Kind::Resume
            | Kind::DeviceDeleted { .. } => true,
            // A guest can cause any number of these, and they change no state.
            Kind::BlockIoError { .. }
            | Kind::Powerdown
            | Kind::Watchdog { .. }
            | Kind::BalloonChange { .. } => false,
            Kind::Other => self.name.starts_with("DEVICE_") || self.name.starts_with("MIGRATION"),
        }
    }

    /// Returns the event without its data if `line`, its encoded form, is larger than any event of
    /// QEMU: many events are queued, so each must be small.
    pub(crate) fn bounded(mut self, line: &[u8]) -> Self {
        let values = line.iter().filter(|byte| matches!(byte, b',' | b'[' | b'{')).count();
        if line.len() > MAX_EVENT || values > MAX_EVENT_VALUES {
            let name: String = self.name.chars().take(MAX_NAME).collect();
            self = Self { name, data: Value::Null, at: self.at };
        }
        self
    }
}

/// The maximum size of an event with data, in bytes and in JSON values.
const MAX_EVENT: usize = 16 << 10;
const MAX_EVENT_VALUES: usize = 1024;
/// The maximum length of the name of a larger event, in characters.
const MAX_NAME: usize = 64;

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn event(name: &str, data: Value) -> Event {
        Event { name: name.into(), data, at: (0, 0) }
    }

    #[test]
    fn unknown_reason_is_kept() {
        let kind = event("SHUTDOWN", json!({"guest": true, "reason": "new-in-99"})).kind();
        let reason = ShutdownReason::Other("new-in-99".into());
        assert_eq!(kind, Kind::Shutdown { guest: true, reason });
        assert_eq!(event("WHAT_IS_THIS", json!({"a": 1})).kind(), Kind::Other);
    }

    #[test]
    fn too_large_event_has_no_data() {
        let small = event("STOP", json!({"a": [1, 2]}));
        assert_eq!(small.clone().bounded(b"{}"), small);
        for line in [vec![b'x'; MAX_EVENT + 1], vec![b','; MAX_EVENT_VALUES + 1]] {
            let bounded = event(&"N".repeat(99), json!({"a": 1})).bounded(&line);
            assert_eq!((bounded.name.len(), bounded.data), (MAX_NAME, Value::Null));
        }
    }

    #[test]
    fn event_without_data_is_parsed() {
        for name in ["SHUTDOWN", "RESET", "GUEST_PANICKED", "BLOCK_IO_ERROR", "BALLOON_CHANGE"] {
            assert_ne!(event(name, Value::Null).kind(), Kind::Other);
        }
    }
}
