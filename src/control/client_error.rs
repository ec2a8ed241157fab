//! Why a supervisor did not execute a request, and what to do.

use std::{io, time::Duration};

use crate::value::{ErrorCode, Explain};

/// Why a supervisor did not execute a request.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No process listens on the control socket.
    #[error("not running")]
    NotRunning,
    /// The permissions of the socket do not admit this user.
    #[error("permission denied by the supervisor's control socket")]
    Denied,
    /// The connection failed.
    #[error("cannot reach the supervisor")]
    Io(#[source] io::Error),
    /// The supervisor did not reply in time.
    #[error("the supervisor did not answer within {0:?}")]
    Timeout(Duration),
    /// The guest's state could not be saved.
    #[error("not suspended: {reason}")]
    NotSuspended {
        /// The cause.
        reason: String,
        /// Whether a fault of the host, such as hung storage, is the cause.
        is_host_fault: bool,
    },
    /// The supervisor closed the connection.
    #[error("the supervisor has ended")]
    Closed,
    /// The guest agent returned an error.
    #[error("{reason}")]
    Guest {
        /// The agent's error text.
        reason: String,
    },
    /// The guest's file systems are frozen.
    #[error("{reason}")]
    Frozen {
        /// The remaining time.
        reason: String,
    },
    /// The client has no permission.
    #[error("{reason}")]
    NotAllowed {
        /// The user, and the denied operation.
        reason: String,
        /// How to get the permission.
        hint: Option<String>,
    },
    /// QEMU did not confirm the operation in time, and may execute it later.
    #[error("{reason}")]
    Unconfirmed {
        /// The cause.
        reason: String,
    },
    /// The storage of the VM does not answer.
    #[error("{reason}")]
    HostFault {
        /// The cause.
        reason: String,
    },
    /// The supervisor refused.
    #[error("{reason}")]
    Refused {
        /// The name of the varlink error.
        error: String,
        /// The code.
        code: ErrorCode,
        /// The cause.
        reason: String,
    },
    /// The reply cannot be parsed.
    #[error("cannot parse the supervisor's reply; its version may differ")]
    Answer(#[source] serde_json::Error),
}

impl Explain for Error {
    fn own_code(&self) -> Option<ErrorCode> {
        Some(match self {
            Self::NotRunning => ErrorCode::NotRunning,
            Self::Denied => ErrorCode::ControlDenied,
            Self::Io(..) => ErrorCode::SupervisorUnreachable,
            Self::Timeout(..) => ErrorCode::SupervisorSilent,
            Self::NotSuspended { .. } => ErrorCode::NotSuspended,
            Self::Closed => ErrorCode::SupervisorEnded,
            Self::Guest { .. } => ErrorCode::GuestRefused,
            Self::Frozen { .. } => ErrorCode::GuestFrozen,
            Self::NotAllowed { .. } => ErrorCode::NotAllowed,
            Self::Unconfirmed { .. } => ErrorCode::QemuUnconfirmed,
            Self::HostFault { .. } => ErrorCode::StorageSilent,
            Self::Refused { code, .. } => *code,
            Self::Answer(..) => ErrorCode::SupervisorReplyInvalid,
        })
    }

    fn own_hint(&self) -> Option<String> {
        match self {
            Self::NotRunning => None,
            Self::Denied => Some("run it as root, or as a member of the group `qvm`".into()),
            Self::NotAllowed { hint, .. } => hint.clone(),
            Self::Timeout(_) => Some("`journalctl -u qvm@NAME` shows its log".into()),
            Self::NotSuspended { .. } => {
                Some("the guest keeps running; `qvm stop` shuts it down".into())
            }
            Self::Frozen { .. } => Some("`qvm fsfreeze --thaw NAME` thaws them now".into()),
            Self::Unconfirmed { .. } => Some(
                "`qvm status NAME` shows whether QEMU's monitor answers; `qvm kill NAME` ends it"
                    .into(),
            ),
            Self::HostFault { .. } => Some(
                "`qvm status NAME` shows what does not answer, `dmesg` may show the cause".into(),
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
