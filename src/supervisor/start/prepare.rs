//! From a VM file to everything that a launch needs: facts, identity, disks, seed, firmware variables.
//!
//! Blocks, and may take as long as a download does; each step is done once and found done the next time.

use std::{os::unix::fs::FileTypeExt, path::Path};

use crate::{
    disk,
    image::{Patience, Tools},
    store::{
        identity_lock::Waiter,
        identity_store,
        liveness::{self, Liveness},
    },
    supervisor::settings::Settings,
    sys::progress::{At, Cancel, Progress, line},
    systemd::unit_mounts::{self, Closed},
};
use crate::{
    image::qemu_img::QemuImg,
    machine::{
        disk_file::DiskFile,
        facts::{self, Accelerator, Facts, Qemu},
        firmware as descriptors,
        firmware::Chosen,
        probe::{self, Probe, firmware},
    },
    seed::{documents, iso9660},
    spec::{Disk, Format, Isolation, Source, Vm},
    store::{identity::Identity, layout::VmPaths},
    sys::file,
    systemd::unit::Scope,
};

/// A VM that can be launched.
#[derive(Debug)]
pub struct Prepared {
    /// The VM file.
    pub vm: Vm,
    /// What never changes under the guest.
    pub identity: Identity,
    /// What the host has.
    pub facts: Facts,
    /// KVM or TCG.
    pub accel: Accelerator,
    /// The disks, in the order of the VM file.
    pub disks: Vec<DiskFile>,
    /// UEFI.
    pub firmware: Option<Chosen>,
    /// What an operator should know.
    pub notes: Vec<String>,
    /// The locks that QEMU will hold.
    pub liveness: Liveness,
}

