//! The result of probing a liveness lock.

/// The length of a lock held by qvm itself, in bytes. A lock for QEMU has no end.
pub(crate) const OWN_LENGTH: i64 = 1;

/// The state of a lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LockState {
    /// The file does not exist.
    Missing,
    /// No process holds the lock.
    Free,
    /// A verb holds the lock, or a supervisor that has not passed it to QEMU yet.
    HeldByQvm,
    /// A QEMU process holds the lock.
    HeldByQemu,
}

impl LockState {
    /// Classifies a lock by its length in bytes; `None` means no end.
    pub(super) fn of_length(length: Option<i64>) -> Self {
        if length == Some(OWN_LENGTH) { Self::HeldByQvm } else { Self::HeldByQemu }
    }
}
