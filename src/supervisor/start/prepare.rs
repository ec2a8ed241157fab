//! Preparation: host facts, identity, disks, seed and firmware variables of a launch.
//!
//! Blocks for as long as a download takes. Each step is idempotent.

use std::{
    os::unix::fs::FileTypeExt,
    path::{Path, PathBuf},
};

pub use super::prepare_error::Error;
use crate::{
    disk,
    image::{Patience, Tools},
    store::{identity_lock::Waiter, identity_store, liveness::Liveness},
    supervisor::settings::Settings,
    sys::progress::{At, Cancel, Progress, line},
    systemd::unit_mounts,
    value::Note,
};
use crate::{
    image::qemu_img::QemuImg,
    machine::{
        disk_file::DiskFile,
        facts::{self, Accelerator, Facts},
        firmware as descriptors,
        firmware::SelectedFirmware,
        probe::{self, Probe, firmware},
    },
    seed::documents,
    snapshot,
    spec::{Disk, Format, Isolation, SectorSize, Source, Vm},
    store::{identity::Identity, layout::VmPaths},
    sys::file,
    systemd::unit::Scope,
};

/// What a launch needs.
#[derive(Debug)]
pub struct Prepared {
    /// The VM file.
    pub vm: Vm,
    /// The identity.
    pub identity: Identity,
    /// The host facts.
    pub facts: Facts,
    /// KVM or TCG.
    pub accel: Accelerator,
    /// The disks, in the order of the VM file.
    pub disks: Vec<DiskFile>,
    /// The firmware; `None` for BIOS.
    pub firmware: Option<SelectedFirmware>,
    /// Returns the notes for the status.
    pub notes: Vec<Note>,
    /// The liveness locks that QEMU inherits.
    pub liveness: Liveness,
}

/// The facts of this host.
///
/// # Errors
/// No usable QEMU.
pub fn facts_of(settings: &Settings) -> Result<Facts, probe::Error> {
    let cache = settings.layout.facts_cache();
    Probe {
        qemu: settings.qemu.as_deref(),
        path: settings.search_path.as_deref(),
        cache: &cache,
        write: write_facts,
        root: &settings.root,
        deadline: probe::DEADLINE,
    }
    .facts()
}

/// Replaces the cache of QEMU's facts, for [`Probe::write`]. The file is not synced: a damaged one
/// is ignored.
///
/// # Errors
/// Its directory does not exist or cannot be written.
pub fn write_facts(cache: &Path, json: &[u8]) -> std::io::Result<()> {
    file::remove_abandoned_beside(cache);
    file::write_volatile(cache, json, 0o600).map_err(file::Error::into_io)
}

/// Returns the VM's identity, or the one that a start would create; nothing is written.
///
/// # Errors
/// It exists but cannot be read.
pub fn identity_of(settings: &Settings, vm: &Vm, facts: &Facts) -> Result<Identity, Error> {
    let Some(mut identity) = identity_store::read(&settings.paths())? else {
        return Ok(identity_store::new(&settings.identity_source(), vm, &facts.qemu.machine)?);
    };
    if identity.lacks_macs(vm) {
        identity_store::complete(&mut identity, &settings.identity_source(), vm)?;
    }
    Ok(identity)
}

/// Gives the VM a new instance-id, so that cloud-init runs again at the next boot. Returns the old
/// and the new instance-id; `None` without an identity.
///
/// # Errors
/// The identity cannot be read or written, or another process holds the identities' lock.
pub fn renew_instance(
    settings: &Settings,
    waiter: Waiter<'_>,
) -> Result<Option<(String, String)>, identity_store::Error> {
    let new = Identity::instance(&settings.name, &(settings.uuid)());
    identity_store::change(&settings.layout, &settings.paths(), waiter, |identity| {
        (std::mem::replace(&mut identity.instance_id, new.clone()), new)
    })
}

/// Returns the firmware for the VM file.
///
/// # Errors
/// No firmware matches.
pub fn firmware_of(
    settings: &Settings,
    vm: &Vm,
    facts: &Facts,
    machine: &str,
) -> Result<Option<SelectedFirmware>, descriptors::Error> {
    firmware_for(settings.config_home.as_deref(), &facts.qemu.binary, vm, machine)
}

/// Returns the firmware without the settings.
///
/// # Errors
/// No firmware matches.
pub fn firmware_for(
    config_home: Option<&Path>,
    qemu: &Path,
    vm: &Vm,
    machine: &str,
) -> Result<Option<SelectedFirmware>, descriptors::Error> {
    let binary = qemu.canonicalize().unwrap_or_else(|_| qemu.to_owned());
    let directories = descriptors::directories(config_home, &binary);
    let found = if vm.firmware == crate::spec::Firmware::Bios {
        vec![]
    } else {
        firmware::descriptors(&directories)
    };
    descriptors::choose(&found, &directories, vm.firmware, machine)
}

/// Returns the file of a disk, which may not exist yet.
pub fn disk_file(paths: &VmPaths, disk: &crate::spec::Disk) -> DiskFile {
    let plain = DiskFile {
        path: PathBuf::new(),
        format: disk.format,
        is_device: false,
        backing: vec![],
        sector_size: disk.sector_size.unwrap_or(SectorSize::B512),
    };
    match &disk.source {
        Source::File(path) => {
            DiskFile { path: path.clone(), format: disk.format, is_device: false, ..plain }
        }
        Source::Device(path) => {
            DiskFile { path: path.clone(), format: disk.format, is_device: true, ..plain }
        }
        Source::Image(_) | Source::Blank | Source::Existing => {
            use crate::spec::Format::{Qcow2, Raw};
            let other = if disk.format == Qcow2 { Raw } else { Qcow2 };
            let there = |format| paths.disk(&disk.name, format).exists();
            let format = if !there(disk.format) && there(other) { other } else { disk.format };
            let path = paths.disk(&disk.name, format);
            let is_device = is_block_device(&path);
            DiskFile { path, format, is_device, ..plain }
        }
    }
}

