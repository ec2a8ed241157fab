//! Ending a QEMU that its supervisor left behind: by its own ladder, and where nothing helps by signals.

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
    value::{Explain, chain},
};
use crate::{
    store::{
        record::Record,
        running::{self, PreviousQemu},
    },
    supervisor::{error, outcome::Outcome, settings::Settings, supervise::supervise},
};

/// How long a QEMU whose monitor is silent may take after SIGTERM, which makes it flush its disks, and then after SIGKILL.
const LAST_LIMIT: Duration = Duration::from_secs(10);

/// Why it is still there.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The lock cannot be looked at.
    #[error(transparent)]
    Lock(#[from] lock::Error),
    /// It is not known whether it runs.
    #[error(transparent)]
    Unknown(#[from] running::Unknown),
    /// Not even SIGKILL ended it.
    #[error("QEMU (pid {0}) does not go")]
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

    fn own_hint(&self) -> Option<String> {
        match self {
            Self::Stays(pid) => Some(format!(
                "the kernel holds it, mostly for a storage that hangs: `cat /proc/{pid}/stack` shows where"
            )),
            _ => None,
        }
    }

    fn is_own_host_fault(&self) -> bool {
        matches!(self, Self::Unknown(_))
    }
}

/// Takes over the QEMU of a VM that has no supervisor, and shuts its guest down. One that has a supervisor is left alone.
///
/// # Errors
/// It does not go.
pub async fn end(settings: Settings) -> Result<(), Error> {
    let paths = settings.paths();
    if matches!(running::find(&paths)?, PreviousQemu::None) {
        return Ok(());
    }
    let lock = match lock_holder::take(&paths).await {
        Ok(lock) => lock,
        // Not ours to end: it was started by hand, beside the unit.
        Err(lock::Error::Held { .. }) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    info!("QEMU was left behind by its supervisor");
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
            Err(error) => warn!("it cannot be shut down: {}", chain(&error)),
        }
    }
    if let PreviousQemu::Running(qemu, _) = running::find(&paths)? {
        signal(&qemu).await?;
        Record::remove(&paths);
    }
    drop(lock);
    Ok(())
}

/// Ends a QEMU whose monitor does not answer.
async fn signal(qemu: &Process) -> Result<(), Error> {
    for (signal, name) in [(Signal::TERM, "SIGTERM"), (Signal::KILL, "SIGKILL")] {
        warn!("QEMU (pid {}) gets {name}", qemu.pid());
        let _ = qemu.signal(signal);
        if tokio::time::timeout(LAST_LIMIT, qemu.wait()).await.is_ok() {
            return Ok(());
        }
    }
    Err(Error::Stays(qemu.pid()))
}
