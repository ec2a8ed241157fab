//! Launch of a prepared VM: taps, sockets, QEMU, QMP and `cont`.

use std::{collections::BTreeMap, os::fd::OwnedFd, sync::Arc, time::Duration};

use tokio::net::UnixStream;

use super::{forwards, isolate, prepare::Prepared};
use crate::{
    life::{Boot, Guest},
    machine::{
        argv::{self, CommandLine, Machine},
        device::{self, BadPath},
        fd,
    },
    net::{tap_spec::taps, vhost},
    sandbox::spawn,
    spec::LinkState,
    store::{
        layout::VmPaths,
        record::{self, Record},
        saved_state,
    },
    supervisor::{
        running::{
            taps,
            vnc_listener::{self, VncListener},
        },
        settings::Settings,
    },
    sys::{
        file,
        pidfd::{self, Process},
        socket,
    },
    value::{ErrorCode, Explain, Note},
};

/// How long QEMU may take to answer on its monitor.
const ANSWER_LIMIT: Duration = Duration::from_secs(60);
/// How long QEMU may take to restore a saved state, even on a slow disk; and the polling interval.
const RESTORE_LIMIT: Duration = Duration::from_secs(1800);
const RESTORE_POLL: Duration = Duration::from_millis(20);

/// A QEMU process that answers on its monitor.
#[derive(Debug)]
pub struct LaunchedQemu {
    /// The process.
    pub process: Arc<Process>,
    /// Its run record.
    pub record: Record,
    /// Its monitor.
    pub client: qmp::Client,
    /// The guest agent's channel.
    pub agent: qmp::agent::Agent,
    /// The events of the monitor.
    pub events: qmp::Events,
    /// The serial console.
    pub serial: UnixStream,
    /// Where viewers of the screen connect.
    pub(crate) vnc: Option<VncListener>,
    /// Why the bridges of its taps block frames, as known so far.
    pub(crate) tap_notes: Vec<Note>,
    /// QEMU itself listens for VNC clients: an earlier qvm started it.
    pub listens: bool,
    /// What the guest did when QEMU first answered.
    pub found: Guest,
    /// An earlier supervisor started it.
    pub adopted: bool,
}

