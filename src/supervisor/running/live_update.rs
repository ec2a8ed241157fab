//! Applying a changed VM file to a machine that runs: one change after the other, beside the loop.

use crate::supervisor::{
    limits::{QMP_LIMIT, WRITE_LIMIT},
    refusal::qmp_refusal,
};

use tokio::sync::oneshot;
use tracing::{info, warn};

use super::hotplug::{self, Machine, Outcome};
use crate::{
    control::types::Refusal,
    machine::{
        device,
        diff::{LiveChange, applied},
    },
    value::chain,
};
use crate::{
    supervisor::{Supervisor, file_reading::AfterReading, input::Fact},
    sys::{lane::OnLane, progress::Cancel},
};

/// Who asked for it.
pub(crate) type Asker = oneshot::Sender<Result<(), Refusal>>;

/// The changes that are under way.
#[derive(Debug)]
pub(crate) struct Applying {
    /// Dropped, it ends what is being done.
    _work: OnLane,
    cancel: Cancel,
    askers: Vec<Asker>,
    /// Who asked meanwhile: the file may have changed again.
    again: Vec<Asker>,
}

impl Drop for Applying {
    fn drop(&mut self) {
        self.cancel.set();
    }
}

fn answer(askers: Vec<Asker>, said: &Result<(), Refusal>) {
    askers.into_iter().for_each(|asker| drop(asker.send(said.clone())));
}

/// What became of each change.
pub(crate) type Applied = Vec<(LiveChange, Result<Outcome, String>)>;

impl Supervisor {
    /// Begins what can be done live. Who asks is answered when all is done, or was refused.
    pub(crate) fn apply_live(&mut self, asker: Option<Asker>) {
        if let Some(applying) = &mut self.applying {
            applying.again.extend(asker);
            return;
        }
        let asked = self.pending.live();
        let Some(qemu) = self.qemu.as_ref().filter(|_| !asked.is_empty()) else {
            self.live_notes.clear();
            asker.into_iter().for_each(|asker| drop(asker.send(Ok(()))));
            return;
        };
        let cancel = Cancel::default();
        let machine = Machine {
            settings: self.settings.clone(),
            client: qemu.client.clone(),
            vm: self.written.clone(),
            cancel: cancel.clone(),
            uid: qemu.record.isolation.as_ref().and_then(|isolation| isolation.uid),
            shut_off: qemu.record.is_shut_off(),
        };
        let (facts, generation) = (self.facts.clone(), self.generation);
        let untouched = self.taps_let_go();
        let work = self.lanes.apply.drive(async move {
            untouched.await;
            let mut done: Applied = vec![];
            for change in asked {
                let result = machine.apply(&change).await.map_err(|error| {
                    let hint = error.hint().map_or_else(String::new, |hint| format!(" ({hint})"));
                    chain(&error) + &hint
                });
                done.push((change, result));
            }
            let _ = facts.send(Fact::Applied(generation, done)).await;
        });
        let work = match work {
            Ok(work) => work,
            Err(refused) => {
                let refusal = Refusal::Failed(refused.to_string());
                asker.into_iter().for_each(|asker| drop(asker.send(Err(refusal.clone()))));
                return;
            }
        };
        self.applying = Some(Applying {
            _work: work,
            cancel,
            askers: asker.into_iter().collect(),
            again: vec![],
        });
        self.retell_taps();
    }

    /// Takes down what was done, and tells what was not.
    pub(crate) fn applied(&mut self, results: Applied) {
        let Some(mut applying) = self.applying.take() else { return };
        let askers = std::mem::take(&mut applying.askers);
        let again = std::mem::take(&mut applying.again);
        self.live_notes.clear();
        let mut asked = vec![];
        for (change, result) in results {
            let key = change.key();
            match result {
                Ok(Outcome::Done) => {
                    info!("{key}: applied");
                    self.record_change(&change);
                }
                Ok(Outcome::Asked) => asked.push(change),
                Err(why) => {
                    warn!("{key}: not applied: {why}");
                    self.live_notes.push(format!("`{key}` could not be applied: {why}"));
                }
            }
        }
        drop(applying);
        self.compare();
        // A NIC more has made the VM's identity another.
        self.read_files(AfterReading::Compare);
        again.into_iter().for_each(|asker| self.read_files(AfterReading::Reload(Some(asker))));
        let written = self.lanes.run.flush();
        match asked.is_empty() {
            true => drop(self.tasks.spawn(async move {
                // A later supervisor has to know of it; what is done is done, though, where the storage hangs.
                let _ = tokio::time::timeout(WRITE_LIMIT, written).await;
                askers.into_iter().for_each(|asker| drop(asker.send(Ok(()))));
            })),
            // Who asked waits until it is known what the guest has let go of.
            false => self.settle(asked, askers),
        }
    }

