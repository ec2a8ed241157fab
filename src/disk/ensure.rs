//! Provides the disks of a VM: created once, grown if `size` grew, never re-created or shrunk.
//!
//! A disk is created as `.qvm-NAME.FORMAT.tmp` in its directory, synced, and renamed last, so that
//! a disk with its final name is complete. The caller holds the VM's lock, and the VM is stopped.

use super::copy::copy;
use super::error::Error;
use super::frozen;
use super::origin::{made, origin_path};
use super::plan;
use super::ready::Ready;
use super::ready::refuse_corrupt;
use super::verified_copy::VerifiedCopy;
use std::{
    fs::OpenOptions,
    os::unix::fs::FileTypeExt,
    path::{Path, PathBuf},
};

use super::plan::{Found, How, Made, Step, larger};
use crate::{
    image::{self, Cached, Purpose, Tools},
    machine::disk_file::Backing,
    sys::progress::{At, Cancel, Doing, Progress},
    value::{Note, NoteCode},
};
use crate::{
    image::{qcow2, qemu_img},
    spec::{self, Disk, Format, Image, Source},
    store::layout::VmPaths,
    sys::file::{self, Error as FileError},
    value::{Digest, Size},
};

/// Removes the leftovers of a crash from the VM's directories, including those of an interrupted
/// creation or removal. Called once before the preparation, under the VM's lock.
///
/// # Errors
/// A file cannot be removed.
pub fn remove_leftovers(vm: &VmPaths) -> Result<(), FileError> {
    file::remove_tree(&vm.state_being_removed())?;
    file::remove_leftovers(&vm.runtime)?;
    file::remove_leftovers(&vm.state)
}

/// Provides a disk. Its image is downloaded only if the disk is created. Blocks the thread.
///
/// # Errors
/// See [`Error`]. An existing disk is unchanged then, and a missing one leaves no files.
pub fn ensure(
    disk: &Disk,
    vm: &VmPaths,
    images: &Path,
    tools: &Tools,
    progress: &mut dyn Progress,
    cancel: &Cancel,
) -> Result<Ready, Error> {
    match &disk.source {
        Source::File(path) => return crate::disk::own::file(disk, path),
        Source::Device(path) => return crate::disk::own::device(disk, path),
        Source::Image(_) | Source::Blank | Source::Existing => {}
    }
    let (step, mut notes, found) = look(disk, vm)?;
    if let Some(Found { format: Format::Qcow2, .. }) = found {
        let path = vm.disk(&disk.name, Format::Qcow2);
        let head = file::read_at(&path, 0, qcow2::HEAD);
        let head = head.map_err(|source| Error::File { disk: disk.name.clone(), source })?;
        if let Ok(header) = qcow2::Header::parse(&head) {
            refuse_corrupt(disk, &path, &header)?;
        }
    }
    let mut work = Work { disk, vm, images, tools, progress, cancel };
    let (format, virtual_size) = match (step, found) {
        (Step::Keep(format), found) => (format, found.map(|f| f.virtual_size)),
        (Step::Grow(format, size), _) => {
            let mut below = frozen::frozen(&disk.name, vm)?;
            if let Some(base) = made(&disk.name, vm)?.and_then(|made| made.base) {
                let format = crate::disk::backing::format_of(&disk.name, &base)?;
                below.push(Backing { path: base, format });
            }
            work.grow(&vm.disk(&disk.name, format), format, size, &below)?;
            (format, Some(size.bytes()))
        }
        (Step::Make, _) => {
            let (format, size) = work.make(&mut notes)?;
            (format, Some(size))
        }
    };
    let path = vm.disk(&disk.name, format);
    if !disk.read_only {
        let opened = OpenOptions::new().read(true).write(true).open(&path);
        let opened = opened.map_err(FileError::on("open for writing", &path));
        opened.map_err(|source| Error::File { disk: disk.name.clone(), source })?;
    }
    Ok(Ready { path, format, virtual_size, notes })
}

/// Returns the notes about an existing disk, for `qvm status`. Changes nothing.
///
/// # Errors
/// An existing file cannot be read.
pub fn notes(disk: &Disk, vm: &VmPaths) -> Result<Vec<Note>, Error> {
    match disk.source {
        Source::File(_) | Source::Device(_) => Ok(Vec::new()),
        Source::Image(_) | Source::Blank | Source::Existing => Ok(look(disk, vm)?.1),
    }
}

