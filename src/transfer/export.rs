//! Exports a stopped VM to one file: VM file, identity, disks and UEFI variables with their
//! digests.

use std::{
    fs,
    io::{self, BufWriter, Read, Write},
    path::{Path, PathBuf},
};

use jiff::Timestamp;

use super::archive_format::Part;
use super::{
    Error, StoppedVm,
    archive::{Broken, Writer},
    disks::{TransferredDisk, transferred_disks},
};
use crate::{
    store::layout::Layout,
    sys::{
        file::{self, Temporary},
        progress::{At, Cancel, Doing, Progress},
    },
    value::VmName,
};

/// The target of an export.
#[derive(Debug)]
pub enum To<'a> {
    /// A new file.
    File(&'a Path),
    /// Standard output.
    Stdout,
}

/// The result of an export.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Exported {
    /// The size of the exported files, in bytes.
    pub bytes: u64,
    /// The files that the VM file refers to and that are not in the archive.
    pub left: Vec<PathBuf>,
}

/// The content of a part.
enum Content {
    Here(Vec<u8>),
    File(PathBuf, u64),
}

impl Content {
    fn size(&self) -> u64 {
        match self {
            Self::Here(bytes) => bytes.len() as u64,
            Self::File(_, size) => *size,
        }
    }
}

/// Exports a VM.
///
/// # Errors
/// The VM is not stopped, a disk cannot be exported, or a file cannot be read or written; nothing
/// is left behind then.
pub fn export(
    layout: &Layout,
    name: &VmName,
    to: &To<'_>,
    now: Timestamp,
    progress: &mut dyn Progress,
    cancel: &Cancel,
) -> Result<Exported, Error> {
    let source = StoppedVm::lock(layout, name)?;
    let disks = transferred_disks(&source.vm, &source.paths)?;
    if let Some(overlay) = disks.iter().find(|disk| disk.is_overlay) {
        return Err(Error::Partial {
            disk: overlay.disk.clone(),
            path: overlay.path.clone(),
            why: "has a backing file, which is not exported",
            hint: Some("`qemu-img rebase -f qcow2 -b '' FILE` copies the data of the backing file"),
        });
    }
    let parts = parts(&source, &disks)?;
    let bytes = parts.iter().map(|(_, content)| content.size()).sum();
    let went = |path: &Path| disks.iter().any(|disk| disk.path == path);
    let own = source
        .vm
        .disks
        .iter()
        .filter(|disk| !disks.iter().any(|carried| carried.disk == disk.name));
    let left = own.filter_map(super::host_file).filter(|path| !went(path));
    let left = left.chain(super::password_file(&source.vm));
    let exported = Exported { bytes, left: left.map(Path::to_owned).collect() };
    let mut work = Work { name, now, parts, bytes, progress, cancel };
    match to {
        To::Stdout => work.write(&mut io::stdout().lock())?,
        To::File(path) => into(path, |out| work.write(out))?,
    }
    Ok(exported)
}

/// Returns the parts in their order.
fn parts(source: &StoppedVm, disks: &[TransferredDisk]) -> Result<Vec<(Part, Content)>, Error> {
    let here = |path: &Path| -> Result<_, Error> { Ok(file::read(path)?.map(Content::Here)) };
    let user_data = source.vm.cloud_init.as_ref().and_then(|seed| seed.user_data.as_ref());
    let mut parts = vec![
        (Part::VmFile, Some(Content::Here(source.text.clone().into_bytes()))),
        (Part::Identity, here(&source.paths.identity())?),
        (Part::UserData, user_data.map(|data| Content::Here(data.bytes.clone()))),
        (Part::EfiVars, here(&source.paths.efi_vars())?),
    ];
    for disk in disks {
        if let Some(origin) = &disk.origin {
            parts.push((Part::Origin(disk.disk.clone()), here(origin)?));
        }
        let size = file::metadata(&disk.path)?.map_or(0, |meta| meta.len());
        let content = Content::File(disk.path.clone(), size);
        parts.push((Part::Disk(disk.disk.clone(), disk.format), Some(content)));
    }
    Ok(parts.into_iter().filter_map(|(part, content)| Some((part, content?))).collect())
}

/// Writes a new file completely or not at all.
fn into(path: &Path, write: impl FnOnce(&mut dyn Write) -> Result<(), Error>) -> Result<(), Error> {
    if file::exists(path)? {
        return Err(Error::FileExists(path.to_owned()));
    }
    file::remove_abandoned_beside(path);
    let temporary = Temporary::for_target(path)?;
    let mut out = BufWriter::with_capacity(1 << 20, temporary.file());
    write(&mut out)?;
    out.flush().map_err(Error::Write)?;
    drop(out);
    temporary.create(path, 0o600).map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => Error::FileExists(path.to_owned()),
        _ => error.into(),
    })
}

struct Work<'a> {
    pub(super) name: &'a VmName,
    now: Timestamp,
    parts: Vec<(Part, Content)>,
    bytes: u64,
    pub(super) progress: &'a mut dyn Progress,
    pub(super) cancel: &'a Cancel,
}

impl Work<'_> {
    fn write(&mut self, out: &mut dyn Write) -> Result<(), Error> {
        let mtime = u64::try_from(self.now.as_second()).unwrap_or(0);
        let mut writer = Writer::new(out, self.name.clone(), mtime);
        let (mut before, total) = (0, Some(self.bytes));
        for (part, content) in &self.parts {
            let what = part.name();
            let mut goes_on = |done| {
                let done = before + done;
                self.progress.at(&At { doing: Doing::Exporting, what: &what, done, total });
                !self.cancel.is_set()
            };
            let size = content.size();
            let added = match content {
                Content::Here(bytes) => writer.add(part, size, &mut &bytes[..], &mut goes_on),
                Content::File(path, _) => {
                    let mut from = fs::File::open(path).map_err(file::Error::on("open", path))?;
                    writer.add(part, size, &mut from as &mut dyn Read, &mut goes_on)
                }
            };
            added.map_err(|broken| match (broken, content) {
                (Broken::In(_), _) if self.cancel.is_set() => Error::Canceled,
                (Broken::In(error), Content::File(path, _)) => {
                    file::Error::on("read", path)(error).into()
                }
                (Broken::In(error) | Broken::Out(error), _) => Error::Write(error),
            })?;
            before += size;
        }
        writer.end(self.now.to_string()).map_err(|broken| match broken {
            Broken::In(error) | Broken::Out(error) => Error::Write(error),
        })
    }
}
