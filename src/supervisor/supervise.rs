//! The one loop: every signal, QMP event, request, timer and death comes here, goes through `life`, and becomes an act.
//!
//! Whatever takes time runs in a task of its own, whatever may wait for storage on a lane, and sends its result back as a [`Fact`]; the
//! loop itself never waits for anything but the next fact. Nothing wakes it while nothing happens, but the service manager's watchdog.

use std::{
    collections::VecDeque,
    ffi::OsString,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::{
    sync::{broadcast, mpsc},
    task::JoinSet,
};
use tracing::warn;

use super::{
    config::FileId,
    effects::Effects,
    error::Error,
    file_reading::{FileReadings, Files},
    input::{
        Fact, forward_changes, forward_requests, forward_signals, forward_sleeps, next_beat,
        sleep_until,
    },
    running::{
        console::Console, disk_space::Room, freeze::Frozen, live_update::Applying,
        machined::Enrolled, operators::Operators, qmp_watchdog::Monitor, ready::Awaiting,
        taps::Taps,
    },
    settings::Settings,
    start::{launch::Qemu, prepare::Prepared},
};
pub use super::{error::Left, input::Fault};
use crate::{
    control::{
        handle::ControlHandle,
        server,
        types::{End, Event, Pending},
    },
    life::{self, Life},
    machine::facets::Facets,
    spec::Vm,
    store::{layout::VmPaths, saved_header::Saved},
    sys::{
        file_watch::{self, Watching},
        peer,
        signal::Signals,
        socket,
        suspend_watch::Sleeps,
    },
    systemd::notify::{Notifier, under_systemd},
};
use crate::{
    store::record_writer::RecordWriter,
    sys::{
        lane::{Lanes, OnLane},
        progress::Cancel,
        tasks::Tasks,
    },
};

/// How long one QMP command may take before QEMU counts as not answering.
pub(crate) const QMP_LIMIT: Duration = Duration::from_secs(10);
/// How long the guest agent is waited for; where none runs, nothing ever answers.
pub(crate) const AGENT_LIMIT: Duration = Duration::from_secs(2);
/// How much longer than the stop ladder the service manager is asked to wait.
pub(crate) const STOP_SLACK: Duration = Duration::from_secs(10);
/// How far a start's progress puts off the service manager's timeout.
pub(crate) const START_STEP: Duration = Duration::from_secs(90);
/// How many lines of the console go beside a failure.
pub(crate) const LAST_WORDS: usize = 10;

/// Runs the VM to its end.
///
/// # Errors
/// The control socket, the signals or the VM's directories cannot be set up.
pub async fn supervise(settings: Settings, vm: Vm, text: String) -> Result<Left, Error> {
    keep(settings, vm, text, false).await
}

/// Takes over a QEMU that an earlier supervisor left, and shuts its guest down. Starts nothing.
///
/// # Errors
/// As of [`supervise`].
pub async fn wind_up(settings: Settings, vm: Vm, text: String) -> Result<Left, Error> {
    keep(settings, vm, text, true).await
}

async fn keep(settings: Settings, vm: Vm, text: String, winding_up: bool) -> Result<Left, Error> {
    let paths = settings.paths();
    let (facts, mut inbox) = mpsc::channel(256);
    let signals = Signals::new().map_err(Error::Signals)?;
    let mut tasks = Tasks::default();
    tasks.spawn(forward_signals(signals, facts.clone()));
    let (requests, asked) = mpsc::channel(64);
    let taking = tasks.spawn(forward_requests(asked, facts.clone()));
    let (events, _) = broadcast::channel(256);
    let listener = socket::listen(&paths.control_socket())?;
    let operators = Operators::new();
    let grant = operators.grant(&vm);
    let replaced = Arc::new(AtomicBool::new(false));
    let port = ControlHandle {
        requests,
        events: events.clone(),
        grant,
        replaced: replaced.clone(),
        peer: peer::of,
    };
    let mut serving = JoinSet::new();
    serving.spawn(server::serve(listener, port));
    let watching = match file_watch::file(&vm.file) {
        Ok((watching, changes)) => {
            tasks.spawn(forward_changes(changes, facts.clone()));
            Some(watching)
        }
        Err(error) => {
            warn!("changes of the VM file will be seen only by `qvm reload`: {error}");
            None
        }
    };
    match Sleeps::begin() {
        Ok(sleeps) => drop(tasks.spawn(forward_sleeps(sleeps, facts.clone()))),
        Err(error) => warn!("guests' clocks will not be set when the host has slept: {error}"),
    }
    let env = |key: &str| (settings.env)(key).map(OsString::from);
    let notifier = Notifier::new(env, std::process::id());
    let under_systemd = under_systemd(env, std::process::id());
    let watchdog = notifier.watchdog_interval();
    let lanes = Lanes::new();
    let mut one = Supervisor {
        records: RecordWriter::new(lanes.run.clone(), paths.clone()),
        readings: FileReadings::default(),
        files: Files::default(),
        booted: None,
        asks_installed: None,
        tasks,
        lanes,
        paths: paths.clone(),
        console: Console::new(paths.console_log(), settings.now),
        ends: vec![],
        since: (settings.now)(),
        origin: Instant::now(),
        life: Life::default(),
        early_requests: Some(vec![]),
        written: vm.clone(),
        written_problem: None,
        running: Facets::of(&vm),
        vm,
        installed: None,
        recent: VecDeque::new(),
        effects: Effects::default(),
        applying: None,
        live_notes: vec![],
        written_text: text.clone(),
        text,
        pending: vec![],
        reboot_relaunches: false,
        prepared: None,
        qemu: None,
        generation: 0,
        cancel: Cancel::default(),
        cgroup: None,
        sync: std::process::id(),
        memory_target: None,
        memory_actual: None,
        watching,
        starting: None,
        awaiting: None,
        adopting: None,
        notes: vec![],
        resource_notes: vec![],
        operators,
        pinned: false,
        restoring: None,
        unusable: None,
        saving: None,
        frozen: None,
        taps: None,
        enrolled: None,
        room: Room::default(),
        monitor: Monitor::default(),
        facts,
        events,
        notifier,
        under_systemd,
        settings,
        start_failure: None,
        fault: Fault::Vm,
        winding_up,
        left: None,
    };
    one.tell_operators();
    one.begin();
    let mut beat = watchdog.map(|interval| {
        let mut beat = tokio::time::interval(interval);
        beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        beat
    });
    while one.left.is_none() {
        let deadline = one.life.deadline().map(|d| tokio::time::Instant::from_std(one.origin + d));
        tokio::select! {
            fact = inbox.recv() => if let Some(fact) = fact { one.learn(fact) },
            () = sleep_until(deadline) => one.feed(life::Event::Tick),
            () = sleep_until(one.effects.deadline()) => one.on_effects_overdue(),
            () = next_beat(&mut beat) => one.feed_watchdog(),
        }
    }
    let left = one.left.take().unwrap_or(Left::Exit(1));
    replaced.store(left == Left::Reexec, Ordering::Release);
    taking.abort();
    if left != Left::Reexec {
        one.leave().await;
        one.strike_off().await;
    } else {
        one.notifier.finish().await;
    }
    // Whoever watches is told the end; the server ends when nothing more can be asked or told, and within a bound.
    drop((one, inbox));
    while serving.join_next().await.is_some() {}
    Ok(left)
}

pub(crate) struct Supervisor {
    /// What may wait for storage is done there.
    pub(crate) lanes: Lanes,
    /// Everything else that is done beside the loop.
    pub(crate) tasks: Tasks,
    pub(crate) records: RecordWriter,
    /// The readings of the VM file, and what the last one found beside it.
    pub(crate) readings: FileReadings,
    pub(crate) files: Files,
    /// The VM file that an adopted QEMU was started from, until it is taken over.
    pub(crate) booted: Option<Vm>,
    /// Of this file QEMU's version is being asked for.
    pub(crate) asks_installed: Option<FileId>,
    pub(crate) settings: Settings,
    pub(crate) paths: VmPaths,
    pub(crate) life: Life,
    /// Requests that came before it was known what an earlier supervisor left; `None` once it is.
    pub(crate) early_requests: Option<Vec<crate::control::types::Request>>,
    /// The VM as it runs: the file QEMU was started from, with what was applied live since.
    pub(crate) vm: Vm,
    pub(crate) text: String,
    /// The same key by key, with what was done to the machine since.
    pub(crate) running: Facets,
    /// The version of the QEMU that is installed, where it is not the one that runs.
    pub(crate) installed: Option<String>,
    /// What happened last, newest first.
    pub(crate) recent: VecDeque<Event>,
    /// Control requests that wait for their effect.
    pub(crate) effects: Effects,
    /// Changes that are being applied.
    pub(crate) applying: Option<Applying>,
    /// What could not be applied.
    pub(crate) live_notes: Vec<String>,
    /// The VM file as it is now, if it is valid.
    pub(crate) written: Vm,
    pub(crate) written_text: String,
    pub(crate) written_problem: Option<String>,
    pub(crate) pending: Vec<Pending>,
    pub(crate) reboot_relaunches: bool,
    pub(crate) prepared: Option<Prepared>,
    pub(crate) qemu: Option<Qemu>,
    /// Which QEMU a fact speaks of.
    pub(crate) generation: u64,
    pub(crate) cancel: Cancel,
    /// The cgroup that the weight was written to, where no service manager does it.
    pub(crate) cgroup: Option<crate::sys::cgroup::Cgroup>,
    /// The number of the next agent call.
    pub(crate) sync: u32,
    pub(crate) memory_target: Option<u64>,
    /// What the guest has, in bytes, as QEMU last told.
    pub(crate) memory_actual: Option<u64>,
    pub(crate) watching: Option<Watching>,
    /// The start that is under way.
    pub(crate) starting: Option<OnLane>,
    /// Finds out whether the guest is ready.
    pub(crate) awaiting: Option<Awaiting>,
    /// The process id of a QEMU of an earlier supervisor that is being taken over.
    pub(crate) adopting: Option<u32>,
    pub(crate) console: Console,
    pub(crate) ends: Vec<End>,
    pub(crate) notes: Vec<String>,
    /// What of the VM's share of the host could not be given.
    pub(crate) resource_notes: Vec<String>,
    pub(crate) operators: Operators,
    /// The vCPUs' threads were bound to CPUs.
    pub(crate) pinned: bool,
    /// What a saved state was saved with, as long as it is not taken up.
    pub(crate) restoring: Option<Saved>,
    /// Why a saved state was not taken up.
    pub(crate) unusable: Option<String>,
    /// Saves the guest's state.
    pub(crate) saving: Option<OnLane>,
    /// The guest's file systems are frozen.
    pub(crate) frozen: Option<Frozen>,
    pub(crate) taps: Option<Taps>,
    /// Known to systemd-machined.
    pub(crate) enrolled: Option<Enrolled>,
    /// What the host has no room for, and whether QEMU's monitor answers.
    pub(crate) room: Room,
    pub(crate) monitor: Monitor,
    pub(crate) since: jiff::Timestamp,
    pub(crate) origin: Instant,
    pub(crate) facts: mpsc::Sender<Fact>,
    pub(crate) events: broadcast::Sender<Event>,
    pub(crate) notifier: Notifier,
    /// A unit started us: systemd owns the cgroup.
    pub(crate) under_systemd: bool,
    /// Why the guest did not come to run; with the last end.
    pub(crate) start_failure: Option<String>,
    /// Whose fault that was.
    pub(crate) fault: Fault,
    /// A QEMU that was left behind is taken over only to end it.
    pub(crate) winding_up: bool,
    pub(crate) left: Option<Left>,
}