/// Returns the existing disk, and what to do.
fn look(disk: &Disk, vm: &VmPaths) -> Result<(Step, Vec<Note>, Option<Found>), Error> {
    let on = |source| Error::File { disk: disk.name.clone(), source };
    let wanted = plan::format(disk);
    let first = existing(disk, &vm.disk(&disk.name, wanted), wanted)?;
    let other = plan::other(wanted);
    let found = match first {
        Some(found) => {
            let twice = file::metadata(&vm.disk(&disk.name, other)).map_err(on)?.is_some();
            Some(Found { twice, ..found })
        }
        None => existing(disk, &vm.disk(&disk.name, other), other)?,
    };
    let made = match found {
        Some(_) => made(&disk.name, vm)?,
        None => None,
    };
    let frozen = frozen::expected(&disk.name, vm)?;
    if frozen.is_some() && found.is_none_or(|found| found.format != Format::Qcow2) {
        let path = vm.disk(&disk.name, Format::Qcow2);
        return Err(Error::Lost { disk: disk.name.clone(), path });
    }
    if let Some(Found { format: Format::Qcow2, .. }) = found {
        let path = vm.disk(&disk.name, Format::Qcow2);
        let head = file::read_at(&path, 0, qcow2::HEAD).map_err(on)?;
        if let Ok(header) = qcow2::Header::parse(&head) {
            let frozen = frozen.as_deref();
            crate::disk::backing::check(&disk.name, &path, &header, made.as_ref(), frozen)?;
        }
    }
    let (step, notes) = plan::decide(disk, found, made.as_ref());
    Ok((step, notes, found))
}

fn existing(disk: &Disk, path: &Path, format: Format) -> Result<Option<Found>, Error> {
    let on = |source| Error::File { disk: disk.name.clone(), source };
    let Some(metadata) = file::metadata(path).map_err(on)? else { return Ok(None) };
    let virtual_size = match format {
        // The operator may have created a link to a block device, which cannot be grown here.
        Format::Raw if metadata.file_type().is_block_device() => u64::MAX,
        Format::Raw => metadata.len(),
        Format::Qcow2 => {
            let head = file::read_at(path, 0, qcow2::HEAD).map_err(on)?;
            let header = qcow2::Header::parse(&head).map_err(|source| Error::Header {
                disk: disk.name.clone(),
                path: path.to_owned(),
                source,
            })?;
            header.virtual_size
        }
    };
    Ok(Some(Found { format, virtual_size, twice: false }))
}

struct Work<'a> {
    disk: &'a Disk,
    vm: &'a VmPaths,
    images: &'a Path,
    pub(super) tools: &'a Tools,
    pub(super) progress: &'a mut dyn Progress,
    pub(super) cancel: &'a Cancel,
}

