//! Starts a VM's supervisor: as its systemd unit where that is installed, else detached from whoever asks.

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
    process::{Child, ExitStatus},
    sync::Arc,
    time::Duration,
};

use tokio::time::Instant;

use super::{
    lock_holder::{self, GOES_WITHIN, Holder},
    start_log::StartLog,
};
use crate::{
    control::{
        client::{self, Client},
        types::{Ready, State},
    },
    spec::{self, HostSettings, Invalid},
    store::{
        intended_end,
        layout::{Layout, VmPaths},
        record,
        running::{self, PreviousQemu},
    },
    sys::{
        file,
        program::Program,
        storage_reader::{self, ReadPosition, StorageReader},
    },
    systemd::{
        service::{self, Unit},
        unit::Scope,
    },
    value::{Explain, VmName},
};

/// How long a supervisor may take for one answer before it is asked again.
const ANSWER: Duration = Duration::from_secs(2);
/// Between two questions to a supervisor that is starting.
const POLL: Duration = Duration::from_millis(10);
/// The same for a unit's, of which systemd tells when it runs.
const TELL: Duration = Duration::from_millis(500);

/// How it is to be started.
#[derive(Debug, Clone, Copy)]
pub struct Begin<'a> {
    /// Where everything is.
    pub layout: &'a Layout,
    /// This program.
    pub exe: &'a Path,
    /// The systemd whose units look where `layout` does, if there is one.
    pub manager: Option<Scope>,
    /// Until the guest runs and is ready, or is not waited for any more.
    pub wait: bool,
    /// Is told what a VM waits for.
    pub say: fn(&VmName, &str),
}

/// What came of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Begun {
    /// The guest runs.
    Running,
    /// It has been running already.
    Already,
    /// It is being started; the guest was not waited for.
    Asked,
}

