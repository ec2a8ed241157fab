//! Checks disks of the operator, which qvm never creates, grows or changes.

use std::{
    fs::{File, OpenOptions},
    os::unix::fs::{FileTypeExt, OpenOptionsExt},
    path::Path,
};

use super::{error::Error, plan, ready::Ready};
use crate::{
    image::qcow2,
    spec::{Disk, Format, Media},
    sys::file::Error as FileError,
    value::{Note, NoteCode},
};

fn open(disk: &Disk, path: &Path, flags: i32) -> Result<(File, bool), Error> {
    let write = !disk.read_only && disk.media != Media::Cdrom;
    let opened = OpenOptions::new().read(true).write(write).custom_flags(flags).open(path);
    let file = opened.map_err(|source| Error::Open {
        disk: disk.name.clone(),
        path: path.to_owned(),
        write,
        source,
    })?;
    Ok((file, write))
}

/// Checks that a file exists, is a regular file of the configured format, and can be opened.
pub(crate) fn file(disk: &Disk, path: &Path) -> Result<Ready, Error> {
    let kind =
        |why, hint| Err(Error::Kind { disk: disk.name.clone(), path: path.to_owned(), why, hint });
    // Examined before opening: opening a FIFO would wait for its other end.
    let metadata = match std::fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(_) => open(disk, path, 0)?
            .0
            .metadata()
            .map_err(FileError::on("examine", path))
            .map_err(|source| Error::File { disk: disk.name.clone(), source })?,
    };
    if metadata.file_type().is_block_device() {
        return kind("is a block device", Some("use `device` instead of `path`"));
    }
    if !metadata.is_file() {
        return kind("is not a regular file", None);
    }
    open(disk, path, 0)?;
    let head = crate::sys::file::read_at(path, 0, qcow2::HEAD)
        .map_err(|source| Error::File { disk: disk.name.clone(), source })?;
    let header = qcow2::Header::parse(&head);
    let mut notes = Vec::new();
    let virtual_size = match (disk.format, header) {
        (Format::Qcow2, Ok(header)) => {
            if header.corrupt && disk.read_only {
                // QEMU can read it, and it may be attached to rescue data.
                let text = format!("disk {}: `{}` is marked corrupt", disk.name, path.display());
                notes.push(Note::new(NoteCode::DiskCorrupt, text).key(plan::key(disk)));
            }
            super::ready::refuse_corrupt(disk, path, &header)?;
            header.virtual_size
        }
        (Format::Qcow2, Err(qcow2::Error::NotQcow2)) => {
            return kind("is not qcow2", Some("set `format = \"raw\"` if it is a raw image"));
        }
        (Format::Qcow2, Err(source)) => {
            return Err(Error::Header { disk: disk.name.clone(), path: path.to_owned(), source });
        }
        (Format::Raw, header) => {
            if header.is_ok() {
                let text = format!(
                    "disk {}: `{}` is a qcow2 file, but the guest sees its raw bytes because of \
                     `format = \"raw\"`",
                    disk.name,
                    path.display()
                );
                notes.push(Note::new(NoteCode::DiskShownAsQcow2, text).key(plan::key(disk)));
            }
            metadata.len()
        }
    };
    let format = disk.format;
    Ok(Ready { path: path.to_owned(), format, virtual_size: Some(virtual_size), notes })
}

/// Checks that a block device exists and, if writable, is not in use.
pub(crate) fn device(disk: &Disk, path: &Path) -> Result<Ready, Error> {
    if let Ok(metadata) = std::fs::metadata(path)
        && !metadata.file_type().is_block_device()
    {
        return Err(Error::Kind {
            disk: disk.name.clone(),
            path: path.to_owned(),
            why: "is not a block device",
            hint: Some("use `path` instead of `device` for a file"),
        });
    }
    let (_, write) = open(disk, path, 0)?;
    if write {
        // open(2): O_EXCL without O_CREAT on a block device fails with EBUSY if it is mounted or
        // claimed.
        open(disk, path, rustix::fs::OFlags::EXCL.bits() as i32)?;
    }
    let notes = Vec::new();
    Ok(Ready { path: path.to_owned(), format: Format::Raw, virtual_size: None, notes })
}
