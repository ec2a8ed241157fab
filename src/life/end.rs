//! How a run of a VM ends, and the exit code of that end.

use std::fmt;

use super::requester::Requester;
use crate::value::ErrorCode;

/// The exit code of a fault of the host (EX_TEMPFAIL of sysexits.h): another try may help.
const HOST: u8 = 75;
/// The exit code where the host has not enough memory (EX_UNAVAILABLE of sysexits.h).
const INSUFFICIENT_MEMORY: u8 = 69;
/// The exit code of a fault of the VM.
const FAILED: u8 = 1;
/// The exit code where a QEMU process remains that should have exited: the unit is not restarted.
const NOT_ENDED: u8 = 70;

/// How a QEMU process exited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QemuExit {
    /// With this exit code.
    Code(i32),
    /// By a signal.
    Signal {
        /// The signal's number.
        signal: i32,
        /// The kernel's OOM killer sent the signal.
        oom: bool,
    },
    /// An adopted process is no child of the supervisor: its exit status is unknown.
    Unknown,
}

/// Why a run ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cause {
    /// The guest shut down on request.
    Stopped(Requester),
    /// The guest's state was saved.
    Suspended(Requester),
    /// The guest did not shut down before the deadline, or before a second signal.
    ForcedOff(Requester),
    /// `qvm kill`.
    Killed,
    /// The guest powered itself off.
    GuestShutdown,
    /// The guest's kernel panicked, and the VM file has `onPanic = "stop"`.
    PanicStopped,
    /// The guest's kernel panicked.
    Panicked,
    /// QEMU exited without a request.
    QemuDied(QemuExit),
    /// The guest did not come up.
    StartFailed(StartFailure),
    /// The guest did not become ready, and the VM file has `readyFailure = "fail"`; why.
    NotReady(String),
    /// QEMU has not exited after SIGKILL: the kernel blocks it on storage.
    QemuNotExited {
        /// The VM was to stay down; otherwise it was to be started again.
        stays_down: bool,
    },
    /// A stop was requested during the start.
    StartCanceled(Requester),
}

/// How the supervisor ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Exit {
    /// With this exit code; the end is recorded and logged.
    Code(u8),
    /// The guest did not come up.
    NotStarted(StartFailure),
}

/// Why a guest did not come up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StartFailure {
    /// Whose fault it is.
    pub fault: Fault,
    /// The causes.
    pub why: Explanation,
}

/// An error in words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explanation {
    /// The code of the error.
    pub code: ErrorCode,
    /// The chain of causes.
    pub text: String,
    /// What the operator can do.
    pub hint: Option<String>,
}

impl Explanation {
    /// An explanation without a hint.
    pub fn new(code: ErrorCode, text: impl Into<String>) -> Self {
        Self { code, text: text.into(), hint: None }
    }
}

#[cfg(test)]
impl<T: Into<String>> From<T> for Explanation {
    fn from(text: T) -> Self {
        Self::new(ErrorCode::Other, text)
    }
}

/// The text, and the hint on a separate line.
impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.hint {
            Some(hint) => write!(f, "{}\nhint: {hint}", self.text),
            None => f.write_str(&self.text),
        }
    }
}

/// Whose fault it is that a guest does not come up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The VM's: another try would fail as well.
    Vm,
    /// The host's: another try may help.
    Host,
    /// The host has not enough memory left, and is configured to refuse the start.
    InsufficientMemory,
}

impl Fault {
    /// The exit code of `qvm run`: 1, 75 or 69.
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Vm => FAILED,
            Self::Host => HOST,
            Self::InsufficientMemory => INSUFFICIENT_MEMORY,
        }
    }
}

/// The end of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct End {
    /// Why.
    pub cause: Cause,
}

impl End {
    /// The exit code of `qvm run`: 0 where the VM stays down, 1 where it is to be started again; 70
    /// and 75 where QEMU has not exited. A failed start: see [`Fault`].
    pub fn exit_code(&self) -> u8 {
        match &self.cause {
            Cause::QemuNotExited { stays_down: true } => NOT_ENDED,
            Cause::QemuNotExited { stays_down: false } => HOST,
            Cause::StartFailed(StartFailure { fault, .. }) => fault.exit_code(),
            Cause::Stopped(_)
            | Cause::Suspended(_)
            | Cause::ForcedOff(_)
            | Cause::Killed
            | Cause::GuestShutdown
            | Cause::PanicStopped
            | Cause::Panicked
            | Cause::QemuDied(_)
            | Cause::StartCanceled(_)
            | Cause::NotReady(_) => u8::from(self.failed()),
        }
    }

