//! Removes a snapshot of a stopped VM: a file that nothing is based on is deleted; else the only
//! file that is based on it is merged into it, and it gets that file's name.
//!
//! Merging writes to the removed snapshot's file, so its record is `removing` first. Until the
//! rename, the file above reads as before: everything that it has not itself is unchanged below.

use std::{fs, path::Path};

use super::{
    error::Error,
    facts,
    merged::{forget, settle_files},
    stopped::StoppedVm,
    switch,
};
use crate::{
    disk,
    spec::Format,
    store::{
        snapshot_record::{DiskRecord, Phase, SnapshotKind, SnapshotRecord},
        snapshots::{self, Child},
    },
    sys::{
        file,
        progress::{At, Cancel, Doing, Progress},
    },
    value::{Label, SnapshotName},
};

/// What is to be done with a disk of the snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    Delete,
    Merge(Child),
}

impl StoppedVm {
    /// Removes a snapshot, or completes its removal.
    ///
    /// # Errors
    /// More than one file is based on it, or a step failed. A canceled or failed removal leaves the
    /// VM usable, and is completed by another call.
    pub fn remove(
        &mut self,
        name: &SnapshotName,
        progress: &mut dyn Progress,
        cancel: &Cancel,
    ) -> Result<(), Error> {
        let record = self.snapshots.get(name).cloned();
        let record = record.ok_or_else(|| Error::NotFound(name.clone()))?;
        // Everything that can be refused is refused before the first change.
        for (disk, one) in &record.disks {
            let step = self.step(&record.name, disk, one)?;
            if let Step::Merge(child) = step {
                let files = self.merged_files(disk, one, &child)?;
                let files: Vec<_> = files.iter().map(|(path, format)| (path, *format)).collect();
                facts::check_chain(disk, &files)?;
            }
        }
        if record.phase == Phase::Complete {
            self.change(name, |record| record.phase = Phase::Removing)?;
        }
        for (disk, one) in &record.disks {
            match self.step(name, disk, one)? {
                Step::Delete => file::remove(&self.paths.state.join(&one.file))?,
                Step::Merge(child) => self.merge(disk, one, &child, progress, cancel)?,
            }
            file::sync_dir(&self.paths.present())?;
            settle_files(&self.paths, &mut self.snapshots, name)?;
        }
        forget(&self.paths, &mut self.snapshots, name)
    }

    fn change(
        &mut self,
        name: &SnapshotName,
        change: impl FnOnce(&mut SnapshotRecord),
    ) -> Result<(), Error> {
        if let Some(record) = self.snapshots.all.iter_mut().find(|one| one.name == *name) {
            change(record);
            snapshots::write(&self.paths, record)?;
        }
        Ok(())
    }

    fn step(&self, name: &SnapshotName, disk: &Label, one: &DiskRecord) -> Result<Step, Error> {
        let kind = self.snapshots.get(name).map(|record| record.kind);
        if kind == Some(SnapshotKind::Reflink) {
            return Ok(Step::Delete);
        }
        let mut children = self.snapshots.children(disk, &one.file);
        match (children.len(), children.pop()) {
            (1, Some(child)) => Ok(Step::Merge(child)),
            (0, _) => Ok(Step::Delete),
            (_, last) => {
                children.extend(last);
                let word = |child: Child| match child {
                    Child::Present => "the present".to_owned(),
                    Child::Snapshot(name) => format!("the snapshot `{name}`"),
                };
                Err(Error::InUse {
                    disk: disk.clone(),
                    snapshot: name.clone(),
                    children: children.into_iter().map(word).collect(),
                })
            }
        }
    }

    /// The files of a merge: the upper one, the removed one, and those below.
    fn merged_files(
        &self,
        disk: &Label,
        one: &DiskRecord,
        child: &Child,
    ) -> Result<Vec<(std::path::PathBuf, Format)>, Error> {
        let beside = |name: &str| self.paths.state.join(name);
        let upper = match child {
            Child::Present => (self.paths.disk(disk, Format::Qcow2), Format::Qcow2),
            Child::Snapshot(name) => {
                let record = self.snapshots.get(name).and_then(|record| record.disks.get(disk));
                let record = record.ok_or_else(|| Error::NotFound(name.clone()))?;
                (beside(&record.file), record.format)
            }
        };
        let below = self.snapshots.chain_from(disk, one.backing.as_deref())?;
        let mut all = vec![upper, (beside(&one.file), one.format)];
        all.extend(below.into_iter().map(|one| (beside(&one.file), one.format)));
        if let Some(base) = disk::made(disk, &self.paths)?.and_then(|made| made.base) {
            let format = disk::backing::format_of(disk, &base)?;
            all.push((base, format));
        }
        Ok(all)
    }

    fn merge(
        &self,
        disk: &Label,
        one: &DiskRecord,
        child: &Child,
        progress: &mut dyn Progress,
        cancel: &Cancel,
    ) -> Result<(), Error> {
        let files = self.merged_files(disk, one, child)?;
        let chain: Vec<(&Path, Format)> =
            files.iter().map(|(path, format)| (path.as_path(), *format)).collect();
        let [(upper, _), (lower, _), ..] = chain[..] else { return Ok(()) };
        file::set_mode(lower, switch::PRESENT)?;
        let mut goes_on = || {
            let what = disk.as_str();
            progress.at(&At { doing: Doing::Merging, what, done: 0, total: None });
            !cancel.is_set()
        };
        let merged = self.qemu_img.commit(&chain, &mut goes_on);
        merged.map_err(|source| Error::QemuImg { disk: disk.clone(), source })?;
        switch::sync(lower)?;
        if let Child::Snapshot(_) = child {
            file::set_mode(lower, switch::FROZEN)?;
        }
        Ok(fs::rename(lower, upper).map_err(file::Error::on("rename to", upper))?)
    }
}
