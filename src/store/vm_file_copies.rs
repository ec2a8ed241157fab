//! Copies of the VM file: at the start of QEMU, and at the last reload.

use std::path::Path;

use super::layout::VmPaths;
use crate::{
    spec::{self, Vm},
    value::VmName,
};

/// Returns the VM file from which QEMU was started, and its text.
pub fn booted(paths: &VmPaths, name: &VmName, file: &Path) -> Option<(Vm, String)> {
    kept(&paths.booted(), name, file)
}

/// Returns the VM file at the last reload since the start of QEMU.
pub fn reloaded(paths: &VmPaths, name: &VmName, file: &Path) -> Option<Vm> {
    kept(&paths.reloaded(), name, file).map(|(vm, _)| vm)
}

fn kept(copy: &Path, name: &VmName, file: &Path) -> Option<(Vm, String)> {
    let text = std::fs::read_to_string(copy).ok()?;
    let mut user_data = |path: &Path| std::fs::read(path);
    let vm = spec::read(name, file, &text, &mut user_data).ok()?;
    Some((vm, text))
}
