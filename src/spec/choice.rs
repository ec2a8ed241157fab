//! What a key with a few words lets an operator choose among.

use serde::{Deserialize, Serialize};

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
