//! A difference between a running VM and its VM file, and when it takes effect.

use super::running_machine::LiveChange;
use crate::control::change::{Pending, TakesEffect};

/// One difference between a running VM and its VM file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The key, such as `mem` or `disk.data.size`; a whole disk or NIC is one change, `disk.data`.
    pub key: String,
    /// The running value; `None` if there is none.
    pub from: Option<String>,
    /// The value in the VM file; `None` if there is none.
    pub to: Option<String>,
    /// When the change takes effect.
    pub kind: ChangeKind,
}

/// When a change of a running VM takes effect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ChangeKind {
    /// qvm itself uses the new value after `apply`.
    AtOnce,
    /// The supervisor restarts the VNC server at `apply`.
    Screen,
    /// QEMU or the kernel executes the change at `apply`.
    Live(LiveChange),
    /// With the next QEMU process: at a reboot of the guest, or at the next start.
    NextReboot,
    /// At the next start.
    NextStart,
    /// When cloud-init runs these modules again.
    CloudInitRerun(&'static str),
    /// Never: the content of the disk would be lost.
    Destructive,
    /// Never: the disk already exists.
    Ignored,
}

impl ChangeKind {
    /// Returns when the change takes effect.
    pub fn takes_effect(&self) -> TakesEffect {
        match self {
            Self::AtOnce | Self::Screen | Self::Live(_) => TakesEffect::Live,
            Self::NextReboot => TakesEffect::NextReboot,
            Self::NextStart => TakesEffect::NextStart,
            Self::CloudInitRerun(_) => TakesEffect::CloudInitRerun,
            Self::Destructive => TakesEffect::Destructive,
            Self::Ignored => TakesEffect::Ignored,
        }
    }
}

impl Change {
    /// Returns when the change takes effect.
    pub fn takes_effect(&self) -> TakesEffect {
        self.kind.takes_effect()
    }

    /// Returns the modules of cloud-init that must run again.
    pub fn reruns(&self) -> Option<&'static str> {
        match self.kind {
            ChangeKind::CloudInitRerun(modules) => Some(modules),
            _ => None,
        }
    }
}

/// The form in the output of `status` and `qvm diff`.
impl From<&Change> for Pending {
    fn from(change: &Change) -> Self {
        Self {
            key: change.key.clone(),
            from: change.from.clone(),
            to: change.to.clone(),
            takes_effect: change.takes_effect(),
            reruns: change.reruns().map(str::to_owned),
        }
    }
}
