//! Changes what the present of a VM's disks is: in steps that can be undone until all new files are
//! complete, and only be completed after that.
//!
//! In `Preparing`, the present files keep their names; new files have other names, and each present
//! file gets a second name. In `Switching`, each new file replaces its present name. Whether that
//! has happened is visible: before it, both names are of one file.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use super::error::Error;
use crate::{
    image::qemu_img::QemuImg,
    store::{
        layout::VmPaths,
        snapshot_record::{NextPresent, Present, Switch, SwitchPhase, SwitchedDisk},
        snapshots,
    },
    sys::{file, reflink},
    value::{Label, Size},
};

/// The mode of a frozen file: nobody may write to it.
pub(crate) const FROZEN: u32 = 0o400;
/// The mode of a present file.
pub(crate) const PRESENT: u32 = 0o600;

/// The files of a switch.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Work<'a> {
    pub(crate) paths: &'a VmPaths,
    pub(crate) qemu_img: &'a QemuImg,
}

/// Where the files of a disk are.
struct Names {
    /// The present.
    live: PathBuf,
    /// The second name of the present content.
    kept: PathBuf,
    /// The new present until it gets its name.
    next: PathBuf,
}

impl Work<'_> {
    fn names(&self, disk: &Label, one: &SwitchedDisk) -> Names {
        let live = self.paths.disk(disk, one.format);
        let next = file::temporary_under_lock(&live);
        Names { kept: self.beside(&one.kept), live, next }
    }

    fn beside(&self, name: &str) -> PathBuf {
        self.paths.state.join(name)
    }

    /// Performs a change of the present. The caller holds the locks of the stopped VM.
    ///
    /// # Errors
    /// A step failed. The change is undone, or completed by the next operation.
    pub(crate) fn perform(&self, present: &mut Present, switch: Switch) -> Result<(), Error> {
        for (disk, one) in &switch.disks {
            let kept = self.names(disk, one).kept;
            if identity(&kept)?.is_some() {
                return Err(Error::FileExists(kept));
            }
        }
        present.switch = Some(Switch { phase: SwitchPhase::Preparing, ..switch });
        snapshots::write_present(self.paths, present)?;
        if let Err(error) = self.prepare(present) {
            if let Err(undo) = self.undo(present) {
                tracing::warn!("cannot undo the snapshot operation: {undo}");
            }
            return Err(error);
        }
        if let Some(switch) = &mut present.switch {
            switch.phase = SwitchPhase::Switching;
        }
        snapshots::write_present(self.paths, present)?;
        self.complete(present)
    }

    /// Makes all new files, and syncs them.
    fn prepare(&self, present: &Present) -> Result<(), Error> {
        let Some(switch) = &present.switch else { return Ok(()) };
        if let Some(keep) = switch.keep.as_ref().filter(|keep| keep.has_efi_vars)
            && let Some(variables) = file::read(&self.paths.efi_vars())?
        {
            file::make_dir(&self.paths.snapshots())?;
            file::write(&self.paths.snapshot_efi_vars(&keep.name), &variables, FROZEN)?;
        }
        for (disk, one) in &switch.disks {
            let names = self.names(disk, one);
            sync(&names.live)?;
            match one.next {
                NextPresent::Unchanged => {
                    let new = file::temporary_under_lock(&names.kept);
                    clone_file(&names.live, &new)?;
                    fs::rename(&new, &names.kept)
                        .map_err(file::Error::on("rename to", &names.kept))?;
                }
                NextPresent::Reflink { .. } | NextPresent::Overlay { .. } => {
                    fs::hard_link(&names.live, &names.kept)
                        .map_err(|source| Error::Link { path: names.live.clone(), source })?;
                    self.make_next(disk, one, &names.next)?;
                }
            }
        }
        Ok(file::sync_dir(&self.paths.present())?)
    }

    /// Makes the new present of a disk under its temporary name.
    fn make_next(&self, disk: &Label, one: &SwitchedDisk, next: &Path) -> Result<(), Error> {
        match &one.next {
            NextPresent::Unchanged => Ok(()),
            NextPresent::Reflink { of } => clone_file(&self.beside(of), next),
            NextPresent::Overlay { on, format, virtual_bytes } => {
                drop(file::create(next)?);
                let size = Size::from_bytes(*virtual_bytes);
                let made = self.qemu_img.create_overlay(next, size, (Path::new(on), *format));
                made.map_err(|source| Error::QemuImg { disk: disk.clone(), source })?;
                sync(next)
            }
        }
    }

    /// Undoes a change that is being prepared: the present files were not touched.
    ///
    /// # Errors
    /// A file is not as the change left it, or cannot be removed.
    pub(crate) fn undo(&self, present: &mut Present) -> Result<(), Error> {
        let Some(switch) = &present.switch else { return Ok(()) };
        for (disk, one) in &switch.disks {
            let Names { live, kept, next } = self.names(disk, one);
            let unexpected = |why| Err(Error::Unexpected { path: live.clone(), why });
            match (identity(&live)?, identity(&kept)?) {
                (None, _) => return unexpected("does not exist"),
                // The second name of the present, or else a reflink of it.
                (Some(one), Some(other)) if one == other => {}
                (Some(_), Some(_)) if one.next == NextPresent::Unchanged => {}
                (Some(_), Some(_)) => return unexpected("was replaced"),
                (Some(_), None) => {}
            }
            file::remove(&file::temporary_under_lock(&kept))?;
            file::remove(&next)?;
            file::remove(&kept)?;
        }
        if let Some(keep) = &switch.keep {
            file::remove(&self.paths.snapshot_efi_vars(&keep.name))?;
        }
        file::sync_dir(&self.paths.present())?;
        present.switch = None;
        Ok(snapshots::write_present(self.paths, present)?)
    }

    /// Completes a change whose files were complete. Each step can be repeated.
    ///
    /// # Errors
    /// A file is not as the change left it, or a step failed.
    pub(crate) fn complete(&self, present: &mut Present) -> Result<(), Error> {
        let Some(switch) = &present.switch else { return Ok(()) };
        for (disk, one) in &switch.disks {
            self.complete_disk(disk, one, switch.keep.is_some())?;
        }
        file::sync_dir(&self.paths.present())?;
        if let Some(keep) = &switch.keep {
            snapshots::write(self.paths, keep)?;
        }
        if switch.restores_efi_vars
            && let Some(variables) = file::read(&self.paths.snapshot_efi_vars(&switch.parent))?
        {
            file::write(&self.paths.efi_vars(), &variables, PRESENT)?;
        }
        if switch.keep.is_none() {
            for (disk, one) in &switch.disks {
                file::remove(&self.names(disk, one).kept)?;
            }
            file::sync_dir(&self.paths.present())?;
        }
        let mut next = Present { switch: None, ..present.clone() };
        next.parent = Some(switch.parent.clone());
        for (disk, one) in &switch.disks {
            match &one.next {
                NextPresent::Overlay { on, .. } => {
                    next.backing.insert(disk.clone(), on.clone());
                }
                NextPresent::Reflink { .. } | NextPresent::Unchanged => {
                    next.backing.remove(disk);
                }
            }
        }
        snapshots::write_present(self.paths, &next)?;
        *present = next;
        Ok(())
    }

    /// Gives the new present of a disk its name.
    fn complete_disk(&self, disk: &Label, one: &SwitchedDisk, keeps: bool) -> Result<(), Error> {
        let Names { live, kept, next } = self.names(disk, one);
        let unexpected = |path: &Path, why| Err(Error::Unexpected { path: path.to_owned(), why });
        match (identity(&live)?, identity(&kept)?) {
            (None, _) => return unexpected(&live, "does not exist"),
            // A discarded present was removed in the last step.
            (Some(_), None) if !keeps => return Ok(()),
            (Some(_), None) => return unexpected(&kept, "does not exist"),
            (Some(now), Some(old)) if now == old => {
                if identity(&next)?.is_none() {
                    self.make_next(disk, one, &next)?;
                }
                fs::rename(&next, &live).map_err(file::Error::on("rename to", &live))?;
                file::sync_dir(&live)?;
            }
            (Some(_), Some(_)) => {}
        }
        Ok(file::set_mode(&kept, FROZEN)?)
    }
}

/// The device and inode of a file; `None` if it does not exist. Links are not followed.
fn identity(path: &Path) -> Result<Option<(u64, u64)>, Error> {
    match path.symlink_metadata() {
        Ok(found) => Ok(Some((found.dev(), found.ino()))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(file::Error::on("examine", path)(error).into()),
    }
}

/// Writes the content of a file to its storage.
pub(crate) fn sync(path: &Path) -> Result<(), Error> {
    let synced = File::open(path).and_then(|file| file.sync_all());
    Ok(synced.map_err(file::Error::on("sync", path))?)
}

/// Makes `to` a synced reflink of `from`, with the mode of a present file.
fn clone_file(from: &Path, to: &Path) -> Result<(), Error> {
    let source = File::open(from).map_err(file::Error::on("open", from))?;
    let target = file::create(to)?;
    let cloned = reflink::reflink(&source, &target).map_err(file::Error::on("write", to))?;
    if !cloned {
        file::remove(to)?;
        return Err(Error::NoReflink(from.to_owned()));
    }
    Ok(target.sync_all().map_err(file::Error::on("sync", to))?)
}
