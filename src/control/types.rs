//! What goes over the control socket, and what the server hands to the supervisor's loop.

use std::{os::fd::OwnedFd, time::Duration};

use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

pub use super::change::{Pending, TakesEffect};
pub use super::disk_limit::DiskLimit;
pub use super::state::State;
pub use crate::control::isolation::Isolation;
use crate::value::{Operator, keyboard::Chord};

/// Whether a VM is what `ready` of its VM file wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Ready {
    /// It is, or was since its start.
    Yes,
    /// It was not in time.
    No,
    /// It is looked for.
    Waiting,
}

impl Ready {
    /// The word for it, in tables and in JSON.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Yes => "yes",
            Self::No => "no",
            Self::Waiting => "waiting",
        }
    }
}

/// Everything about one VM; the object that `qvm status --json` prints. Keys are only ever added.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// The VM.
    pub name: String,
    /// What it is doing.
    pub state: State,
    /// Whether the guest is ready; null where none runs.
    #[serde(default)]
    pub ready: Option<Ready>,
    /// What the host makes difficult, as a word: `monitor-silent`, `no-space`. The notes tell more.
    #[serde(default)]
    pub trouble: Option<String>,
    /// QEMU's process.
    pub pid: Option<u32>,
    /// The supervisor's process.
    pub supervisor_pid: Option<u32>,
    /// Since when it is in this state, RFC 3339.
    pub since: Option<String>,
    /// When this QEMU was started, RFC 3339.
    pub started_at: Option<String>,
    /// How many vCPUs.
    pub vcpu: u32,
    /// What the guest was given, in bytes.
    pub mem_bytes: u64,
    /// What the guest has now, by the balloon, in bytes.
    pub mem_actual_bytes: Option<u64>,
    /// What QEMU has in the host's memory, in bytes. `qvm status` fills it in.
    #[serde(default)]
    pub mem_resident_bytes: Option<u64>,
    /// The CPU time that QEMU has used since it was started, in seconds. `qvm status` fills it in.
    #[serde(default)]
    pub cpu_seconds: Option<f64>,
    /// What the balloon was told to leave, in bytes.
    #[serde(default)]
    pub mem_target_bytes: Option<u64>,
    /// The first NIC's address.
    pub mac: Option<String>,
    /// The first NIC's address with its prefix, as written in the VM file.
    pub ip: Option<String>,
    /// The first NIC's tap device.
    pub tap: Option<String>,
    /// The host's ports that lead into the guest, as written in the VM file.
    #[serde(default)]
    pub forward: Vec<String>,
    /// Where the guest's screen is served by VNC: `unix:PATH` or `ADDRESS:PORT`.
    #[serde(default)]
    pub vnc: Option<String>,
    /// The limits of the disks' I/O that apply.
    #[serde(default)]
    pub disk_limits: Vec<DiskLimit>,
    /// Who may change it beside root: `operators` of the VM file, as it counts.
    #[serde(default)]
    pub operators: Vec<Operator>,
    /// How QEMU is kept apart from the host; null where none runs, or where an earlier version of qvm started it.
    #[serde(default)]
    pub isolation: Option<Isolation>,
    /// cgroup v2 `cpu.weight` as configured.
    pub cpu_weight: u16,
    /// cgroup v2 `cpu.weight` as the kernel has it. `qvm status` fills it in.
    #[serde(default)]
    pub cpu_weight_effective: Option<u16>,
    /// The part of the host's CPU time that is the VM's when everybody wants all of it: above 0, at most 1. `qvm status` fills it in.
    #[serde(default)]
    pub cpu_share: Option<f64>,
    /// `kvm` or `tcg`.
    pub accel: Option<String>,
    /// Such as `10.0.2`.
    pub qemu_version: Option<String>,
    /// The versioned machine type.
    pub machine: Option<String>,
    /// The file that keeps what the serial console said.
    pub console: Option<String>,
    /// Started with the host.
    pub autostart: bool,
    /// Its VM file is gone.
    #[serde(default)]
    pub orphan: bool,
    /// The VM file's `description`.
    pub description: Option<String>,
    /// Where the VM file and what runs differ.
    pub pending: Vec<Pending>,
    /// What an operator should know: TCG where KVM was wished for, a changed `[image]` that a disk outlives, ….
    pub notes: Vec<String>,
    /// The newest of `ends`.
    pub last_stop: Option<End>,
    /// The last ten ends, newest first.
    pub ends: Vec<End>,
}

/// How a run of a VM ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct End {
    /// A word for programs, such as `guest-shutdown`; `life` has the list.
    pub reason: String,
    /// When, RFC 3339.
    pub at: String,
    /// A sentence for people.
    pub detail: String,
    /// Whether this end counts as a failure of the run.
    #[serde(default)]
    pub failed: bool,
    /// The last lines of the console, beside a failure.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub console: Vec<String>,
}

/// Something that happened, for `SubscribeEvents` and `io.qvm.Vm.Watch`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// When, RFC 3339; not where systemd's interface has no such field.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<String>,
    /// QMP's name (`SHUTDOWN`, `RESET`, …), or one of qvm's own: `QVM_STATE`, `QVM_READY`, `QVM_STOP_RUNG`, `QVM_END`, `QVM_TAP_LOST`, ….
    pub event: String,
    /// The event's data.
    pub data: Option<serde_json::Value>,
}

