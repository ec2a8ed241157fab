//! Why a start fails, as the life machine and the command line need it.

use crate::{
    life::{Fault, StartFailure},
    sys::lane::Refused,
    value::{Explain, chain_with_hint},
};

/// The failure of an error: its chain of causes, and the hint on a line of its own.
pub(super) fn start_failure(error: &(dyn Explain + 'static)) -> StartFailure {
    let fault = if error.is_host_fault() { Fault::Host } else { Fault::Vm };
    StartFailure { fault, why: chain_with_hint(error) }
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
