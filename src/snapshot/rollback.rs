//! Returns the disks of a stopped VM to a snapshot.

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::{
    create::{check_depth, files},
    error::Error,
    facts,
    stopped::StoppedVm,
    switch::Work,
};
use crate::{
    store::{
        snapshot_record::{
            NextPresent, Phase, SnapshotKind, Switch, SwitchPhase, SwitchedDisk, discarded_name,
        },
        snapshots::Snapshots,
    },
    value::{Label, SnapshotName},
};

/// What happens to the present at a rollback.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Now {
    /// It becomes a snapshot.
    Keep,
    /// It is deleted.
    Discard,
}

/// The result of a rollback.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RolledBack {
    /// The snapshot that has the content of before.
    pub kept: Option<SnapshotName>,
    /// The disks of the VM file that are unchanged: the snapshot does not have them.
    pub unchanged: Vec<Label>,
    /// The disks of the snapshot that the VM file does not have.
    pub left_out: Vec<Label>,
    /// The VM file differs from that of the snapshot.
    pub vm_file_differs: bool,
}

impl StoppedVm {
    /// Returns to a snapshot. The VM file is not changed.
    ///
    /// # Errors
    /// The snapshot cannot be used, or a file cannot be written; the VM is unchanged then.
    pub fn rollback(
        &mut self,
        to: &SnapshotName,
        now: Timestamp,
        present: Now,
    ) -> Result<RolledBack, Error> {
        let target = self.snapshots.get(to).cloned().ok_or_else(|| Error::NotFound(to.clone()))?;
        if target.phase == Phase::Removing {
            return Err(Error::Removing(to.clone()));
        }
        let disks = facts::of_disks(&self.vm, &self.paths)?;
        let mut keep = self.record_of_present(self.free_name(now), target.kind, now, &disks)?;
        let unchanged = keep.disks.keys().filter(|disk| !target.disks.contains_key(*disk));
        let unchanged: Vec<Label> = unchanged.cloned().collect();
        keep.disks.retain(|disk, _| target.disks.contains_key(disk));
        let left_out = target.disks.keys().filter(|disk| !keep.disks.contains_key(*disk));
        let left_out: Vec<Label> = left_out.cloned().collect();
        if keep.disks.is_empty() {
            return Err(Error::NoCommonDisk(to.clone()));
        }
        let mut switched = BTreeMap::new();
        for (one, format) in files(&disks) {
            let (Some(then), Some(kept)) = (target.disks.get(&one.disk), keep.disks.get(&one.disk))
            else {
                continue;
            };
            if then.format != format {
                let (now, then) = (format.name(), then.format.name());
                return Err(Error::OtherFormat { disk: one.disk.clone(), now, then });
            }
            let file = self.paths.state.join(&then.file);
            facts::virtual_bytes(&one.disk, &file, format)?;
            let next = match target.kind {
                SnapshotKind::Reflink => NextPresent::Reflink { of: then.file.clone() },
                SnapshotKind::Overlay => {
                    check_depth(&self.snapshots, &one.disk, then.backing.as_deref())?;
                    NextPresent::Overlay {
                        on: then.file.clone(),
                        format: then.format,
                        virtual_bytes: then.virtual_bytes,
                    }
                }
            };
            let kept = match present {
                Now::Keep => kept.file.clone(),
                Now::Discard => discarded_name(&one.disk, format),
            };
            switched.insert(one.disk.clone(), SwitchedDisk { format, kept, next });
        }
        let kept = (present == Now::Keep).then(|| keep.name.clone());
        let switch = Switch {
            phase: SwitchPhase::Preparing,
            keep: (present == Now::Keep).then_some(keep),
            parent: to.clone(),
            restores_efi_vars: target.has_efi_vars,
            disks: switched,
        };
        let work = Work { paths: &self.paths, qemu_img: &self.qemu_img };
        work.perform(&mut self.snapshots.present, switch)?;
        self.snapshots = Snapshots::read(&self.paths)?;
        let vm_file_differs = target.vm_file != self.text;
        Ok(RolledBack { kept, unchanged, left_out, vm_file_differs })
    }

    /// A name for the present that no snapshot has.
    fn free_name(&self, now: Timestamp) -> SnapshotName {
        let first = SnapshotName::before_rollback(now);
        let numbered = |number: u32| match number {
            1 => Some(first.clone()),
            _ => format!("{first}.{number}").parse().ok(),
        };
        let is_free = |name: &SnapshotName| self.snapshots.get(name).is_none();
        (1..).filter_map(numbered).find(is_free).unwrap_or(first)
    }
}
