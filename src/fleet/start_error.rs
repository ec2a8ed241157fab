//! Why a VM was not started.

use std::{io, path::PathBuf, process::ExitStatus};

use crate::{
    control::client,
    spec::Invalid,
    store::running,
    sys::{file, program, storage_reader},
    systemd::service,
    value::{ErrorCode, Explain, VmName},
};

/// Why a VM was not started.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The VM file is invalid.
    #[error("{0}")]
    Invalid(Invalid),
    /// The VM has no VM file.
    #[error("there is no VM `{0}`: it has no VM file")]
    NoFile(VmName),
    /// The log cannot be opened.
    #[error(transparent)]
    File(#[from] file::Error),
    /// A program cannot be run.
    #[error("cannot run `{}`", .0.display())]
    Spawn(PathBuf, #[source] io::Error),
    /// The unit cannot be started.
    #[error(transparent)]
    Service(#[from] service::Error),
    /// The storage of the VM does not answer.
    #[error(transparent)]
    Storage(#[from] storage_reader::Error),
    /// The VM has no supervisor, and it is unknown whether it is running.
    #[error(transparent)]
    Unknown(#[from] running::Unknown),
    /// The supervisor does not answer, and it is unknown whether the VM is running.
    #[error("cannot determine whether the VM is running")]
    Silent(#[source] client::Error),
    /// The supervisor closes every connection.
    #[error("the supervisor accepts connections but closes them without a reply")]
    NoReply,
    /// The supervisor in the unit failed.
    #[error("{detail}")]
    Unit {
        /// The name of the VM.
        name: VmName,
        /// The end that the supervisor recorded.
        detail: String,
        /// The code of that end.
        code: ErrorCode,
        /// Whether `detail` ends with a hint.
        has_hint: bool,
    },
    /// The supervisor ended.
    #[error("its supervisor {}{}", ended(*.status), after_colon(.wrote))]
    Ended {
        /// The exit status.
        status: ExitStatus,
        /// The last lines that the supervisor wrote.
        wrote: String,
    },
}

impl Explain for Error {
    fn wrapped(&self) -> Option<&dyn Explain> {
        match self {
            Self::File(error) => Some(error),
            Self::Service(error) => Some(error),
            Self::Unknown(error) => Some(error),
            Self::Storage(error) => Some(error),
            Self::Silent(error) => Some(error),
            _ => None,
        }
    }

    fn own_code(&self) -> Option<ErrorCode> {
        Some(match self {
            Self::Invalid(invalid) => invalid.code(),
            Self::NoFile(..) => ErrorCode::VmNotFound,
            Self::Spawn(_, source) => program::run_code(source),
            Self::NoReply => ErrorCode::SupervisorBusy,
            Self::Unit { code, .. } => *code,
            Self::Ended { wrote, .. } => printed_code(wrote),
            Self::File(..)
            | Self::Service(..)
            | Self::Storage(..)
            | Self::Unknown(..)
            | Self::Silent(..) => return None,
        })
    }

    fn own_hint(&self) -> Option<String> {
        match self {
            Self::Service(error) if error.is_host_fault() => {
                Some("check the state of systemd with `systemctl status`".into())
            }
            Self::NoReply => Some(
                "the limit of clients may be reached: `ss -xp src PATH` lists \
                 those of the VM's `control.sock`"
                    .into(),
            ),
            Self::NoFile(_) => Some("`qvm list` shows all VMs".into()),
            Self::Service(_) => {
                Some("`journalctl -t qvm@NAME` shows the log of the supervisor".into())
            }
            // The recorded end contains its own hint.
            Self::Unit { has_hint: true, .. } => None,
            Self::Unit { name, .. } => {
                Some(format!("`journalctl -t qvm@{name}` shows the log of the supervisor"))
            }
            _ => None,
        }
    }

    fn is_own_host_fault(&self) -> bool {
        matches!(self, Self::Unknown(_) | Self::Storage(_))
    }
}

/// The code of the error that a supervisor printed as its last line; `supervisor-exited` if the
/// supervisor was killed.
fn printed_code(wrote: &str) -> ErrorCode {
    let code = wrote.lines().next_back().and_then(|line| line.strip_prefix("code: "));
    code.map_or(ErrorCode::SupervisorExited, ErrorCode::from_word)
}

fn ended(status: ExitStatus) -> String {
    match status.code() {
        Some(code) => format!("exited with code {code}"),
        None => format!("was killed: {status}"),
    }
}

fn after_colon(wrote: &str) -> String {
    if wrote.is_empty() { String::new() } else { format!(":\n{wrote}") }
}
