//! What the tasks of a running VM report to the loop.
//!
//! The queue of these events belongs to one QEMU process and is dropped with it: no event of an earlier process can arrive.

use std::{path::PathBuf, time::Duration};

use serde_json::Value;

use super::vnc_listener::VncListener;
use crate::{
    control::types::Refusal,
    machine::diff::LiveChange,
    supervisor::refusal::Reply,
    sys::{cgroup::Cgroup, pidfd::Exit},
    value::{Label, Note},
};

/// Something that happened to one QEMU process, or that a task of its components has found out.
#[derive(Debug)]
pub(crate) enum VmEvent {
    /// QEMU sent an event.
    Qmp(qmp::Event),
    /// The QMP connection has closed.
    QmpClosed,
    /// There is a new QMP connection, and this was QEMU's run state when it was made.
    QmpReconnected(qmp::Session, String),
    /// QEMU replied to a command; the events that it sent before have been reported.
    Executed(Executed),
    /// QEMU has exited.
    Exited {
        /// How.
        exit: Exit,
        /// The kernel's OOM killer was at work.
        oom: bool,
    },
    /// Whether QMP answers.
    Watchdog(WatchdogEvent),
    /// Whether the host's file systems have space for the disks.
    DiskSpace(DiskSpaceEvent),
    /// The guest's file systems are frozen or thawed.
    Freeze(FreezeEvent),
    /// The balloon.
    Memory(MemoryEvent),
    /// The guest is ready, with what is to be noted; or it will never be, and why.
    Readiness(Result<Option<Note>, String>),
    /// The guest's state is saved; or not, and why.
    StateSaved(Result<(), Refusal>),
    /// The machine was changed.
    LiveUpdate(LiveUpdateEvent),
    /// The version of the QEMU that is installed now.
    InstalledQemu(String),
    /// The socket of the screen is open; or why not.
    Screen(Result<ScreenOpened, String>),
    /// The state of the taps has changed.
    Taps(TapsReport),
    /// QEMU was given its share of the host.
    HostShare(HostShareEvent),
    /// What counts at once of a reloaded VM file is in effect.
    Reloaded,
}

/// QEMU's reply to a command.
#[derive(Debug)]
pub(crate) struct Executed {
    /// The number of the command.
    pub(crate) number: u64,
    /// What the command is for, as in "cannot pause the guest".
    pub(crate) what: &'static str,
    /// The reply.
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

/// Whether the host's file systems have space for the disks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum DiskSpaceEvent {
    /// The guest is paused because these disks have no space.
    Full {
        /// The number of the pause that this is about.
        pause: u64,
        /// The disks.
        disks: Vec<(Label, DiskLocation)>,
    },
    /// There is space for all of them again.
    Available,
}

/// Where a disk is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DiskLocation {
    /// The disk's file, or its device.
    pub(crate) file: PathBuf,
    /// Where its file system is mounted; `None` for a device, or where that is unknown.
    pub(crate) mounted: Option<PathBuf>,
}

/// The guest's file systems.
#[derive(Debug)]
pub(crate) enum FreezeEvent {
    /// They are frozen, how many; or not.
    Frozen {
        /// After what time they are thawed.
        thaw_after: Duration,
        /// How many are frozen.
        done: Result<u64, FreezeFailure>,
        /// The client.
        reply: Reply<u64>,
    },
    /// The deadline has come.
    ThawDue,
    /// They are thawed, how many; or not.
    Thawed {
        /// Why they were to be thawed.
        why: ThawReason,
        /// How many were thawed.
        done: Result<u64, Refusal>,
        /// The client, where there is one.
        reply: Option<Reply<u64>>,
    },
}

/// Why file systems are thawed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ThawReason {
    /// A client asked for it.
    Asked,
    /// The deadline has come.
    Deadline,
    /// The guest is to shut down, or its state is to be saved.
    Stop,
}

impl ThawReason {
    /// The word for it in events and logs.
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
    /// The answer to the client.
    pub(crate) refusal: Refusal,
    /// Whether they may be frozen all the same.
    pub(crate) state: FreezeState,
}

/// What is known of file systems that were to be frozen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FreezeState {
    /// The agent was not asked to freeze them.
    Untouched,
    /// The agent was asked; they may be frozen.
    Unknown,
}

/// The balloon.
#[derive(Debug)]
pub(crate) enum MemoryEvent {
    /// The guest has this much memory, in bytes.
    Actual(u64),
    /// QEMU has accepted a target, in bytes; or not.
    TargetSet {
        /// The target.
        bytes: u64,
        /// QEMU's reply.
        done: Result<(), qmp::Error>,
        /// The client; `None` where it had its answer before.
        reply: Option<Reply>,
    },
}

/// The machine was changed.
#[derive(Debug)]
pub(crate) enum LiveUpdateEvent {
    /// All changes were tried.
    Applied(Applied),
    /// QEMU was asked which devices it still has.
    Settled {
        /// The number of the question.
        number: u64,
        /// The answer; or why there is none.
        done: Result<Devices, Refusal>,
    },
}

/// Which devices QEMU has, as the removals of devices.
#[derive(Debug, Default)]
pub(crate) struct Devices {
    /// The guest has released them.
    pub(crate) released: Vec<LiveChange>,
    /// The guest was asked to release them, and holds them.
    pub(crate) held: Vec<LiveChange>,
}

/// What became of each change.
pub(crate) type Applied = Vec<(LiveChange, Result<ChangeOutcome, Note>)>;

/// What became of a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ChangeOutcome {
    /// It is in effect.
    Done,
    /// The guest was asked to release a device, and has not yet.
    Asked,
}

/// What was opened for the screen of a QEMU that runs.
#[derive(Debug)]
pub(crate) enum ScreenOpened {
    /// The listener stays; its password.
    Password(Option<String>),
    /// Another listener, or none.
    Listener(Option<VncListener>),
}

/// The state of the taps.
#[derive(Debug)]
pub(crate) struct TapsReport {
    /// For an operator.
    pub(crate) notes: Vec<Note>,
    /// What happened since the last report.
    pub(crate) events: Vec<(&'static str, Value)>,
}

/// QEMU was given its share of the host.
#[derive(Debug)]
pub(crate) enum HostShareEvent {
    /// Weights, limits and the score of the OOM killer are set.
    Given(HostShareGiven),
    /// The threads of the vCPUs could not be bound to CPUs; why.
    NotPinned(String),
}

/// What QEMU was given, and what could not be.
#[derive(Debug, Default)]
pub(crate) struct HostShareGiven {
    /// The cgroup that was made, where systemd does not own it.
    pub(crate) cgroup: Option<Cgroup>,
    /// What could not be set.
    pub(crate) notes: Vec<Note>,
}