/// Why not.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Its VM file.
    #[error("{0}")]
    Invalid(Invalid),
    /// It has none.
    #[error("there is no VM `{0}`: it has no file")]
    NoFile(VmName),
    /// The log.
    #[error(transparent)]
    File(#[from] file::Error),
    /// A program.
    #[error("cannot run `{}`", .0.display())]
    Spawn(PathBuf, #[source] io::Error),
    /// The unit.
    #[error(transparent)]
    Service(#[from] service::Error),
    /// The storage of the VM does not answer.
    #[error(transparent)]
    Storage(#[from] storage_reader::Error),
    /// There is no supervisor, and the VM may run or not.
    #[error(transparent)]
    Unknown(#[from] running::Unknown),
    /// A supervisor is there, and its VM may run or not.
    #[error("cannot determine whether the VM is running")]
    Silent(#[source] client::Error),
    /// A supervisor is there, and talks to nobody.
    #[error("the supervisor accepts connections but closes them without a reply")]
    HangsUp,
    /// What ran in the unit.
    #[error("{detail}")]
    Unit {
        /// The VM.
        name: VmName,
        /// How it ended.
        detail: String,
    },
    /// The supervisor.
    #[error("its supervisor {}{}", ended(*.status), after_colon(.wrote))]
    Ended {
        /// How.
        status: ExitStatus,
        /// The last that it wrote since it was started.
        wrote: String,
    },
}

impl Explain for Error {
    fn wrapped(&self) -> Option<&dyn Explain> {
        match self {
            Self::File(error) => Some(error),
            Self::Service(error) => Some(error),
            Self::Unknown(error) => Some(error),
            Self::Storage(error) => Some(error),
            Self::Silent(error) => Some(error),
            _ => None,
        }
    }

    fn own_hint(&self) -> Option<String> {
        match self {
            Self::Service(error) if error.is_host_fault() => {
                Some("`systemctl status` tells whether it answers again".into())
            }
            Self::HangsUp => Some("the limit of clients may be reached: `ss -xp src PATH` lists those of the VM's `control.sock`".into()),
            Self::NoFile(_) => Some("`qvm list` shows those there are".into()),
            Self::Service(_) => {
                Some("`journalctl -t qvm@NAME` has what the supervisor said".into())
            }
            // The end that the supervisor kept has its own.
            Self::Unit { detail, .. } if detail.contains("\nhint: ") => None,
            Self::Unit { name, .. } => {
                Some(format!("`journalctl -t qvm@{name}` has what the supervisor said"))
            }
            _ => None,
        }
    }

    fn is_own_host_fault(&self) -> bool {
        matches!(self, Self::Unknown(_) | Self::Storage(_))
    }
}

fn ended(status: ExitStatus) -> String {
    match status.code() {
        Some(code) => format!("exited with code {code}"),
        None => format!("was ended: {status}"),
    }
}

fn after_colon(wrote: &str) -> String {
    if wrote.is_empty() { String::new() } else { format!(":\n{wrote}") }
}

/// Starts the supervisor of a VM and, if so asked, waits until the guest is ready: as long as the supervisor lives.
///
/// # Errors
/// The VM file is invalid, or the supervisor ended.
pub async fn begin(name: &VmName, how: &Begin<'_>) -> Result<Begun, Error> {
    let paths = how.layout.vm(name);
    let socket = paths.control_socket();
    let mut told = Told { name, say: how.say, last: None };
    if let Some(begun) = beside(&socket, how, &mut told).await? {
        return Ok(begun);
    }
    let storage = StorageReader::default();
    let (layout, of) = (how.layout.clone(), name.clone());
    let checked = storage.read(&paths.state, move |position| check(&layout, &of, position));
    match checked.await? {
        // A supervisor that began a moment ago holds the locks, and answers by now.
        Err(error @ Error::Unknown(_)) => {
            let begun = beside(&socket, how, &mut told).await?;
            return begun.ok_or(error);
        }
        checked => checked?,
    }
    if let Some(scope) = how.manager
        && let Some(unit) = Unit::find(name, scope).await?
    {
        return match by_unit(&unit, told, how, &storage).await {
            Err(error) => Err(unknown_instead(error, &storage, &paths).await),
            begun => begun,
        };
    }
    let of = paths.clone();
    let log = Arc::new(storage.read(&paths.state, move |_| StartLog::open(&of)).await??);
    let spawned = log.file().and_then(|out| spawn(name, how, out));
    let mut child = spawned.map_err(|e| Error::Spawn(how.exe.to_owned(), e))?;
    if !how.wait {
        return Ok(Begun::Asked);
    }
    loop {
        if let Some(status) = child.try_wait().map_err(|e| Error::Spawn(how.exe.to_owned(), e))? {
            let wrote = storage.read(&paths.state, move |_| log.written());
            let wrote = wrote.await.unwrap_or_default();
            // Who was started at the same time may have been faster.
            let begun =
                if status.success() { None } else { beside(&socket, how, &mut told).await? };
            return match begun {
                Some(begun) => Ok(begun),
                None => {
                    Err(unknown_instead(Error::Ended { status, wrote }, &storage, &paths).await)
                }
            };
        }
        if told.runs(&socket).await {
            return Ok(Begun::Running);
        }
        tokio::time::sleep(POLL).await;
    }
}

/// Of a VM whose state is unknown, nothing else is reported. Only here the verb scans /proc: a start
/// that succeeds leaves that to the supervisor.
async fn unknown_instead(error: Error, storage: &StorageReader, paths: &VmPaths) -> Error {
    let of = paths.clone();
    match storage.read(&paths.state, move |_| running::find(&of)).await {
        Ok(Err(unknown)) => Error::Unknown(unknown),
        Ok(Ok(_)) | Err(_) => error,
    }
}

/// Reads whether a start is possible: the VM is known not to run without a supervisor, and its files
/// are valid. Blocks for as long as the storage does.
fn check(layout: &Layout, name: &VmName, position: &ReadPosition) -> Result<(), Error> {
    let paths = layout.vm(name);
    // The scan of /proc is left to the supervisor, which holds the VM's lock meanwhile.
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

/// What comes of a VM that somebody supervises: it runs, or is waited for until it does. Nothing, once nobody is there any more.
async fn beside(
    socket: &Path,
    how: &Begin<'_>,
    told: &mut Told<'_>,
) -> Result<Option<Begun>, Error> {
    let (mut goes_down, mut hangs_up) = (false, None);
    loop {
        match lock_holder::look(socket).await {
            Holder::Nobody => return Ok(None),
            Holder::Gone => {
                let since = *hangs_up.get_or_insert_with(Instant::now);
                if since.elapsed() >= GOES_WITHIN {
                    return Err(Error::HangsUp);
                }
            }
            Holder::Supervisor(State::Running | State::Paused) => return Ok(Some(Begun::Already)),
            Holder::Supervisor(State::Starting) if !how.wait => return Ok(Some(Begun::Asked)),
            Holder::Supervisor(State::Starting) => {
                if told.runs(socket).await {
                    return Ok(Some(Begun::Running));
                }
            }
            // No supervisor says so of its VM.
            Holder::Supervisor(State::Unknown) => return Err(Error::HangsUp),
            // Down by now, and about to end.
            Holder::Supervisor(State::Stopped | State::Failed) => goes_down = true,
            Holder::Supervisor(State::Stopping) => {
                goes_down = true;
                told.once("waits until it is down");
            }
            // It still does.
            Holder::Silent(client::Error::Timeout(_)) if goes_down => {}
            Holder::Silent(error) => return Err(Error::Silent(error)),
        }
        tokio::time::sleep(POLL).await;
    }
}

/// What was told of a VM that starts.
struct Told<'a> {
    name: &'a VmName,
    say: fn(&VmName, &str),
    last: Option<String>,
}

impl Told<'_> {
    fn once(&mut self, why: &str) {
        if self.last.as_deref() != Some(why) {
            (self.say)(self.name, why);
            self.last = Some(why.to_owned());
        }
    }

    /// Whether it runs by now. What else it waits for is told once.
    async fn runs(&mut self, socket: &Path) -> bool {
        let Ok(mut client) = Client::connect(socket).await else { return false };
        let Ok(status) = client.status(ANSWER).await else { return false };
        let waits = status.notes.iter().find(|note| note.starts_with("waits for "));
        if let (State::Starting, Some(why)) = (status.state, waits) {
            self.once(why);
        }
        matches!(status.state, State::Running | State::Paused)
            && status.ready != Some(Ready::Waiting)
    }
}

fn spawn(name: &VmName, how: &Begin<'_>, log: File) -> io::Result<Child> {
    let program = Program::new(how.exe).arg("--config-dir").arg(&how.layout.config);
    let program = program.arg("--state-dir").arg(&how.layout.state);
    let program = program.arg("--runtime-dir").arg(&how.layout.runtime);
    program.args(["run", name.as_str()]).spawn_in_background(Some(log))
}

/// By its unit, which is made anew first if the VM file has changed.
async fn by_unit(
    unit: &Unit,
    mut told: Told<'_>,
    how: &Begin<'_>,
    storage: &StorageReader,
) -> Result<Begun, Error> {
    let name = told.name;
    let paths = how.layout.vm(name);
    let last = async || {
        let of = paths.clone();
        let ends = storage.read(&paths.state, move |_| record::ends(&of));
        ends.await.unwrap_or_default().into_iter().next()
    };
    let before = last().await.map(|end| end.at);
    unit.refresh().await?;
    let socket = paths.control_socket();
    // systemctl(1) says nothing of what a unit that starts waits for.
    let telling = async {
        loop {
            tokio::time::sleep(TELL).await;
            told.runs(&socket).await;
        }
    };
    let started = tokio::select! {
        started = unit.start(how.wait) => started,
        () = telling => Ok(()),
    };
    match started {
        Ok(()) if how.wait => Ok(Begun::Running),
        Ok(()) => Ok(Begun::Asked),
        Err(error) => match last().await {
            // systemctl knows only that it failed, the supervisor why.
            Some(end) if Some(&end.at) != before.as_ref() && end.failed => {
                Err(Error::Unit { name: name.clone(), detail: end.detail })
            }
            _ => Err(error.into()),
        },
    }
}
