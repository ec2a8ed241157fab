//! Checks the backing files of a disk. QEMU, which a guest may have compromised, writes the header
//! that names them, and the supervisor would open them with its own privileges.

use std::path::Path;

use super::error::Error;
use super::frozen::frozen;
use super::origin::made;
use super::plan::Made;
use crate::sys::file::Error as FileError;
use crate::{
    control::isolation::Mode,
    image::{
        cache,
        qcow2::{self, Header},
    },
    machine::disk_file::Backing,
    spec::{Disk, Format, Source},
    store::layout::VmPaths,
    sys::file,
    value::{Label, shown},
};

/// Refuses a disk created by qvm that depends on another file than its base, or than `frozen`, the
/// name of the nearest file of its snapshots.
///
/// # Errors
/// The disk depends on another file, or its header cannot be read.
pub(crate) fn check(
    disk: &Label,
    path: &Path,
    header: &Header,
    made: Option<&Made>,
    frozen: Option<&str>,
) -> Result<(), Error> {
    let refused = |why: String, hint| {
        Err(Error::Alien { disk: disk.clone(), path: path.to_owned(), why, hint })
    };
    if header.external_data {
        return refused("has an external data file".into(), FLATTEN);
    }
    if let Some(frozen) = frozen {
        let found = name(disk, path)?;
        return match &found {
            Some(found) if found == frozen => Ok(()),
            Some(_) | None => refused(
                format!(
                    "has {}, not `{frozen}`, which its snapshots are in",
                    found.as_deref().map_or_else(
                        || "no backing file".to_owned(),
                        |found| format!("the backing file `{}`", shown(found))
                    )
                ),
                REPLACED,
            ),
        };
    }
    let (Some(made), Some(backing)) = (made, name(disk, path)?) else { return Ok(()) };
    match &made.base {
        Some(base) if base.as_os_str() == backing.as_str() => Ok(()),
        _ => refused(
            format!(
                "has the backing file `{}`, which is not the base that qvm used",
                shown(&backing)
            ),
            "do not start the VM before you know who changed the header of the disk",
        ),
    }
}

const REPLACED: &str =
    "do not start the VM before you know who replaced the disk or changed its header";
const FLATTEN: &str = "convert it to a single file: `qemu-img convert -O qcow2 OLD NEW`";

/// Returns the backing files of a disk, the direct one first: those of its snapshots, and its base.
///
/// # Errors
/// QEMU is isolated and a backing file may not be passed to it.
pub fn backing(disk: &Disk, path: &Path, vm: &VmPaths, mode: Mode) -> Result<Vec<Backing>, Error> {
    let Some(backing) = name(&disk.name, path)? else { return Ok(vec![]) };
    let is_own = matches!(disk.source, Source::File(_) | Source::Device(_));
    let (mut all, made) = match is_own {
        true => (vec![], None),
        false => (frozen(&disk.name, vm)?, made(&disk.name, vm)?),
    };
    if let Some(base) = made.and_then(|made| made.base) {
        let format = format_of(&disk.name, &base)?;
        all.push(Backing { path: base, format });
    }
    if !all.is_empty() {
        return Ok(all);
    }
    match mode {
        // QEMU opens the backing files itself, with the supervisor's privileges.
        Mode::Off => Ok(vec![]),
        Mode::On | Mode::Strict => Err(Error::Alien {
            disk: disk.name.clone(),
            path: path.to_owned(),
            why: format!("has the backing file `{}`, which QEMU may not open", shown(&backing)),
            hint: "convert it to a single file: `qemu-img convert -O qcow2 OLD NEW`; or set \
                `isolation = \"off\"`",
        }),
    }
}

/// Returns the format of a cached image, which has no backing file: qcow2, or else raw.
pub(crate) fn format_of(disk: &Label, base: &Path) -> Result<Format, Error> {
    let on = |source: FileError| Error::File { disk: disk.clone(), source };
    let head = file::read_at(base, 0, qcow2::MAGIC.len()).map_err(on)?;
    Ok(if head == qcow2::MAGIC { Format::Qcow2 } else { Format::Raw })
}

fn name(disk: &Label, path: &Path) -> Result<Option<String>, Error> {
    cache::backing_of(path)
        .map_err(|error| Error::Cache { disk: disk.clone(), source: Box::new(error) })
}
