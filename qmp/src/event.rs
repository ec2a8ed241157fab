//! What QEMU tells without being asked. An event is a name and its data; what a supervisor needs is read out of it.

use serde_json::Value;

/// An event as it came.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// QMP's name, such as `SHUTDOWN`.
    pub name: String,
    /// What comes with it; null where nothing does.
    pub data: Value,
    /// When, in seconds and microseconds since 1970.
    pub at: (i64, i64),
}

/// What an event means (QEMU's qapi/run-state.json, qapi/block-core.json, qapi/machine.json).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// The guest is to be shut down, or wants to reboot while that means the same.
    Shutdown {
        /// The guest itself asked.
        guest: bool,
        /// Why.
        reason: ShutdownReason,
    },
    /// The guest was reset within the same process.
    Reset {
        /// The guest itself asked.
        guest: bool,
        /// Why.
        reason: ShutdownReason,
    },
    /// The guest's kernel panicked.
    GuestPanicked {
        /// What QEMU does: `pause`, `poweroff` or `run`.
        action: String,
    },
    /// The vCPUs are held.
    Stop,
    /// The vCPUs go on.
    Resume,
    /// The power button was pressed.
    Powerdown,
    /// A disk failed.
    BlockIoError {
        /// The host's file system is full.
        nospace: bool,
    },
    /// The balloon has another size.
    BalloonChange {
        /// What the guest has now, in bytes.
        actual: u64,
    },
    /// The guest has let go of a device, and it is gone.
    DeviceDeleted {
        /// The device's id; empty for one that has none.
        device: String,
    },
    /// The watchdog device fired.
    Watchdog {
        /// What QEMU does.
        action: String,
    },
    /// Anything else, older or newer than this list.
    Other,
}

/// Why a machine was shut down or reset: QEMU's `ShutdownCause`.
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
    /// Any other, in QEMU's word.
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

    /// What it means.
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

    /// Whether a supervisor must not miss the event: it tells of a change of the machine's state. Others
    /// may be dropped in a flood.
    pub(crate) fn matters(&self) -> bool {
        match self.kind() {
            Kind::Shutdown { .. }
            | Kind::Reset { .. }
            | Kind::GuestPanicked { .. }
            | Kind::Stop
            | Kind::Resume
            | Kind::DeviceDeleted { .. } => true,
            // A guest causes these as often as it likes, and they change no state.
            Kind::BlockIoError { .. }
            | Kind::Powerdown
            | Kind::Watchdog { .. }
            | Kind::BalloonChange { .. } => false,
            Kind::Other => self.name.starts_with("DEVICE_") || self.name.starts_with("MIGRATION"),
        }
    }

    /// Returns the event without its data if `line`, as which it came, exceeds what any event of QEMU
    /// needs: many events are kept at once, so each has to be small.
    pub(crate) fn bounded(mut self, line: &[u8]) -> Self {
        let values = line.iter().filter(|byte| matches!(byte, b',' | b'[' | b'{')).count();
        if line.len() > MAX_EVENT || values > MAX_EVENT_VALUES {
            let name: String = self.name.chars().take(MAX_NAME).collect();
            self = Self { name, data: Value::Null, at: self.at };
        }
        self
    }
}

/// The largest event whose data is kept, in bytes and in JSON values.
const MAX_EVENT: usize = 16 << 10;
const MAX_EVENT_VALUES: usize = 1024;
/// The most characters of the name of a larger event.
const MAX_NAME: usize = 64;

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn event(name: &str, data: Value) -> Event {
        Event { name: name.into(), data, at: (0, 0) }
    }

    #[test]
    fn a_value_that_is_newer_than_this_crate_is_kept() {
        let kind = event("SHUTDOWN", json!({"guest": true, "reason": "new-in-99"})).kind();
        let reason = ShutdownReason::Other("new-in-99".into());
        assert_eq!(kind, Kind::Shutdown { guest: true, reason });
        assert_eq!(event("WHAT_IS_THIS", json!({"a": 1})).kind(), Kind::Other);
    }

    #[test]
    fn an_event_that_is_too_large_has_no_data() {
        let small = event("STOP", json!({"a": [1, 2]}));
        assert_eq!(small.clone().bounded(b"{}"), small);
        for line in [vec![b'x'; MAX_EVENT + 1], vec![b','; MAX_EVENT_VALUES + 1]] {
            let bounded = event(&"N".repeat(99), json!({"a": 1})).bounded(&line);
            assert_eq!((bounded.name.len(), bounded.data), (MAX_NAME, Value::Null));
        }
    }

    #[test]
    fn an_event_without_its_data_is_read_all_the_same() {
        for name in ["SHUTDOWN", "RESET", "GUEST_PANICKED", "BLOCK_IO_ERROR", "BALLOON_CHANGE"] {
            assert_ne!(event(name, Value::Null).kind(), Kind::Other);
        }
    }
}
