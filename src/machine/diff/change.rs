//! One difference between a running VM and its VM file, and what becomes of it.

use super::running_machine::LiveChange;
use crate::control::change::{Pending, TakesEffect};

/// One difference between a running VM and its VM file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The key, such as `mem` or `disk.data.size`; a whole disk or NIC is one change, `disk.data`.
    pub key: String,
    /// The value that runs; `None` if there is none.
    pub from: Option<String>,
    /// The value in the VM file; `None` if there is none.
    pub to: Option<String>,
    /// What becomes of the change.
    pub kind: ChangeKind,
}

/// What becomes of a change of a running VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ChangeKind {
    /// qvm itself takes the new value when the file is applied.
    AtOnce,
    /// The supervisor serves the screen anew when the file is applied.
    Screen,
    /// QEMU or the kernel executes it when the file is applied.
    Live(LiveChange),
    /// The next QEMU process has it: at a reboot of the guest, or at the next start.
    NextReboot,
    /// It counts from the next start.
    NextStart,
    /// cloud-init has to run again; these are the modules that do something else then.
    CloudInitRerun(&'static str),
    /// It is never applied: the content of the disk would be lost.
    Destructive,
    /// It is never applied: the disk exists.
    Ignored,
}

impl ChangeKind {
    /// When the change becomes real.
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
    /// When the change becomes real.
    pub fn takes_effect(&self) -> TakesEffect {
        self.kind.takes_effect()
    }

    /// The modules of cloud-init that have to run again, for a change of what they read.
    pub fn reruns(&self) -> Option<&'static str> {
        match self.kind {
            ChangeKind::CloudInitRerun(modules) => Some(modules),
            _ => None,
        }
    }
}

/// The change as `status` and `qvm diff` report it.
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
