//! The frozen files of snapshots below a disk, from the records of the snapshots.

use super::error::Error;
use crate::{
    machine::disk_file::Backing,
    store::{layout::VmPaths, snapshots::Snapshots},
    value::Label,
};

/// Returns the frozen files below a disk of qvm, the nearest first.
///
/// # Errors
/// The records cannot be used.
pub fn frozen(disk: &Label, vm: &VmPaths) -> Result<Vec<Backing>, Error> {
    let snapshots = read(disk, vm)?;
    let chain = snapshots.chain(disk);
    let chain = chain.map_err(|source| Error::Snapshots { disk: disk.clone(), source })?;
    let backing = |one: &crate::store::snapshot_record::DiskRecord| Backing {
        path: vm.state.join(&one.file),
        format: one.format,
    };
    Ok(chain.into_iter().map(backing).collect())
}

/// Returns the name of the frozen file that the header of a disk must have as its backing file.
/// `None` without one, and during an operation that changes it.
///
/// # Errors
/// The records cannot be used.
pub(crate) fn expected(disk: &Label, vm: &VmPaths) -> Result<Option<String>, Error> {
    let present = read(disk, vm)?.present;
    Ok(match present.switch {
        Some(_) => None,
        None => present.backing.get(disk).cloned(),
    })
}

fn read(disk: &Label, vm: &VmPaths) -> Result<Snapshots, Error> {
    Snapshots::read(vm).map_err(|source| Error::Snapshots { disk: disk.clone(), source })
}
