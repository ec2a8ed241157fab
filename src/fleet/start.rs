//! Starts a VM's supervisor: as its systemd unit if that is installed, else as a detached process.

use std::{fs::File, io, path::Path, process::Child, sync::Arc, time::Duration};

use tokio::time::Instant;

pub use super::start_error::Error;
use super::{
    lock_holder::{self, EXIT_LIMIT, LockHolder},
    start_log::StartLog,
};
use crate::{
    control::{
        client::{self, Client},
        types::{Ready, State},
    },
    spec::{self, HostSettings},
    store::{
        intended_end,
        layout::{Layout, VmPaths},
        record,
        running::{self, PreviousQemu},
    },
    sys::{
        program::Program,
        storage_reader::{ReadPosition, StorageReader},
    },
    systemd::{service::Unit, unit::Scope},
    value::{ErrorCode, NoteCode, VmName},
};

/// The limit for one reply of a supervisor before it is asked again.
const REPLY_LIMIT: Duration = Duration::from_secs(2);
/// The interval of status calls to a supervisor that is starting.
const POLL: Duration = Duration::from_millis(10);
/// The interval for a unit, whose start systemd reports.
const UNIT_POLL: Duration = Duration::from_millis(500);

/// The options of a start.
#[derive(Debug, Clone, Copy)]
pub struct StartOptions<'a> {
    /// The directories.
    pub layout: &'a Layout,
    /// This program.
    pub exe: &'a Path,
    /// The systemd manager whose units use the directories of `layout`, if there is one.
    pub manager: Option<Scope>,
    /// Whether to wait until the guest runs and is ready.
    pub wait: bool,
    /// Reports what a VM waits for.
    pub say: fn(&VmName, &str),
}

/// The result of a start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StartOutcome {
    /// The guest runs.
    Running,
    /// The guest was running already.
    AlreadyRunning,
    /// The start was requested; the guest was not waited for.
    Requested,
}

/// Starts the supervisor of a VM and, with `wait`, returns when the guest is ready or the
/// supervisor has ended.
///
/// # Errors
/// The VM file is invalid, or the supervisor ended.
pub async fn start_vm(name: &VmName, how: &StartOptions<'_>) -> Result<StartOutcome, Error> {
    let paths = how.layout.vm(name);
    let socket = paths.control_socket();
    let mut reporter = WaitReporter { name, say: how.say, last: None };
    if let Some(begun) = join_existing(&socket, how, &mut reporter).await? {
        return Ok(begun);
    }
    let storage = StorageReader::default();
    let (layout, of) = (how.layout.clone(), name.clone());
    let checked = storage.read(&paths.state, move |position| check(&layout, &of, position));
    match checked.await? {
        // A supervisor that has just started holds the locks, and answers by now.
        Err(error @ Error::Unknown(_)) => {
            let begun = join_existing(&socket, how, &mut reporter).await?;
            return begun.ok_or(error);
        }
        checked => checked?,
    }
    if let Some(scope) = how.manager
        && let Some(unit) = Unit::find(name, scope).await?
    {
        return match start_unit(&unit, reporter, how, &storage).await {
            Err(error) => Err(unknown_instead(error, &storage, &paths).await),
            begun => begun,
        };
    }
    let of = paths.clone();
    let log = Arc::new(storage.read(&paths.state, move |_| StartLog::open(&of)).await??);
    let spawned = log.file().and_then(|out| spawn(name, how, out));
    let mut child = spawned.map_err(|e| Error::Spawn(how.exe.to_owned(), e))?;
    if !how.wait {
        return Ok(StartOutcome::Requested);
    }
    loop {
        if let Some(status) = child.try_wait().map_err(|e| Error::Spawn(how.exe.to_owned(), e))? {
            let wrote = storage.read(&paths.state, move |_| log.written());
            let wrote = wrote.await.unwrap_or_default();
            // Another supervisor that was started at the same time may have acquired the lock.
            let begun = if status.success() {
                None
            } else {
                join_existing(&socket, how, &mut reporter).await?
            };
            return match begun {
                Some(begun) => Ok(begun),
                None => {
                    Err(unknown_instead(Error::Ended { status, wrote }, &storage, &paths).await)
                }
            };
        }
        if reporter.is_running(&socket).await {
            return Ok(StartOutcome::Running);
        }
        tokio::time::sleep(POLL).await;
    }
}

/// Returns the error that the state of the VM is unknown, if it is. Only this path scans /proc: the
/// supervisor scans it in a successful start.
async fn unknown_instead(error: Error, storage: &StorageReader, paths: &VmPaths) -> Error {
    let of = paths.clone();
    match storage.read(&paths.state, move |_| running::find(&of)).await {
        Ok(Err(unknown)) => Error::Unknown(unknown),
        Ok(Ok(_)) | Err(_) => error,
    }
}

/// Checks that a start is possible: the VM is proven not to run without a supervisor, and its files
/// are valid. Blocks as long as the storage does.
fn check(layout: &Layout, name: &VmName, position: &ReadPosition) -> Result<(), Error> {
    let paths = layout.vm(name);
    // The supervisor scans /proc, while it holds the VM's lock.
    if matches!(running::find_without_scan(&paths)?, PreviousQemu::Exited) {
        intended_end::settle_end(&paths);
    }
    check_files(layout, name, position)
        .map_err(|error| running::find(&paths).err().map_or(error, Error::Unknown))
}

