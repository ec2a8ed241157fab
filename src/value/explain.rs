//! What an error adds to its text: a hint, and whether the host is at fault.

use std::error::Error;

use super::{chain::chain, vm_name::VmName};

/// An error that users see.
///
/// A type implements the `own_` methods for the variants that it knows more about than their cause,
/// and names the causes in [`wrapped`](Self::wrapped). Callers use [`hint`](Self::hint) and
/// [`is_host_fault`](Self::is_host_fault), which no type overrides.
pub trait Explain: Error {
    /// The cause whose explanation is also that of this error.
    fn wrapped(&self) -> Option<&dyn Explain> {
        None
    }

    /// What this error itself suggests to the user.
    fn own_hint(&self) -> Option<String> {
        None
    }

    /// Whether this error itself is the host's fault.
    fn is_own_host_fault(&self) -> bool {
        false
    }

    /// What the user can do: the hint of this error, else that of the cause. `NAME` in it stands
    /// for the VM.
    fn hint(&self) -> Option<String> {
        self.own_hint().or_else(|| self.wrapped()?.hint())
    }

    /// [`hint`](Self::hint) with the VM's name in it.
    fn hint_for(&self, name: &VmName) -> Option<String> {
        self.hint().map(|hint| hint.replace("NAME", name.as_str()))
    }

    /// Whether the host is at fault, so that a later attempt may succeed without a change of the
    /// VM file.
    fn is_host_fault(&self) -> bool {
        self.is_own_host_fault() || self.wrapped().is_some_and(Explain::is_host_fault)
    }
}

/// The chain of causes, and the hint on a line of its own.
pub fn chain_with_hint(error: &(dyn Explain + 'static)) -> String {
    match error.hint() {
        Some(hint) => format!("{}\nhint: {hint}", chain(error)),
        None => chain(error),
    }
}

impl Explain for qmp::Error {
    fn own_hint(&self) -> Option<String> {
        match self {
            Self::Timeout { .. } | Self::QueueFull { .. } => {
                Some("QEMU may be stopped or starved; see `ps -o stat,wchan` of its process".into())
            }
            Self::Connect { .. }
            | Self::Closed
            | Self::Unfinished { .. }
            | Self::Refused { .. }
            | Self::Reply { .. }
            | Self::Encode { .. }
            | Self::NotQmp(_) => None,
        }
    }
}
