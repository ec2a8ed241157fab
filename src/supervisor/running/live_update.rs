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
        facets::{DISKS, Facets, MEM, NICS},
        live::Change,
    },
    value::{Label, chain},
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
    /// What was written when they began.
    written: Facets,
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
pub(crate) type Applied = Vec<(Change, Result<Outcome, String>)>;

impl Supervisor {
    /// Begins what can be done live. Who asks is answered when all is done, or was refused.
    pub(crate) fn apply_live(&mut self, asker: Option<Asker>) {
        if let Some(applying) = &mut self.applying {
            applying.again.extend(asker);
            return;
        }
        let asked: Vec<Change> =
            self.pending.iter().filter_map(|one| Change::of(one, &self.written)).collect();
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
            written: self.facets_written(),
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
                    self.take_down(&change, &applying.written);
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

    /// What runs has changed.
    fn take_down(&mut self, change: &Change, written: &Facets) {
        if let Change::Memory(size) = change {
            self.memory_target = Some(size.bytes()).filter(|_| *size != self.vm.mem);
        }
        let done = change.done(&self.running, written);
        for (key, value) in &done {
            self.running.set(key.as_str(), value.clone());
        }
        if let Some(qemu) = &mut self.qemu {
            qemu.record.applied.extend(done);
            drop(self.records.write(&qemu.record));
        }
    }

    /// Asks QEMU which devices it has. A device that the guest has released, also while no supervisor was there, is removed from QEMU
    /// and from the record. Of `asked`, those that the guest still holds are noted.
    pub(crate) fn settle(&mut self, asked: Vec<Change>, askers: Vec<Asker>) {
        let Some(qemu) = &self.qemu else { return };
        let labels = |kind| {
            self.running.names(kind).into_iter().filter_map(|name| name.parse::<Label>().ok())
        };
        let known: Vec<Change> = labels(DISKS)
            .map(Change::RemoveDisk)
            .chain(labels(NICS).map(Change::RemoveNic))
            .collect();
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
            let is_gone = |change: &Change| match change {
                Change::RemoveDisk(name) => !there.contains(&device::disk_id(name)),
                Change::RemoveNic(name) => !there.contains(&device::nic_id(name)),
                _ => false,
            };
            let gone: Vec<Change> = known.into_iter().filter(is_gone).collect();
            for change in &gone {
                hotplug::tidy(&client, change).await;
            }
            let held = asked.into_iter().filter(|change| !is_gone(change)).collect();
            let _ = facts.send(Fact::LetGo(generation, gone, held)).await;
            answer(askers, &Ok(()));
        });
    }

    /// The guest has let go of some devices, and holds on to others.
    pub(crate) fn let_go(&mut self, gone: &[Change], held: &[Change]) {
        let note = |change: &Change| {
            let key = change.key();
            format!(
                "`{key}`: the guest has not let go of it; it is gone when it does, or when it reboots"
            )
        };
        for change in gone {
            info!("{}: the guest has let go of it", change.key());
            self.take_down(change, &Facets::default());
            self.live_notes.retain(|other| *other != note(change));
        }
        self.live_notes.extend(held.iter().map(note));
        self.compare();
    }

    /// What an earlier supervisor has done to the machine.
    pub(crate) fn recall_applied(&mut self) {
        let Some(qemu) = &self.qemu else { return };
        for (key, value) in &qemu.record.applied {
            self.running.set(key.as_str(), value.clone());
        }
        let mem = self.running.get(MEM).and_then(|text| text.parse::<crate::value::Size>().ok());
        self.memory_target = mem.filter(|size| *size != self.vm.mem).map(|size| size.bytes());
    }

    /// Devices were plugged in or out since QEMU was started: no other QEMU could be started like it.
    pub(crate) fn is_replugged(&self) -> bool {
        let applied = self.qemu.as_ref().map(|qemu| &qemu.record.applied);
        applied.is_some_and(|applied| applied.keys().any(|key| key == DISKS || key == NICS))
    }
}
