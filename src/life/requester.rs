//! Who requests a stop.

/// Who requested a stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Requester {
    /// A signal: systemd, the host's shutdown, or a terminal.
    Signal,
    /// A control client.
    Operator,
}
