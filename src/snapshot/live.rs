//! Creates a snapshot of a running VM, in the steps between which QEMU is changed.
//!
//! The new overlays get the names of the disks before QEMU writes to them. Until then QEMU writes
//! to the files that become frozen, so that a power failure between the two loses nothing: the
//! snapshot is only some moments younger. In the other order the guest's last writes would be in a
//! file without a name.

use std::path::PathBuf;

use super::{
    error::Error,
    switch::{Work, exclusive, sync},
    vm_disks::{Request, VmDisks},
};
use crate::{
    image::qemu_img::QemuImg,
    store::{
        layout::VmPaths,
        snapshot_record::{
            Consistency, NextPresent, SnapshotKind, SnapshotRecord, Switch, SwitchPhase,
        },
        snapshots::Snapshots,
    },
    value::{Label, SnapshotName},
};

/// A snapshot of a running VM that is being created.
#[derive(Debug)]
pub struct LiveCreate {
    disks: VmDisks,
    record: SnapshotRecord,
    /// The change of reflinks, which begins when the guest is frozen.
    waiting: Option<Switch>,
}

/// A new overlay of a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewOverlay {
    /// The disk.
    pub disk: Label,
    /// The file, which does not have its name yet.
    pub file: PathBuf,
    /// The snapshot.
    pub snapshot: SnapshotName,
}

/// A snapshot whose creation was interrupted while QEMU was running.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interrupted {
    /// The snapshot.
    pub snapshot: SnapshotName,
    /// The disks with a new overlay.
    pub disks: Vec<Label>,
}

/// Whether the vCPUs run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Guest {
    /// They run, and the guest writes.
    Running,
    /// They are stopped by an operator.
    Paused,
}

/// Whether QEMU uses new overlays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OverlayUse {
    /// The guest writes to them.
    Attached,
    /// No byte was written to them.
    Unused,
}

impl LiveCreate {
    /// Makes the new files. The caller has settled an interrupted operation.
    ///
    /// # Errors
    /// The name is in use, a disk cannot be part of a snapshot, or a file cannot be written; the
    /// VM is unchanged then.
    pub fn prepare(mut disks: VmDisks, request: &Request, guest: Guest) -> Result<Self, Error> {
        let _step = exclusive();
        let (record, switch) = disks.plan_create(request, Consistency::Paused)?;
        let waiting = match record.kind {
            SnapshotKind::Reflink if guest == Guest::Running && record.disks.len() > 1 => {
                return Err(Error::SeveralDisks);
            }
            SnapshotKind::Reflink => {
                // What is written now need not be written while the guest waits.
                for (disk, one) in &record.disks {
                    sync(&disks.paths.disk(disk, one.format))?;
                }
                Some(switch)
            }
            SnapshotKind::Overlay => {
                let VmDisks { paths, qemu_img, snapshots, .. } = &mut disks;
                Work { paths, qemu_img }.begin(&mut snapshots.present, switch)?;
                None
            }
        };
        Ok(Self { disks, record, waiting })
    }

    /// Returns the files that QEMU gets.
    pub fn overlays(&self) -> Vec<NewOverlay> {
        let VmDisks { paths, qemu_img, snapshots, .. } = &self.disks;
        let work = Work { paths, qemu_img };
        let disks = snapshots.present.switch.iter().flat_map(|switch| &switch.disks);
        let overlay = disks.map(|(disk, one)| NewOverlay {
            disk: disk.clone(),
            file: work.next_file(disk, one),
            snapshot: self.record.name.clone(),
        });
        overlay.collect()
    }

    /// Gives the new files the names of the disks, or makes the reflinks. QEMU changes to the
    /// overlays after this.
    ///
    /// # Errors
    /// A step failed; [`Self::revert`] undoes it.
    pub fn switch(&mut self) -> Result<(), Error> {
        let _step = exclusive();
        let VmDisks { paths, qemu_img, snapshots, .. } = &mut self.disks;
        let work = Work { paths, qemu_img };
        if let Some(switch) = self.waiting.take() {
            work.begin(&mut snapshots.present, switch)?;
        }
        work.start_switching(&mut snapshots.present)?;
        work.rename_all(&snapshots.present)
    }

    /// Completes the snapshot, after QEMU has changed to the overlays.
    ///
    /// # Errors
    /// A record cannot be written. The next operation or start completes it.
    pub fn finish(mut self, consistency: Consistency) -> Result<SnapshotRecord, Error> {
        let _step = exclusive();
        let VmDisks { paths, qemu_img, snapshots, .. } = &mut self.disks;
        self.record.consistency = consistency;
        if let Some(keep) = snapshots.present.switch.as_mut().and_then(|one| one.keep.as_mut()) {
            keep.consistency = consistency;
        }
        Work { paths, qemu_img }.complete(&mut snapshots.present)?;
        Ok(self.record)
    }

    /// Undoes everything. QEMU has not changed to the overlays.
    ///
    /// # Errors
    /// A step failed. The next operation or start completes it.
    pub fn revert(mut self) -> Result<(), Error> {
        let _step = exclusive();
        let VmDisks { paths, qemu_img, snapshots, .. } = &mut self.disks;
        match snapshots.present.switch {
            Some(_) => Work { paths, qemu_img }.revert(&mut snapshots.present),
            None => Ok(()),
        }
    }
}

/// Undoes an interrupted operation that QEMU was not part of. Returns one that may have changed
/// QEMU: [`resolve`] ends it.
///
/// # Errors
/// The records cannot be used, or a step failed.
pub fn interrupted(paths: &VmPaths, qemu_img: &QemuImg) -> Result<Option<Interrupted>, Error> {
    let _step = exclusive();
    let mut all = Snapshots::read(paths)?;
    let work = Work { paths, qemu_img };
    let Some(switch) = &all.present.switch else { return Ok(None) };
    match switch.phase {
        SwitchPhase::Preparing => work.undo(&mut all.present).map(|()| None),
        SwitchPhase::Reverting => work.revert(&mut all.present).map(|()| None),
        SwitchPhase::Switching => {
            let is_overlay = |next: &NextPresent| matches!(next, NextPresent::Overlay { .. });
            let disks = switch.disks.iter().filter(|(_, one)| is_overlay(&one.next));
            let disks: Vec<Label> = disks.map(|(disk, _)| disk.clone()).collect();
            Ok(Some(Interrupted { snapshot: switch.parent.clone(), disks }))
        }
    }
}

/// Completes the interrupted operation if QEMU uses the overlays, else undoes it.
///
/// # Errors
/// A step failed.
pub fn resolve(paths: &VmPaths, qemu_img: &QemuImg, overlays: OverlayUse) -> Result<(), Error> {
    let _step = exclusive();
    let mut all = Snapshots::read(paths)?;
    let work = Work { paths, qemu_img };
    match overlays {
        OverlayUse::Attached => work.complete(&mut all.present),
        OverlayUse::Unused => work.revert(&mut all.present),
    }
}