fn check_files(layout: &Layout, name: &VmName, position: &ReadPosition) -> Result<(), Error> {
    let (vm_file, settings) = (layout.vm_file(name), layout.host_settings());
    position.set(&vm_file);
    let gone = |error: io::Error| error.kind() == io::ErrorKind::NotFound;
    if vm_file.symlink_metadata().is_err_and(gone) {
        return Err(Error::NoFile(name.clone()));
    }
    spec::load(&vm_file).map_err(Error::Invalid)?;
    position.set(&settings);
    HostSettings::load(&settings).map_err(Error::Invalid)?;
    Ok(())
}

/// Waits for a supervisor that exists already: returns the result, or `None` if there is none.
async fn join_existing(
    socket: &Path,
    how: &StartOptions<'_>,
    reporter: &mut WaitReporter<'_>,
) -> Result<Option<StartOutcome>, Error> {
    let (mut goes_down, mut hangs_up) = (false, None);
    loop {
        match lock_holder::probe(socket).await {
            LockHolder::NotListening => return Ok(None),
            LockHolder::Exiting => {
                let since = *hangs_up.get_or_insert_with(Instant::now);
                if since.elapsed() >= EXIT_LIMIT {
                    return Err(Error::NoReply);
                }
            }
            LockHolder::Supervisor(State::Running | State::Paused) => {
                return Ok(Some(StartOutcome::AlreadyRunning));
            }
            LockHolder::Supervisor(State::Starting) if !how.wait => {
                return Ok(Some(StartOutcome::Requested));
            }
            LockHolder::Supervisor(State::Starting) => {
                if reporter.is_running(socket).await {
                    return Ok(Some(StartOutcome::Running));
                }
            }
            // A supervisor never reports this state.
            LockHolder::Supervisor(State::Unknown) => return Err(Error::NoReply),
            // The VM is down, and its supervisor is about to end.
            LockHolder::Supervisor(State::Stopped | State::Failed) => goes_down = true,
            LockHolder::Supervisor(State::Stopping) => {
                goes_down = true;
                reporter.report("waits until it is down");
            }
            // The supervisor is still ending.
            LockHolder::Silent(client::Error::Timeout(_)) if goes_down => {}
            LockHolder::Silent(error) => return Err(Error::Silent(error)),
        }
        tokio::time::sleep(POLL).await;
    }
}

/// The last reported reason of a wait.
struct WaitReporter<'a> {
    name: &'a VmName,
    say: fn(&VmName, &str),
    last: Option<String>,
}

impl WaitReporter<'_> {
    fn report(&mut self, why: &str) {
        if self.last.as_deref() != Some(why) {
            (self.say)(self.name, why);
            self.last = Some(why.to_owned());
        }
    }

    /// Whether the guest runs. A reason to wait is reported once.
    async fn is_running(&mut self, socket: &Path) -> bool {
        let Ok(mut client) = Client::connect(socket).await else { return false };
        let Ok(status) = client.status(REPLY_LIMIT).await else { return false };
        let waits = status.notes.iter().find(|note| note.code == NoteCode::Waiting);
        if let (State::Starting, Some(why)) = (status.state, waits) {
            self.report(&why.text);
        }
        matches!(status.state, State::Running | State::Paused)
            && status.ready != Some(Ready::Waiting)
    }
}

fn spawn(name: &VmName, how: &StartOptions<'_>, log: File) -> io::Result<Child> {
    let program = Program::new(how.exe).arg("--config-dir").arg(&how.layout.config);
    let program = program.arg("--state-dir").arg(&how.layout.state);
    let program = program.arg("--runtime-dir").arg(&how.layout.runtime);
    program.args(["run", name.as_str()]).spawn_in_background(Some(log))
}

/// Starts the unit, after its drop-in has been updated to the VM file.
async fn start_unit(
    unit: &Unit,
    mut reporter: WaitReporter<'_>,
    how: &StartOptions<'_>,
    storage: &StorageReader,
) -> Result<StartOutcome, Error> {
    let name = reporter.name;
    let paths = how.layout.vm(name);
    let last = async || {
        let of = paths.clone();
        let ends = storage.read(&paths.state, move |_| record::ends(&of));
        ends.await.unwrap_or_default().into_iter().next()
    };
    let before = last().await.map(|end| end.at);
    unit.refresh().await?;
    let socket = paths.control_socket();
    // systemctl(1) does not show what a starting unit waits for.
    let telling = async {
        loop {
            tokio::time::sleep(UNIT_POLL).await;
            reporter.is_running(&socket).await;
        }
    };
    let started = tokio::select! {
        started = unit.start(how.wait) => started,
        () = telling => Ok(()),
    };
    match started {
        Ok(()) if how.wait => Ok(StartOutcome::Running),
        Ok(()) => Ok(StartOutcome::Requested),
        Err(error) => match last().await {
            // systemctl reports the failure, and the recorded end its cause.
            Some(end) if Some(&end.at) != before.as_ref() && end.failed => {
                let (name, has_hint) = (name.clone(), end.hint.is_some());
                // The end of a guest that came up has no code.
                let code = end.code.unwrap_or(ErrorCode::SupervisorExited);
                Err(Error::Unit { name, detail: end.detail, code, has_hint })
            }
            _ => Err(error.into()),
        },
    }
}
