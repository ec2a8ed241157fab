//! Why a start fails, as the life machine and the command line need it.

use crate::{
    life::{Explanation, Fault, StartFailure},
    sys::lane::Refused,
    value::{ErrorCode, Explain, chain},
};

/// The failure of an error: its chain of causes, and the hint on a separate line.
pub(super) fn start_failure(error: &(dyn Explain + 'static)) -> StartFailure {
    let fault = if error.is_host_fault() { Fault::Host } else { Fault::Vm };
    StartFailure { fault, why: explanation(error) }
}

/// The chain of causes, and the hint.
pub(super) fn explanation(error: &(dyn Explain + 'static)) -> Explanation {
    Explanation { code: error.code(), text: chain(error), hint: error.hint() }
}

/// A lane accepts no more work.
pub(super) fn refused(refused: Refused) -> StartFailure {
    let why = Explanation::new(refused.code(), refused.to_string());
    StartFailure { fault: Fault::Host, why }
}

/// The thread that prepares cannot be started.
pub(super) fn thread(error: &std::io::Error) -> StartFailure {
    let text = format!("cannot start a thread: {error}");
    StartFailure { fault: Fault::Host, why: Explanation::new(ErrorCode::OutOfResources, text) }
}

/// A phase was begun without the result of the phase before it.
pub(super) fn not_prepared() -> StartFailure {
    let why = Explanation::new(ErrorCode::InternalError, "the start was not prepared");
    StartFailure { fault: Fault::Host, why }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An error of the host or of the VM.
    #[derive(Debug, thiserror::Error)]
    #[error("it failed")]
    struct Failed {
        source: std::io::Error,
        is_host_fault: bool,
    }

    impl Explain for Failed {
        fn own_code(&self) -> Option<ErrorCode> {
            Some(ErrorCode::Other)
        }

        fn own_hint(&self) -> Option<String> {
            self.is_host_fault.then(|| "repair the host".to_owned())
        }

        fn is_own_host_fault(&self) -> bool {
            self.is_host_fault
        }
    }

    #[test]
    fn failure_has_fault_causes_and_hint() {
        let failure = |is_host_fault| {
            start_failure(&Failed { source: std::io::Error::other("the cause"), is_host_fault })
        };
        let why = Explanation::from("it failed: the cause");
        assert_eq!(failure(false), StartFailure { fault: Fault::Vm, why });
        let why = Explanation {
            code: ErrorCode::Other,
            text: "it failed: the cause".into(),
            hint: Some("repair the host".into()),
        };
        assert_eq!(failure(true), StartFailure { fault: Fault::Host, why });
    }

    #[test]
    fn missing_threads_and_results_are_host_faults() {
        let failure = thread(&std::io::ErrorKind::OutOfMemory.into());
        assert_eq!(failure.fault, Fault::Host);
        assert_eq!(failure.why.code, ErrorCode::OutOfResources);
        assert_eq!(not_prepared().fault, Fault::Host);
        assert_eq!(not_prepared().why.code, ErrorCode::InternalError);
    }
}
