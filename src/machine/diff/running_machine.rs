//! The machine of a running guest: the VM file that QEMU was started from, and what was changed since.

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
    /// Plugs a disk in.
    AddDisk(Box<Disk>),
    /// Unplugs a disk; its file stays.
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
        limits: DiskLimits,
    },
    /// Plugs a NIC in.
    AddNic(Box<Nic>),
    /// Unplugs a NIC.
    RemoveNic(Label),
    /// Attaches the tap of a NIC to another bridge. The NIC is as it is after all live changes.
    MoveNic(Box<Nic>),
    /// Filters what leaves the tap of a NIC, or stops to: `antiSpoof`.
    FilterNic(Box<Nic>),
    /// Isolates the tap of a NIC on its bridge, or stops to.
    IsolateNic(Box<Nic>),
    /// Connects or disconnects the cable of a NIC.
    SetLink(Label, LinkState),
}

impl LiveChange {
    /// Returns the key of the VM file that it is a change of.
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

/// The versions of what a QEMU process was started with, beside the VM file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Versions {
    /// The version of QEMU.
    pub qemu: Option<String>,
    /// The firmware file, and when it was written.
    pub firmware: Option<String>,
    /// cloud-init's instance-id in the seed.
    pub instance: Option<String>,
}

/// The parts of a running machine that may differ from the VM file QEMU was started from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunningMachine {
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
    /// Returns the machine of a QEMU process that is started from a VM file.
    pub fn started_from(vm: &Vm) -> Self {
        Self {
            mem: vm.mem,
            disks: vm.disks.clone(),
            nics: vm.nics.clone(),
            is_replugged: false,
            versions: Versions::default(),
            is_screen_failed: false,
        }
    }

    /// Returns the VM file that would start the machine as it is now; `started` is the one that
    /// QEMU was started from.
    pub fn vm(&self, started: &Vm) -> Vm {
        Vm { mem: self.mem, disks: self.disks.clone(), nics: self.nics.clone(), ..started.clone() }
    }

    /// The memory that the guest is to have: the target of the balloon.
    pub fn mem(&self) -> Size {
        self.mem
    }

    /// The disks that QEMU has.
    pub fn disks(&self) -> &[Disk] {
        &self.disks
    }

    /// The NICs that QEMU has.
    pub fn nics(&self) -> &[Nic] {
        &self.nics
    }

    /// Whether a device was plugged in or out since QEMU was started. No VM file describes such a
    /// machine: devices may have other PCI slots than after a start.
    pub fn is_replugged(&self) -> bool {
        self.is_replugged
    }

    /// Records that a change was executed.
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
                disk.into_iter().for_each(|disk| disk.limits = *limits);
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
