//! One supervisor: one loop around one QEMU.

pub(crate) mod actions;
pub(crate) mod config;
pub(crate) mod dispatch;
pub(crate) mod effects;
pub mod error;
pub(crate) mod file_reading;
pub(crate) mod input;
pub(crate) mod limits;
pub mod outcome;
pub(crate) mod qemu_events;
pub(crate) mod refusal;
pub(crate) mod requests;
pub mod running;
pub mod settings;
pub mod start;
pub(crate) mod start_events;
pub mod supervise;

use std::{collections::VecDeque, time::Instant};

use tokio::sync::{broadcast, mpsc};

use self::{
    effects::Effects,
    file_reading::{FileReadings, Files},
    input::Fact,
    outcome::Outcome,
    running::{
        console::Console, disk_space::Room, freeze::Frozen, live_update::Applying,
        machined::Enrolled, operators::Operators, qmp_watchdog::Monitor, ready::Awaiting,
        taps::Taps,
    },
    settings::Settings,
    start::{Start, launch::Qemu},
};
use crate::{
    control::types::{End, Event, Request},
    life::Life,
    machine::diff::{VmDiff, running_machine::RunningMachine},
    spec::Vm,
    store::{layout::VmPaths, record_writer::RecordWriter},
    sys::{
        cgroup::Cgroup,
        file::FileId,
        file_watch::Watching,
        lane::{Lanes, OnLane},
        tasks::Tasks,
    },
    systemd::notify::Notifier,
};

/// One VM, from its start to its end.
pub(crate) struct Supervisor {
    /// What may wait for storage is done there.
    lanes: Lanes,
    /// Everything else that is done beside the loop.
    tasks: Tasks,
    records: RecordWriter,
    /// The readings of the VM file, and what the last one found beside it.
    readings: FileReadings,
    files: Files,
    /// Of this file QEMU's version is being asked for.
    asks_installed: Option<FileId>,
    settings: Settings,
    paths: VmPaths,
    life: Life,
    /// The start under way.
    start: Option<Start>,
    /// Control requests that wait until the life machine answers them.
    waiting_requests: Vec<Request>,
    /// The VM as it runs: the file QEMU was started from, with what was applied live since.
    vm: Vm,
    text: String,
    /// The same key by key, with what was done to the machine since.
    running: RunningMachine,
    /// The version of the QEMU that is installed, where it is not the one that runs.
    installed: Option<String>,
    /// What happened last, newest first.
    recent: VecDeque<Event>,
    /// Control requests that wait for their effect.
    effects: Effects,
    /// Changes that are being applied.
    applying: Option<Applying>,
    /// What could not be applied.
    live_notes: Vec<String>,
    /// The VM file as it is now, if it is valid.
    written: Vm,
    written_text: String,
    written_problem: Option<String>,
    pending: VmDiff,
    reboot_relaunches: bool,
    qemu: Option<Qemu>,
    /// Which QEMU a fact speaks of.
    generation: u64,
    /// The cgroup that the weight was written to, where no service manager does it.
    cgroup: Option<Cgroup>,
    /// The number of the next agent call.
    sync: u32,
    memory_target: Option<u64>,
    /// What the guest has, in bytes, as QEMU last told.
    memory_actual: Option<u64>,
    watching: Option<Watching>,
    /// Finds out whether the guest is ready.
    awaiting: Option<Awaiting>,
    console: Console,
    ends: Vec<End>,
    notes: Vec<String>,
    /// What of the VM's share of the host could not be given.
    resource_notes: Vec<String>,
    operators: Operators,
    /// The vCPUs' threads were bound to CPUs.
    pinned: bool,
    /// Saves the guest's state.
    saving: Option<OnLane>,
    /// The guest's file systems are frozen.
    frozen: Option<Frozen>,
    taps: Option<Taps>,
    /// Known to systemd-machined.
    enrolled: Option<Enrolled>,
    /// What the host has no room for, and whether QEMU's monitor answers.
    room: Room,
    monitor: Monitor,
    since: jiff::Timestamp,
    origin: Instant,
    facts: mpsc::Sender<Fact>,
    events: broadcast::Sender<Event>,
    notifier: Notifier,
    /// A unit started us: systemd owns the cgroup.
    under_systemd: bool,
    /// How the loop ends; `None` while it runs.
    outcome: Option<Outcome>,
}
