//! The same guest under libvirt, where it is installed and its daemon answers: as transient domains, by `virsh`.

use std::{
    fs,
    path::PathBuf,
    process::{Command, Stdio},
    time::Duration,
};

use crate::{
    figure::{Outcome, Sample},
    machine,
    place::{Place, timed},
};

/// Domains that are destroyed when this is dropped.
pub(crate) struct Libvirt {
    files: Vec<PathBuf>,
}

impl Libvirt {
    /// As many domains as that, not started yet; `None` where there is no libvirt.
    pub(crate) fn new(place: &Place, count: usize) -> Outcome<Option<Self>> {
        if !answers() {
            return Ok(None);
        }
        let mut files = Vec::new();
        for nr in 0..count {
            let disk = place.path().join(format!("libvirt{nr}.qcow2"));
            fs::copy(place.guest("boot.qcow2")?, &disk)?;
            let file = place.path().join(format!("qvm-bench-{nr}.xml"));
            let xml = format!(
                "<domain type='qemu'><name>qvm-bench-{nr}</name><memory unit='MiB'>32</memory><vcpu>1</vcpu>\
                 <os><type arch='x86_64' machine='q35'>hvm</type></os><features><acpi/></features><devices>\
                 <disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='{}'/>\
                 <target dev='vda' bus='virtio'/></disk><serial type='pty'/></devices></domain>",
                disk.display()
            );
            fs::write(&file, xml)?;
            files.push(file);
        }
        Ok(Some(Self { files }))
    }

    /// Until the guest runs.
    pub(crate) fn start(&self, nr: usize) -> Outcome<Duration> {
        let file = self.files.get(nr).ok_or("no such domain")?;
        timed(virsh(&["create"]).arg(file))
    }

    /// Until QEMU is gone.
    pub(crate) fn destroy(nr: usize) -> Outcome<Duration> {
        timed(&mut virsh(&["destroy", &format!("qvm-bench-{nr}")]))
    }

    /// How long it takes to be told.
    pub(crate) fn asked(words: &[&str], times: usize) -> Outcome<Sample> {
        let mut sample = Sample::default();
        for _ in 0..times {
            sample.push(timed(&mut virsh(words))?);
        }
        Ok(sample)
    }
}

impl Drop for Libvirt {
    fn drop(&mut self) {
        for nr in 0..self.files.len() {
            let _ = Self::destroy(nr);
        }
    }
}

/// Whether it is there, and its daemon as well.
pub(crate) fn answers() -> bool {
    machine::has("virsh") && timed(&mut virsh(&["version"])).is_ok()
}

fn virsh(words: &[&str]) -> Command {
    let mut command = Command::new("virsh");
    command.arg("-q").args(words);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command
}
