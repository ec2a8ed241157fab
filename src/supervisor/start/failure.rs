//! Why a start fails, as the life machine and the command line need it.

use crate::{
    life::{Fault, StartFailure},
    sys::lane::Refused,
    value::chain,
};

/// The failure of an error: its chain of causes, and the hint on a line of its own.
pub(super) fn start_failure(
    error: &(dyn std::error::Error + 'static),
    hint: Option<String>,
    is_host_fault: bool,
) -> StartFailure {
    let why = match hint {
        Some(hint) => format!("{}\nhint: {hint}", chain(error)),
        None => chain(error),
    };
    let fault = if is_host_fault { Fault::Host } else { Fault::Vm };
    StartFailure { fault, why }
}

/// A lane accepts no more work.
pub(super) fn refused(refused: Refused) -> StartFailure {
    StartFailure { fault: Fault::Host, why: refused.to_string() }
}

/// The thread that prepares cannot be started.
pub(super) fn thread(error: &std::io::Error) -> StartFailure {
    StartFailure { fault: Fault::Host, why: format!("cannot start a thread: {error}") }
}

/// A phase was begun without the result of the phase before it.
pub(super) fn not_prepared() -> StartFailure {
    StartFailure { fault: Fault::Host, why: "the start was not prepared".into() }
}
