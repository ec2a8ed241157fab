//! Examines the disks of a VM for a snapshot.

use std::{
    os::unix::fs::FileTypeExt,
    path::{Path, PathBuf},
};

use super::{
    error::Error,
    kind::{DiskFacts, DiskSource},
};
use crate::{
    disk::{self, existing},
    image::{cache, qcow2},
    spec::{Disk, Format, Media, Source, Vm},
    store::layout::VmPaths,
    sys::{capabilities, file},
    value::Label,
};

/// Returns the facts about all disks of the VM file.
///
/// # Errors
/// A file cannot be examined.
pub(crate) fn of_disks(vm: &Vm, paths: &VmPaths) -> Result<Vec<DiskFacts>, Error> {
    vm.disks.iter().map(|disk| of_disk(disk, paths)).collect()
}

fn of_disk(disk: &Disk, paths: &VmPaths) -> Result<DiskFacts, Error> {
    let (path, format) = existing::path_of(disk, paths)?;
    let source = match &disk.source {
        _ if disk.read_only || disk.media == Media::Cdrom => DiskSource::ReadOnly,
        Source::File(_) => DiskSource::OperatorFile,
        Source::Device(_) => DiskSource::Device,
        Source::Image(_) | Source::Blank | Source::Existing => match path.symlink_metadata() {
            Ok(found) if found.is_file() => DiskSource::File(format),
            Ok(found) if found.is_symlink() => DiskSource::Link,
            Ok(found) if found.file_type().is_block_device() => DiskSource::Device,
            Ok(_) => DiskSource::Link,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => DiskSource::NotCreated,
            Err(error) => return Err(file::Error::on("examine", &path)(error).into()),
        },
    };
    Ok(DiskFacts { disk: disk.name.clone(), path, source })
}

/// Returns whether the file system of a directory shares blocks; `None` is not known.
pub(crate) fn can_reflink(directory: &Path) -> Option<bool> {
    capabilities::of_directory(directory).ok()?.reflink
}

/// Returns the size that a guest sees of a file, in bytes, if qemu-img may open the file: a guest
/// may have written the header.
///
/// # Errors
/// The file cannot be read, is not of this format, is marked as corrupt, or names a file with data.
pub(crate) fn virtual_bytes(disk: &Label, path: &Path, format: Format) -> Result<u64, Error> {
    if format == Format::Raw {
        let length = file::metadata(path)?.map(|found| found.len());
        let missing = || file::Error::on("examine", path)(std::io::ErrorKind::NotFound.into());
        return Ok(length.ok_or_else(missing)?);
    }
    let head = file::read_at(path, 0, qcow2::HEAD)?;
    let header = qcow2::Header::parse(&head).map_err(|source| Error::Header {
        disk: disk.clone(),
        path: path.to_owned(),
        source,
    })?;
    let unusable = |why| Err(Error::Unusable { disk: disk.clone(), path: path.to_owned(), why });
    if header.corrupt {
        return unusable("is marked corrupt");
    }
    if header.external_data {
        return unusable("has an external data file");
    }
    Ok(header.virtual_size)
}

/// Refuses files, the uppermost first, whose headers name other backing files than the next one:
/// merging them would mix the content of different disks.
///
/// # Errors
/// A file cannot be read or used, or its header names another file.
pub(crate) fn check_chain(disk: &Label, files: &[(&PathBuf, Format)]) -> Result<(), Error> {
    for (nr, (path, format)) in files.iter().enumerate() {
        virtual_bytes(disk, path, *format)?;
        let below = files.get(nr + 1).map(|(path, _)| path);
        let named = match format {
            Format::Raw => None,
            Format::Qcow2 => cache::backing_of(path).map_err(|source| disk::Error::Cache {
                disk: disk.clone(),
                source: Box::new(source),
            })?,
        };
        // A frozen file is named without its directory, a base image with it.
        let is_next = match (&named, below) {
            (None, None) => true,
            (Some(named), Some(below)) => {
                below.as_os_str() == named.as_str()
                    || below.file_name().is_some_and(|file| file == named.as_str())
            }
            (None, Some(_)) | (Some(_), None) => false,
        };
        if !is_next {
            return Err(Error::Unusable {
                disk: disk.clone(),
                path: (*path).clone(),
                why: "has another backing file than its record",
            });
        }
    }
    Ok(())
}
