//! Creates snapshots of a running VM: the guest's file systems are frozen, QEMU changes to new
//! overlays, and the guest continues.
//!
//! Each step is on the lane of the state directory. An operation that is interrupted, also by the
//! death of the supervisor, is settled before the next one and after an adoption.

use std::time::Duration;

use serde_json::json;
use tokio::sync::{mpsc, oneshot};
use tracing::{info, warn};

use super::{
    event::{SnapshotEvent, ThawReason, VmEvent},
    freeze::Freeze,
    overlay_switch::{refusal_of, settle, switch},
    qemu::Qemu,
    suspend::StateSave,
};
use crate::{
    control::types::{CreatedSnapshot, Refusal, SnapshotToCreate},
    image::qemu_img::QemuImg,
    snapshot::{
        live::{Guest, LiveCreate},
        vm_disks::{Request, VmDisks},
    },
    spec::{Disk, Vm},
    store::{
        snapshot_record::{Consistency, SnapshotRecord},
        snapshots::Snapshots,
    },
    supervisor::{context::Context, refusal::Reply, start::prepare::qemu_img_beside},
    sys::lane::{self, OnLane},
    value::ErrorCode,
};

/// How long the guest's file systems are frozen at most.
const FREEZE_LIMIT: Duration = Duration::from_secs(10);

/// The VM of a snapshot, as it runs.
pub(crate) struct RunningDisks {
    /// The VM with the disks of the machine.
    pub(crate) vm: Vm,
    /// The VM file that QEMU was started from.
    pub(crate) text: String,
    /// Whether the vCPUs run.
    pub(crate) guest: Guest,
    /// The guest is ready, so that its agent can be asked.
    pub(crate) is_ready: bool,
}

/// What is saved of the guest: its whole state, and its disks.
#[derive(Debug, Default)]
pub(crate) struct Saves {
    pub(crate) state: StateSave,
    pub(crate) snapshot: SnapshotCreation,
}

/// The creation of a snapshot.
#[derive(Debug, Default)]
pub(crate) struct SnapshotCreation(Option<Active>);

#[derive(Debug)]
struct Active {
    reply: Option<Reply<CreatedSnapshot>>,
    /// Aborts the current step when dropped.
    _step: Option<OnLane>,
    /// The UID of QEMU; `None` for the supervisor's.
    uid: Option<u32>,
    disks: Vec<Disk>,
    freeze: FreezeState,
}

/// Whether the guest's file systems are frozen for the snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
enum FreezeState {
    /// They are to be frozen.
    Wanted,
    /// They were frozen for it, and are to be thawed.
    Frozen,
    /// A client froze them before.
    FrozenBefore,
    /// They are not frozen; why, if that was wanted.
    NotFrozen(Option<String>),
}

impl SnapshotCreation {
    /// Whether a snapshot is being created, or an interrupted one is being settled.
    pub(crate) fn is_active(&self) -> bool {
        self.0.is_some()
    }

    /// Whether a client waits for a snapshot.
    pub(crate) fn is_creating(&self) -> bool {
        self.0.as_ref().is_some_and(|active| active.reply.is_some())
    }

    /// Settles an operation of an earlier supervisor.
    pub(crate) fn recall(&mut self, qemu: &mut Qemu, ctx: &Context) {
        let qemu_img = qemu_img_of(qemu);
        let (client, reports, paths) = (qemu.client(), qemu.sender(), ctx.paths().clone());
        let step = ctx.lanes().state.drive(async move {
            if let Err(refusal) = settle(&client, &paths, &qemu_img).await {
                warn!("cannot settle an interrupted snapshot: {refusal}");
            }
            let _ = reports.send(VmEvent::Snapshot(SnapshotEvent::Settled)).await;
        });
        if let Ok(step) = step {
            let freeze = FreezeState::NotFrozen(None);
            let disks = vec![];
            self.0 = Some(Active { reply: None, _step: Some(step), uid: None, disks, freeze });
        }
    }

    /// Begins to create a snapshot, unless `refused`.
    pub(crate) fn begin(
        &mut self,
        snapshot: SnapshotToCreate,
        of: Result<RunningDisks, Refusal>,
        reply: Reply<CreatedSnapshot>,
        freeze: &Freeze,
        qemu: &mut Qemu,
        ctx: &Context,
    ) {
        let of = match (of, self.is_active()) {
            (Err(refusal), _) => return drop(reply.send(Err(refusal))),
            (Ok(_), true) => {
                let why = "another snapshot is being created".to_owned();
                return drop(reply.send(Err(Refusal::Failed(ErrorCode::NotNow, why))));
            }
            (Ok(of), false) => of,
        };
        let RunningDisks { vm, text, guest, is_ready } = of;
        let qemu_img = qemu_img_of(qemu);
        let wanted = match (snapshot.freeze, guest, is_ready) {
            _ if freeze.left(ctx).is_some() => FreezeState::FrozenBefore,
            (false, ..) | (_, Guest::Paused, _) => FreezeState::NotFrozen(None),
            (_, _, false) => FreezeState::NotFrozen(Some("the guest is not ready yet".into())),
            (true, Guest::Running, true) => FreezeState::Wanted,
        };
        let record = qemu.record();
        let uid = record.isolation.as_ref().and_then(|isolation| isolation.uid);
        let (machine, version) = (record.machine.clone(), record.qemu_version.clone());
        let disks = vm.disks.clone();
        let request = Request { name: snapshot.name, comment: snapshot.comment, now: ctx.now() };
        let (client, reports, paths) = (qemu.client(), qemu.sender(), ctx.paths().clone());
        let step = ctx.lanes().state.drive(async move {
            let prepared = async {
                settle(&client, &paths, &qemu_img).await?;
                let snapshots = Snapshots::read(&paths).map_err(|error| refusal_of(&error))?;
                let disks = VmDisks {
                    vm,
                    text,
                    machine: Some(machine),
                    qemu_version: Some(version),
                    paths,
                    snapshots,
                    qemu_img,
                };
                LiveCreate::prepare(disks, &request, guest).map_err(|error| refusal_of(&error))
            };
            let prepared = prepared.await.map(Box::new);
            let _ = reports.send(VmEvent::Snapshot(SnapshotEvent::Prepared(prepared))).await;
        });
        match step {
            Ok(step) => {
                let (reply, step) = (Some(reply), Some(step));
                self.0 = Some(Active { reply, _step: step, uid, disks, freeze: wanted });
            }
            Err(refused) => drop(reply.send(Err(Refusal::HostFault(refused.to_string())))),
        }
    }

