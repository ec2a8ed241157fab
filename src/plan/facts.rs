//! What the plan must know of the host, gathered by `host::probe`.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// The facts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// The QEMU that will be run.
    pub qemu: Qemu,
    /// Whether KVM can be used.
    pub kvm: Kvm,
    /// Whether /dev/vhost-net can be opened.
    pub vhost_net: bool,
}

/// A QEMU binary.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Qemu {
    /// Where it is.
    pub binary: PathBuf,
    /// Its version, such as 10.0.2.
    pub version: Version,
    /// The newest versioned q35 machine type it knows, such as `pc-q35-10.0`.
    pub machine: String,
}

/// A version of QEMU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Version {
    /// The first number.
    pub major: u16,
    /// The second.
    pub minor: u16,
    /// The third.
    pub micro: u16,
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.micro)
    }
}

/// Whether KVM can be used, and if not, why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kvm {
    /// /dev/kvm can be opened and a hardware module is loaded.
    Usable,
    /// There is no /dev/kvm.
    Missing,
    /// /dev/kvm is there but may not be opened by this user.
    Denied,
    /// /dev/kvm is there, but by a module other than kvm_intel, kvm_amd or another architecture's: guests may hang on it.
    Unproven,
}
