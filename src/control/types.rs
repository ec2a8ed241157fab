//! The types of the control socket, and the requests to the supervisor's loop.

use std::{os::fd::OwnedFd, time::Duration};

use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

pub use super::change::{Pending, TakesEffect};
pub use super::disk_limit::DiskLimit;
pub use super::state::State;
pub use super::status::{End, Ready, Status};
pub use crate::control::isolation::Isolation;
use crate::value::{ErrorCode, keyboard::Chord};

/// An event for `SubscribeEvents` and `io.qvm.Vm.Watch`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// The time, RFC 3339; `None` for systemd's interface, which has no such field.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<String>,
    /// The name in QMP (`SHUTDOWN`, `RESET`, …), or one of qvm's own: `QVM_STATE`, `QVM_READY`,
    /// `QVM_STOP_RUNG`, `QVM_END`, `QVM_TAP_LOST`, ….
    pub event: String,
    /// The data of the event.
    pub data: Option<serde_json::Value>,
}

/// Counters of a running machine from QEMU, and the IDs of its threads and taps for other counters.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Statistics {
    /// The disks, in the order of the VM file.
    pub disks: Vec<DiskStatistics>,
    /// The NICs that have a tap.
    pub taps: Vec<NicTap>,
    /// The thread IDs of the vCPUs, in their order.
    pub vcpu_threads: Vec<u32>,
}

/// The I/O counters of a disk since the start of QEMU.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DiskStatistics {
    /// The name of the disk.
    pub name: String,
    /// The size for the guest, in bytes.
    pub size_bytes: Option<u64>,
    /// The space allocated on the host, in bytes.
    pub allocated_bytes: Option<u64>,
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written.
    pub written_bytes: u64,
    /// Reads completed.
    pub reads: u64,
    /// Writes completed.
    pub writes: u64,
    /// Flushes completed.
    pub flushes: u64,
    /// The total duration of all reads, in nanoseconds.
    pub read_nanoseconds: u64,
    /// The total duration of all writes, in nanoseconds.
    pub write_nanoseconds: u64,
    /// The total duration of all flushes, in nanoseconds.
    pub flush_nanoseconds: u64,
}

/// The tap of a NIC.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NicTap {
    /// The name of the NIC.
    pub nic: String,
    /// The interface of the host.
    pub tap: String,
}

/// A command of a client. docs/io.qvm.Vm.varlink documents when each is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// Start the stop ladder.
    PowerOff {
        /// The time limit instead of `shutdownTimeoutSec`, in seconds.
        timeout_sec: Option<u32>,
    },
    /// Force the VM off.
    Terminate,
    /// Ask the guest to reboot.
    Reboot,
    /// Reset the machine.
    Reset,
    /// Pause the vCPUs.
    Pause,
    /// Resume the vCPUs.
    Resume,
    /// Save the guest's state and end.
    Suspend,
    /// Read the VM file again and apply live changes.
    Reload,
    /// Set the balloon's target in bytes.
    SetMemory {
        /// The target.
        bytes: u64,
    },
}

/// Why a command was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// QEMU is not running yet, or has ended.
    #[error("the VM is {0}")]
    NotNow(&'static str),
    /// A value is out of range; the text contains the range.
    #[error("{0}")]
    BadValue(String),
    /// QEMU did not confirm the operation in time, and may execute it later.
    #[error("{0}")]
    Unconfirmed(String),
    /// QEMU or the guest returned an error.
    #[error("{1}")]
    Failed(ErrorCode, String),
    /// The storage of the VM does not answer.
    #[error("{0}")]
    HostFault(String),
    /// The guest agent returned an error.
    #[error("guest agent: {reason}")]
    Guest {
        /// The QMP error class, such as `CommandNotFound`.
        class: String,
        /// The agent's error text.
        reason: String,
    },
    /// The guest's file systems are frozen; the agent refuses most commands until they are thawed.
    #[error("the guest's file systems are frozen, for {} s more", left.as_secs())]
    Frozen {
        /// The remaining time.
        left: Duration,
    },
}

impl Refusal {
    /// The code of the refusal.
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::NotNow(_) => ErrorCode::NotNow,
            Self::BadValue(_) => ErrorCode::ValueInvalid,
            Self::Unconfirmed(_) => ErrorCode::QemuUnconfirmed,
            Self::Failed(code, _) => *code,
            Self::HostFault(_) => ErrorCode::StorageSilent,
            Self::Guest { .. } => ErrorCode::GuestRefused,
            Self::Frozen { .. } => ErrorCode::GuestFrozen,
        }
    }
}

/// An address of a guest and its source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Address {
    /// The address without its prefix.
    pub address: String,
    /// The guest's interface, if it is known.
    pub interface: Option<String>,
    /// `agent`, `vm-file` or `neighbour`.
    pub source: String,
}

/// The data of the guest agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Guest {
    /// Whether the agent answers.
    pub answers: bool,
    /// The guest's addresses.
    pub addresses: Vec<Address>,
}

/// A request to the supervisor's loop. Every reply comes immediately, or when QEMU has answered.
#[derive(Debug)]
pub enum Request {
    /// Execute a command.
    Command(Command, oneshot::Sender<Result<(), Refusal>>),
    /// Return the status.
    Status(oneshot::Sender<Status>),
    /// Return the last events.
    RecentEvents(oneshot::Sender<Vec<Event>>),
    /// Return the counters of QEMU.
    Statistics(oneshot::Sender<Result<Statistics, Refusal>>),
    /// Query the guest agent.
    Guest(oneshot::Sender<Result<Guest, Refusal>>),
    /// Return a PNG picture of the guest's screen.
    Screenshot(oneshot::Sender<Result<OwnedFd, Refusal>>),
    /// Press key chords.
    Press(Vec<Chord>, oneshot::Sender<Result<(), Refusal>>),
    /// Run a command in the guest through its agent.
    Exec {
        /// The program and its arguments.
        argv: Vec<String>,
        /// The time limit.
        limit: Duration,
        /// The result.
        reply: oneshot::Sender<Result<Executed, Refusal>>,
    },
    /// Run a command of the guest agent.
    Agent {
        /// The name of the command.
        command: String,
        /// The arguments, an object.
        arguments: serde_json::Value,
        /// The time limit.
        limit: Duration,
        /// The agent's reply.
        reply: oneshot::Sender<Result<serde_json::Value, Refusal>>,
    },
    /// Freeze the guest's file systems.
    Freeze {
        /// The time after which they are thawed in every case.
        thaw_after: Duration,
        /// The number of frozen file systems.
        reply: oneshot::Sender<Result<u64, Refusal>>,
    },
    /// Thaw the file systems; the reply is their number.
    Thaw(oneshot::Sender<Result<u64, Refusal>>),
    /// Connect a viewer to the serial console: the reply is one end of a stream socket for the
    /// output and, unless read-only, the input.
    Console {
        /// Whether input is discarded.
        read_only: bool,
        /// How much earlier output comes first, in bytes.
        scrollback: u64,
        /// The viewer's end.
        reply: oneshot::Sender<Result<OwnedFd, Refusal>>,
    },
}

/// The result of a command in the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Executed {
    /// The exit code; 128 plus the signal number after a signal.
    pub exit_code: i64,
    /// Standard output in base64.
    pub out: String,
    /// Standard error in base64.
    pub err: String,
}
