//! The disks of a VM that go with it: those that qvm made. The operator's own stay where they are.

use std::{
    os::unix::fs::FileTypeExt,
    path::{Path, PathBuf},
};

use super::Error;
use crate::{
    disk::plan,
    image::qcow2,
    spec::{Disk, Format, Source, Vm},
    store::layout::VmPaths,
    sys::file,
    value::Label,
};

/// A disk that goes along.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Carried {
    /// Which.
    pub(crate) disk: Label,
    /// In which format it is.
    pub(crate) format: Format,
    /// Its file.
    pub(crate) path: PathBuf,
    /// What it was made from, if that is known.
    pub(crate) origin: Option<PathBuf>,
    /// It stands on another file.
    pub(crate) is_overlay: bool,
}

/// The disks that qvm has made of a VM; one that has not been made yet is none.
///
/// # Errors
/// There is one that the VM writes to and that cannot go along.
pub(crate) fn carried(vm: &Vm, paths: &VmPaths) -> Result<Vec<Carried>, Error> {
    let mut all = Vec::new();
    for disk in &vm.disks {
        match &disk.source {
            Source::File(_) | Source::Device(_) if disk.read_only => {}
            Source::File(path) | Source::Device(path) => {
                return Err(Error::Own { disk: disk.name.clone(), path: path.clone() });
            }
            Source::Image(_) | Source::Blank | Source::Existing => all.extend(made(disk, paths)?),
        }
    }
    Ok(all)
}

fn made(disk: &Disk, paths: &VmPaths) -> Result<Option<Carried>, Error> {
    let wanted = plan::format(disk);
    for format in [wanted, plan::other(wanted)] {
        let path = paths.disk(&disk.name, format);
        let Some(metadata) = file::metadata(&path)? else { continue };
        if metadata.file_type().is_block_device() {
            return Err(Error::Own { disk: disk.name.clone(), path });
        }
        let is_overlay = format == Format::Qcow2 && stands_on_another(&disk.name, &path)?;
        let origin = crate::disk::origin_path(paths, &disk.name);
        let origin = file::metadata(&origin)?.map(|_| origin);
        return Ok(Some(Carried { disk: disk.name.clone(), format, path, origin, is_overlay }));
    }
    Ok(None)
}

/// Whether a qcow2 file has a backing file.
///
/// # Errors
/// It is none, or is marked as corrupt, or its data is in yet another file.
fn stands_on_another(disk: &Label, path: &Path) -> Result<bool, Error> {
    let head = file::read_at(path, 0, qcow2::HEAD)?;
    let header = qcow2::Header::parse(&head).map_err(|source| crate::disk::Error::Header {
        disk: disk.clone(),
        path: path.to_owned(),
        source,
    })?;
    if header.corrupt {
        let (disk, path) = (disk.clone(), path.to_owned());
        return Err(crate::disk::Error::MarkedCorrupt { disk, path }.into());
    }
    if header.external_data {
        let why = "keeps its data in another file";
        return Err(Error::Partial { disk: disk.clone(), path: path.to_owned(), why, hint: None });
    }
    Ok(header.backing_span.is_some())
}
