//! What a key with a few words lets an operator choose among.

use serde::{Deserialize, Serialize};

/// What becomes of a start that the host's memory is not enough for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Admission {
    /// It is refused, with the sums.
    #[default]
    Refuse,
    /// It waits until there is room.
    Wait,
    /// Nobody looks.
    Off,
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

/// What happens when a tap of a running guest is taken off its bridge, or the bridge goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TapHeal {
    /// It is told, and the tap is put back, at once or when the bridge is there again.
    #[default]
    Heal,
    /// It is told.
    Report,
    /// Nothing.
    Off,
}

/// What happens to the guest when the host shuts down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HostShutdown {
    /// It is shut down cleanly.
    #[default]
    Stop,
    /// Its state is saved, and it goes on from there.
    Suspend,
}

/// How QEMU is kept apart from the host and from other VMs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Isolation {
    /// By everything that the host has; what it lacks is told.
    #[default]
    On,
    /// By everything, or it is not started.
    Strict,
    /// By nothing.
    Off,
}

/// How bytes lie in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// QEMU's own: sparse everywhere, the default.
    #[default]
    Qcow2,
    /// The bytes as they are.
    Raw,
}

impl Format {
    /// The name as QEMU's block drivers have it; also the file's suffix.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Qcow2 => "qcow2",
            Self::Raw => "raw",
        }
    }
}

/// How a disk is made from its image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Clone {
    /// A disk of its own: a reflink where the file system can, else a copy.
    #[default]
    Copy,
    /// A qcow2 overlay on the cached image, which is then protected.
    Overlay,
}

/// What the guest sees the disk as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Bus {
    /// virtio-blk: the fastest, needs a driver that every Linux and BSD has.
    #[default]
    Virtio,
    /// AHCI: for guests without virtio drivers, such as a Windows installer.
    Sata,
    /// NVMe: the same, for newer guests.
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

/// What kind of thing is in the drive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Media {
    /// A disk.
    #[default]
    Disk,
    /// A CD, always read-only, on SATA; booted from when no disk boots.
    Cdrom,
}

/// What the guest sees the NIC as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Model {
    /// virtio-net: the fastest, needs a driver that every Linux and BSD has.
    #[default]
    Virtio,
    /// Intel 82574L: for guests without virtio drivers, such as a Windows installer.
    E1000e,
}

/// Whether the guest sees a cable plugged in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LinkState {
    /// It does.
    #[default]
    Up,
    /// It does not: nothing passes.
    Down,
}

/// What is done with a guest that does not get ready in its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ReadyFailure {
    /// It counts as started all the same, and `qvm status` tells.
    #[default]
    Continue,
    /// It is shut down, and `qvm run` fails.
    Fail,
}
