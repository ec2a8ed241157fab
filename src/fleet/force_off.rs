//! Forces off a VM without a supervisor: kills the QEMU process of the run record, or, if the state
//! of the VM is unknown, the process that holds a liveness lock of the VM, if it is a QEMU process
//! of that name.

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::time::{Instant, sleep, timeout};

use super::lock_holder;
use crate::{
    control::types,
    life::{Cause, End},
    sys::{
        liveness_lock, lock,
        pidfd::{Process, Signal},
        qemu_processes::{self, QemuProcess},
    },
    value::{ErrorCode, Explain, chain},
};
use crate::{
    store::{
        liveness::{self, Liveness},
        record::{self, Record},
        running::{self, PreviousQemu},
    },
    supervisor::settings::Settings,
};

/// The limit for the exit of a process after SIGKILL, and for the release of its locks.
const EXIT_LIMIT: Duration = Duration::from_secs(10);
/// The interval of attempts to acquire the locks.
const RETRY: Duration = Duration::from_millis(10);

/// Why no process was killed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The VM has a supervisor.
    #[error(transparent)]
    Supervised(#[from] lock::Error),
    /// The state of the VM is unknown, and no holder of its locks may be killed.
    #[error(transparent)]
    Unknown(#[from] running::Unknown),
    /// The locks cannot be probed, or stay held.
    #[error(transparent)]
    Liveness(#[from] liveness::Error),
    /// /proc cannot be read.
    #[error("cannot find the process that holds the liveness lock")]
    Holder(#[source] io::Error),
    /// The process cannot be killed.
    #[error("cannot kill QEMU (pid {pid})")]
    Kill {
        /// The PID.
        pid: u32,
        /// The cause.
        source: io::Error,
    },
    /// The process of the run record does not execute QEMU.
    #[error("the process of the run record (pid {0}) is not proven to execute QEMU")]
    NotQemu(u32),
    /// The process has not exited after SIGKILL.
    #[error("QEMU (pid {0}) has not exited after SIGKILL")]
    Stays(u32),
}

impl Explain for Error {
    fn wrapped(&self) -> Option<&dyn Explain> {
        match self {
            Self::Supervised(error) => Some(error),
            Self::Unknown(error) => Some(error),
            Self::Liveness(error) => Some(error),
            _ => None,
        }
    }

    fn own_code(&self) -> Option<ErrorCode> {
        Some(match self {
            Self::Holder(..) | Self::NotQemu(..) => ErrorCode::StateUnknown,
            Self::Kill { .. } => ErrorCode::QemuNotKilled,
            Self::Stays(..) => ErrorCode::QemuNotEnded,
            Self::Supervised(..) | Self::Unknown(..) | Self::Liveness(..) => return None,
        })
    }

    fn own_hint(&self) -> Option<String> {
        match self {
            Self::Holder(_) | Self::Kill { .. } => Some("run the command as root".into()),
            Self::NotQemu(pid) => {
                Some(format!("inspect the process with `ps -fp {pid}`; `kill {pid}` ends it"))
            }
            Self::Stays(pid) => Some(format!("`cat /proc/{pid}/stack` shows what it waits for")),
            _ => None,
        }
    }

    fn is_own_host_fault(&self) -> bool {
        matches!(
            self,
            Self::Unknown(_)
                | Self::Liveness(_)
                | Self::Holder(_)
                | Self::Kill { .. }
                | Self::NotQemu(_)
                | Self::Stays(_)
        )
    }
}

/// Kills the QEMU process of a VM without a supervisor, and removes its run record. Returns the
/// PID; `None` if no QEMU process is running.
///
/// # Errors
/// The VM has a supervisor, no process is proven to be its QEMU process, or the process cannot be
/// killed.
pub async fn force_off(settings: &Settings) -> Result<Option<u32>, Error> {
    let paths = settings.paths();
    let _supervisor = lock_holder::acquire(&paths).await?;
    let recorded = Record::read(&paths).ok().flatten().and_then(|record| record.binary);
    let chosen = settings.qemu.as_ref().map(PathBuf::from);
    let known: Vec<PathBuf> = recorded.into_iter().chain(chosen).collect();
    let pid = match running::find(&paths) {
        Ok(PreviousQemu::Running(process, _)) => {
            let all = qemu_processes::list().map_err(Error::Holder)?.all;
            let found = all.iter().find(|found| found.pid == process.pid());
            if !found.map_or(Ok(false), |found| executes_qemu(found, &known))? {
                return Err(Error::NotQemu(process.pid()));
            }
            kill(&process).await?;
            process.pid()
        }
        Ok(PreviousQemu::None | PreviousQemu::Exited | PreviousQemu::NeverExecuted) => {
            return Ok(None);
        }
        Err(unknown) => kill_holders(settings, &known).await?.ok_or(unknown)?,
    };
    let _locks = released(settings).await?;
    match running::find(&paths)? {
        PreviousQemu::Running(qemu, _) => Err(Error::Stays(qemu.pid())),
        PreviousQemu::None | PreviousQemu::Exited | PreviousQemu::NeverExecuted => {
            Record::remove(&paths);
            keep_end(settings);
            Ok(Some(pid))
        }
    }
}

/// Kills the QEMU processes with this VM's name that hold a liveness lock; returns the PID of the
/// last one, or `None` if there is none.
async fn kill_holders(settings: &Settings, known: &[PathBuf]) -> Result<Option<u32>, Error> {
    let files = liveness::files(&settings.paths())?;
    let holders = qemu_processes::with_open_file(&files).map_err(Error::Holder)?;
    let mut killed = None;
    for found in holders.iter().filter(|found| found.name() == Some(settings.name.as_str())) {
        // The pidfd is opened first: the process is checked again through it.
        let process =
            Process::open(found.pid).map_err(|source| Error::Kill { pid: found.pid, source })?;
        let again = qemu_processes::with_open_file(&files).map_err(Error::Holder)?;
        if !(executes_qemu(found, known)? && again.contains(found) && process.is_alive()) {
            continue;
        }
        kill(&process).await?;
        killed = Some(found.pid);
    }
    Ok(killed)
}

fn executes_qemu(found: &QemuProcess, known: &[PathBuf]) -> Result<bool, Error> {
    let known: Vec<&Path> = known.iter().map(PathBuf::as_path).collect();
    qemu_processes::executes_qemu(found, &known)
        .map_err(|source| Error::Kill { pid: found.pid, source })
}

/// Sends SIGKILL and waits for the exit of the process.
async fn kill(process: &Process) -> Result<(), Error> {
    let pid = process.pid();
    process.signal(Signal::KILL).map_err(|source| Error::Kill { pid, source })?;
    match timeout(EXIT_LIMIT, process.wait()).await {
        Ok(_) => Ok(()),
        Err(_) => Err(Error::Stays(pid)),
    }
}

/// Acquires the locks once the kernel has released those of the killed process.
async fn released(settings: &Settings) -> Result<Liveness, Error> {
    let (paths, begun) = (settings.paths(), Instant::now());
    loop {
        match Liveness::for_verb(&paths) {
            Err(liveness::Error::Lock(liveness_lock::Error::Held(_)))
                if begun.elapsed() < EXIT_LIMIT => {}
            done => return Ok(done?),
        }
        sleep(RETRY).await;
    }
}

fn keep_end(settings: &Settings) {
    let end = End { cause: Cause::Killed };
    let kept = types::End {
        reason: end.reason().to_owned(),
        at: (settings.now)().to_string(),
        detail: end.to_string(),
        code: end.start_code(),
        hint: end.start_hint().map(str::to_owned),
        failed: end.failed(),
        console: vec![],
    };
    if let Err(error) = record::keep(&settings.paths(), kept) {
        tracing::warn!("cannot record how the VM ended: {}", chain(&error));
    }
}
