//! `qvm plan`: prints the QEMU command line, one argument a line, without changing anything.

use std::io::Write;

use crate::{
    cli::exit::Failure,
    disk::sector_size,
    machine::{argv, disk_file::DiskFile, facts},
    spec::{self, Isolation},
    supervisor::{settings::Settings, start::prepare},
    value::{ErrorCode, VmName},
};

/// The arguments of `qvm plan`.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// The name of the VM
    pub name: VmName,
}

/// Prints the command line.
///
/// # Errors
/// The VM file is invalid, or the host lacks a required feature.
pub fn run(settings: &Settings, out: &mut dyn Write) -> Result<(), Failure> {
    let name = settings.name.clone();
    let file = settings.layout.vm_file(&name);
    if !file.exists() {
        let failure = Failure::new(
            ErrorCode::VmFileMissing,
            format!("the VM file `{}` does not exist", file.display()),
        );
        return Err(failure.about(&name));
    }
    let vm = spec::load(&file).map_err(|e| Failure::invalid(&e))?;
    let fail = |error: prepare::Error| Failure::described(&error).about(&name);
    let facts = prepare::facts_of(settings).map_err(|e| fail(e.into()))?;
    let identity = prepare::identity_of(settings, &vm, &facts).map_err(fail)?;
    let firmware = prepare::firmware_of(settings, &vm, &facts, &identity.machine)
        .map_err(|e| fail(e.into()))?;
    let (accel, _) = facts::accelerator(vm.accel, &facts.kvm).map_err(|e| fail(e.into()))?;
    let paths = settings.paths();
    let sys = settings.root.join("sys");
    let disk_file = |disk| {
        let file = prepare::disk_file(&paths, disk);
        let device = file.is_device.then_some(file.path.as_path());
        // A device that cannot be read keeps the VM from starting; nothing is decided here.
        match sector_size::sectors(disk, &vm, &paths, device, &sys) {
            Ok(found) => DiskFile { sector_size: found.size, ..file },
            Err(_) => file,
        }
    };
    let disks: Vec<_> = vm.disks.iter().map(disk_file).collect();
    let machine = argv::Machine {
        vm: &vm,
        identity: &identity,
        paths: &paths,
        accel,
        vhost_net: facts.vhost_net,
        disks: &disks,
        firmware: firmware.as_ref(),
        restores: false,
        sandbox: facts.qemu.sandbox && vm.isolation != Isolation::Off,
    };
    let line = argv::argv(&machine)
        .map_err(|e| Failure::from_error(&e).error_code(ErrorCode::PathUnusable).about(&name))?;
    let mut text = format!("{}\n", facts.qemu.binary.display());
    for argument in line.arguments {
        text.push_str(&argument);
        text.push('\n');
    }
    out.write_all(text.as_bytes()).map_err(|e| Failure::output(&e))
}
