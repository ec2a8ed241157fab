//! Telling systemd-machined of the VM, beside everything else: `machinectl` lists it as long as it runs.

use std::time::Duration;

use tokio::task::JoinSet;
use tracing::{debug, warn};

use crate::supervisor::Supervisor;
use crate::{
    net::{
        broker::Network,
        link::Links,
        tap_spec::{Tap, taps},
    },
    systemd::{
        machined::{Error, Machined},
        registration::Machine,
    },
    value::chain,
};

/// A VM that machined is told of.
#[derive(Debug)]
pub(crate) struct Enrolled {
    machined: Machined,
    /// What machined was told, and whether it took it.
    task: JoinSet<(Machine, bool)>,
}

/// How long machined may take; on demand it is started first.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// How long an end may be held up by this.
const END_LIMIT: Duration = Duration::from_secs(2);

impl Supervisor {
    /// Tells of the QEMU that runs now. A second one of the same run has other taps.
    pub(crate) fn enrol(&mut self) {
        let Some(socket) = self.settings.machined.clone().filter(|_| self.under_systemd) else {
            return;
        };
        let Some(uuid) = self.qemu.as_ref().and_then(|qemu| qemu.record.uuid.clone()) else {
            return;
        };
        let (name, network, taps) =
            (self.settings.name.clone(), self.settings.network.clone(), taps(&self.vm));
        let (machined, control) =
            (Machined { socket, limit: ANSWER_LIMIT }, self.paths.control_socket());
        let last = self.enrolled.take().map(|enrolled| enrolled.task);
        let mut task = JoinSet::new();
        {
            let machined = machined.clone();
            task.spawn(async move {
                let last = match last {
                    Some(mut task) => task.join_next().await.and_then(Result::ok),
                    None => None,
                };
                let if_indices = indexes(&network, &taps).await;
                let machine = Machine { name, uuid, leader: std::process::id(), if_indices };
                if let Some(told) = last.filter(|(told, _)| *told == machine) {
                    return told;
                }
                let taken = match machined.register(&machine, &control).await {
                    Ok(()) => true,
                    Err(error @ Error::Taken(_)) => {
                        warn!("`machinectl` will not list this VM: {}", chain(&error));
                        false
                    }
                    // It need not be there.
                    Err(error) => {
                        debug!("`machinectl` will not list this VM: {}", chain(&error));
                        false
                    }
                };
                (machine, taken)
            });
        }
        self.enrolled = Some(Enrolled { machined, task });
    }

    /// Tells that the VM is no more. What is not told in time machined finds out by itself, when the unit is down.
    pub(crate) async fn strike_off(&mut self) {
        let Some(Enrolled { machined, mut task }) = self.enrolled.take() else { return };
        let told = tokio::time::timeout(END_LIMIT, async {
            match task.join_next().await {
                Some(Ok((machine, true))) => machined.unregister(&machine).await,
                // A machine of that name is another's.
                Some(Ok((_, false)) | Err(_)) | None => Ok(()),
            }
        });
        match told.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => debug!("systemd-machined was not told of the end: {}", chain(&error)),
            Err(_) => debug!("systemd-machined was not told of the end in time"),
        }
    }
}

/// The numbers of the taps. Of a tap that cannot be asked for machined does without.
async fn indexes(network: &Network, taps: &[Tap]) -> Vec<u32> {
    if taps.is_empty() {
        return vec![];
    }
    let mut found = vec![];
    if let Ok(links) = Links::open(network.connect().await) {
        for tap in taps {
            found.extend(links.find(&tap.name).await.ok().flatten().map(|link| link.index));
        }
    }
    found
}
