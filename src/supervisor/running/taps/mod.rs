//! The taps of a running guest: their traffic is filtered, and a detached tap is reported and
//! attached again.

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
use crate::{supervisor::context::Context, value::Note};

/// The taps of a guest, and the task that watches them.
#[derive(Debug)]
pub(crate) struct Taps {
    task: AbortHandle,
    wanted: watch::Sender<WantedTaps>,
    /// Locked while the taps are examined.
    examining: Arc<Mutex<()>>,
    notes: Vec<Note>,
}

impl Drop for Taps {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Taps {
    /// Starts to watch the taps. `notes` are those of their attachment, valid until the first
    /// examination.
    pub(crate) fn keep(
        wanted: WantedTaps,
        notes: Vec<Note>,
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

    /// Sets the wanted state, before and after a change of the machine.
    pub(crate) fn want(&self, wanted: WantedTaps) {
        self.wanted.send_if_modified(|now| {
            let differs = *now != wanted;
            *now = wanted;
            differs
        });
    }

    /// Waits until no examination is running; awaited before taps are changed.
    pub(crate) fn unattended(&self) -> impl Future<Output = ()> + use<> {
        let examining = self.examining.clone();
        async move { drop(examining.lock().await) }
    }

    /// Handles a report of the task.
    pub(crate) fn handle(&mut self, report: TapsReport, ctx: &Context) {
        self.notes = report.notes;
        for (name, data) in report.events {
            ctx.publish(name, data);
        }
    }

    /// Returns the notes for the status.
    pub(crate) fn notes(&self) -> &[Note] {
        &self.notes
    }
}
