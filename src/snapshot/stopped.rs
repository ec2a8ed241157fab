//! A stopped VM whose locks are held for a snapshot operation.

use super::{error::Error, settle};
use crate::{
    image::qemu_img::QemuImg,
    spec::{self, Vm},
    store::{
        identity_store,
        layout::{Layout, VmPaths},
        snapshots::Snapshots,
        vm_state,
    },
    value::VmName,
};

/// A stopped VM that cannot be started while this is held. No snapshot operation is in progress.
#[derive(Debug)]
pub struct StoppedVm {
    pub(super) vm: Vm,
    pub(super) text: String,
    pub(super) paths: VmPaths,
    pub(super) machine: Option<String>,
    pub(super) snapshots: Snapshots,
    pub(super) qemu_img: QemuImg,
    settled: Option<settle::Settled>,
    _locks: vm_state::Locks,
}

impl StoppedVm {
    /// Locks a VM, and completes or undoes an interrupted operation.
    ///
    /// # Errors
    /// The VM is not stopped or not known, its VM file is invalid, or its records cannot be used.
    pub fn lock(layout: &Layout, name: &VmName, qemu_img: QemuImg) -> Result<Self, Error> {
        let (paths, file) = (layout.vm(name), layout.vm_file(name));
        if file.symlink_metadata().is_err() {
            return Err(match paths.state.symlink_metadata() {
                Ok(_) => Error::NoFile(file),
                Err(_) => Error::NoVm(name.clone()),
            });
        }
        let locks = vm_state::down(&paths)?;
        let (vm, text) = spec::load_with_text(&file).map_err(Error::Invalid)?;
        if paths.saved().symlink_metadata().is_ok() {
            return Err(Error::Suspended);
        }
        let settled = settle::settle(&paths, &qemu_img)?;
        let machine = identity_store::read(&paths)?.map(|identity| identity.machine);
        let snapshots = Snapshots::read(&paths)?;
        Ok(Self { vm, text, paths, machine, snapshots, qemu_img, settled, _locks: locks })
    }

    /// Returns the interrupted operation that was completed or undone.
    pub fn settled(&self) -> Option<&settle::Settled> {
        self.settled.as_ref()
    }

    /// Returns the snapshots.
    pub fn snapshots(&self) -> &Snapshots {
        &self.snapshots
    }
}
