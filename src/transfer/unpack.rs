//! Reads an archive into a draft, until its manifest has confirmed every byte.

use std::io::Read;

use tar::Archive;

use super::archive_format::{File, MAX_FILES, Manifest, Part};
use super::{
    Error,
    archive::{Digested, Error as Wrong, Member},
    draft::Draft,
    import_request::Import,
};
use crate::{
    disk,
    spec::Format,
    store::layout::Layout,
    sys::{
        file,
        progress::{At, Cancel, Doing, Progress},
        reflink,
        writeback::WriteBack,
    },
    value::{Label, VmName},
};

/// The contents of an archive. Disks, their origins and UEFI variables are in the draft.
#[derive(Debug)]
pub(crate) struct Unpacked<'l> {
    pub(crate) draft: Draft<'l>,
    /// The name in the archive.
    pub(crate) was: VmName,
    /// The new name.
    pub(crate) name: VmName,
    pub(crate) vm_file: String,
    pub(crate) identity: Option<Vec<u8>>,
    pub(crate) user_data: Option<Vec<u8>>,
    pub(crate) disks: Vec<(Label, Format)>,
    pub(crate) origins: Vec<Label>,
}

/// Reads an archive to its end.
///
/// # Errors
/// The archive is invalid or incomplete, contains other files, or the draft cannot be created or
/// written.
pub(crate) fn unpack<'l>(
    import: &mut Import<'_>,
    layout: &'l Layout,
    progress: &mut dyn Progress,
    cancel: &Cancel,
) -> Result<Unpacked<'l>, Error> {
    let (called, length) = (import.called.clone(), import.length);
    let wrong = |source| Error::Archive { from: called.clone(), source };
    let mut archive = Archive::new(&mut *import.from);
    // Raw entries: tar extensions are then entries of their own kind, which are refused.
    let entries = archive.entries().map_err(|error| wrong(Wrong::Read(error)))?.raw(true);
    let mut unpacked: Option<Unpacked<'l>> = None;
    let (mut files, mut last, mut whole) = (Vec::<File>::new(), String::new(), false);
    let mut before = 0;
    for entry in entries {
        let mut entry = entry.map_err(|error| {
            wrong(match unpacked {
                _ if error.raw_os_error().is_some() => Wrong::Read(error),
                None => Wrong::Foreign,
                Some(_) => Wrong::Damaged(last.clone()),
            })
        })?;
        let member = Member::of(entry.header(), unpacked.is_none()).map_err(wrong)?;
        if whole {
            return Err(wrong(Wrong::After(member.path)));
        }
        let current = match &mut unpacked {
            Some(current) => current,
            None => {
                let name = import.name.clone().unwrap_or_else(|| member.vm.clone());
                unpacked.insert(begin(layout, &member.vm, name)?)
            }
        };
        if member.vm != current.was {
            return Err(wrong(Wrong::OtherVm { path: member.path, vm: current.was.clone() }));
        }
        if files.iter().any(|file| file.name == member.part.name()) {
            return Err(wrong(Wrong::Twice(member.path)));
        }
        if files.len() >= MAX_FILES {
            return Err(wrong(Wrong::Many));
        }
        let mut goes_on = |done| {
            let (doing, what, done) = (Doing::Importing, member.path.as_str(), before + done);
            progress.at(&At { doing, what, done, total: length });
            !cancel.is_set()
        };
        let mut taking = Taking { current, member: &member, goes_on: &mut goes_on };
        let (file, content) = taking.take(&mut entry, &wrong)?;
        before += file.size;
        match member.part {
            Part::Manifest => {
                let manifest = Manifest::read(&content).map_err(|e| wrong(e.into()))?;
                manifest.check(&current.was, &files).map_err(|e| wrong(e.into()))?;
                whole = true;
            }
            Part::VmFile => {
                current.vm_file = String::from_utf8(content)
                    .map_err(|_| wrong(Wrong::Text(member.path.clone())))?;
            }
            Part::Identity => current.identity = Some(content),
            Part::UserData => current.user_data = Some(content),
            Part::EfiVars => {}
            Part::Origin(label) => current.origins.push(label),
            Part::Disk(label, format) => current.disks.push((label, format)),
        }
        files.push(file);
        last = member.path;
    }
    match unpacked {
        None => Err(wrong(Wrong::Foreign)),
        Some(_) if !whole => Err(wrong(Wrong::NoManifest)),
        Some(unpacked) => Ok(unpacked),
    }
}

fn begin<'l>(layout: &'l Layout, was: &VmName, name: VmName) -> Result<Unpacked<'l>, Error> {
    Ok(Unpacked {
        draft: Draft::create(layout, &name)?,
        was: was.clone(),
        name,
        vm_file: String::new(),
        identity: None,
        user_data: None,
        disks: Vec::new(),
        origins: Vec::new(),
    })
}

/// One file of an archive.
struct Taking<'t, 'l> {
    current: &'t Unpacked<'l>,
    member: &'t Member,
    goes_on: &'t mut dyn FnMut(u64) -> bool,
}

impl Taking<'_, '_> {
    /// Returns the digest, and the content unless it was written to the draft.
    fn take(
        &mut self,
        from: &mut dyn Read,
        wrong: &dyn Fn(Wrong) -> Error,
    ) -> Result<(File, Vec<u8>), Error> {
        let paths = self.current.draft.paths();
        let to = match &self.member.part {
            Part::Disk(label, format) => Some(paths.disk(label, *format)),
            Part::Origin(label) => Some(disk::origin_path(paths, label)),
            Part::EfiVars => Some(paths.efi_vars()),
            Part::VmFile | Part::Identity | Part::UserData | Part::Manifest => None,
        };
        let (part, size) = (self.member.part.name(), self.member.size);
        let thread = |error| wrong(Wrong::Read(error));
        let mut content = Vec::new();
        let file = match to {
            None => {
                let mut digested = Digested::new(from, self.goes_on).map_err(thread)?;
                let read = digested.read_to_end(&mut content);
                read.map_err(|error| wrong(Wrong::Read(error)))?;
                digested.end(part).map_err(thread)?
            }
            Some(path) => {
                let target = file::create(&path)?;
                let on = |error| file::Error::on("write", &path)(error);
                let mut back = WriteBack::of(&target).map_err(on)?;
                let mut goes_on = |done| {
                    back.wrote(done);
                    (self.goes_on)(done)
                };
                let mut digested = Digested::new(from, &mut goes_on).map_err(thread)?;
                let written = reflink::write_sparse(&mut digested, &target);
                written.map_err(|error| match digested.failed {
                    true => wrong(Wrong::Read(error)),
                    false => on(error).into(),
                })?;
                let file = digested.end(part).map_err(thread)?;
                back.end().map_err(on)?;
                target.sync_all().map_err(on)?;
                file
            }
        };
        match file.size < size {
            true => Err(wrong(Wrong::Cut(self.member.path.clone()))),
            false => Ok((file, content)),
        }
    }
}