impl Work<'_> {
    fn file(&self) -> impl Fn(FileError) -> Error + use<> {
        let disk = self.disk.name.clone();
        move |source| Error::File { disk: disk.clone(), source }
    }

    fn qemu_img(&self) -> impl Fn(qemu_img::Error) -> Error + use<> {
        let disk = self.disk.name.clone();
        move |source| Error::QemuImg { disk: disk.clone(), source }
    }

    /// Grows a disk in place. Both ways are crash-safe: the new size is written last and
    /// atomically.
    fn grow(
        &self,
        path: &Path,
        format: Format,
        size: Size,
        below: &[Backing],
    ) -> Result<(), Error> {
        if format == Format::Qcow2 {
            let below: Vec<(&Path, Format)> =
                below.iter().map(|one| (one.path.as_path(), one.format)).collect();
            return self.tools.qemu_img.resize(path, format, size, &below).map_err(self.qemu_img());
        }
        let grown = OpenOptions::new().write(true).open(path).and_then(|file| {
            file.set_len(size.bytes())?;
            file.sync_all()
        });
        grown.map_err(FileError::on("grow", path)).map_err(self.file())
    }

    fn make(&mut self, notes: &mut Vec<Note>) -> Result<(Format, u64), Error> {
        let format = plan::format(self.disk);
        let path = self.vm.disk(&self.disk.name, format);
        let source = match &self.disk.source {
            Source::Image(image) => Some(image.as_ref()),
            Source::Blank => None,
            _ => return Err(Error::Nothing { disk: self.disk.name.clone(), path }),
        };
        file::make_dir(&self.vm.state).map_err(self.file())?;
        let temporary = file::temporary_under_lock(&path);
        let made = self.fill(source, &temporary, format, notes).and_then(|made| {
            // The record is written first, so that every disk of qvm has one.
            let record = serde_json::to_vec_pretty(&made.record).unwrap_or_default();
            file::write(&origin_path(self.vm, &self.disk.name), &record, 0o600)
                .and_then(|()| file::commit(&temporary, &path))
                .map_err(self.file())?;
            Ok(made.virtual_size)
        });
        if made.is_err() {
            let _ = file::remove(&temporary);
        }
        let virtual_size = made?;
        let free = file::available(&self.vm.state).map_err(self.file())?;
        if virtual_size > free {
            let text = format!(
                "disk {}: can grow to {} MiB, but only {} MiB are free",
                self.disk.name,
                virtual_size >> 20,
                free >> 20
            );
            notes.push(Note::new(NoteCode::DiskOvercommitted, text).key(plan::key(self.disk)));
        }
        Ok((format, virtual_size))
    }

    /// Writes the content to the temporary file.
    fn fill(
        &mut self,
        source: Option<&Image>,
        to: &Path,
        format: Format,
        notes: &mut Vec<Note>,
    ) -> Result<Filled, Error> {
        let now = self.tools.now.to_string();
        let Some(image) = source else {
            let size = self.disk.size.unwrap_or(Size::from_bytes(0));
            let file = file::create(to).map_err(self.file())?;
            match format {
                Format::Raw => file
                    .set_len(size.bytes())
                    .map_err(FileError::on("grow", to))
                    .map_err(self.file())?,
                Format::Qcow2 => {
                    let made = self.tools.qemu_img.create(to, format, size, None);
                    made.map_err(self.qemu_img())?;
                }
            }
            let record = plan::record(self.disk, None, None, now);
            return Ok(Filled { record, virtual_size: size.bytes() });
        };
        let mut copy = VerifiedCopy::new(to, format);
        let Self { images, tools, cancel, .. } = *self;
        let cached = match self.disk.clone {
            spec::Clone::Copy => {
                image::ensure_copied(image, images, &mut copy, tools, self.progress, cancel)
            }
            spec::Clone::Overlay => {
                image::ensure(image, images, Purpose::Base, tools, self.progress, cancel)
            }
        };
        let cached = cached.map_err(|source| Error::Image {
            disk: self.disk.name.clone(),
            source: Box::new(source),
        })?;
        let virtual_size = self.disk.size.map_or(0, Size::bytes).max(cached.virtual_size);
        notes.extend(self.disk.size.and_then(|s| larger(self.disk, s, cached.virtual_size)));
        let base = match copy.is_complete() {
            true => self.grow_copy(&cached, to, format, virtual_size).map(|()| None)?,
            false => self.put(&cached, to, format, virtual_size)?,
        };
        let digest: Option<&Digest> = cached.digest.as_ref();
        let record = plan::record(self.disk, Some((image, digest)), base, now);
        Ok(Filled { record, virtual_size })
    }

    /// Copies or converts the image and grows it to the disk size; returns the base of an overlay.
    fn put(
        &mut self,
        cached: &Cached,
        to: &Path,
        format: Format,
        virtual_size: u64,
    ) -> Result<Option<PathBuf>, Error> {
        let size = Size::from_bytes(virtual_size);
        let target = file::create(to).map_err(self.file())?;
        match plan::how(self.disk, cached.format) {
            How::Overlay => {
                let base = std::fs::canonicalize(&cached.path)
                    .map_err(FileError::on("find", &cached.path))
                    .map_err(self.file())?;
                let on = Some((base.as_path(), cached.format));
                let made = self.tools.qemu_img.create(to, format, size, on);
                made.map_err(self.qemu_img())?;
                return Ok(Some(base));
            }
            How::Clone => {
                copy(&self.disk.name, &cached.path, (&target, to), self.progress, self.cancel)?;
            }
            How::Convert => {
                let mut goes_on = || {
                    let what = self.disk.name.as_str();
                    let doing = Doing::Converting;
                    self.progress.at(&At { doing, what, done: 0, total: None });
                    !self.cancel.is_set()
                };
                let from = (cached.path.as_path(), cached.format);
                let made = self.tools.qemu_img.convert(from, (to, format), &mut goes_on);
                made.map_err(self.qemu_img())?;
            }
        }
        self.grow_copy(cached, to, format, virtual_size).map(|()| None)
    }

    /// Grows a copy of the image to the size of the disk.
    fn grow_copy(
        &self,
        cached: &Cached,
        to: &Path,
        format: Format,
        virtual_size: u64,
    ) -> Result<(), Error> {
        if virtual_size <= cached.virtual_size {
            return Ok(());
        }
        self.grow(to, format, Size::from_bytes(virtual_size), &[])
    }
}

struct Filled {
    record: Made,
    virtual_size: u64,
}
