//! The machine of a running guest: the VM file from which QEMU was started, and the changes since.

use super::key;
use crate::{
    spec::{Disk, DiskLimits, Link, LinkState, Nic, Vm},
    value::{Label, Size},
};

/// One change of a running machine that QEMU or the kernel executes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LiveChange {
    /// Sets the target of the balloon.
    SetMemory(Size),
    /// Hotplugs a disk.
    AddDisk(Box<Disk>),
    /// Unplugs a disk without removing its file.
    RemoveDisk(Label),
    /// Grows a disk to this size.
    GrowDisk(Label, Size),
    /// Limits the I/O of a disk. `key` is the key that differs; all limits are set.
    LimitDisk {
        /// The disk.
        disk: Label,
        /// The key within its table.
        key: &'static str,
        /// All limits of the disk.
        limits: Box<DiskLimits>,
    },
    /// Hotplugs a NIC.
    AddNic(Box<Nic>),
    /// Unplugs a NIC.
    RemoveNic(Label),
    /// Moves the tap of a NIC to another bridge. The NIC has its state after all live changes.
    MoveNic(Box<Nic>),
    /// Enables or disables the anti-spoofing filter of a NIC: `antiSpoof`.
    FilterNic(Box<Nic>),
    /// Enables or disables the isolation of a NIC on its bridge.
    IsolateNic(Box<Nic>),
    /// Sets the link state of a NIC.
    SetLink(Label, LinkState),
}

impl LiveChange {
    /// Returns the changed key of the VM file.
    pub fn key(&self) -> String {
        match self {
            Self::SetMemory(_) => key::MEM.to_owned(),
            Self::AddDisk(disk) => key::of_table(key::DISK, &disk.name),
            Self::RemoveDisk(disk) => key::of_table(key::DISK, disk),
            Self::GrowDisk(disk, _) => key::of_disk(disk, "size"),
            Self::LimitDisk { disk, key, .. } => key::of_disk(disk, key),
            Self::AddNic(nic) => key::of_table(key::NIC, &nic.name),
            Self::RemoveNic(nic) => key::of_table(key::NIC, nic),
            Self::MoveNic(nic) => key::of_nic(&nic.name, "bridge"),
            Self::FilterNic(nic) => key::of_nic(&nic.name, "antiSpoof"),
            Self::IsolateNic(nic) => key::of_nic(&nic.name, "isolated"),
            Self::SetLink(nic, _) => key::of_nic(nic, "link"),
        }
    }
}

/// The versions of the files with which QEMU was started, besides the VM file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Versions {
    /// The version of QEMU.
    pub qemu: Option<String>,
    /// The firmware file and its modification time.
    pub firmware: Option<String>,
    /// The instance-id of cloud-init in the seed.
    pub instance: Option<String>,
}

/// The machine of a QEMU process: the VM file from which it was started, and its live changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunningMachine {
    started: Vm,
    pub(super) mem: Size,
    pub(super) disks: Vec<Disk>,
    pub(super) nics: Vec<Nic>,
    pub(super) is_replugged: bool,
    /// The versions of QEMU, its firmware and its seed.
    pub versions: Versions,
    /// The supervisor cannot serve the screen; the next `qvm apply` tries again.
    pub is_screen_failed: bool,
}

impl RunningMachine {
    /// Returns the machine of a QEMU process that starts from a VM file.
    pub fn started_from(vm: Vm) -> Self {
        Self {
            mem: vm.mem,
            disks: vm.disks.clone(),
            nics: vm.nics.clone(),
            started: vm,
            is_replugged: false,
            versions: Versions::default(),
            is_screen_failed: false,
        }
    }

    /// Returns the VM file from which QEMU was started, with the keys that took effect at once. Its
    /// memory, disks and NICs are those of the start.
    pub fn started(&self) -> &Vm {
        &self.started
    }

    /// Returns the VM file from which QEMU was started, to apply keys that take effect at once.
    pub fn started_mut(&mut self) -> &mut Vm {
        &mut self.started
    }

    /// Returns the VM file that describes the current machine.
    pub fn current(&self) -> Vm {
        let (disks, nics) = (self.disks.clone(), self.nics.clone());
        Vm { mem: self.mem, disks, nics, ..self.started.clone() }
    }

    /// Returns the target of the balloon.
    pub fn mem(&self) -> Size {
        self.mem
    }

    /// Returns the current disks.
    pub fn disks(&self) -> &[Disk] {
        &self.disks
    }

    /// Returns the current NICs.
    pub fn nics(&self) -> &[Nic] {
        &self.nics
    }

    /// Returns true if a device was hotplugged or unplugged since the start. No VM file describes
    /// such a machine: devices can have other PCI slots than after a start.
    pub fn is_replugged(&self) -> bool {
        self.is_replugged
    }

    /// Records an executed change.
    pub fn record(&mut self, change: &LiveChange) {
        match change {
            LiveChange::SetMemory(size) => self.mem = *size,
            LiveChange::AddDisk(disk) => {
                self.disks.retain(|other| other.name != disk.name);
                self.disks.push((**disk).clone());
                self.is_replugged = true;
            }
            LiveChange::RemoveDisk(name) => {
                self.disks.retain(|disk| disk.name != *name);
                self.is_replugged = true;
            }
            LiveChange::GrowDisk(name, size) => {
                let disk = self.disks.iter_mut().find(|disk| disk.name == *name);
                disk.into_iter().for_each(|disk| disk.size = Some(*size));
            }
            LiveChange::LimitDisk { disk: name, limits, .. } => {
                let disk = self.disks.iter_mut().find(|disk| disk.name == *name);
                disk.into_iter().for_each(|disk| disk.limits = **limits);
            }
            LiveChange::AddNic(nic) => {
                self.nics.retain(|other| other.name != nic.name);
                self.nics.push((**nic).clone());
                self.is_replugged = true;
            }
            LiveChange::RemoveNic(name) => {
                self.nics.retain(|nic| nic.name != *name);
                self.is_replugged = true;
            }
            LiveChange::MoveNic(to) => {
                if let (Some(Link::Bridge { bridge, .. }), Link::Bridge { bridge: other, .. }) =
                    (self.nic(&to.name).map(|nic| &mut nic.link), &to.link)
                {
                    bridge.clone_from(other);
                }
            }
            LiveChange::FilterNic(to) => {
                self.nic(&to.name).into_iter().for_each(|nic| nic.anti_spoof = to.anti_spoof);
            }
            LiveChange::IsolateNic(to) => {
                self.nic(&to.name).into_iter().for_each(|nic| nic.isolated = to.isolated);
            }
            LiveChange::SetLink(name, state) => {
                self.nic(name).into_iter().for_each(|nic| nic.state = *state);
            }
        }
    }

    fn nic(&mut self, name: &Label) -> Option<&mut Nic> {
        self.nics.iter_mut().find(|nic| nic.name == *name)
    }
}
