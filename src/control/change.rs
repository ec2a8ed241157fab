//! A difference between the VM file and the running VM, as status and `qvm diff` report it.

use serde::{Deserialize, Serialize};

/// One difference between the VM file and the running VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Pending {
    /// The key, such as `mem` or `disk.data.size`; an added or removed disk or NIC is one
    /// difference, such as `disk.data`.
    pub key: String,
    /// The running value; null if there is none.
    pub from: Option<String>,
    /// The value in the VM file; null if the key was removed.
    pub to: Option<String>,
    /// When the change takes effect.
    pub takes_effect: TakesEffect,
    /// The names of the cloud-init modules that would run again, if the change requires that.
    #[serde(default)]
    pub reruns: Option<String>,
}

/// When a change takes effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TakesEffect {
    /// At `qvm apply` or SIGHUP.
    Live,
    /// When the guest reboots (with `onGuestReboot = "apply"`), or at the next start.
    NextReboot,
    /// At the next start of the stopped VM.
    NextStart,
    /// When cloud-init runs again, which a changed seed alone does not cause.
    CloudInitRerun,
    /// Never automatically: the disk would have to be created again, and its data would be lost.
    Destructive,
    /// Never: the disk exists.
    Ignored,
}

impl TakesEffect {
    /// Returns the word in JSON and metrics.
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

    /// Returns the text for operators, which completes a sentence.
    pub fn words(self) -> &'static str {
        match self {
            Self::Live => "at `qvm apply`",
            Self::NextReboot => "when the guest reboots",
            Self::NextStart => "at the next start",
            Self::CloudInitRerun => "when cloud-init runs again (`qvm reseed`)",
            Self::Destructive => "never: a disk cannot be shrunk",
            Self::Ignored => "never: the disk exists",
        }
    }
}
