//! A difference between the VM file and the running VM, as status and `qvm diff` report it.

use serde::{Deserialize, Serialize};

/// One difference between the VM file and what runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Pending {
    /// The key, such as `mem` or `disk.data.size`; a disk or NIC that is on one side only is one difference, `disk.data`.
    pub key: String,
    /// What runs; null where there is nothing.
    pub from: Option<String>,
    /// What is written; null where it was taken out.
    pub to: Option<String>,
    /// When the change becomes real.
    pub takes_effect: TakesEffect,
    /// What cloud-init would do anew, where it is cloud-init that has to run again: the names of its modules.
    #[serde(default)]
    pub reruns: Option<String>,
}

/// When a change becomes real.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TakesEffect {
    /// At `qvm apply` or SIGHUP.
    Live,
    /// When the guest reboots (with `onGuestReboot = "apply"`), or at the next start.
    NextReboot,
    /// At the next start of a stopped VM.
    NextStart,
    /// When cloud-init runs again, which a changed seed alone does not bring about.
    CloudInitRerun,
    /// Never by itself: the disk would have to be made anew, and what is in it would be lost.
    Destructive,
    /// Never: the disk exists.
    Ignored,
}

impl TakesEffect {
    /// The word for it, in JSON and in metrics.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::NextReboot => "next-reboot",
            Self::NextStart => "next-start",
            Self::CloudInitRerun => "cloud-init-rerun",
            Self::Destructive => "destructive",
            Self::Ignored => "ignored",
        }
    }

    /// A sentence's end for people.
    pub fn words(self) -> &'static str {
        match self {
            Self::Live => "at `qvm apply`",
            Self::NextReboot => "when the guest reboots",
            Self::NextStart => "at the next start",
            Self::CloudInitRerun => "when cloud-init runs again (`qvm reseed`)",
            Self::Destructive => "never: a disk does not shrink, a smaller one would be a new one",
            Self::Ignored => "never: the disk exists",
        }
    }
}
