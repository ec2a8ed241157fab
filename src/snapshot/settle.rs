//! Completes or undoes an operation that was interrupted, before the disks are used again.

use std::path::Path;

use super::{error::Error, merged, switch::Work};
use crate::{
    image::qemu_img::QemuImg,
    store::{
        layout::VmPaths,
        snapshot_record::{Phase, SwitchPhase},
        snapshots::{self, Snapshots},
    },
};

/// What was done with an interrupted operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Settled {
    /// The present is as before it.
    Undone,
    /// The operation is complete.
    Completed,
}

impl Settled {
    /// Returns the sentence for the operator.
    pub const fn text(&self) -> &'static str {
        match self {
            Self::Undone => "an interrupted snapshot operation was undone",
            Self::Completed => "an interrupted snapshot operation was completed",
        }
    }
}

/// Completes or undoes the interrupted operation of a VM, if there is one. The caller holds the
/// locks of the VM, which is stopped.
///
/// A removal whose files are still to be merged is not completed, which may take long: its disks
/// are usable, and `qvm snapshot rm` continues it.
///
/// # Errors
/// The records cannot be used, or a step failed. The disks must not be used then.
pub fn settle(paths: &VmPaths, qemu_img: &QemuImg) -> Result<Option<Settled>, Error> {
    if !exists(&paths.present()) && !exists(&paths.snapshots()) {
        return Ok(None);
    }
    let mut all = Snapshots::read(paths)?;
    let work = Work { paths, qemu_img };
    let mut settled = None;
    match all.present.switch.as_ref().map(|switch| switch.phase) {
        Some(SwitchPhase::Preparing) => {
            work.undo(&mut all.present)?;
            settled = Some(Settled::Undone);
        }
        Some(SwitchPhase::Switching) => {
            work.complete(&mut all.present)?;
            all = Snapshots::read(paths)?;
            settled = Some(Settled::Completed);
        }
        None => {}
    }
    let removed: Vec<_> = all.all.iter().filter(|one| one.phase == Phase::Removing).collect();
    for name in removed.into_iter().map(|one| one.name.clone()).collect::<Vec<_>>() {
        merged::settle_files(paths, &mut all, &name)?;
        if all.get(&name).is_some_and(|one| one.disks.is_empty()) {
            merged::forget(paths, &mut all, &name)?;
            settled = Some(Settled::Completed);
        }
    }
    Ok(settled)
}

fn exists(path: &Path) -> bool {
    // What cannot be examined is read, and fails there.
    !matches!(path.symlink_metadata(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound)
}

/// Returns true if the records of a VM name a snapshot operation in progress. For verbs that only
/// read.
///
/// # Errors
/// The records cannot be used.
pub fn is_pending(paths: &VmPaths) -> Result<bool, snapshots::Error> {
    Ok(Snapshots::read(paths)?.present.switch.is_some())
}
