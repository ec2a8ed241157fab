//! Clones a stopped VM: copies its disks and VM file; the copy has a new identity.

use std::fs;

use super::vm_text;
use super::{
    Error, StoppedVm,
    disks::{TransferredDisk, transferred_disks},
    draft::Draft,
};
use crate::{
    disk,
    spec::{self, Vm},
    store::{
        identity_lock::{IdentityLock, Waiter},
        identity_store::{self, IdentitySource},
    },
    sys::{
        file,
        progress::{Cancel, Progress},
    },
    value::VmName,
};

/// The result of a clone.
#[derive(Debug, Clone)]
pub struct Cloned {
    /// The copy.
    pub vm: Vm,
    /// The keys that were removed from the VM file.
    pub removed_keys: Vec<String>,
    /// Whether it has disks that a guest has run from.
    pub has_run: bool,
}

/// Clones the VM `from` as `name`.
///
/// # Errors
/// `from` is not stopped, the name exists, or a disk cannot be copied; nothing is left behind then.
pub fn clone(
    identities: &IdentitySource,
    from: &VmName,
    name: &VmName,
    progress: &mut dyn Progress,
    cancel: &Cancel,
) -> Result<Cloned, Error> {
    let layout = &identities.layout;
    if from == name {
        return Err(Error::Same(name.clone()));
    }
    let source = StoppedVm::lock(layout, from)?;
    let disks = transferred_disks(&source.vm, &source.paths)?;
    let copied = vm_text::copied(&source.text, from);
    let vm = spec::read(name, &layout.vm_file(name), &copied.text, &mut |path| fs::read(path))
        .map_err(|problems| Error::WouldBeInvalid(spec::Invalid(problems)))?;
    let identity = identity_store::read(&source.paths)?;
    let draft = Draft::create(layout, name)?;
    for disk in &disks {
        copy(disk, &draft, progress, cancel)?;
    }
    if let Some(variables) = file::read(&source.paths.efi_vars())? {
        file::write(&draft.paths().efi_vars(), &variables, 0o600)?;
    }
    if let Some(old) = &identity {
        let waiter = Waiter { cancel, say: &|text| tracing::info!("{text}") };
        let _lock = IdentityLock::acquire(layout, waiter).map_err(identity_store::Error::from)?;
        let new = identity_store::new(identities, &vm, &old.machine)?;
        identity_store::write(draft.paths(), &new)?;
    }
    if cancel.is_set() {
        return Err(Error::Canceled);
    }
    draft.publish(&copied.text, source.mode)?;
    Ok(Cloned { vm, removed_keys: copied.keys, has_run: !disks.is_empty() })
}

fn copy(
    from: &TransferredDisk,
    draft: &Draft<'_>,
    progress: &mut dyn Progress,
    cancel: &Cancel,
) -> Result<(), Error> {
    let to = draft.paths().disk(&from.disk, from.format);
    let target = file::create(&to)?;
    disk::copy(&from.disk, &from.path, (&target, &to), progress, cancel)?;
    target.sync_all().map_err(file::Error::on("sync", &to))?;
    if let Some(origin) = &from.origin
        && let Some(record) = file::read(origin)?
    {
        file::write(&disk::origin_path(draft.paths(), &from.disk), &record, 0o600)?;
    }
    Ok(())
}
