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
    time::Instant,
};

use tokio::{
    sync::{broadcast, mpsc},
    task::JoinSet,
};
use tracing::warn;

use super::{
    Supervisor,
    effects::Effects,
    error::Error,
    file_reading::{FileReadings, Files},
    input::{
        forward_changes, forward_requests, forward_signals, forward_sleeps, next_beat, sleep_until,
    },
    outcome::{Fault, Outcome},
    running::{console::Console, disk_space::Room, operators::Operators, qmp_watchdog::Monitor},
    settings::Settings,
};
use crate::{
    control::{server, types::Port},
    life::{self, Life},
    machine::facets::Facets,
    spec::Vm,
    store::record_writer::RecordWriter,
    sys::{
        file_watch, lane::Lanes, peer, progress::Cancel, signal::Signals, socket,
        suspend_watch::Sleeps, tasks::Tasks,
    },
    systemd::notify::{Notifier, under_systemd},
};

/// Runs the VM to its end.
///
/// # Errors
/// The control socket, the signals or the VM's directories cannot be set up.
pub async fn supervise(settings: Settings, vm: Vm, text: String) -> Result<Outcome, Error> {
    keep(settings, vm, text, false).await
}

/// Takes over a QEMU that an earlier supervisor left, and shuts its guest down. Starts nothing.
///
/// # Errors
/// As of [`supervise`].
pub async fn wind_up(settings: Settings, vm: Vm, text: String) -> Result<Outcome, Error> {
    keep(settings, vm, text, true).await
}

async fn keep(
    settings: Settings,
    vm: Vm,
    text: String,
    winding_up: bool,
) -> Result<Outcome, Error> {
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
    let port = Port {
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
    let left = one.left.take().unwrap_or(Outcome::Exit(1));
    replaced.store(left == Outcome::Reexec, Ordering::Release);
    taking.abort();
    if left != Outcome::Reexec {
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