/// Why a launch or an adoption failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A tap, its bridge or its filter.
    #[error(transparent)]
    Tap(#[from] taps::open::Error),
    /// The ports of the host that are forwarded.
    #[error(transparent)]
    Forward(#[from] forwards::Error),
    /// The guest's screen.
    #[error(transparent)]
    Screen(#[from] vnc_listener::Error),
    /// /dev/vhost-net.
    #[error("cannot open /dev/vhost-net")]
    Vhost(#[source] std::io::Error),
    /// A socket.
    #[error(transparent)]
    Socket(#[from] socket::Error),
    /// The command line.
    #[error(transparent)]
    Path(#[from] BadPath),
    /// The sandbox, or the files for it.
    #[error(transparent)]
    Isolate(#[from] isolate::Error),
    /// The process.
    #[error(transparent)]
    Spawn(#[from] spawn::Error),
    /// The process cannot be watched.
    #[error("cannot watch the QEMU process")]
    Watch(#[source] std::io::Error),
    /// QEMU exited before its monitor answered.
    #[error("QEMU exited before its monitor answered; its output is in the lines above")]
    Exited,
    /// The monitor.
    #[error("QEMU's monitor does not answer correctly")]
    Monitor(#[from] qmp::Error),
    /// The process to adopt does not answer.
    #[error("QEMU (pid {pid}) of an earlier supervisor is alive, but its monitor does not answer")]
    Silent {
        /// The pid of the process.
        pid: u32,
        /// The cause.
        source: qmp::Error,
    },
    /// The serial console's socket.
    #[error("cannot connect to the serial console")]
    Serial(#[source] std::io::Error),
    /// A file in /run.
    #[error(transparent)]
    Record(#[from] file::Error),
    /// The saved state.
    #[error(transparent)]
    Saved(#[from] saved_state::Error),
    /// QEMU does not finish the restore.
    #[error("QEMU did not restore the saved state within {} s", .0.as_secs())]
    Slow(Duration),
}

impl Explain for Error {
    fn wrapped(&self) -> Option<&dyn Explain> {
        match self {
            Self::Tap(error) => Some(error),
            Self::Forward(error) => Some(error),
            Self::Socket(error) => Some(error),
            Self::Isolate(error) => Some(error),
            Self::Spawn(error) => Some(error),
            Self::Monitor(error) => Some(error),
            Self::Record(error) => Some(error),
            Self::Screen(error) => Some(error),
            Self::Saved(error) => Some(error),
            _ => None,
        }
    }

    fn own_code(&self) -> Option<ErrorCode> {
        Some(match self {
            Self::Vhost(..) => ErrorCode::VhostMissing,
            Self::Path(..) => ErrorCode::PathUnusable,
            Self::Watch(source) | Self::Serial(source) => ErrorCode::of_io(source),
            Self::Exited => ErrorCode::QemuExited,
            Self::Silent { .. } => ErrorCode::QemuSilent,
            Self::Slow(..) => ErrorCode::RestoreTimeout,
            Self::Tap(..)
            | Self::Forward(..)
            | Self::Screen(..)
            | Self::Socket(..)
            | Self::Isolate(..)
            | Self::Spawn(..)
            | Self::Monitor(..)
            | Self::Record(..)
            | Self::Saved(..) => return None,
        })
    }

    fn own_hint(&self) -> Option<String> {
        match self {
            Self::Silent { pid, .. } => {
                Some(format!("inspect it with `ps -fp {pid}`; `kill {pid}` ends the guest"))
            }
            Self::Exited => Some("run the command line of `qvm plan NAME` manually".into()),
            _ => None,
        }
    }

    fn is_own_host_fault(&self) -> bool {
        matches!(self, Self::Vhost(_) | Self::Watch(_) | Self::Silent { .. })
    }
}

/// Kills the QEMU process of a launch that fails or is dropped.
struct Guard(Option<Arc<Process>>);

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(process) = &self.0 {
            process.kill_and_reap();
        }
    }
}

/// Starts QEMU and lets the guest run. Dropping the future kills QEMU.
///
/// # Errors
/// A step failed; the QEMU process is killed.
pub async fn launch(
    settings: &Settings,
    prepared: Prepared,
    text: &str,
    boot: Boot,
) -> Result<LaunchedQemu, Error> {
    let paths = settings.paths();
    let vm = &prepared.vm;
    let saved = match boot {
        Boot::Cold => None,
        Boot::Restore => saved_state::open(&paths.saved())?,
    };
    let shut_off = settings.shut_off().await;
    let isolation = isolate::Plan::of(settings, &prepared, shut_off)?;
    let machine = Machine {
        vm,
        identity: &prepared.identity,
        paths: &paths,
        accel: prepared.accel,
        vhost_net: prepared.facts.vhost_net,
        disks: &prepared.disks,
        firmware: prepared.firmware.as_ref(),
        restores: saved.is_some(),
        sandbox: isolation.sandbox(),
    };
    let CommandLine { arguments, files } = argv::argv(&machine)?;
    for nic in &vm.nics {
        forwards::check_forwards(shut_off, vm, nic)?;
    }
    let vnc = vnc_listener::open(vm, &paths)?;
    // Only QEMU keeps them: the copies here are closed once it is executed.
    let mut fds: Vec<(OwnedFd, i32)> = prepared
        .liveness
        .into_fds([fd::RUNTIME_LOCK, fd::STATE_LOCK])
        .map_err(file::Error::on("lock", &paths.qemu_lock()))?;
    let mut tap_notes = vec![];
    for tap in taps(vm) {
        let index = vm.nics.iter().position(|n| n.name == tap.nic).unwrap_or_default();
        let open = taps::open::open(&settings.network, vm, &tap, &prepared.identity.macs);
        let (open, notes) = open.await?;
        fds.push((open, fd::tap(index)));
        tap_notes.extend(notes);
        if machine.vhost_net {
            fds.push((vhost::open().map_err(Error::Vhost)?, fd::vhost(index)));
        }
    }
    for (path, number) in [
        (paths.qmp_socket(), fd::QMP),
        (paths.agent_socket(), fd::AGENT),
        (paths.serial_socket(), fd::SERIAL),
    ] {
        fds.push((socket::listen_private(&path)?.into(), number));
    }
    let mut head = None;
    if let Some((saved, state)) = saved {
        fds.push((state.into(), fd::STATE));
        head = Some(saved);
    }
    isolate::give_to_user(&files, &paths.state, isolation.uid());
    fds.extend(isolate::open(&files)?);
    let started_at = (settings.now)().to_string();
    let first = vm.nics.first();
    let mut record = Record {
        version: record::VERSION,
        pid: 0,
        start_time: 0,
        boot_id: pidfd::boot_id().map_err(Error::Watch)?,
        started_at,
        qemu_version: prepared.facts.qemu.version.to_string(),
        machine: prepared.identity.machine.clone(),
        accel: prepared.accel.name().to_owned(),
        tap: taps(vm)
            .first()
            .filter(|t| first.is_some_and(|n| n.name == t.nic))
            .map(|t| t.name.to_string()),
        mac: first.and_then(|n| machine.mac(&n.name)).map(|m| m.to_string()),
        uuid: Some(prepared.identity.uuid.clone()),
        restoring: head.as_ref().map(|saved| saved.held),
        saving: None,
        held: head.as_ref().is_some_and(|saved| saved.held),
        frozen_until: None,
        notes: prepared.notes.clone().into(),
        ready: head.as_ref().is_some_and(|saved| saved.ready),
        missed: None,
        applied: BTreeMap::new(),
        binary: Some(prepared.facts.qemu.binary.clone()),
        binary_id: file::file_id(&prepared.facts.qemu.binary),
        firmware: prepared
            .firmware
            .as_ref()
            .and_then(|chosen| Some((chosen.code.clone(), file::written_at(&chosen.code)?))),
        isolation: None,
        instance: vm.cloud_init.as_ref().map(|_| prepared.identity.instance_id.clone()),
        intention: None,
        other: serde_json::Map::new(),
    };
    // Written before QEMU is executed, so that the next supervisor always finds the process. A
    // process that cannot be watched is not executed.
    let mut opened = None;
    let known = |pid| {
        opened = Some(Process::open(pid).map_err(Error::Watch)?);
        record.pid = pid;
        record.start_time = pidfd::start_time(pid).map_err(Error::Watch)?;
        record.write(&paths, text).map_err(Error::Record)
    };
    let binary = &prepared.facts.qemu.binary;
    let (_, isolation) = isolation.spawn(binary, &arguments, fds, known)?;
    let Some(process) = opened.map(Arc::new) else { return Err(Error::Exited) };
    let mut guard = Guard(Some(process.clone()));
    record.isolation = Some(isolation);
    record.update(&paths)?;
    let session = match qmp::connect(&paths.qmp_socket(), ANSWER_LIMIT).await {
        Err(qmp::Error::Closed | qmp::Error::Connect { .. }) => return Err(Error::Exited),
        other => other?,
    };
    let serial = UnixStream::connect(paths.serial_socket()).await.map_err(Error::Serial)?;
    for nic in vm.nics.iter().filter(|nic| nic.state == LinkState::Down) {
        session.client.set_link(&device::nic_id(&nic.name), false, ANSWER_LIMIT).await?;
    }
    let found = match record.restoring {
        Some(held) => finish_restore(&session.client, &paths, held).await?,
        None => {
            session.client.cont(ANSWER_LIMIT).await?;
            Guest::Running
        }
    };
    if record.restoring.take().is_some() {
        record.update(&paths)?;
    }
    guard.0 = None;
    Ok(LaunchedQemu {
        process,
        record,
        client: session.client,
        agent: qmp::agent::Agent::new(paths.agent_socket()),
        events: session.events,
        serial,
        vnc,
        tap_notes,
        listens: false,
        found,
        adopted: false,
    })
}

/// Waits until QEMU has restored a saved state, and lets the guest run. The saved state is removed
/// before that: the disks change from then on, so it must not be restored again.
///
/// # Errors
/// QEMU does not accept it, or does not finish in time.
pub(crate) async fn finish_restore(
    client: &qmp::Client,
    paths: &VmPaths,
    held: bool,
) -> Result<Guest, Error> {
    let begun = tokio::time::Instant::now();
    // The event may have been sent before the connection was made.
    while client.query_status(ANSWER_LIMIT).await? == "inmigrate" {
        if begun.elapsed() > RESTORE_LIMIT {
            return Err(Error::Slow(RESTORE_LIMIT));
        }
        tokio::time::sleep(RESTORE_POLL).await;
    }
    saved_state::remove(&paths.saved())?;
    if held {
        return Ok(Guest::Paused);
    }
    client.cont(ANSWER_LIMIT).await?;
    Ok(Guest::Running)
}

#[cfg(test)]
mod tests;