    /// Records a change of the running machine that was executed.
    fn record_change(&mut self, change: &LiveChange) {
        if let LiveChange::SetMemory(size) = change {
            self.memory_target = Some(size.bytes()).filter(|_| *size != self.vm.mem);
        }
        let before = self.running.clone();
        self.running.record(change);
        if let Some(qemu) = &mut self.qemu {
            qemu.record.applied.extend(applied::entries(&before, &self.running));
            drop(self.records.write(&qemu.record));
        }
    }

    /// Asks QEMU which devices it has. A device that the guest has released, also while no supervisor was there, is removed from QEMU
    /// and from the record. Of `asked`, those that the guest still holds are noted.
    pub(crate) fn settle(&mut self, asked: Vec<LiveChange>, askers: Vec<Asker>) {
        let Some(qemu) = &self.qemu else { return };
        let disks = self.running.disks().iter().map(|disk| disk.name.clone());
        let nics = self.running.nics().iter().map(|nic| nic.name.clone());
        let known: Vec<LiveChange> =
            disks.map(LiveChange::RemoveDisk).chain(nics.map(LiveChange::RemoveNic)).collect();
        let (client, facts, generation) =
            (qemu.client.clone(), self.facts.clone(), self.generation);
        let written = self.lanes.run.flush();
        self.tasks.spawn(async move {
            let _ = tokio::time::timeout(WRITE_LIMIT, written).await;
            let there = match client.devices(QMP_LIMIT).await {
                Ok(there) => there,
                Err(error) => {
                    let refusal = qmp_refusal("list the devices of QEMU", &error);
                    answer(askers, &Err(refusal));
                    return;
                }
            };
            let is_gone = |change: &LiveChange| match change {
                LiveChange::RemoveDisk(name) => !there.contains(&device::disk_id(name)),
                LiveChange::RemoveNic(name) => !there.contains(&device::nic_id(name)),
                _ => false,
            };
            let gone: Vec<LiveChange> = known.into_iter().filter(is_gone).collect();
            for change in &gone {
                hotplug::tidy(&client, change).await;
            }
            let held = asked.into_iter().filter(|change| !is_gone(change)).collect();
            let _ = facts.send(Fact::LetGo(generation, gone, held)).await;
            answer(askers, &Ok(()));
        });
    }

    /// The guest has let go of some devices, and holds on to others.
    pub(crate) fn let_go(&mut self, gone: &[LiveChange], held: &[LiveChange]) {
        let note = |change: &LiveChange| {
            let key = change.key();
            format!(
                "`{key}`: the guest has not let go of it; it is gone when it does, or when it reboots"
            )
        };
        for change in gone {
            info!("{}: the guest has let go of it", change.key());
            self.record_change(change);
            self.live_notes.retain(|other| *other != note(change));
        }
        self.live_notes.extend(held.iter().map(note));
        self.compare();
    }

    /// Takes over from the run record how an earlier supervisor changed the machine.
    pub(crate) fn recall_applied(&mut self) {
        let Some(qemu) = &self.qemu else { return };
        let (machine, unread) = applied::machine(&self.vm, &qemu.record.applied);
        if !unread.is_empty() {
            warn!(
                "the run record has changes that this version cannot read: {}",
                unread.join(", ")
            );
        }
        self.running = machine;
        let mem = self.running.mem();
        self.memory_target = Some(mem.bytes()).filter(|_| mem != self.vm.mem);
    }
}
