//! The disks of a VM that are transferred: those that qvm created. The operator's own stay in
//! place.

use std::{
    os::unix::fs::FileTypeExt,
    path::{Path, PathBuf},
};

use super::Error;
use crate::{
    disk::plan,
    image::qcow2,
    spec::{Disk, Format, Source, Vm},
    store::{layout::VmPaths, snapshots::Snapshots},
    sys::file,
    value::Label,
};

/// A disk to transfer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TransferredDisk {
    /// The name of the disk.
    pub(crate) disk: Label,
    /// The format of the disk.
    pub(crate) format: Format,
    /// The file of the disk.
    pub(crate) path: PathBuf,
    /// The record of its image, if it exists.
    pub(crate) origin: Option<PathBuf>,
    /// Whether it has a backing file.
    pub(crate) is_overlay: bool,
}

/// Returns the disks of a VM that qvm created; a disk that does not exist yet is left out.
///
/// # Errors
/// A writable disk cannot be transferred.
pub(crate) fn transferred_disks(vm: &Vm, paths: &VmPaths) -> Result<Vec<TransferredDisk>, Error> {
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

fn made(disk: &Disk, paths: &VmPaths) -> Result<Option<TransferredDisk>, Error> {
    if Snapshots::read(paths)?.present.backing.contains_key(&disk.name) {
        return Err(Error::Partial {
            disk: disk.name.clone(),
            path: paths.disk(&disk.name, Format::Qcow2),
            why: "is based on its snapshots, which are not copied",
            hint: Some("remove its snapshots, which merges them: `qvm snapshot rm NAME SNAP`"),
        });
    }
    let wanted = plan::format(disk);
    for format in [wanted, plan::other(wanted)] {
        let path = paths.disk(&disk.name, format);
        let Some(metadata) = file::metadata(&path)? else { continue };
        if metadata.file_type().is_block_device() {
            return Err(Error::Own { disk: disk.name.clone(), path });
        }
        let is_overlay = format == Format::Qcow2 && has_backing_file(&disk.name, &path)?;
        let origin = crate::disk::origin_path(paths, &disk.name);
        let origin = file::metadata(&origin)?.map(|_| origin);
        return Ok(Some(TransferredDisk {
            disk: disk.name.clone(),
            format,
            path,
            origin,
            is_overlay,
        }));
    }
    Ok(None)
}

/// Whether a qcow2 file has a backing file.
///
/// # Errors
/// The file is not qcow2, is marked as corrupt, or stores its data in another file.
fn has_backing_file(disk: &Label, path: &Path) -> Result<bool, Error> {
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
        let why = "stores its data in another file";
        return Err(Error::Partial { disk: disk.clone(), path: path.to_owned(), why, hint: None });
    }
    Ok(header.backing_span.is_some())
}
