//! The status of one VM, the object of `qvm status --json`.

use serde::{Deserialize, Serialize};

use super::{change::Pending, disk_limit::DiskLimit, isolation::Isolation, state::State};
use crate::value::{ErrorCode, Notes, Operator};

/// Whether the condition `ready` of the VM file is met.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Ready {
    /// It is met, or was since the start.
    Yes,
    /// It was not met in time.
    No,
    /// It is being checked.
    Waiting,
}

impl Ready {
    /// Returns the word in tables and JSON.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Yes => "yes",
            Self::No => "no",
            Self::Waiting => "waiting",
        }
    }
}

/// The status of one VM; the object of `qvm status --json`. Keys are only ever added.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// The name of the VM.
    pub name: String,
    /// The state of the VM.
    pub state: State,
    /// Whether the guest is ready; null if it is not running.
    #[serde(default)]
    pub ready: Option<Ready>,
    /// A problem of the host, as a word: `monitor-silent`, `no-space`. The notes have details.
    #[serde(default)]
    pub trouble: Option<String>,
    /// The PID of QEMU.
    pub pid: Option<u32>,
    /// The PID of the supervisor.
    pub supervisor_pid: Option<u32>,
    /// The start of this state, RFC 3339.
    pub since: Option<String>,
    /// The start of this QEMU process, RFC 3339.
    pub started_at: Option<String>,
    /// The number of vCPUs.
    pub vcpu: u32,
    /// The memory in the VM file, in bytes.
    pub mem_bytes: u64,
    /// The guest's current memory by the balloon, in bytes.
    pub mem_actual_bytes: Option<u64>,
    /// The resident memory of QEMU, in bytes. `qvm status` adds it.
    #[serde(default)]
    pub mem_resident_bytes: Option<u64>,
    /// The CPU time of QEMU since its start, in seconds. `qvm status` adds it.
    #[serde(default)]
    pub cpu_seconds: Option<f64>,
    /// The target of the balloon, in bytes.
    #[serde(default)]
    pub mem_target_bytes: Option<u64>,
    /// The MAC address of the first NIC.
    pub mac: Option<String>,
    /// The address of the first NIC with its prefix, as in the VM file.
    pub ip: Option<String>,
    /// The tap device of the first NIC.
    pub tap: Option<String>,
    /// The forwarded ports of the host, as in the VM file.
    #[serde(default)]
    pub forward: Vec<String>,
    /// The VNC address of the guest's screen: `unix:PATH` or `ADDRESS:PORT`.
    #[serde(default)]
    pub vnc: Option<String>,
    /// The limits of the disks' I/O that apply.
    #[serde(default)]
    pub disk_limits: Vec<DiskLimit>,
    /// The operators in effect (`operators` of the VM file).
    #[serde(default)]
    pub operators: Vec<Operator>,
    /// The isolation of QEMU; null if it is not running, or was started by an older version of qvm.
    #[serde(default)]
    pub isolation: Option<Isolation>,
    /// `cpu.weight` of cgroup v2 in the VM file.
    pub cpu_weight: u16,
    /// `cpu.weight` of cgroup v2 in effect. `qvm status` adds it.
    #[serde(default)]
    pub cpu_weight_effective: Option<u16>,
    /// The VM's share of the host's CPU time under full load, above 0 and at most 1. `qvm status`
    /// adds it.
    #[serde(default)]
    pub cpu_share: Option<f64>,
    /// `kvm` or `tcg`.
    pub accel: Option<String>,
    /// The QEMU version, such as `10.0.2`.
    pub qemu_version: Option<String>,
    /// The versioned machine type.
    pub machine: Option<String>,
    /// The log file of the serial console.
    pub console: Option<String>,
    /// Whether the VM starts with the host.
    pub autostart: bool,
    /// Whether the VM file is gone.
    #[serde(default)]
    pub orphan: bool,
    /// The VM file's `description`.
    pub description: Option<String>,
    /// The differences between the VM file and the running VM.
    pub pending: Vec<Pending>,
    /// Notes for the operator, such as TCG instead of KVM: the texts as `notes`, and the objects as
    /// `noteDetails`.
    #[serde(flatten)]
    pub notes: Notes,
    /// The newest of `ends`.
    pub last_stop: Option<End>,
    /// The last ten ends, newest first.
    pub ends: Vec<End>,
}

impl Status {
    /// Returns the status of a stopped VM of which nothing else is known. Callers set what they
    /// read; a new field is given its default here.
    pub fn of_stopped(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            state: State::Stopped,
            ready: None,
            trouble: None,
            pid: None,
            supervisor_pid: None,
            since: None,
            started_at: None,
            vcpu: 0,
            mem_bytes: 0,
            mem_actual_bytes: None,
            mem_resident_bytes: None,
            cpu_seconds: None,
            mem_target_bytes: None,
            mac: None,
            ip: None,
            tap: None,
            forward: vec![],
            vnc: None,
            disk_limits: vec![],
            operators: vec![],
            isolation: None,
            cpu_weight: 0,
            cpu_weight_effective: None,
            cpu_share: None,
            accel: None,
            qemu_version: None,
            machine: None,
            console: None,
            autostart: false,
            orphan: false,
            description: None,
            pending: vec![],
            notes: Notes::default(),
            last_stop: None,
            ends: vec![],
        }
    }
}

/// The end of a run of a VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct End {
    /// The reason as a word, such as `guest-shutdown`; listed in `life`.
    pub reason: String,
    /// The time, RFC 3339.
    pub at: String,
    /// The reason as a sentence.
    pub detail: String,
    /// The code of a failed start, from docs/reference/errors.md.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<ErrorCode>,
    /// What the operator can do, which `detail` contains as well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// Whether this end counts as a failure of the run.
    #[serde(default)]
    pub failed: bool,
    /// The last lines of the console, after a failure.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub console: Vec<String>,
}
