//! What a probe of a liveness lock finds.

/// The length of a lock that qvm holds for itself, in bytes. A lock that is for QEMU has no end.
pub(crate) const OWN_LENGTH: i64 = 1;

/// What a probe found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LockState {
    /// The file does not exist.
    Missing,
    /// Nobody holds the lock.
    Free,
    /// A verb holds the lock, or a supervisor that has not passed it to QEMU yet: no QEMU process holds it.
    HeldByQvm,
    /// A QEMU process holds the lock.
    HeldByQemu,
}

impl LockState {
    /// By the length of a lock in bytes; `None` has no end.
    pub(super) fn of_length(length: Option<i64>) -> Self {
        if length == Some(OWN_LENGTH) { Self::HeldByQvm } else { Self::HeldByQemu }
    }
}
