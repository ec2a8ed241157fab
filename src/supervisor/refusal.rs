//! Replies of the control socket for failures of QEMU and the guest agent.

use tokio::sync::oneshot;

use crate::{
    control::types::{Refusal, State},
    value::{ErrorCode, Explain, chain},
};

/// The reply channel of a control request. Dropping it closes the client's connection.
pub(crate) type Reply<T = ()> = oneshot::Sender<Result<T, Refusal>>;

/// Returns the refusal for a failed QMP command. After a timeout the command may still take effect.
pub(crate) fn qmp_refusal(what: &str, error: &qmp::Error) -> Refusal {
    match error {
        qmp::Error::Timeout { limit, .. } => Refusal::Unconfirmed(format!(
            "cannot {what}: QEMU did not answer within {} s; the command may still take effect",
            limit.as_secs()
        )),
        error => Refusal::Failed(error.code(), format!("cannot {what}: {}", chain(error))),
    }
}

/// Returns the refusal for a failed call to the guest agent.
pub(crate) fn agent_refusal(error: &qmp::Error) -> Refusal {
    match error {
        qmp::Error::Refused { class, .. } => {
            Refusal::Guest { class: class.clone(), reason: chain(error) }
        }
        qmp::Error::Timeout { .. } => Refusal::Failed(
            ErrorCode::GuestSilent,
            format!("guest agent: {}; qemu-guest-agent has to run in the guest", chain(error)),
        ),
        // QEMU owns the channel and is about to exit.
        qmp::Error::Closed | qmp::Error::Connect { .. } => Refusal::NotNow(State::Stopping.word()),
        error => {
            let why = format!("guest agent: {}", chain(error));
            Refusal::Failed(ErrorCode::GuestReplyInvalid, why)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn timeout() -> qmp::Error {
        qmp::Error::Timeout { command: "stop".into(), limit: Duration::from_secs(10) }
    }

    #[test]
    fn late_reply_differs_from_refusal() {
        assert_eq!(qmp_refusal("pause", &timeout()).code(), ErrorCode::QemuUnconfirmed);
        let refused = qmp::Error::Refused {
            command: "stop".into(),
            class: "GenericError".into(),
            desc: "no".into(),
        };
        assert_eq!(qmp_refusal("pause", &refused).code(), ErrorCode::QemuRefused);
    }

    #[test]
    fn agent_refusal_keeps_its_class() {
        let refused = qmp::Error::Refused {
            command: "guest-exec".into(),
            class: "CommandNotFound".into(),
            desc: "disabled".into(),
        };
        assert!(matches!(agent_refusal(&refused), Refusal::Guest { class, .. }
            if class == "CommandNotFound"));
        assert_eq!(agent_refusal(&timeout()).code(), ErrorCode::GuestSilent);
        assert_eq!(agent_refusal(&qmp::Error::Closed), Refusal::NotNow("stopping"));
    }
}
