//! Operations of a running VM, each delegated to one component.

use std::time::Duration;

use super::{
    RunningVm,
    event::{MemoryEvent, ThawReason},
    ready,
    suspend::StateToSave,
};
use crate::{
    control::types::Refusal,
    life,
    spec::Vm,
    supervisor::{context::Context, refusal::Reply},
};

impl RunningVm {
    /// Sets the balloon's target, in bytes.
    pub(crate) fn set_memory(&mut self, bytes: u64, most: u64, reply: Reply) {
        self.memory.set_target(bytes, most, reply, &mut self.qemu);
    }

    /// Handles a report of the guest's memory, in bytes.
    pub(crate) fn on_balloon_change(&mut self, bytes: u64) {
        self.memory.handle(MemoryEvent::Actual(bytes));
    }

    /// Freezes the guest's file systems, unless the VM's state refuses it with `refused`.
    pub(crate) fn freeze(
        &mut self,
        thaw_after: Duration,
        refused: Option<Refusal>,
        reply: Reply<u64>,
        ctx: &Context,
    ) {
        self.freeze.freeze(thaw_after, refused, reply, &mut self.qemu, ctx);
    }

    /// Thaws the guest's file systems for a client.
    pub(crate) fn thaw(&mut self, reply: Reply<u64>) {
        self.freeze.thaw(ThawReason::Asked, Some(reply), &mut self.qemu);
    }

    /// Thaws the guest's file systems before it has to shut down.
    pub(crate) fn thaw_first(
        &mut self,
    ) -> impl Future<Output = Result<(), Refusal>> + Send + 'static + use<> {
        self.freeze.thaw_first(&mut self.qemu)
    }

    /// Writes the intended end of QEMU to the run record.
    pub(crate) fn record_intention(&mut self, intention: Option<life::Intention>, ctx: &Context) {
        self.qemu.record_intention(intention, ctx);
    }

    /// Returns the intended end of QEMU by an earlier supervisor.
    pub(crate) fn recorded_intention(&self, ctx: &Context) -> Option<life::Intention> {
        self.record().intention.as_ref()?.intention(ctx.now(), ctx.elapsed())
    }

    /// Waits until the run record contains the intended end of QEMU.
    pub(crate) fn intention_written(&self) -> impl Future<Output = ()> + Send + 'static + use<> {
        self.qemu.intention_written()
    }

    /// Handles a boot of the guest: its file systems are not frozen.
    pub(crate) fn forget_freeze(&mut self) {
        self.freeze.forget(&mut self.qemu);
    }

    /// Returns the remaining time of a freeze.
    pub(crate) fn frozen_for(&self, ctx: &Context) -> Option<Duration> {
        self.freeze.left(ctx)
    }

    /// Starts the readiness probes.
    pub(crate) fn await_ready(&mut self, limit: Duration, vm: &Vm, ctx: &Context) {
        self.readiness.begin(limit, vm, &mut self.qemu, ctx);
    }

    /// Ends the readiness probes.
    pub(crate) fn stop_awaiting(&mut self) {
        self.readiness.stop();
    }

    /// Records the readiness for the next supervisor.
    pub(crate) fn record_readiness(&mut self, readiness: &life::Readiness) {
        ready::record(readiness, &mut self.qemu);
    }

    /// Starts to save the guest's state.
    pub(crate) fn save_state(&mut self, state: StateToSave, ctx: &Context) {
        self.state_save.begin(state, &self.freeze, &mut self.qemu, ctx);
    }

    /// Handles the result of the save.
    pub(crate) fn on_state_saved(
        &mut self,
        done: &Result<(), Refusal>,
        ctx: &Context,
    ) -> life::Event {
        self.state_save.on_saved(done, ctx)
    }

    /// Cancels a running save. Returns the refusal for its client.
    pub(crate) fn cancel_save(&mut self, ctx: &Context) -> Option<Refusal> {
        self.state_save.cancel(&mut self.qemu, ctx)
    }
}
