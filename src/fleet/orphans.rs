//! Ends a QEMU process without a supervisor: with the stop ladder, and if that fails with signals.

use std::time::Duration;

use tracing::{info, warn};

use super::lock_holder;
use crate::{
    life::Mode,
    spec,
    sys::{
        lock,
        pidfd::{Process, Signal},
    },
    value::{ErrorCode, Explain, chain},
};
use crate::{
    store::{
        record::Record,
        running::{self, PreviousQemu},
    },
    supervisor::{error, outcome::Outcome, settings::Settings, supervise::supervise},
};

/// The limit for the exit of a QEMU process whose monitor does not answer after SIGTERM, which
/// makes it flush its disks, and then after SIGKILL.
const LAST_LIMIT: Duration = Duration::from_secs(10);

/// Why QEMU is still running.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The lock cannot be probed.
    #[error(transparent)]
    Lock(#[from] lock::Error),
    /// It is unknown whether QEMU is running.
    #[error(transparent)]
    Unknown(#[from] running::Unknown),
    /// QEMU has not exited after SIGKILL.
    #[error("QEMU (pid {0}) has not exited after SIGKILL")]
    Stays(u32),
}

impl Explain for Error {
    fn wrapped(&self) -> Option<&dyn Explain> {
        match self {
            Self::Lock(error) => Some(error),
            Self::Unknown(error) => Some(error),
            _ => None,
        }
    }

    fn own_code(&self) -> Option<ErrorCode> {
        Some(match self {
            Self::Stays(..) => ErrorCode::QemuNotEnded,
            Self::Lock(..) | Self::Unknown(..) => return None,
        })
    }

    fn own_hint(&self) -> Option<String> {
        match self {
            Self::Stays(pid) => Some(format!(
                "the kernel holds the process, usually because of hung storage: \
                                 `cat /proc/{pid}/stack` shows where it waits"
            )),
            _ => None,
        }
    }

    fn is_own_host_fault(&self) -> bool {
        matches!(self, Self::Unknown(_))
    }
}

/// Adopts the QEMU process of a VM without a supervisor and shuts its guest down. Does nothing if
/// the VM has a supervisor.
///
/// # Errors
/// QEMU does not exit.
pub async fn end(settings: Settings) -> Result<(), Error> {
    let paths = settings.paths();
    if matches!(running::find(&paths)?, PreviousQemu::None) {
        return Ok(());
    }
    let lock = match lock_holder::acquire(&paths).await {
        Ok(lock) => lock,
        // The supervisor was started outside of the unit.
        Err(lock::Error::Held { .. }) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    info!("QEMU runs without its supervisor: shutting the guest down");
    let file = settings.layout.vm_file(&settings.name);
    let vm = crate::store::vm_file_copies::booted(&paths, &settings.name, &file);
    if let Some((vm, text)) = vm.or_else(|| spec::load_with_text(&file).ok()) {
        let done: Result<Outcome, error::Error> =
            supervise(settings, vm, text, Mode::ShutDown).await;
        match done {
            Ok(Outcome::Exit(_) | Outcome::Reexec) => {}
            Ok(Outcome::NotStarted(failure)) => {
                warn!("cannot shut the guest down: {}", failure.why);
            }
            Err(error) => warn!("cannot shut the guest down: {}", chain(&error)),
        }
    }
    if let PreviousQemu::Running(qemu, _) = running::find(&paths)? {
        signal(&qemu).await?;
        Record::remove(&paths);
    }
    drop(lock);
    Ok(())
}

/// Ends a QEMU process whose monitor does not answer.
async fn signal(qemu: &Process) -> Result<(), Error> {
    for (signal, name) in [(Signal::TERM, "SIGTERM"), (Signal::KILL, "SIGKILL")] {
        warn!("sending {name} to QEMU (pid {})", qemu.pid());
        let _ = qemu.signal(signal);
        if tokio::time::timeout(LAST_LIMIT, qemu.wait()).await.is_ok() {
            return Ok(());
        }
    }
    Err(Error::Stays(qemu.pid()))
}
