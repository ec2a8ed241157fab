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
pub mod supervise;

use std::{collections::VecDeque, time::Instant};

use tokio::sync::{broadcast, mpsc};

use self::{
    effects::Effects,
    file_reading::{FileReadings, Files},
    input::Fact,
    outcome::{Fault, Outcome},
    running::{
        console::Console, disk_space::Room, freeze::Frozen, live_update::Applying,
        machined::Enrolled, operators::Operators, qmp_watchdog::Monitor, ready::Awaiting,
        taps::Taps,
    },
    settings::Settings,
    start::{launch::Qemu, prepare::Prepared},
};
use crate::{
    control::types::{End, Event, Pending, Request},
    life::Life,
    machine::facets::Facets,
    spec::Vm,
    store::{layout::VmPaths, record_writer::RecordWriter, saved_header::Saved},
    sys::{
        cgroup::Cgroup,
        file::FileId,
        file_watch::Watching,
        lane::{Lanes, OnLane},
        progress::Cancel,
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
    /// The VM file that an adopted QEMU was started from, until it is taken over.
    booted: Option<Vm>,
    /// Of this file QEMU's version is being asked for.
    asks_installed: Option<FileId>,
    settings: Settings,
    paths: VmPaths,
    life: Life,
    /// Requests that came before it was known what an earlier supervisor left; `None` once it is.
    early_requests: Option<Vec<Request>>,
    /// The VM as it runs: the file QEMU was started from, with what was applied live since.
    vm: Vm,
    text: String,
    /// The same key by key, with what was done to the machine since.
    running: Facets,
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
    pending: Vec<Pending>,
    reboot_relaunches: bool,
    prepared: Option<Prepared>,
    qemu: Option<Qemu>,
    /// Which QEMU a fact speaks of.
    generation: u64,
    cancel: Cancel,
    /// The cgroup that the weight was written to, where no service manager does it.
    cgroup: Option<Cgroup>,
    /// The number of the next agent call.
    sync: u32,
    memory_target: Option<u64>,
    /// What the guest has, in bytes, as QEMU last told.
    memory_actual: Option<u64>,
    watching: Option<Watching>,
    /// The start that is under way.
    starting: Option<OnLane>,
    /// Finds out whether the guest is ready.
    awaiting: Option<Awaiting>,
    /// The process id of a QEMU of an earlier supervisor that is being taken over.
    adopting: Option<u32>,
    console: Console,
    ends: Vec<End>,
    notes: Vec<String>,
    /// What of the VM's share of the host could not be given.
    resource_notes: Vec<String>,
    operators: Operators,
    /// The vCPUs' threads were bound to CPUs.
    pinned: bool,
    /// What a saved state was saved with, as long as it is not taken up.
    restoring: Option<Saved>,
    /// Why a saved state was not taken up.
    unusable: Option<String>,
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
    /// Why the guest did not come to run; with the last end.
    start_failure: Option<String>,
    /// Whose fault that was.
    fault: Fault,
    /// A QEMU that was left behind is taken over only to end it.
    winding_up: bool,
    left: Option<Outcome>,
}
