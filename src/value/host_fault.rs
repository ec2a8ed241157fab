//! Classifies errors as host faults: no descriptor, memory or disk space left, or failing storage.

use std::{error::Error, io};

use rustix::io::Errno;

/// The errors of exhausted resources and failing storage (errno(3)).
const FAULTS: [Errno; 9] = [
    Errno::MFILE,
    Errno::NFILE,
    Errno::NOMEM,
    Errno::NOSPC,
    Errno::IO,
    Errno::ROFS,
    Errno::DQUOT,
    Errno::STALE,
    Errno::TIMEDOUT,
];

/// Returns true if the error or one of its sources is a host fault, which another attempt may
/// solve.
pub fn is_host_fault(error: &(dyn Error + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if error.downcast_ref::<io::Error>().is_some_and(is_fault) {
            return true;
        }
        cause = error.source();
    }
    false
}

fn is_fault(error: &io::Error) -> bool {
    let by_errno =
        error.raw_os_error().map(|errno| FAULTS.iter().any(|f| f.raw_os_error() == errno));
    // `io::Error::source` skips a wrapped error and returns the source of that error.
    let by_cause = || error.get_ref().is_some_and(|inner| is_host_fault(inner));
    by_errno.unwrap_or_else(|| is_fault_kind(error.kind()) || by_cause())
}

fn is_fault_kind(kind: io::ErrorKind) -> bool {
    use io::ErrorKind::{
        OutOfMemory, QuotaExceeded, ReadOnlyFilesystem, StaleNetworkFileHandle, StorageFull,
        TimedOut,
    };
    matches!(
        kind,
        OutOfMemory
            | QuotaExceeded
            | ReadOnlyFilesystem
            | StaleNetworkFileHandle
            | StorageFull
            | TimedOut
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("outer")]
    struct Outer(#[source] io::Error);

    #[test]
    fn causes_are_classified_by_errno_and_kind() {
        for errno in FAULTS {
            let os = || io::Error::from_raw_os_error(errno.raw_os_error());
            assert!(is_host_fault(&Outer(os())), "{errno}");
            assert!(is_host_fault(&io::Error::new(os().kind(), Outer(os()))), "{errno}");
        }
        assert!(is_host_fault(&io::Error::from(io::ErrorKind::StorageFull)));
        for errno in [Errno::NOENT, Errno::ACCESS, Errno::EXIST] {
            assert!(!is_host_fault(&io::Error::from_raw_os_error(errno.raw_os_error())), "{errno}");
        }
        assert!(!is_host_fault(&Outer(io::Error::other("no"))));
    }
}