/// Why a VM cannot be launched.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The host lacks something.
    #[error(transparent)]
    Probe(#[from] probe::Error),
    /// KVM was demanded.
    #[error(transparent)]
    NoKvm(#[from] facts::NoKvm),
    /// A file cannot be read or written.
    #[error(transparent)]
    File(#[from] file::Error),
    /// The liveness locks.
    #[error(transparent)]
    Liveness(#[from] liveness::Error),
    /// identity.toml.
    #[error(transparent)]
    Identity(identity_store::Error),
    /// The guest was made on a later QEMU.
    #[error(
        "this VM has the machine type `{machine}`, which `{}` does not know: it is QEMU {}",
        .qemu.binary.display(), .qemu.version
    )]
    OlderQemu {
        /// What the identity says.
        machine: String,
        /// What is installed.
        qemu: Qemu,
    },
    /// A disk cannot be made.
    #[error("{at}")]
    Disk {
        /// Where the VM file says what it is.
        at: String,
        /// Why not.
        source: disk::Error,
    },
    /// The unit is not opened for a disk.
    #[error(transparent)]
    Closed(#[from] Closed),
    /// The firmware is not there.
    #[error(transparent)]
    Firmware(#[from] descriptors::Error),
    /// The seed does not fit into an ISO image.
    #[error("cannot make the seed")]
    Seed(#[from] iso9660::Error),
    /// Somebody wants it to end.
    #[error("cancelled")]
    Cancelled,
}

impl From<identity_store::Error> for Error {
    fn from(error: identity_store::Error) -> Self {
        if error.is_canceled() { Self::Cancelled } else { Self::Identity(error) }
    }
}

impl Error {
    /// The host is at fault, and not the VM.
    pub fn is_the_hosts(&self) -> bool {
        match self {
            Self::Probe(error) => error.is_the_hosts(),
            Self::NoKvm(_) | Self::Liveness(_) => true,
            Self::File(error) => error.is_the_hosts(),
            Self::Disk { source, .. } => source.is_the_hosts(),
            Self::Identity(error) => error.is_the_hosts(),
            Self::OlderQemu { .. }
            | Self::Closed(_)
            | Self::Firmware(_)
            | Self::Seed(_)
            | Self::Cancelled => false,
        }
    }

    /// The way out.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Probe(error) => error.hint(),
            Self::NoKvm(error) => error.hint(),
            Self::File(error) => error.hint(),
            Self::Liveness(error) => error.hint(),
            Self::Disk { source, .. } => source.hint(),
            Self::Firmware(error) => error.hint(),
            Self::Identity(error) => error.hint(),
            Self::Closed(error) => error.hint(),
            Self::OlderQemu { machine, qemu } => Some(format!(
                "run the QEMU that it was made with, or a later one (QVM_QEMU names it); or write `{}` for `{machine}` \
                 into the VM's identity.toml: its guest then finds itself on other hardware",
                qemu.machine
            )),
            Self::Seed(_) | Self::Cancelled => None,
        }
    }
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

/// Replaces the cache of what QEMU said, for [`Probe::write`]. It is not synced: what a power cut leaves of it, the next probe
/// ignores.
///
/// # Errors
/// Its directory is not there, or cannot be written.
pub fn write_facts(cache: &Path, json: &[u8]) -> std::io::Result<()> {
    file::remove_abandoned_beside(cache);
    file::write_volatile(cache, json, 0o600).map_err(file::Error::into_io)
}

/// The VM's identity as it is, or as it would be made; nothing is written.
///
/// # Errors
/// There is one, and it cannot be read.
pub fn identity_of(settings: &Settings, vm: &Vm, facts: &Facts) -> Result<Identity, Error> {
    let Some(mut identity) = identity_store::read(&settings.paths())? else {
        return Ok(identity_store::new(&settings.means(), vm, &facts.qemu.machine)?);
    };
    if identity.lacks_macs(vm) {
        identity_store::complete(&mut identity, &settings.means(), vm)?;
    }
    Ok(identity)
}

/// Gives the VM a new instance-id: at the next boot from its seed cloud-init takes the guest for a new one. The old and the new one;
/// `None` where there is no identity yet.
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

/// The firmware that the VM file asks for.
///
/// # Errors
/// None fits.
pub fn firmware_of(
    settings: &Settings,
    vm: &Vm,
    facts: &Facts,
    machine: &str,
) -> Result<Option<Chosen>, descriptors::Error> {
    firmware_for(settings.config_home.as_deref(), &facts.qemu.binary, vm, machine)
}

/// The same, by what it depends on alone.
///
/// # Errors
/// None fits.
pub fn firmware_for(
    config_home: Option<&Path>,
    qemu: &Path,
    vm: &Vm,
    machine: &str,
) -> Result<Option<Chosen>, descriptors::Error> {
    let binary = qemu.canonicalize().unwrap_or_else(|_| qemu.to_owned());
    let directories = descriptors::directories(config_home, &binary);
    let found = if vm.firmware == crate::spec::Firmware::Bios {
        vec![]
    } else {
        firmware::descriptors(&directories)
    };
    descriptors::choose(&found, &directories, vm.firmware, machine)
}

/// Where a disk will be, for a plan before there is one.
pub fn disk_place(paths: &VmPaths, disk: &crate::spec::Disk) -> DiskFile {
    match &disk.source {
        Source::File(path) => {
            DiskFile { path: path.clone(), format: disk.format, is_device: false, backing: vec![] }
        }
        Source::Device(path) => {
            DiskFile { path: path.clone(), format: disk.format, is_device: true, backing: vec![] }
        }
        Source::Image(_) | Source::Blank | Source::Existing => {
            use crate::spec::Format::{Qcow2, Raw};
            let other = if disk.format == Qcow2 { Raw } else { Qcow2 };
            let there = |format| paths.disk(&disk.name, format).exists();
            let format = if !there(disk.format) && there(other) { other } else { disk.format };
            let path = paths.disk(&disk.name, format);
            let is_device = is_block_device(&path);
            DiskFile { path, format, is_device, backing: vec![] }
        }
    }
}

/// Whether the path, or the target of a symbolic link there, is a block device. The operator may have put such a link
/// in the place of a disk of qvm's own.
fn is_block_device(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|found| found.file_type().is_block_device())
}

/// Makes the VM ready to be launched.
///
/// # Errors
/// Any step; what earlier steps made stays and is found by the next start.
pub fn prepare(
    settings: &Settings,
    vm: Vm,
    cancel: &Cancel,
    say: &(dyn Fn(String) + Sync),
) -> Result<Prepared, Error> {
    let paths = settings.paths();
    file::make_dir(&paths.state)?;
    // Before anything that QEMU uses is touched; QEMU inherits them.
    let liveness = Liveness::for_start(&paths, cancel)?;
    disk::remove_left_overs(&paths)?;
    let facts = facts_of(settings)?;
    let (accel, warning) = facts::accelerator(vm.accel, &facts.kvm)?;
    let mut notes: Vec<String> = warning.into_iter().collect();
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
    let identity = identity_store::ensure(&settings.means(), &vm, machine, wants_user, waiter)?;
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
        return Err(Error::Cancelled);
    }
    Ok(Prepared { vm, identity, facts, accel, disks, firmware, notes, liveness })
}

/// Makes a disk ready, and what is to be known of it.
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
) -> Result<(DiskFile, Vec<String>), Error> {
    let tools = Tools {
        qemu_img: QemuImg::new(qemu_img_beside(qemu)),
        patience: Patience::default(),
        now: (settings.now)(),
    };
    let mut spoken = Spoken { say, last: None };
    unit_mounts::bind_path(&settings.name, settings.scope, settings.env, wanted)?;
    let (paths, images) = (settings.paths(), settings.layout.images());
    let ready = disk::ensure(wanted, &paths, &images, &tools, &mut spoken, cancel);
    let failed = |source: disk::Error| match source.is_called_off() {
        true => Error::Cancelled,
        false => Error::Disk { at: vm.at(&format!("disk.{}.image", wanted.name)), source },
    };
    let ready = ready.map_err(failed)?;
    let is_device = is_block_device(&ready.path);
    let backing = match ready.format {
        Format::Qcow2 => {
            let own = matches!(wanted.source, Source::File(_) | Source::Device(_));
            let made = if own { Ok(None) } else { disk::made(wanted, &paths) };
            made.and_then(|made| disk::backing(wanted, &ready.path, made.as_ref(), vm.isolation))
        }
        Format::Raw => Ok(vec![]),
    };
    let backing = backing.map_err(failed)?;
    Ok((DiskFile { path: ready.path, format: ready.format, is_device, backing }, ready.notes))
}

/// The qemu-img that came with this QEMU, or else whatever `PATH` has.
pub(crate) fn qemu_img_beside(binary: &Path) -> std::path::PathBuf {
    let beside = binary.with_file_name("qemu-img");
    if beside.exists() { beside } else { "qemu-img".into() }
}

/// Progress as lines, one every few seconds.
struct Spoken<'a> {
    say: &'a (dyn Fn(String) + Sync),
    last: Option<std::time::Instant>,
}

/// How often a line is said while something takes long.
const SAY_EVERY: std::time::Duration = std::time::Duration::from_secs(3);

impl Progress for Spoken<'_> {
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
