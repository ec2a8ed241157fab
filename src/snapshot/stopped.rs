//! A stopped VM whose locks are held for a snapshot operation.

use super::{error::Error, settle, vm_disks::VmDisks};
use crate::{
    image::qemu_img::QemuImg,
    spec,
    store::{identity_store, layout::Layout, snapshots::Snapshots, vm_state},
    sys::file,
    value::VmName,
};

/// A stopped VM that cannot be started while this is held. No snapshot operation is in progress.
#[derive(Debug)]
pub struct StoppedVm {
    pub(super) disks: VmDisks,
    settled: Option<settle::Settled>,
    _locks: vm_state::Locks,
}

impl StoppedVm {
    /// Locks a VM, and completes or undoes an interrupted operation.
    ///
    /// # Errors
    /// The VM is not stopped or not known, its VM file is invalid, or its records cannot be used.
    pub fn lock(layout: &Layout, name: &VmName, qemu_img: QemuImg) -> Result<Self, Error> {
        let (paths, vm_file) = (layout.vm(name), layout.vm_file(name));
        if !file::exists(&vm_file)? {
            return Err(match file::exists(&paths.state)? {
                true => Error::NoFile(vm_file),
                false => Error::NoVm(name.clone()),
            });
        }
        let locks = vm_state::down(&paths)?;
        let (vm, text) = spec::load_with_text(&vm_file).map_err(Error::Invalid)?;
        if file::exists(&paths.saved())? {
            return Err(Error::Suspended);
        }
        let settled = settle::settle(&paths, &qemu_img)?;
        let machine = identity_store::read(&paths)?.map(|identity| identity.machine);
        let snapshots = Snapshots::read(&paths)?;
        let qemu_version = None;
        let disks = VmDisks { vm, text, paths, machine, qemu_version, snapshots, qemu_img };
        Ok(Self { disks, settled, _locks: locks })
    }

    /// Returns the interrupted operation that was completed or undone.
    pub fn settled(&self) -> Option<&settle::Settled> {
        self.settled.as_ref()
    }

    /// Returns the snapshots.
    pub fn snapshots(&self) -> &Snapshots {
        &self.disks.snapshots
    }
}
