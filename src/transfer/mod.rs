//! Renames, clones, exports and imports VMs.
//!
//! Each operation requires a stopped VM, holds its locks, and checks everything that can be refused
//! before the first change.

pub mod archive;
pub mod archive_format;
pub mod clone;
pub(crate) mod disks;
pub(crate) mod draft;
pub(crate) mod error;
pub mod export;
pub mod import;
pub mod import_request;
pub mod rename;
pub(crate) mod unpack;
pub mod vm_text;

use std::{os::unix::fs::PermissionsExt, path::Path};

pub use self::error::Error;

use crate::{
    snapshot,
    spec::{self, Disk, Origin, Source, Vm},
    store::{
        layout::{Layout, VmPaths},
        vm_state,
    },
    sys::file,
    value::VmName,
};

/// A stopped VM whose locks are held.
#[derive(Debug)]
struct StoppedVm {
    vm: Vm,
    text: String,
    /// The permissions of its VM file.
    mode: u32,
    paths: VmPaths,
    _locks: vm_state::Locks,
}

impl StoppedVm {
    /// Locks a VM that has a valid VM file.
    fn lock(layout: &Layout, name: &VmName) -> Result<Self, Error> {
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
        if snapshot::settle::is_pending(&paths)? {
            return Err(Error::SnapshotPending);
        }
        let mode =
            file::metadata(&vm_file)?.map_or(0o640, |meta| meta.permissions().mode() & 0o777);
        Ok(Self { vm, text, mode, paths, _locks: locks })
    }
}

/// Returns the file of the host that is a disk, or that it is created from.
fn host_file(disk: &Disk) -> Option<&Path> {
    match &disk.source {
        Source::File(path) | Source::Device(path) => Some(path),
        Source::Image(image) => match &image.origin {
            Origin::Path(path) => Some(path),
            Origin::Http(_) => None,
        },
        Source::Blank | Source::Existing => None,
    }
}

/// Returns the files of the host that a VM file refers to.
fn host_files(vm: &Vm) -> impl Iterator<Item = &Path> {
    let user_data = vm.cloud_init.as_ref().and_then(|seed| seed.user_data.as_ref());
    let user_data = user_data.map(|data| data.path.as_path());
    vm.disks.iter().filter_map(host_file).chain(user_data).chain(password_file(vm))
}

/// Returns the password file of the display.
fn password_file(vm: &Vm) -> Option<&Path> {
    vm.display.as_ref()?.password_file.as_deref()
}