/// Whether the path resolves to a block device. The operator may have replaced a disk of the state
/// directory by a symbolic link.
fn is_block_device(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|found| found.file_type().is_block_device())
}

/// Prepares the VM.
///
/// # Errors
/// A step failed. The next start continues after the last complete step.
pub fn prepare(
    settings: &Settings,
    vm: Vm,
    cancel: &Cancel,
    say: &(dyn Fn(String) + Sync),
) -> Result<Prepared, Error> {
    let paths = settings.paths();
    file::make_dir(&paths.state)?;
    // Locked before any file of QEMU is changed; QEMU inherits the locks.
    let liveness = Liveness::for_start(&paths, cancel)?;
    let facts = facts_of(settings)?;
    let qemu_img = QemuImg::new(qemu_img_beside(&facts.qemu.binary));
    if let Some(settled) = snapshot::settle(&paths, &qemu_img).map_err(Box::new)? {
        say(settled.text().to_owned());
    }
    disk::remove_leftovers(&paths)?;
    let (accel, warning) = facts::accelerator(vm.accel, &facts.kvm)?;
    let mut notes: Vec<Note> = warning.into_iter().collect();
    let user_data = vm.cloud_init.as_ref().and_then(|seed| seed.user_data.as_ref());
    notes.extend(user_data.into_iter().flat_map(|data| data.advice()));
    if let Some(Identity { machine, .. }) = identity_store::read(&paths)?
        && facts.qemu.is_older_than(&machine)
    {
        return Err(Error::OlderQemu { machine, qemu: facts.qemu });
    }
    let wants_user = vm.isolation != Isolation::Off && settings.scope == Scope::System;
    let waiter = Waiter { cancel, say: &|text| say(text) };
    let machine = &facts.qemu.machine;
    let identity =
        identity_store::ensure(&settings.identity_source(), &vm, machine, wants_user, waiter)?;
    let firmware = firmware_of(settings, &vm, &facts, &identity.machine)?;
    let mut disks = vec![];
    for wanted in &vm.disks {
        let (file, more) = disk(settings, &facts.qemu.binary, &vm, wanted, cancel, say)?;
        notes.extend(more);
        disks.push(file);
    }
    if let Some(template) = firmware.as_ref().and_then(|f| f.vars_template.as_ref())
        && !paths.efi_vars().exists()
        && let Some(bytes) = file::read(template)?
    {
        file::write(&paths.efi_vars(), &bytes, 0o600)?;
    }
    if let Some(documents) = documents::documents(&vm, &identity) {
        file::write_if_changed(&paths.seed(), &documents::image(&documents)?, 0o600)?;
    }
    if cancel.is_set() {
        return Err(Error::Canceled);
    }
    Ok(Prepared { vm, identity, facts, accel, disks, firmware, notes, liveness })
}

/// Prepares a disk. Returns its file and notes about it.
///
/// # Errors
/// As of [`disk::ensure`].
pub fn disk(
    settings: &Settings,
    qemu: &Path,
    vm: &Vm,
    wanted: &Disk,
    cancel: &Cancel,
    say: &(dyn Fn(String) + Sync),
) -> Result<(DiskFile, Vec<Note>), Error> {
    let tools = Tools {
        qemu_img: QemuImg::new(qemu_img_beside(qemu)),
        patience: Patience::default(),
        now: (settings.now)(),
    };
    let mut spoken = ProgressLines { say, last: None };
    unit_mounts::bind_path(&settings.name, settings.scope, settings.env, wanted)?;
    let (paths, images) = (settings.paths(), settings.layout.images());
    let ready = disk::ensure(wanted, &paths, &images, &tools, &mut spoken, cancel);
    let failed = |source: disk::Error| match source.is_canceled() {
        true => Error::Canceled,
        false => Error::Disk { at: vm.at(&format!("disk.{}.image", wanted.name)), source },
    };
    let ready = ready.map_err(failed)?;
    let is_device = is_block_device(&ready.path);
    let backing = match ready.format {
        Format::Qcow2 => disk::backing(wanted, &ready.path, &paths, vm.isolation),
        Format::Raw => Ok(vec![]),
    };
    let backing = backing.map_err(failed)?;
    let (format, path) = (ready.format, ready.path);
    let device = is_device.then_some(path.as_path());
    let sys = settings.root.join("sys");
    let sector_size = disk::sector_size::ensure(wanted, vm, &paths, device, &sys)?;
    Ok((DiskFile { path, format, is_device, backing, sector_size }, ready.notes))
}

/// Returns the qemu-img in the directory of this QEMU, else that of `PATH`.
pub(crate) fn qemu_img_beside(binary: &Path) -> std::path::PathBuf {
    let beside = binary.with_file_name("qemu-img");
    if beside.exists() { beside } else { "qemu-img".into() }
}

/// Prints progress as lines at an interval.
struct ProgressLines<'a> {
    say: &'a (dyn Fn(String) + Sync),
    last: Option<std::time::Instant>,
}

/// The interval of progress lines.
const SAY_EVERY: std::time::Duration = std::time::Duration::from_secs(3);

impl Progress for ProgressLines<'_> {
    fn at(&mut self, at: &At<'_>) {
        if self.last.is_none_or(|last| last.elapsed() >= SAY_EVERY) {
            self.last = Some(std::time::Instant::now());
            (self.say)(line(at));
        }
    }

    fn note(&mut self, text: &str) {
        (self.say)(text.to_owned());
    }
}

#[cfg(test)]
mod tests;
