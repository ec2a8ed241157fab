//! How a run of a VM ends, and what that means for the exit code.

use std::fmt;

use super::{By, Exit};

/// The exit code of a fault of the host (EX_TEMPFAIL of sysexits.h): another try may help.
const HOST: u8 = 75;
/// The exit code where the host has not enough memory (EX_UNAVAILABLE of sysexits.h).
const INSUFFICIENT_MEMORY: u8 = 69;
/// The exit code of a fault of the VM.
const FAILED: u8 = 1;
/// The exit code where QEMU was to end, and has not: the service manager starts nothing then.
const NOT_GONE: u8 = 70;

/// How QEMU's process went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gone {
    /// It exited with this code.
    Exited(i32),
    /// This signal ended it.
    Signalled {
        /// The signal's number.
        signal: i32,
        /// The kernel's OOM killer sent it.
        oom: bool,
    },
    /// It was not our child (adopted): nobody can tell us.
    Unknown,
}

/// Why a run ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cause {
    /// Asked to stop, and the guest shut down.
    Stopped(By),
    /// The guest's state was saved.
    Suspended(By),
    /// Asked to stop, but the guest had not shut down when its time was up, or a second signal came.
    ForcedOff(By),
    /// `qvm kill`.
    Killed,
    /// The guest powered itself off.
    GuestShutdown,
    /// The guest's kernel panicked, and the run ends well all the same (`onPanic = "stop"`).
    PanicStopped,
    /// The guest's kernel panicked.
    Panicked,
    /// QEMU went without anybody having asked.
    QemuDied(Gone),
    /// It never came to run.
    StartFailed(StartFailure),
    /// It ran, but was not ready in its time, and that is a failure (`readyFailure = "fail"`); why.
    NotReady(String),
    /// QEMU was sent SIGKILL and has not ended: the kernel has it waiting for storage.
    NotGone {
        /// The guest was to stay down; else it is to be started again.
        stays_down: bool,
    },
    /// Asked to stop while it was still being prepared or launched.
    StartCancelled(By),
}

/// Why a guest did not come up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StartFailure {
    /// Whose fault it is.
    pub fault: Fault,
    /// The chain of causes, and a line with a hint where there is one.
    pub why: String,
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
    /// The exit code of `qvm run`: 0 where the guest shall stay down, 1 where it shall be started
    /// again. Where QEMU has not ended, 70 and 75 say the same. A failed start: see [`Fault`].
    pub fn exit_code(&self) -> u8 {
        match &self.cause {
            Cause::NotGone { stays_down: true } => NOT_GONE,
            Cause::NotGone { stays_down: false } => HOST,
            Cause::StartFailed(StartFailure { fault, .. }) => fault.exit_code(),
            _ => u8::from(self.failed()),
        }
    }

    /// Whether the run failed.
    pub fn failed(&self) -> bool {
        match self.cause {
            Cause::Panicked
            | Cause::QemuDied(_)
            | Cause::StartFailed(_)
            | Cause::NotReady(_)
            | Cause::NotGone { .. } => true,
            Cause::Stopped(_)
            | Cause::Suspended(_)
            | Cause::ForcedOff(_)
            | Cause::Killed
            | Cause::GuestShutdown
            | Cause::PanicStopped
            | Cause::StartCancelled(_) => false,
        }
    }

    /// How the supervisor ends. The command line reports a guest that did not come up.
    pub(super) fn exit(&self) -> Exit {
        match &self.cause {
            Cause::StartFailed(failure) => Exit::NotStarted(failure.clone()),
            Cause::NotReady(_) => {
                Exit::NotStarted(StartFailure { fault: Fault::Vm, why: self.to_string() })
            }
            _ => Exit::Code(self.exit_code()),
        }
    }

    /// A word for programs, stable for ever.
    pub fn reason(&self) -> &'static str {
        match &self.cause {
            Cause::Stopped(_) => "stopped",
            Cause::Suspended(_) => "suspended",
            Cause::ForcedOff(_) => "forced-off",
            Cause::Killed => "killed",
            Cause::GuestShutdown => "guest-shutdown",
            Cause::PanicStopped | Cause::Panicked => "guest-panic",
            Cause::QemuDied(Gone::Signalled { oom: true, .. }) => "oom-killed",
            Cause::QemuDied(Gone::Signalled { .. }) => "qemu-signal",
            Cause::QemuDied(Gone::Exited(_) | Gone::Unknown) => "qemu-exited",
            Cause::StartFailed(_) => "start-failed",
            Cause::NotReady(_) => "not-ready",
            Cause::NotGone { .. } => "not-gone",
            Cause::StartCancelled(_) => "start-cancelled",
        }
    }
}

/// A sentence for people.
impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let by = |by: &By| match by {
            By::Signal => "a signal (systemd, the host's shutdown or a terminal)",
            By::Operator => "`qvm stop`",
        };
        match &self.cause {
            Cause::Suspended(By::Signal) => {
                f.write_str("the guest's state was saved when the host went down")
            }
            Cause::Suspended(By::Operator) => {
                f.write_str("the guest's state was saved, asked by `qvm suspend`")
            }
            Cause::Stopped(who) => write!(f, "the guest shut down, asked by {}", by(who)),
            Cause::ForcedOff(who) => {
                write!(
                    f,
                    "the guest did not shut down in time and was forced off, asked by {}",
                    by(who)
                )
            }
            Cause::Killed => f.write_str("forced off by `qvm kill`"),
            Cause::GuestShutdown => f.write_str("the guest powered itself off"),
            Cause::PanicStopped | Cause::Panicked => f.write_str("the guest's kernel panicked"),
            Cause::QemuDied(Gone::Exited(code)) => {
                write!(f, "QEMU exited by itself with code {code}")
            }
            Cause::QemuDied(Gone::Signalled { signal, oom: false }) => {
                write!(f, "QEMU was ended by signal {signal} from outside qvm, or crashed")
            }
            Cause::QemuDied(Gone::Signalled { signal, oom: true }) => {
                write!(f, "the kernel's OOM killer ended QEMU (signal {signal})")
            }
            Cause::QemuDied(Gone::Unknown) => {
                f.write_str("QEMU went away; how is not known, it was adopted")
            }
            Cause::StartFailed(failure) => write!(f, "the start failed: {}", failure.why),
            Cause::NotReady(why) => write!(f, "the guest did not get ready: {why}"),
            Cause::NotGone { .. } => f.write_str(
                "QEMU was sent SIGKILL and has not ended: the kernel waits for its storage",
            ),
            Cause::StartCancelled(who) => write!(f, "the start was cancelled by {}", by(who)),
        }
    }
}
