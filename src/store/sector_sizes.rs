//! The sectors that a guest has seen on block devices with larger ones: they must not change under
//! its partition table.

use std::collections::BTreeMap;

use super::layout::VmPaths;
use crate::{
    sys::file::{self, Error},
    value::Label,
};

/// The bytes of a sector, by the name of the disk.
pub type SectorSizes = BTreeMap<Label, u32>;

/// Reads what is recorded of a VM; nothing if there is no record.
///
/// # Errors
/// The record exists and cannot be read.
pub fn read(paths: &VmPaths) -> Result<SectorSizes, Error> {
    let path = paths.sector_sizes();
    let Some(json) = file::read(&path)? else { return Ok(SectorSizes::new()) };
    let parsed = serde_json::from_slice(&json).map_err(std::io::Error::from);
    parsed.map_err(Error::on("read", &path))
}

/// Records the sectors of a disk. The caller holds the VM's lock.
///
/// # Errors
/// The record cannot be read or written.
pub fn record(paths: &VmPaths, disk: &Label, bytes: u32) -> Result<(), Error> {
    let mut sizes = read(paths)?;
    if sizes.insert(disk.clone(), bytes) == Some(bytes) {
        return Ok(());
    }
    let json = serde_json::to_vec_pretty(&sizes).map_err(std::io::Error::from);
    let json = json.map_err(Error::on("write", &paths.sector_sizes()))?;
    file::write(&paths.sector_sizes(), &json, 0o600)
}
