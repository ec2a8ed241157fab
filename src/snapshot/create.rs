//! Creates a snapshot of a stopped VM.

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::{
    error::Error,
    facts::{self, can_reflink},
    kind::{self, DiskFacts, DiskSource},
    stopped::StoppedVm,
    switch::Work,
};
use crate::{
    spec::Format,
    store::{
        layout::VmPaths,
        snapshot_record::{
            Consistency, DiskRecord, MAX_DEPTH, NextPresent, Phase, SnapshotKind, SnapshotRecord,
            Switch, SwitchPhase, SwitchedDisk, VERSION,
        },
        snapshots::Snapshots,
    },
    value::{Label, SnapshotName},
};

/// The snapshot to create.
#[derive(Debug, Clone)]
pub struct Request {
    /// Its name; `None` for one after the time.
    pub name: Option<SnapshotName>,
    /// A comment.
    pub comment: Option<String>,
    /// The time.
    pub now: Timestamp,
}

impl StoppedVm {
    /// Creates a snapshot. Returns its record.
    ///
    /// # Errors
    /// The name is in use, a disk cannot be part of a snapshot, or a file cannot be written; the
    /// VM is unchanged then.
    pub fn create(&mut self, request: &Request) -> Result<SnapshotRecord, Error> {
        let name = match &request.name {
            Some(name) if name.is_reserved() => return Err(Error::Reserved),
            Some(name) => name.clone(),
            None => SnapshotName::of_time(request.now),
        };
        let disks = facts::of_disks(&self.vm, &self.paths)?;
        let existing = self.snapshots.all.first().map(|one| one.kind);
        let can = can_reflink(&self.paths.state);
        let kind = kind::decide(existing, &disks, can, &self.paths.state)?;
        let record = SnapshotRecord {
            comment: request.comment.clone(),
            ..self.record_of_present(name, kind, request.now, &disks)?
        };
        let switched = |(disk, one): (&Label, &DiskRecord)| {
            let next = match kind {
                SnapshotKind::Reflink => NextPresent::Unchanged,
                SnapshotKind::Overlay => NextPresent::Overlay {
                    on: one.file.clone(),
                    format: one.format,
                    virtual_bytes: one.virtual_bytes,
                },
            };
            (disk.clone(), SwitchedDisk { format: one.format, kept: one.file.clone(), next })
        };
        let switch = Switch {
            phase: SwitchPhase::Preparing,
            parent: record.name.clone(),
            restores_efi_vars: false,
            disks: record.disks.iter().map(switched).collect(),
            keep: Some(record.clone()),
        };
        if kind == SnapshotKind::Overlay {
            for disk in switch.disks.keys() {
                check_depth(&self.snapshots, disk, self.backing(disk))?;
            }
        }
        let work = Work { paths: &self.paths, qemu_img: &self.qemu_img };
        work.perform(&mut self.snapshots.present, switch)?;
        self.snapshots = Snapshots::read(&self.paths)?;
        Ok(record)
    }

    /// The frozen file that the present of a disk is based on.
    pub(super) fn backing(&self, disk: &Label) -> Option<&str> {
        self.snapshots.present.backing.get(disk).map(String::as_str)
    }

    /// Returns the record of the snapshot that the present becomes.
    ///
    /// # Errors
    /// The name is in use, or a disk cannot be read.
    pub(super) fn record_of_present(
        &self,
        name: SnapshotName,
        kind: SnapshotKind,
        now: Timestamp,
        disks: &[DiskFacts],
    ) -> Result<SnapshotRecord, Error> {
        if self.snapshots.get(&name).is_some() {
            return Err(Error::Exists(name));
        }
        let mut records = BTreeMap::new();
        for (one, format) in files(disks) {
            let record = DiskRecord {
                format,
                virtual_bytes: facts::virtual_bytes(&one.disk, &one.path, format)?,
                file: SnapshotRecord::file_name(&one.disk, &name, format),
                backing: self.backing(&one.disk).map(str::to_owned),
            };
            records.insert(one.disk.clone(), record);
        }
        Ok(SnapshotRecord {
            version: VERSION,
            name,
            created_at: seconds(now),
            kind,
            consistency: Consistency::Stopped,
            phase: Phase::Complete,
            parent: self.snapshots.present.parent.clone(),
            comment: None,
            machine: self.machine.clone(),
            qemu_version: None,
            has_efi_vars: has_efi_vars(&self.paths)?,
            vm_file: self.text.clone(),
            disks: records,
            other: toml::Table::new(),
        })
    }
}

/// Returns the disks that are part of a snapshot, with their formats.
pub(super) fn files(disks: &[DiskFacts]) -> impl Iterator<Item = (&DiskFacts, Format)> {
    disks.iter().filter_map(|one| match one.source {
        DiskSource::File(format) => Some((one, format)),
        _ => None,
    })
}

/// Refuses another frozen file above `backing`.
///
/// # Errors
/// The chain would be too long, or a record is missing.
pub(super) fn check_depth(
    snapshots: &Snapshots,
    disk: &Label,
    backing: Option<&str>,
) -> Result<(), Error> {
    match snapshots.chain_from(disk, backing)?.len() {
        MAX_DEPTH.. => Err(Error::TooDeep(disk.clone())),
        _ => Ok(()),
    }
}

fn has_efi_vars(paths: &VmPaths) -> Result<bool, Error> {
    Ok(crate::sys::file::metadata(&paths.efi_vars())?.is_some())
}

/// The time in RFC 3339, to the second.
fn seconds(now: Timestamp) -> String {
    now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}
