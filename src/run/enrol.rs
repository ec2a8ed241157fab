//! Telling systemd-machined of the VM, beside everything else: `machinectl` lists it as long as it runs.

use std::time::Duration;

use tracing::{debug, warn};

use super::supervise::Supervisor;
use crate::{
    host::machined::{Error, Machined},
    plan::{machined::Machine, tap::taps},
    value::chain,
};

/// A VM that machined was told of.
#[derive(Debug)]
pub(super) struct Enrolled {
    machined: Machined,
    machine: Machine,
    /// Whether machined took it.
    task: tokio::task::JoinHandle<bool>,
}

/// How long machined may take; on demand it is started first.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// How long an end may be held up by this.
const END_LIMIT: Duration = Duration::from_secs(2);

impl Supervisor {
    /// Tells of the QEMU that runs now. A second one of the same run has other taps.
    pub(super) fn enrol(&mut self) {
        let Some(socket) = self.settings.machined.clone().filter(|_| self.under_systemd) else {
            return;
        };
        let Some(uuid) = self.qemu.as_ref().and_then(|qemu| qemu.record.uuid.clone()) else {
            return;
        };
        let machine = Machine {
            name: self.settings.name.clone(),
            uuid,
            leader: std::process::id(),
            if_indices: taps(&self.vm)
                .iter()
                .filter_map(|tap| self.settings.network.index(&tap.name))
                .collect(),
        };
        if self.enrolled.as_ref().is_some_and(|enrolled| enrolled.machine == machine) {
            return;
        }
        let (machined, control) =
            (Machined { socket, limit: ANSWER_LIMIT }, self.paths.control_socket());
        let task = {
            let (machined, machine) = (machined.clone(), machine.clone());
            tokio::spawn(async move {
                match machined.register(&machine, &control).await {
                    Ok(()) => return true,
                    Err(error @ Error::Taken(_)) => {
                        warn!("`machinectl` will not list this VM: {}", chain(&error));
                    }
                    // It need not be there.
                    Err(error) => debug!("`machinectl` will not list this VM: {}", chain(&error)),
                }
                false
            })
        };
        self.enrolled = Some(Enrolled { machined, machine, task });
    }

    /// Tells that the VM is no more. What is not told in time machined finds out by itself, when the unit is down.
    pub(super) async fn strike_off(&mut self) {
        let Some(Enrolled { machined, machine, task }) = self.enrolled.take() else { return };
        let told = tokio::time::timeout(END_LIMIT, async {
            match task.await {
                Ok(true) => machined.unregister(&machine).await,
                // A machine of that name is another's.
                Ok(false) | Err(_) => Ok(()),
            }
        });
        match told.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => debug!("systemd-machined was not told of the end: {}", chain(&error)),
            Err(_) => debug!("systemd-machined was not told of the end in time"),
        }
    }
}