/// What QEMU knows of a running machine, and where its threads and taps are for whoever wants to count there.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Statistics {
    /// The disks, in the order of the VM file.
    pub disks: Vec<DiskStatistics>,
    /// The NICs that have a tap.
    pub taps: Vec<TapOf>,
    /// The vCPUs' threads, in the order of the vCPUs.
    pub vcpu_threads: Vec<u32>,
}

/// What passed between the guest and a disk since QEMU was started.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DiskStatistics {
    /// The disk.
    pub name: String,
    /// What the guest sees, in bytes.
    pub size_bytes: Option<u64>,
    /// What its file takes on the host, in bytes.
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
    /// How long all reads took together, in nanoseconds.
    pub read_nanoseconds: u64,
    /// How long all writes took together.
    pub write_nanoseconds: u64,
    /// How long all flushes took together.
    pub flush_nanoseconds: u64,
}

/// The tap of a NIC.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TapOf {
    /// The NIC.
    pub nic: String,
    /// The host's interface.
    pub tap: String,
}

/// What a client may ask for. docs/io.qvm.Vm.varlink says of each when it is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// The stop ladder, with the VM's own timeout or this many seconds.
    PowerOff {
        /// Instead of `shutdownTimeoutSec`.
        timeout_sec: Option<u32>,
    },
    /// Force off, at once.
    Terminate,
    /// Ask the guest to reboot itself.
    Reboot,
    /// Reset the machine, at once.
    Reset,
    /// Hold the vCPUs.
    Pause,
    /// Let them go on.
    Resume,
    /// Save the guest's state and end.
    Suspend,
    /// Re-read the VM file, apply what can be applied live.
    Reload,
    /// Set the balloon's target in bytes.
    SetMemory {
        /// The target.
        bytes: u64,
    },
}

/// Why a command was not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// There is no QEMU yet, or no more.
    #[error("the VM is {0}")]
    NotNow(&'static str),
    /// A value is out of range; the text says what is allowed.
    #[error("{0}")]
    BadValue(String),
    /// QEMU did not do it in time; it may still.
    #[error("{0}")]
    Unconfirmed(String),
    /// QEMU or the guest does not take part.
    #[error("{0}")]
    Failed(String),
    /// The storage of the VM does not answer.
    #[error("{0}")]
    HostFault(String),
    /// The guest agent says no.
    #[error("guest agent: {reason}")]
    Guest {
        /// QMP's error class, such as `CommandNotFound`.
        class: String,
        /// The agent's own words.
        reason: String,
    },
    /// The guest's file systems are frozen, and its agent does hardly anything until they are thawed.
    #[error("the guest's file systems are frozen, for {} s more", left.as_secs())]
    Frozen {
        /// Until they are.
        left: Duration,
    },
}

/// An address of a guest, and who knows of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Address {
    /// The address, without its prefix.
    pub address: String,
    /// The interface in the guest, where that is known.
    pub interface: Option<String>,
    /// `agent`, `vm-file` or `neighbour`.
    pub source: String,
}

/// What the guest agent tells.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Guest {
    /// One answers.
    pub answers: bool,
    /// What addresses the guest has, by it.
    pub addresses: Vec<Address>,
}

/// What a connection asks the supervisor's loop for. Every answer comes at once, or when QEMU has answered.
#[derive(Debug)]
pub enum Request {
    /// Do something.
    Command(Command, oneshot::Sender<Result<(), Refusal>>),
    /// Tell everything.
    Status(oneshot::Sender<Status>),
    /// Tell what happened last.
    RecentEvents(oneshot::Sender<Vec<Event>>),
    /// Tell what only QEMU knows.
    Statistics(oneshot::Sender<Result<Statistics, Refusal>>),
    /// Ask the guest agent.
    Guest(oneshot::Sender<Result<Guest, Refusal>>),
    /// A picture of the guest's screen, as PNG.
    Screenshot(oneshot::Sender<Result<OwnedFd, Refusal>>),
    /// Press keys at the guest's keyboard.
    Press(Vec<Chord>, oneshot::Sender<Result<(), Refusal>>),
    /// Run a command in the guest, through its agent.
    Exec {
        /// The program and its arguments.
        argv: Vec<String>,
        /// How long it may take.
        limit: Duration,
        /// What became of it.
        reply: oneshot::Sender<Result<Executed, Refusal>>,
    },
    /// One command of the guest agent's own.
    Agent {
        /// Its name.
        command: String,
        /// Its arguments, an object.
        arguments: serde_json::Value,
        /// How long it may take.
        limit: Duration,
        /// What the agent answers.
        reply: oneshot::Sender<Result<serde_json::Value, Refusal>>,
    },
    /// Freeze the guest's file systems.
    Freeze {
        /// When they are thawed, whatever becomes of the caller.
        thaw_after: Duration,
        /// How many are frozen.
        reply: oneshot::Sender<Result<u64, Refusal>>,
    },
    /// Thaw them; how many were frozen.
    Thaw(oneshot::Sender<Result<u64, Refusal>>),
    /// A new viewer of the serial console: the answer is one end of a stream socket that carries the
    /// console's bytes out, and, unless read-only, keystrokes in.
    Console {
        /// Whether keystrokes are thrown away.
        read_only: bool,
        /// How much of what was said before comes first, in bytes.
        scrollback: u64,
        /// The viewer's end.
        reply: oneshot::Sender<Result<OwnedFd, Refusal>>,
    },
}

/// The result of a command in the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Executed {
    /// Its exit code; 128 and the signal where a signal ended it.
    pub exit_code: i64,
    /// Standard output in base64.
    pub out: String,
    /// Standard error in base64.
    pub err: String,
}