    /// Whether the run failed.
    pub fn failed(&self) -> bool {
        match self.cause {
            Cause::Panicked
            | Cause::QemuDied(_)
            | Cause::StartFailed(_)
            | Cause::NotReady(_)
            | Cause::QemuNotExited { .. } => true,
            Cause::Stopped(_)
            | Cause::Suspended(_)
            | Cause::ForcedOff(_)
            | Cause::Killed
            | Cause::GuestShutdown
            | Cause::PanicStopped
            | Cause::StartCanceled(_) => false,
        }
    }

    /// What the operator can do after a failed start; [`Display`](fmt::Display) prints it as well.
    pub fn start_hint(&self) -> Option<&str> {
        match &self.cause {
            Cause::StartFailed(failure) => failure.why.hint.as_deref(),
            _ => None,
        }
    }

    /// The code of a failed start.
    pub fn start_code(&self) -> Option<ErrorCode> {
        match &self.cause {
            Cause::StartFailed(failure) => Some(failure.why.code),
            Cause::NotReady(_) => Some(ErrorCode::NotReady),
            _ => None,
        }
    }

    /// How the supervisor ends. The command line reports a guest that did not come up.
    pub(super) fn exit(&self) -> Exit {
        match &self.cause {
            Cause::StartFailed(failure) => Exit::NotStarted(failure.clone()),
            Cause::NotReady(_) => {
                let why = Explanation::new(ErrorCode::NotReady, self.to_string());
                Exit::NotStarted(StartFailure { fault: Fault::Vm, why })
            }
            Cause::Stopped(_)
            | Cause::Suspended(_)
            | Cause::ForcedOff(_)
            | Cause::Killed
            | Cause::GuestShutdown
            | Cause::PanicStopped
            | Cause::Panicked
            | Cause::QemuDied(_)
            | Cause::StartCanceled(_)
            | Cause::QemuNotExited { .. } => Exit::Code(self.exit_code()),
        }
    }

    /// The name of the end in records and events; never changes.
    pub fn reason(&self) -> &'static str {
        match &self.cause {
            Cause::Stopped(_) => "stopped",
            Cause::Suspended(_) => "suspended",
            Cause::ForcedOff(_) => "forced-off",
            Cause::Killed => "killed",
            Cause::GuestShutdown => "guest-shutdown",
            Cause::PanicStopped | Cause::Panicked => "guest-panic",
            Cause::QemuDied(QemuExit::Signal { oom: true, .. }) => "oom-killed",
            Cause::QemuDied(QemuExit::Signal { .. }) => "qemu-signal",
            Cause::QemuDied(QemuExit::Code(_) | QemuExit::Unknown) => "qemu-exited",
            Cause::StartFailed(_) => "start-failed",
            Cause::NotReady(_) => "not-ready",
            Cause::QemuNotExited { .. } => "not-gone",
            Cause::StartCanceled(_) => "start-cancelled",
        }
    }
}

/// For the log and `qvm status`.
impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let by = |by: &Requester| match by {
            Requester::Signal => "a signal (systemd, the host's shutdown or a terminal)",
            Requester::Operator => "`qvm stop`",
        };
        match &self.cause {
            Cause::Suspended(Requester::Signal) => {
                f.write_str("the guest's state was saved at the shutdown of the host")
            }
            Cause::Suspended(Requester::Operator) => {
                f.write_str("the guest's state was saved, requested by `qvm suspend`")
            }
            Cause::Stopped(who) => write!(f, "the guest shut down, requested by {}", by(who)),
            Cause::ForcedOff(who) => {
                write!(
                    f,
                    "the guest did not shut down in time and was forced off, requested by {}",
                    by(who)
                )
            }
            Cause::Killed => f.write_str("forced off by `qvm kill`"),
            Cause::GuestShutdown => f.write_str("the guest powered itself off"),
            Cause::PanicStopped | Cause::Panicked => f.write_str("the guest's kernel panicked"),
            Cause::QemuDied(QemuExit::Code(code)) => {
                write!(f, "QEMU exited by itself with code {code}")
            }
            Cause::QemuDied(QemuExit::Signal { signal, oom: false }) => {
                write!(f, "QEMU was ended by signal {signal} from outside qvm, or crashed")
            }
            Cause::QemuDied(QemuExit::Signal { signal, oom: true }) => {
                write!(f, "the kernel's OOM killer ended QEMU (signal {signal})")
            }
            Cause::QemuDied(QemuExit::Unknown) => {
                f.write_str("QEMU exited with an unknown status, because it was adopted")
            }
            Cause::StartFailed(failure) => write!(f, "the start failed: {}", failure.why),
            Cause::NotReady(why) => write!(f, "the guest did not get ready: {why}"),
            Cause::QemuNotExited { .. } => {
                f.write_str("QEMU has not exited after SIGKILL: the kernel waits for its storage")
            }
            Cause::StartCanceled(who) => write!(f, "the start was canceled by {}", by(who)),
        }
    }
}
