//! The keys at the top of a VM file.

use std::{collections::BTreeMap, path::PathBuf};

use serde::{Deserialize, Serialize};

use super::{CloudInit, Disk, Nic};
use crate::value::{CpuWeight, Seconds, Size, VmName};

/// A whole VM file. The flat keys of the first disk and the first NIC are folded into `disks` and
/// `nics` here: `diskSizeG` is the size of the disk `root`, `bridge` is the bridge of the NIC `net`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vm {
    /// The file's name without `.toml`.
    pub name: VmName,
    /// The file itself.
    pub file: PathBuf,
    /// `description`: free text, shown by `qvm status`.
    pub description: Option<String>,
    /// `autostart`: started with the host.
    pub autostart: bool,
    /// `after`: the VMs to start after, and to stop before.
    pub after: Vec<VmName>,
    /// `vcpu`: how many, 1 to 255.
    pub vcpu: u8,
    /// `mem`: what the guest is given.
    pub mem: Size,
    /// `cpuWeight`.
    pub cpu_weight: CpuWeight,
    /// `shutdownTimeoutSec`: how long a clean shutdown may take before the guest is forced off.
    pub shutdown_timeout: Seconds,
    /// `accel`.
    pub accel: Accel,
    /// `firmware`.
    pub firmware: Firmware,
    /// `onPanic`.
    pub on_panic: OnPanic,
    /// `onGuestReboot`.
    pub on_guest_reboot: OnGuestReboot,
    /// The disks, `root` first, the others in the order of the file. Never empty.
    pub disks: Vec<Disk>,
    /// The NICs, `net` first, the others in the order of the file; empty with an empty `[nic]` table.
    pub nics: Vec<Nic>,
    /// `[cloudInit]`; without it the VM gets no seed.
    pub cloud_init: Option<CloudInit>,
    /// The line of each key that was written, by its path (`bridge`, `disk.data.size`), for messages.
    pub lines: BTreeMap<String, usize>,
}

impl Vm {
    /// `FILE:LINE` of a key, or `FILE` where the key was not written.
    pub fn at(&self, key: &str) -> String {
        match self.lines.get(key) {
            Some(line) => format!("{}:{line}", self.file.display()),
            None => self.file.display().to_string(),
        }
    }
}

/// What executes the guest's instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Accel {
    /// KVM where a hardware module is loaded, else TCG with a warning.
    #[default]
    Auto,
    /// KVM; refused where it is not to be had.
    Kvm,
    /// QEMU's own translator: works everywhere, an order of magnitude slower.
    Tcg,
}

/// What the guest boots by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Firmware {
    /// SeaBIOS.
    #[default]
    Bios,
    /// UEFI without Secure Boot.
    Uefi,
    /// UEFI with Secure Boot enforced and the usual keys enrolled.
    UefiSecure,
}

/// What a panic of the guest's kernel leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnPanic {
    /// QEMU is ended and `qvm run` fails, so that the unit's restart policy starts it again.
    #[default]
    Restart,
    /// QEMU is ended and stays so.
    Stop,
    /// The guest is left paused for whoever wants to look.
    Pause,
}

/// What happens to pending changes when the guest reboots.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnGuestReboot {
    /// QEMU is started anew with the VM file as it is now, if anything is pending.
    #[default]
    Apply,
    /// The guest is reset within the same QEMU; changes stay pending.
    Reset,
}