    /// Handles the end of a step.
    pub(crate) fn handle(
        &mut self,
        event: SnapshotEvent,
        freeze: &mut Freeze,
        qemu: &mut Qemu,
        ctx: &Context,
    ) {
        let Some(active) = &mut self.0 else { return };
        match event {
            SnapshotEvent::Settled => self.0 = None,
            SnapshotEvent::Prepared(Ok(live)) => match active.freeze {
                FreezeState::Wanted => {
                    let (reply, answer) = oneshot::channel();
                    freeze.freeze(FREEZE_LIMIT, None, reply, qemu, ctx);
                    qemu.report(async move {
                        let stopping = Err(Refusal::NotNow("stopping"));
                        let done = answer.await.unwrap_or(stopping);
                        VmEvent::Snapshot(SnapshotEvent::Frozen(live, done))
                    });
                }
                _ => self.take(live, qemu, ctx),
            },
            SnapshotEvent::Frozen(live, done) => {
                active.freeze = match done {
                    Ok(_) => FreezeState::Frozen,
                    Err(refusal) => FreezeState::NotFrozen(Some(refusal.to_string())),
                };
                self.take(live, qemu, ctx);
            }
            SnapshotEvent::Switched(done) => {
                // The deadline may have passed meanwhile.
                let is_frozen = freeze.left(ctx).is_some();
                let consistency = match active.freeze {
                    FreezeState::Frozen | FreezeState::FrozenBefore if is_frozen => {
                        Consistency::Frozen
                    }
                    _ => Consistency::Paused,
                };
                if active.freeze == FreezeState::Frozen {
                    freeze.thaw(ThawReason::Asked, None, qemu);
                }
                match done {
                    Ok(live) => self.finish(live, consistency, qemu.sender(), ctx),
                    Err(refusal) => self.end(Err(refusal), ctx),
                }
            }
            SnapshotEvent::Prepared(Err(refusal)) => self.end(Err(refusal), ctx),
            SnapshotEvent::Finished(done) => self.end(done, ctx),
        }
    }

    /// Changes QEMU to the new files.
    fn take(&mut self, live: Box<LiveCreate>, qemu: &mut Qemu, ctx: &Context) {
        let Some(active) = &mut self.0 else { return };
        let (client, reports) = (qemu.client(), qemu.sender());
        let (disks, uid, state) = (active.disks.clone(), active.uid, ctx.paths().state.clone());
        let step = ctx.lanes().state.drive(async move {
            let done = switch(&client, live, &disks, uid, &state).await;
            let _ = reports.send(VmEvent::Snapshot(SnapshotEvent::Switched(done))).await;
        });
        self.continue_with(step, ctx);
    }

    fn finish(
        &mut self,
        live: Box<LiveCreate>,
        consistency: Consistency,
        reports: mpsc::Sender<VmEvent>,
        ctx: &Context,
    ) {
        let step = ctx.lanes().state.drive(async move {
            let done = live.finish(consistency).map_err(|error| refusal_of(&error)).map(Box::new);
            let _ = reports.send(VmEvent::Snapshot(SnapshotEvent::Finished(done))).await;
        });
        self.continue_with(step, ctx);
    }

    fn continue_with(&mut self, step: Result<OnLane, lane::Refused>, ctx: &Context) {
        match (step, &mut self.0) {
            (Ok(step), Some(active)) => active._step = Some(step),
            (Ok(_), None) => {}
            (Err(refused), _) => self.end(Err(Refusal::HostFault(refused.to_string())), ctx),
        }
    }

    /// Answers the client.
    fn end(&mut self, done: Result<Box<SnapshotRecord>, Refusal>, ctx: &Context) {
        let Some(active) = self.0.take() else { return };
        let not_frozen = match active.freeze {
            FreezeState::NotFrozen(why) => why,
            FreezeState::Wanted | FreezeState::Frozen | FreezeState::FrozenBefore => None,
        };
        let answer = done.map(|record| {
            let (kind, consistency) = (record.kind.word(), record.consistency.word());
            info!("snapshot {} created ({kind}, {consistency})", record.name);
            let data = json!({ "name": record.name, "kind": kind, "consistency": consistency });
            ctx.publish("QVM_SNAPSHOT", data);
            CreatedSnapshot {
                name: record.name.to_string(),
                kind: kind.to_owned(),
                consistency: consistency.to_owned(),
                not_frozen,
            }
        });
        if let Err(refusal) = &answer {
            warn!("no snapshot was created: {refusal}");
        }
        if let Some(reply) = active.reply {
            let _ = reply.send(answer);
        }
    }
}

/// The qemu-img beside this QEMU.
fn qemu_img_of(qemu: &Qemu) -> QemuImg {
    QemuImg::new(match &qemu.record().binary {
        Some(binary) => qemu_img_beside(binary),
        None => "qemu-img".into(),
    })
}

#[cfg(test)]
mod tests;
