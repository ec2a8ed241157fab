//! The file or device that a disk of a VM file is now, without creating anything.

use std::path::{Path, PathBuf};

use super::plan;
use crate::{
    spec::{Disk, Format, Source},
    store::layout::VmPaths,
    sys::file::{self, Error},
};

/// Returns the path that a disk has, or would have if it was created now, and its format.
///
/// # Errors
/// The state directory cannot be searched.
pub fn path_of(disk: &Disk, paths: &VmPaths) -> Result<(PathBuf, Format), Error> {
    let own = |path: &Path| Ok((path.to_owned(), disk.format));
    match &disk.source {
        Source::File(path) | Source::Device(path) => return own(path),
        Source::Image(_) | Source::Blank | Source::Existing => {}
    }
    let wanted = plan::format(disk);
    for format in [wanted, plan::other(wanted)] {
        let path = paths.disk(&disk.name, format);
        if file::metadata(&path)?.is_some() {
            return Ok((path, format));
        }
    }
    Ok((paths.disk(&disk.name, wanted), wanted))
}
