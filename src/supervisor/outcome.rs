//! How a supervisor ends, and whose fault it is that a guest does not start.

use crate::{sys::lane::Refused, value::chain};

/// How the loop ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The VM has ended; the exit code.
    Exit(u8),
    /// The guest was not started.
    NotStarted {
        /// Whose fault that is.
        fault: Fault,
        /// Why: the chain of causes, and a line with the hint where there is one.
        why: String,
    },
    /// The supervisor has to be replaced by its program's file, in place.
    Reexec,
}

/// Whose fault it is that a guest does not come to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Fault {
    /// The VM's: another try would come to the same.
    #[default]
    Vm,
    /// The host's: another try may help.
    Host,
    /// Nobody's: the host has not enough memory left, and is told to refuse then.
    NoRoom,
}

/// Why a guest does not come to run.
#[derive(Debug)]
pub(crate) struct NotBegun {
    /// The chain of causes, and the way out on a line of its own.
    pub(crate) why: String,
    pub(crate) fault: Fault,
}

impl NotBegun {
    pub(crate) fn new(
        error: &(dyn std::error::Error + 'static),
        hint: Option<String>,
        is_the_hosts: bool,
    ) -> Self {
        let why = match hint {
            Some(hint) => format!("{}\nhint: {hint}", chain(error)),
            None => chain(error),
        };
        let fault = if is_the_hosts { Fault::Host } else { Fault::Vm };
        Self { why, fault }
    }

    /// The host takes no more work.
    pub(crate) fn refused(refused: Refused) -> Self {
        Self { why: refused.to_string(), fault: Fault::Host }
    }
}
