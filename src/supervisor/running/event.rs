//! Events of the tasks of a running VM.
//!
//! The queue belongs to one QEMU process: no event of an earlier process can arrive.

use std::{path::PathBuf, time::Duration};

use serde_json::Value;

use super::vnc_listener::VncListener;
use crate::{
    control::types::Refusal,
    machine::diff::LiveChange,
    snapshot::live::LiveCreate,
    store::snapshot_record::SnapshotRecord,
    supervisor::refusal::Reply,
    sys::{cgroup::Cgroup, pidfd::Exit},
    value::{Label, Note},
};

/// An event of one QEMU process or of a task of its components.
#[derive(Debug)]
pub(crate) enum VmEvent {
    /// An event of QEMU.
    Qmp(qmp::Event),
    /// The QMP connection has closed.
    QmpClosed,
    /// A new QMP connection, and QEMU's run state at that time.
    QmpReconnected(qmp::Session, String),
    /// A reply to a command, after the events that QEMU sent before it.
    Executed(Executed),
    /// QEMU has exited.
    Exited {
        exit: Exit,
        /// Whether the kernel's OOM killer was active.
        oom: bool,
    },
    /// Whether QMP answers.
    Watchdog(WatchdogEvent),
    /// Whether the file systems of the disks have space.
    DiskSpace(DiskSpaceEvent),
    /// The guest's file systems were frozen or thawed.
    Freeze(FreezeEvent),
    Memory(MemoryEvent),
    /// The result of the readiness probes: a note, or why the guest cannot become ready.
    Readiness(Result<Option<Note>, String>),
    /// The result of a save of the guest's state.
    StateSaved(Result<(), Refusal>),
    /// A step of the creation of a snapshot.
    Snapshot(SnapshotEvent),
    /// A change of the machine.
    LiveUpdate(LiveUpdateEvent),
    /// The version of the installed QEMU.
    InstalledQemu(String),
    /// The result of opening the screen's socket.
    Screen(Result<ScreenOpened, String>),
    /// The state of the taps has changed.
    Taps(TapsReport),
    /// The result of setting QEMU's share of the host.
    HostShare(HostShareEvent),
    /// A reload has ended.
    Reloaded,
}

#[derive(Debug)]
pub(crate) struct Executed {
    pub(crate) number: u64,
    /// The purpose, as in "cannot pause the guest".
    pub(crate) what: &'static str,
    pub(crate) done: Result<(), qmp::Error>,
}

/// Whether QMP answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WatchdogEvent {
    /// QEMU did not answer in time.
    Silent,
    /// QEMU has answered.
    Recovered,
    /// The connection closed before QEMU answered.
    Closed,
}

/// Whether the file systems of the disks have space.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum DiskSpaceEvent {
    /// These disks have no space, so the guest is paused.
    Full {
        /// The number of the pause.
        pause: u64,
        disks: Vec<(Label, DiskLocation)>,
    },
    /// All of them have space again.
    Available,
}

/// The location of a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DiskLocation {
    /// The disk's file, or its device.
    pub(crate) file: PathBuf,
    /// The mount point of its file system; `None` for a device, or if unknown.
    pub(crate) mounted: Option<PathBuf>,
}

/// The guest's file systems.
#[derive(Debug)]
pub(crate) enum FreezeEvent {
    /// The result of a freeze, with the number of file systems.
    Frozen {
        /// The time until they are thawed.
        thaw_after: Duration,
        /// The number of frozen file systems.
        done: Result<u64, FreezeFailure>,
        reply: Reply<u64>,
    },
    /// The deadline has passed.
    ThawDue,
    /// The result of a thaw, with the number of file systems.
    Thawed {
        /// The reason of the thaw.
        why: ThawReason,
        /// The number of thawed file systems.
        done: Result<u64, Refusal>,
        reply: Option<Reply<u64>>,
    },
}

/// The reason of a thaw.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ThawReason {
    /// A request of a client.
    Asked,
    /// The deadline has passed.
    Deadline,
    /// A shutdown of the guest, or a save of its state.
    Stop,
}

impl ThawReason {
    /// Returns the word for events and logs.
    pub(crate) const fn word(self) -> &'static str {
        match self {
            Self::Asked => "asked",
            Self::Deadline => "deadline",
            Self::Stop => "stop",
        }
    }
}

/// Why file systems were not frozen.
#[derive(Debug)]
pub(crate) struct FreezeFailure {
    pub(crate) refusal: Refusal,
    /// Whether file systems may be frozen nevertheless.
    pub(crate) state: FreezeState,
}

/// The possible effect of a failed freeze.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FreezeState {
    /// The agent got no command to freeze them.
    Untouched,
    /// The agent got the command; they may be frozen.
    Unknown,
}

/// A step of the creation of a snapshot.
#[derive(Debug)]
pub(crate) enum SnapshotEvent {
    /// An interrupted operation was settled.
    Settled,
    /// The new files were made.
    Prepared(Result<Box<LiveCreate>, Refusal>),
    /// The result of the freeze, with the number of file systems.
    Frozen(Box<LiveCreate>, Result<u64, Refusal>),
    /// QEMU has changed to the new files.
    Switched(Result<Box<LiveCreate>, Refusal>),
    /// The record was written.
    Finished(Result<Box<SnapshotRecord>, Refusal>),
}

#[derive(Debug)]
pub(crate) enum MemoryEvent {
    /// The guest's memory, in bytes.
    Actual(u64),
    /// The reply to a new target.
    TargetSet {
        /// The target, in bytes.
        bytes: u64,
        done: Result<(), qmp::Error>,
        /// The client; `None` if it already has a reply.
        reply: Option<Reply>,
    },
}

/// A change of the machine.
#[derive(Debug)]
pub(crate) enum LiveUpdateEvent {
    /// All changes were tried.
    Applied(Applied),
    /// The result of a query of QEMU's devices.
    Settled {
        /// The number of the query.
        number: u64,
        done: Result<Devices, Refusal>,
    },
}

/// The devices to be removed.
#[derive(Debug, Default)]
pub(crate) struct Devices {
    pub(crate) released: Vec<LiveChange>,
    /// Requested, but not released by the guest.
    pub(crate) held: Vec<LiveChange>,
}

/// The result of each change.
pub(crate) type Applied = Vec<(LiveChange, Result<ChangeOutcome, Note>)>;

/// The result of a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ChangeOutcome {
    Done,
    /// The guest has not released the device yet.
    Asked,
}

/// What was opened for the screen of a running QEMU.
#[derive(Debug)]
pub(crate) enum ScreenOpened {
    /// The same listener, with this password.
    Password(Option<String>),
    /// A new listener, or none.
    Listener(Option<VncListener>),
}

/// The state of the taps.
#[derive(Debug)]
pub(crate) struct TapsReport {
    /// Notes for the status.
    pub(crate) notes: Vec<Note>,
    /// Events since the last report.
    pub(crate) events: Vec<(&'static str, Value)>,
}

/// The result of setting QEMU's share of the host.
#[derive(Debug)]
pub(crate) enum HostShareEvent {
    /// Weights, limits and `oom_score_adj` are set.
    Given(HostShareGiven),
    /// Why the vCPU threads could not be bound to CPUs.
    NotPinned(String),
}

/// The share of the host that was set, and the problems.
#[derive(Debug, Default)]
pub(crate) struct HostShareGiven {
    /// The created cgroup; `None` under systemd.
    pub(crate) cgroup: Option<Cgroup>,
    /// Notes about keys that could not be applied.
    pub(crate) notes: Vec<Note>,
}
