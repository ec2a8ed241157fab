//! Why a supervisor did not do as asked, and what to do about it.

use std::{io, time::Duration};

use crate::value::Explain;

/// Why a supervisor did not do as asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nobody listens.
    #[error("not running")]
    NotRunning,
    /// The socket is another user's.
    #[error("permission denied by the supervisor's control socket")]
    Denied,
    /// It cannot be reached.
    #[error("cannot reach the supervisor")]
    Io(#[source] io::Error),
    /// It is there, and says nothing.
    #[error("the supervisor does not answer within {0:?}")]
    Timeout(Duration),
    /// The guest's state could not be saved.
    #[error("not suspended: {reason}")]
    NotSuspended {
        /// In words.
        reason: String,
        /// The storage does not answer.
        is_host_fault: bool,
    },
    /// It went away.
    #[error("the supervisor has gone")]
    Closed,
    /// The guest agent says no.
    #[error("{reason}")]
    Guest {
        /// In its words.
        reason: String,
    },
    /// The guest's file systems are frozen.
    #[error("{reason}")]
    Frozen {
        /// For how long.
        reason: String,
    },
    /// Who asks may not.
    #[error("{reason}")]
    NotAllowed {
        /// The user, and the denied operation.
        reason: String,
        /// How he might.
        hint: Option<String>,
    },
    /// QEMU did not do it in time, and may do it later.
    #[error("{reason}")]
    Unconfirmed {
        /// In words.
        reason: String,
    },
    /// The storage of the VM does not answer.
    #[error("{reason}")]
    HostFault {
        /// In words.
        reason: String,
    },
    /// It says no.
    #[error("{reason}")]
    Refused {
        /// The varlink error.
        error: String,
        /// In words.
        reason: String,
    },
    /// It says something that this program does not know.
    #[error("cannot read the supervisor's answer; it may be of another version")]
    Answer(#[source] serde_json::Error),
}

impl Explain for Error {
    fn own_hint(&self) -> Option<String> {
        match self {
            Self::NotRunning => None,
            Self::Denied => Some("run it as root, or as a member of the group `qvm`".into()),
            Self::NotAllowed { hint, .. } => hint.clone(),
            Self::Timeout(_) => Some("its log tells why: `journalctl -u qvm@NAME`".into()),
            Self::NotSuspended { .. } => Some("the guest goes on; `qvm stop` shuts it down".into()),
            Self::Frozen { .. } => Some("`qvm fsfreeze --thaw NAME` thaws them now".into()),
            Self::Unconfirmed { .. } => Some(
                "`qvm status NAME` shows whether QEMU's monitor answers; `qvm kill NAME` ends it"
                    .into(),
            ),
            Self::HostFault { .. } => Some(
                "`qvm status NAME` shows what does not answer, and `dmesg` may tell why".into(),
            ),
            Self::Io(_)
            | Self::Closed
            | Self::Guest { .. }
            | Self::Refused { .. }
            | Self::Answer(_) => None,
        }
    }

    fn is_own_host_fault(&self) -> bool {
        match self {
            Self::Unconfirmed { .. } | Self::HostFault { .. } => true,
            Self::NotSuspended { is_host_fault, .. } => *is_host_fault,
            _ => false,
        }
    }
}
