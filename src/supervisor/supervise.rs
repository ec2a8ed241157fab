//! The loop: turns signals, QMP events, requests, timers and exits into actions of the life
//! machine.
//!
//! Long operations run in tasks, storage I/O on lanes. Both send their results as an
//! [`Input`](super::input::Input) or a [`VmEvent`](super::running::event::VmEvent). The loop waits
//! only for the next of them; while idle, only the service manager's watchdog wakes it.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use tokio::{sync::mpsc, task::JoinSet};
use tracing::warn;

use super::{
    Supervisor,
    config::Config,
    context::Context,
    effects::Effects,
    error::Error,
    file_reading::FileReader,
    history::History,
    input::{
        forward_changes, forward_requests, forward_signals, forward_sleeps, next_beat, sleep_until,
    },
    machined::Registration,
    outcome::Outcome,
    running::{console::Console, resources::HostShare},
    settings::Settings,
    start::{self, Start},
};
use crate::{
    control::{handle::ControlHandle, server},
    life::{self, Life, Mode},
    spec::Vm,
    sys::{
        file_watch, peer, signal::Signals, socket, suspend_watch::SuspendWatch, tasks::Reporters,
    },
};

/// The capacity of the queue of inputs.
const INPUTS: usize = 256;
/// The capacity of the queue of control requests.
const REQUESTS: usize = 64;

/// Runs the VM to its end, or in [`Mode::ShutDown`] adopts a QEMU process that an earlier
/// supervisor left and shuts its guest down. `text` is the text of the VM file.
///
/// # Errors
/// The control socket, the signals or the VM's directories cannot be set up.
pub async fn supervise(
    settings: Settings,
    vm: Vm,
    text: String,
    mode: Mode,
) -> Result<Outcome, Error> {
    let ctx = Context::new(settings);
    let (mut tasks, mut inputs) = Reporters::new(INPUTS);
    let signals = Signals::new().map_err(Error::Signals)?;
    tasks.spawn(forward_signals(signals, tasks.sender()));
    let (requests, asked) = mpsc::channel(REQUESTS);
    let accepting = tasks.spawn(forward_requests(asked, tasks.sender()));
    let listener = socket::listen(&ctx.paths().control_socket())?;
    let file = vm.file.clone();
    let config = Config::new(vm, text);
    let replaced = Arc::new(AtomicBool::new(false));
    let handle = ControlHandle {
        requests,
        events: ctx.watchers(),
        authorizer: config.authorizer(),
        replaced: replaced.clone(),
        peer: peer::of,
    };
    let mut serving = JoinSet::new();
    serving.spawn(server::serve(listener, handle));
    let watching = match file_watch::file(&file) {
        Ok((watching, changes)) => {
            tasks.spawn(forward_changes(changes, tasks.sender()));
            Some(watching)
        }
        Err(error) => {
            warn!("changes of the VM file will be seen only by `qvm reload`: {error}");
            None
        }
    };
    match SuspendWatch::begin() {
        Ok(sleeps) => drop(tasks.spawn(forward_sleeps(sleeps, tasks.sender()))),
        Err(error) => warn!("cannot watch for a suspend of the host: {error}"),
    }
    let mut beat = ctx.notifier().watchdog_interval().map(|interval| {
        let mut beat = tokio::time::interval(interval);
        beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        beat
    });
    let (life, actions) = Life::new(mode);
    let mut supervisor = Supervisor {
        console: Console::new(ctx.paths().console_log(), ctx.settings().now),
        history: History::new(ctx.now()),
        ctx,
        tasks,
        life,
        config,
        files: FileReader::new(watching),
        start: None,
        vm: None,
        effects: Effects::default(),
        host_share: HostShare::default(),
        registration: Registration::default(),
    };
    supervisor.begin(actions);
    while supervisor.history.outcome().is_none() {
        let deadline = supervisor.life.deadline().map(|limit| supervisor.ctx.instant(limit));
        tokio::select! {
            input = inputs.recv() => if let Some(input) = input { supervisor.handle_input(input) },
            event = Supervisor::next_vm_event(&mut supervisor.vm) => {
                supervisor.handle_vm_event(event);
            }
            report = next_report(&mut supervisor.start) => supervisor.on_start_report(report),
            () = sleep_until(deadline) => supervisor.feed(life::Event::DeadlinePassed),
            () = sleep_until(supervisor.effects.deadline()) => supervisor.on_effects_overdue(),
            () = next_beat(&mut beat) => supervisor.on_watchdog_beat(),
        }
    }
    let outcome = supervisor.history.outcome().cloned().unwrap_or(Outcome::Exit(1));
    replaced.store(outcome == Outcome::Reexec, Ordering::Release);
    accepting.abort();
    if outcome == Outcome::Reexec {
        supervisor.ctx.notifier().finish().await;
    } else {
        supervisor.leave().await;
    }
    // The server reports the end to watchers and then stops, within a bound.
    drop((supervisor, inputs));
    while serving.join_next().await.is_some() {}
    Ok(outcome)
}

/// Returns the next report of the start.
pub(crate) async fn next_report(start: &mut Option<Start>) -> start::Report {
    match start {
        Some(start) => start.next().await,
        None => std::future::pending().await,
    }
}
