//! Replies of the control socket for failures of QEMU and the guest agent.

use tokio::sync::oneshot;

use crate::{
    control::types::{Refusal, State},
    value::chain,
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
        error => Refusal::Failed(format!("cannot {what}: {}", chain(error))),
    }
}

/// Returns the refusal for a failed call to the guest agent.
pub(crate) fn agent_refusal(error: &qmp::Error) -> Refusal {
    match error {
        qmp::Error::Refused { class, .. } => {
            Refusal::Guest { class: class.clone(), reason: chain(error) }
        }
        qmp::Error::Timeout { .. } => Refusal::Failed(format!(
            "guest agent: {}; qemu-guest-agent has to run in the guest",
            chain(error)
        )),
        // QEMU owns the channel and is about to exit.
        qmp::Error::Closed | qmp::Error::Connect { .. } => Refusal::NotNow(State::Stopping.word()),
        error => Refusal::Failed(format!("guest agent: {}", chain(error))),
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
        assert!(matches!(qmp_refusal("pause", &timeout()), Refusal::Unconfirmed(why)
            if why.contains("cannot pause") && why.contains("10 s")));
        let refused = qmp::Error::Refused {
            command: "stop".into(),
            class: "GenericError".into(),
            desc: "no".into(),
        };
        assert!(matches!(qmp_refusal("pause", &refused), Refusal::Failed(_)));
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
        assert!(matches!(agent_refusal(&timeout()), Refusal::Failed(why)
            if why.contains("qemu-guest-agent")));
        assert_eq!(agent_refusal(&qmp::Error::Closed), Refusal::NotNow("stopping"));
    }
}
