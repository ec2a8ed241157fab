//! Codes, hints and host faults of errors.

use std::error::Error;

use super::{error_code::ErrorCode, vm_name::VmName};

/// An error that users see.
///
/// A type implements the `own_` methods for the variants that it knows more about than their cause,
/// and names the causes in [`wrapped`](Self::wrapped). Callers use [`code`](Self::code),
/// [`hint`](Self::hint) and [`is_host_fault`](Self::is_host_fault), which no type overrides.
pub trait Explain: Error {
    /// The cause whose explanation is also that of this error.
    fn wrapped(&self) -> Option<&dyn Explain> {
        None
    }

    /// Returns the code of this error itself; `None` where [`wrapped`](Self::wrapped) has it. The
    /// `match` names every variant, so that a new one cannot be without a code.
    fn own_code(&self) -> Option<ErrorCode>;

    /// Returns the hint of this error itself.
    fn own_hint(&self) -> Option<String> {
        None
    }

    /// Returns true if this error itself is a host fault.
    fn is_own_host_fault(&self) -> bool {
        false
    }

    /// Returns the code of this error, else that of the cause.
    fn code(&self) -> ErrorCode {
        let own = self.own_code();
        own.or_else(|| Some(self.wrapped()?.code())).unwrap_or(ErrorCode::InternalError)
    }

    /// Returns the hint of this error, else that of the cause. `NAME` is a placeholder for the VM.
    fn hint(&self) -> Option<String> {
        self.own_hint().or_else(|| self.wrapped()?.hint())
    }

    /// Returns [`hint`](Self::hint) with the VM's name.
    fn hint_for(&self, name: &VmName) -> Option<String> {
        self.hint().map(|hint| hint.replace("NAME", name.as_str()))
    }

    /// Returns true for a host fault: a later attempt may succeed without a change of the VM file.
    fn is_host_fault(&self) -> bool {
        self.is_own_host_fault() || self.wrapped().is_some_and(Explain::is_host_fault)
    }
}

impl Explain for qmp::Error {
    fn own_code(&self) -> Option<ErrorCode> {
        Some(match self {
            Self::Timeout { .. } | Self::QueueFull { .. } => ErrorCode::QemuSilent,
            Self::Connect { .. } | Self::Closed => ErrorCode::QemuUnreachable,
            Self::Refused { .. } => ErrorCode::QemuRefused,
            Self::Unfinished { .. }
            | Self::Reply { .. }
            | Self::Encode { .. }
            | Self::NotQmp(_) => ErrorCode::QemuReplyInvalid,
        })
    }

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
