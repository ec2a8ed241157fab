//! The values of keys that are a choice of words.

use serde::{Deserialize, Serialize};

/// How to start a VM if the host has too little memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Admission {
    /// Refuse the start and report the sizes.
    #[default]
    Refuse,
    /// Wait for free memory.
    Wait,
    /// Start without a check.
    Off,
}

/// What executes guest instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Accel {
    /// KVM if available, else TCG with a warning.
    #[default]
    Auto,
    /// Only KVM.
    Kvm,
    /// QEMU's TCG: works on every host, about ten times slower.
    Tcg,
}

/// The firmware of the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Firmware {
    /// SeaBIOS.
    #[default]
    Bios,
    /// UEFI without Secure Boot.
    Uefi,
    /// UEFI with Secure Boot enforced and the default keys enrolled.
    UefiSecure,
}

/// The reaction to a kernel panic of the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnPanic {
    /// Stop QEMU; `qvm run` fails, so that the restart policy of the unit starts the VM again.
    #[default]
    Restart,
    /// Stop QEMU; the VM stays stopped.
    Stop,
    /// Leave the guest paused for inspection.
    Pause,
}

/// When pending changes take effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnGuestReboot {
    /// At a guest reboot: QEMU is started again with the current VM file if any change is pending.
    #[default]
    Apply,
    /// At the next start: a guest reboot only resets the machine.
    Reset,
}

/// The reaction if a tap of a running guest is removed from its bridge, or the bridge is deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TapHeal {
    /// Report it, and attach the tap again, now or when the bridge exists again.
    #[default]
    Heal,
    /// Only report it.
    Report,
    /// Ignore it.
    Off,
}

/// What to do with the guest at a host shutdown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HostShutdown {
    /// Shut it down cleanly.
    #[default]
    Stop,
    /// Suspend it to disk; the next start resumes it.
    Suspend,
}

/// How strictly QEMU is isolated from the host and from other VMs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Isolation {
    /// Use every mechanism of the host; report missing ones.
    #[default]
    On,
    /// Use every mechanism; refuse the start if one is missing.
    Strict,
    /// No isolation.
    Off,
}

/// The format of a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// qcow2, the default: sparse on every file system.
    #[default]
    Qcow2,
    /// Raw bytes.
    Raw,
}

impl Format {
    /// Returns the name of QEMU's block driver, which is also the file suffix.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Qcow2 => "qcow2",
            Self::Raw => "raw",
        }
    }
}

/// How a disk is created from its image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Clone {
    /// A full copy: a reflink if the file system supports it.
    #[default]
    Copy,
    /// A qcow2 overlay on the cached image, which then cannot be removed.
    Overlay,
}

/// The emulated disk controller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Bus {
    /// virtio-blk: the fastest; requires a driver, which every Linux and BSD has.
    #[default]
    Virtio,
    /// AHCI: for guests without virtio drivers, such as a Windows installer.
    Sata,
    /// NVMe: for newer guests without virtio drivers.
    Nvme,
}

/// Whether the host's page cache is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Cache {
    /// It is. A flush of the guest is a flush of the host.
    Writeback,
    /// It is not: `O_DIRECT`.
    None,
}

/// The size of a sector that the guest sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SectorSize {
    /// 512 bytes: every firmware and guest reads them.
    B512,
    /// 4096 bytes, "4Kn".
    B4096,
}

impl SectorSize {
    /// The size in bytes.
    pub const fn bytes(self) -> u32 {
        match self {
            Self::B512 => 512,
            Self::B4096 => 4096,
        }
    }

    /// The size with this number of bytes; `None` if there is none.
    pub const fn of_bytes(bytes: u64) -> Option<Self> {
        match bytes {
            512 => Some(Self::B512),
            4096 => Some(Self::B4096),
            _ => None,
        }
    }

    /// The size with this number of bytes as text.
    pub fn parse(text: &str) -> Option<Self> {
        Self::of_bytes(text.parse().ok()?)
    }
}

/// The medium of a drive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Media {
    /// A disk.
    #[default]
    Disk,
    /// A CD, always read-only and on SATA; the last boot device.
    Cdrom,
}

/// The emulated NIC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Model {
    /// virtio-net: the fastest; requires a driver, which every Linux and BSD has.
    #[default]
    Virtio,
    /// Intel 82574L: for guests without virtio drivers, such as a Windows installer.
    E1000e,
}

/// The link state that the guest sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LinkState {
    /// Connected.
    #[default]
    Up,
    /// Disconnected: no frame passes.
    Down,
}

/// The reaction to a guest that is not ready in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ReadyFailure {
    /// The VM counts as started; `qvm status` shows that it is not ready.
    #[default]
    Continue,
    /// The VM is shut down, and `qvm run` fails.
    Fail,
}
