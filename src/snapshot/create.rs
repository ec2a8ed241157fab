//! Creates a snapshot of a stopped VM.

use super::{error::Error, stopped::StoppedVm, switch::Work, vm_disks::Request};
use crate::store::{
    snapshot_record::{Consistency, SnapshotRecord},
    snapshots::Snapshots,
};

impl StoppedVm {
    /// Creates a snapshot. Returns its record.
    ///
    /// # Errors
    /// The name is in use, a disk cannot be part of a snapshot, or a file cannot be written; the
    /// VM is unchanged then.
    pub fn create(&mut self, request: &Request) -> Result<SnapshotRecord, Error> {
        let disks = &mut self.disks;
        let (record, switch) = disks.plan_create(request, Consistency::Stopped)?;
        let work = Work { paths: &disks.paths, qemu_img: &disks.qemu_img };
        work.perform(&mut disks.snapshots.present, switch)?;
        disks.snapshots = Snapshots::read(&disks.paths)?;
        Ok(record)
    }
}
