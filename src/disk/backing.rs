//! What a disk stands on, and whether it may: the header that says so is written to by QEMU, which a guest may have broken into,
//! and what it names would be opened with the supervisor's rights and handed over.

use std::path::Path;

use super::error::Error;
use super::plan::Made;
use crate::sys::file::Error as FileError;
use crate::{
    control::isolation::Mode,
    image::{
        cache,
        qcow2::{self, Header},
    },
    machine::disk_file::Backing,
    spec::{Disk, Format},
    sys::file,
    value::{Label, shown},
};

/// Refuses a disk of qvm's own that depends on another file than it was made on.
///
/// # Errors
/// It does; or the file cannot be read.
pub(crate) fn check(
    disk: &Label,
    path: &Path,
    header: &Header,
    made: Option<&Made>,
) -> Result<(), Error> {
    let refused = |why: String, hint| {
        Err(Error::Alien { disk: disk.clone(), path: path.to_owned(), why, hint })
    };
    if header.external_data {
        return refused("keeps its data in another file".into(), FLATTEN);
    }
    let (Some(made), Some(backing)) = (made, name(disk, path)?) else { return Ok(()) };
    match &made.base {
        Some(base) if base.as_os_str() == backing.as_str() => Ok(()),
        _ => refused(
            format!("stands on `{}`, which is not what qvm made it on", shown(&backing)),
            "whoever wrote that into its header, do not start it before you know why",
        ),
    }
}

const FLATTEN: &str = "make it stand alone: `qemu-img convert -O qcow2 OLD NEW`";

/// What a ready disk stands on, the nearest first.
///
/// # Errors
/// QEMU is kept apart, and what the disk stands on is not for qvm to hand over.
pub fn backing(
    disk: &Disk,
    path: &Path,
    made: Option<&Made>,
    mode: Mode,
) -> Result<Vec<Backing>, Error> {
    let Some(backing) = name(&disk.name, path)? else { return Ok(vec![]) };
    if let Some(base) = made.and_then(|made| made.base.clone()) {
        let format = format_of(&disk.name, &base)?;
        return Ok(vec![Backing { path: base, format }]);
    }
    match mode {
        // QEMU follows the header by itself, with the supervisor's rights.
        Mode::Off => Ok(vec![]),
        Mode::On | Mode::Strict => Err(Error::Alien {
            disk: disk.name.clone(),
            path: path.to_owned(),
            why: format!("stands on `{}`, which QEMU may not open", shown(&backing)),
            hint: "make it stand alone, `qemu-img convert -O qcow2 OLD NEW`; or write `isolation = \"off\"`",
        }),
    }
}

/// Cached images stand alone: qcow2, or else raw.
pub(crate) fn format_of(disk: &Label, base: &Path) -> Result<Format, Error> {
    let on = |source: FileError| Error::File { disk: disk.clone(), source };
    let head = file::read_at(base, 0, qcow2::MAGIC.len()).map_err(on)?;
    Ok(if head == qcow2::MAGIC { Format::Qcow2 } else { Format::Raw })
}

fn name(disk: &Label, path: &Path) -> Result<Option<String>, Error> {
    cache::backing_of(path)
        .map_err(|error| Error::Cache { disk: disk.clone(), source: Box::new(error) })
}
