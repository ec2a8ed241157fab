//! How a disk was created: `NAME.origin.json` beside it.

use std::path::PathBuf;

use super::{error::Error, plan::Made};
use crate::{store::layout::VmPaths, sys::file, value::Label};

/// Returns the path of `NAME.origin.json` beside a disk.
pub fn origin_path(vm: &VmPaths, disk: &Label) -> PathBuf {
    vm.state.join(format!("{disk}.origin.json"))
}

/// Returns how a disk was created by qvm, if recorded.
///
/// # Errors
/// The record exists and cannot be read.
pub fn made(disk: &Label, vm: &VmPaths) -> Result<Option<Made>, Error> {
    let on = |source| Error::File { disk: disk.clone(), source };
    let json = file::read(&origin_path(vm, disk)).map_err(on)?;
    Ok(json.and_then(|json| serde_json::from_slice(&json).ok()))
}
