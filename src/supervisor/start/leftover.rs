//! What is left of a QEMU process whose launch or adoption failed or was canceled.

use std::time::Duration;

use tracing::warn;

use crate::{
    life::Leftover,
    store::{
        layout::VmPaths,
        running::{self, PreviousQemu},
    },
    sys::pidfd,
    value::chain,
};

/// How long a killed QEMU process may take to exit. One that waits for storage does not exit, and
/// keeps its record.
const KILLED_WITHIN: Duration = Duration::from_secs(5);

/// Whether a QEMU process of the VM is left, by proof.
pub(super) fn find_leftover(paths: &VmPaths) -> Leftover {
    match running::find(paths) {
        Ok(PreviousQemu::None | PreviousQemu::Exited | PreviousQemu::NeverExecuted) => {
            Leftover::None
        }
        Ok(PreviousQemu::Running(..)) => Leftover::MayRun,
        Err(unknown) => {
            warn!("the run record is kept: {}", chain(&unknown));
            Leftover::MayRun
        }
    }
}

/// Kills the QEMU process of a launch that was canceled, and waits until it has exited.
pub(super) async fn kill_launched(paths: &VmPaths) {
    let found = running::find(paths);
    if let Err(unknown) = &found {
        warn!("a QEMU process may be left: {}", chain(unknown));
    }
    if let Ok(PreviousQemu::Running(process, _)) = found {
        let _ = process.signal(pidfd::Signal::KILL);
        if tokio::time::timeout(KILLED_WITHIN, process.wait()).await.is_err() {
            warn!("QEMU (pid {}) was killed but has not exited; its record is kept", process.pid());
        }
    }
}

#[cfg(test)]
mod tests;
