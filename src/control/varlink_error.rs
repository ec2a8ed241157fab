//! The varlink errors of methods.

use std::borrow::Cow;

use serde::Serialize;
use zlink::{ReplyError, varlink_service::Error as Service};

use super::types::Refusal;
use crate::value::ErrorCode;

/// An error reply.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub(super) enum VarlinkError {
    /// An error of `org.varlink.service`.
    Service(Service<'static>),
    /// `PermissionDenied` of `org.varlink.service` with additional parameters.
    Denied(Denied),
    /// An error of systemd's interface.
    Machine(Machine),
    /// An error of qvm's interface.
    Vm(Vm),
}

/// varlink's error for denied permission, with a reason and a hint.
#[derive(Debug, Clone, PartialEq, ReplyError)]
#[zlink(interface = "org.varlink.service")]
pub(super) enum Denied {
    PermissionDenied { reason: String, hint: String },
}

/// The errors of `io.systemd.MachineInstance` in use.
#[derive(Debug, Clone, PartialEq, ReplyError)]
#[zlink(interface = "io.systemd.MachineInstance")]
pub(super) enum Machine {
    NotConnected,
    NotSupported,
}

/// The errors of `io.qvm.Vm`.
#[derive(Debug, Clone, PartialEq, ReplyError)]
#[zlink(interface = "io.qvm.Vm")]
pub(super) enum Vm {
    NotNow { state: String },
    Failed { code: ErrorCode, reason: String },
    HostFault { reason: String },
    Unconfirmed { reason: String },
    GuestRefused { class: String, reason: String },
    Frozen { reason: String },
}

impl VarlinkError {
    pub(super) const NOT_CONNECTED: Self = Self::Machine(Machine::NotConnected);
    pub(super) const NOT_SUPPORTED: Self = Self::Machine(Machine::NotSupported);
    pub(super) const EXPECTED_MORE: Self = Self::Service(Service::ExpectedMore);

    pub(super) fn no_interface(interface: &str) -> Self {
        Self::Service(Service::InterfaceNotFound { interface: Cow::Owned(interface.to_owned()) })
    }

    pub(super) fn no_method(method: &str) -> Self {
        Self::Service(Service::MethodNotFound { method: Cow::Owned(method.to_owned()) })
    }

    /// The method does not upgrade the connection.
    pub(super) fn no_upgrade(method: &str) -> Self {
        Self::Service(Service::MethodNotImplemented { method: Cow::Owned(method.to_owned()) })
    }

    pub(super) fn invalid(parameter: &str) -> Self {
        Self::Service(Service::InvalidParameter { parameter: Cow::Owned(parameter.to_owned()) })
    }

    /// The loop has ended or is about to end.
    pub(super) fn loop_ended() -> Self {
        Self::Vm(Vm::NotNow { state: "stopping".to_owned() })
    }

    /// Whether the loop did not reply.
    pub(super) fn is_loop_ended(&self) -> bool {
        *self == Self::loop_ended() || *self == Self::NOT_CONNECTED
    }

    pub(super) fn denied(reason: String, hint: String) -> Self {
        Self::Denied(Denied::PermissionDenied { reason, hint })
    }

    pub(super) fn failed(code: ErrorCode, reason: impl Into<String>) -> Self {
        Self::Vm(Vm::Failed { code, reason: reason.into() })
    }

    /// Maps to the errors of `io.systemd.MachineInstance`: a machine without QEMU is not connected.
    pub(super) fn for_machine(self) -> Self {
        match &self {
            Self::Vm(Vm::NotNow { state }) if state == "starting" || state == "stopping" => {
                Self::NOT_CONNECTED
            }
            Self::Vm(_) | Self::Machine(_) | Self::Service(_) | Self::Denied(_) => self,
        }
    }
}

impl From<Refusal> for VarlinkError {
    fn from(refusal: Refusal) -> Self {
        match &refusal {
            Refusal::NotNow(state) => Self::Vm(Vm::NotNow { state: (*state).to_owned() }),
            // The loop validates only this parameter of a command.
            Refusal::BadValue(_) => Self::invalid("bytes"),
            Refusal::Failed(code, reason) => Self::failed(*code, reason),
            Refusal::HostFault(reason) => Self::Vm(Vm::HostFault { reason: reason.clone() }),
            Refusal::Unconfirmed(reason) => Self::Vm(Vm::Unconfirmed { reason: reason.clone() }),
            Refusal::Guest { class, .. } => {
                Self::Vm(Vm::GuestRefused { class: class.clone(), reason: refusal.to_string() })
            }
            Refusal::Frozen { .. } => Self::Vm(Vm::Frozen { reason: refusal.to_string() }),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn errors_match_the_descriptions() {
        let to_json = |fault: VarlinkError| serde_json::to_value(fault).unwrap();
        let name = |fault: VarlinkError| to_json(fault)["error"].as_str().unwrap().to_owned();
        assert_eq!(
            to_json(VarlinkError::loop_ended()),
            json!({ "error": "io.qvm.Vm.NotNow", "parameters": { "state": "stopping" } })
        );
        assert_eq!(
            to_json(VarlinkError::invalid("bytes")),
            json!({
                "error": "org.varlink.service.InvalidParameter",
                "parameters": { "parameter": "bytes" },
            })
        );
        assert_eq!(
            to_json(VarlinkError::denied("no".into(), "ask".into())),
            json!({
                "error": "org.varlink.service.PermissionDenied",
                "parameters": { "reason": "no", "hint": "ask" },
            })
        );
        assert_eq!(name(VarlinkError::NOT_SUPPORTED), "io.systemd.MachineInstance.NotSupported");
        assert_eq!(
            name(VarlinkError::loop_ended().for_machine()),
            "io.systemd.MachineInstance.NotConnected"
        );
        assert_eq!(name(VarlinkError::EXPECTED_MORE), "org.varlink.service.ExpectedMore");
        let panicked = VarlinkError::from(Refusal::NotNow("paused after a panic"));
        assert_eq!(name(panicked.for_machine()), "io.qvm.Vm.NotNow");
    }
}
