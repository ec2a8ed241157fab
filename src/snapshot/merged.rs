//! Updates the records of snapshots after the files of a removed one are merged or deleted.

use super::error::Error;
use crate::{
    store::{
        layout::VmPaths,
        snapshots::{self, Child, Snapshots},
    },
    sys::file,
    value::SnapshotName,
};

/// Takes the files of a removed snapshot that no longer exist out of the records: what was based on
/// such a file now is that file, and is based on what was below.
///
/// # Errors
/// A record cannot be written.
pub(crate) fn settle_files(
    paths: &VmPaths,
    all: &mut Snapshots,
    name: &SnapshotName,
) -> Result<(), Error> {
    let Some(record) = all.get(name).cloned() else { return Ok(()) };
    for (disk, gone) in &record.disks {
        let path = paths.state.join(&gone.file);
        match path.symlink_metadata() {
            Ok(_) => continue,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(file::Error::on("examine", &path)(error).into()),
        }
        for child in all.children(disk, &gone.file) {
            match child {
                Child::Present => {
                    match &gone.backing {
                        Some(below) => all.present.backing.insert(disk.clone(), below.clone()),
                        None => all.present.backing.remove(disk),
                    };
                    snapshots::write_present(paths, &all.present)?;
                }
                Child::Snapshot(child) => {
                    let upper = all.all.iter_mut().find(|one| one.name == child);
                    if let Some(upper) = upper
                        && let Some(one) = upper.disks.get_mut(disk)
                    {
                        one.backing.clone_from(&gone.backing);
                        snapshots::write(paths, upper)?;
                    }
                }
            }
        }
        if let Some(record) = all.all.iter_mut().find(|one| one.name == *name) {
            record.disks.remove(disk);
            snapshots::write(paths, record)?;
        }
    }
    Ok(())
}

/// Removes the record of a snapshot without files.
///
/// # Errors
/// A record cannot be written or removed.
pub(crate) fn forget(
    paths: &VmPaths,
    all: &mut Snapshots,
    name: &SnapshotName,
) -> Result<(), Error> {
    let parent = all.get(name).and_then(|one| one.parent.clone());
    for one in all.all.iter_mut().filter(|one| one.parent.as_ref() == Some(name)) {
        one.parent.clone_from(&parent);
        snapshots::write(paths, one)?;
    }
    if all.present.parent.as_ref() == Some(name) {
        all.present.parent = parent;
        snapshots::write_present(paths, &all.present)?;
    }
    snapshots::remove(paths, name)?;
    all.all.retain(|one| one.name != *name);
    Ok(())
}
