//! The taps of a guest that runs: the frames that leave them are filtered, and a tap that has lost its bridge is reported and put back.

pub(crate) mod blocked;
pub(crate) mod keeper;
pub mod open;
pub mod unfiltered;
pub(crate) mod wanted;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use tokio::{
    sync::{Mutex, watch},
    task::AbortHandle,
};

use self::{keeper::Keeper, wanted::WantedTaps};
use super::{event::TapsReport, qemu::Qemu};
use crate::supervisor::context::Context;

/// The taps of a guest, and the task that looks after them.
#[derive(Debug)]
pub(crate) struct Taps {
    task: AbortHandle,
    wanted: watch::Sender<WantedTaps>,
    /// Locked while the taps are examined.
    examining: Arc<Mutex<()>>,
    notes: Vec<String>,
}

impl Drop for Taps {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Taps {
    /// Begins to look after the taps. `notes` are of their attachment, and count until the task has examined them.
    pub(crate) fn keep(
        wanted: WantedTaps,
        notes: Vec<String>,
        qemu: &mut Qemu,
        ctx: &Context,
    ) -> Self {
        let (wanted, changes) = watch::channel(wanted);
        let examining = Arc::new(Mutex::new(()));
        let network = ctx.settings().network.clone();
        let keeper = Keeper::new(network, changes, examining.clone(), qemu.tasks().sender());
        let task = qemu.tasks().spawn(keeper.keep());
        Self { task, wanted, examining, notes }
    }

    /// The machine has changed, or begins to be changed.
    pub(crate) fn want(&self, wanted: WantedTaps) {
        self.wanted.send_if_modified(|now| {
            let differs = *now != wanted;
            *now = wanted;
            differs
        });
    }

    /// To be awaited before taps are changed: they are not being examined then.
    pub(crate) fn unattended(&self) -> impl Future<Output = ()> + use<> {
        let examining = self.examining.clone();
        async move { drop(examining.lock().await) }
    }

    /// Handles what the task has found.
    pub(crate) fn handle(&mut self, report: TapsReport, ctx: &Context) {
        self.notes = report.notes;
        for (name, data) in report.events {
            ctx.publish(name, data);
        }
    }

    /// What an operator should know.
    pub(crate) fn notes(&self) -> &[String] {
        &self.notes
    }
}
