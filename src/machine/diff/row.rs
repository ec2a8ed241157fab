//! A key of the VM file with its value and the effect of a change.

use serde::Serialize;

use super::{change::ChangeKind, running_machine::Versions};
use crate::value::Size;

/// One key with its value.
#[derive(Debug)]
pub(super) struct Row<T> {
    /// The key within its table.
    pub(super) key: &'static str,
    /// The value; `None` if there is none.
    pub(super) text: Option<String>,
    pub(super) effect: Effect<T>,
}

/// When a change of a key takes effect.
#[derive(Debug)]
pub(super) enum Effect<T> {
    /// At `apply`: only qvm uses the value. The function copies the value from the second VM to the
    /// first.
    AtOnce(fn(&mut T, &T)),
    NextReboot,
    NextStart,
    /// When cloud-init runs these modules again.
    CloudInitRerun(&'static str),
    /// When the disk is created.
    NewDisk,
    /// Depends on both values; the text is the wording of the reference.
    Depends(&'static str, fn(&Sides<'_, T>) -> ChangeKind),
    /// The same for several keys with one function, which gets the key.
    Keyed(&'static str, fn(&'static str, &Sides<'_, T>) -> ChangeKind),
}

/// The running and the written value of a table.
#[derive(Debug)]
pub(super) struct Sides<'a, T> {
    pub(super) running: &'a T,
    pub(super) written: &'a T,
    pub(super) facts: &'a Facts<'a>,
}

/// Facts besides the two VM files that determine effects.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    /// The memory with which QEMU was started, the limit of the balloon.
    pub max_memory: Size,
    /// The current VNC server.
    pub screen: ScreenServer,
    /// The versions of the running QEMU, its firmware and its seed.
    pub running: &'a Versions,
    /// The versions for a QEMU started now.
    pub installed: &'a Versions,
}

/// The VNC server of a guest with a screen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScreenServer {
    /// The supervisor.
    Supervisor,
    /// None: the supervisor failed to start it.
    Failed,
    /// QEMU itself, started by an earlier version of qvm.
    Qemu,
}

impl<T> Effect<T> {
    /// Returns the wording of the reference, docs/reference/vm-file.md.
    pub(super) fn words(&self) -> &'static str {
        match self {
            Self::AtOnce(_) => "live",
            Self::NextReboot => "next reboot",
            Self::NextStart => "next start",
            Self::CloudInitRerun(_) => "cloud-init re-run",
            Self::NewDisk => "new disk",
            Self::Depends(words, _) | Self::Keyed(words, _) => words,
        }
    }

    /// Returns when a change takes effect.
    pub(super) fn kind(&self, key: &'static str, sides: &Sides<'_, T>) -> ChangeKind {
        match self {
            Self::AtOnce(_) => ChangeKind::AtOnce,
            Self::NextReboot => ChangeKind::NextReboot,
            Self::NextStart => ChangeKind::NextStart,
            Self::CloudInitRerun(modules) => ChangeKind::CloudInitRerun(modules),
            Self::NewDisk => ChangeKind::Ignored,
            Self::Depends(_, kind) => kind(sides),
            Self::Keyed(_, kind) => kind(key, sides),
        }
    }
}

/// Returns the row of a key.
pub(super) fn row<T>(key: &'static str, text: Option<String>, effect: Effect<T>) -> Row<T> {
    Row { key, text, effect }
}

/// Returns the text of a value.
pub(super) fn text<T: ToString>(value: Option<T>) -> Option<String> {
    value.map(|value| value.to_string())
}

/// Returns a list as one text; `None` if it is empty.
pub(super) fn joined<T: ToString>(items: impl IntoIterator<Item = T>) -> Option<String> {
    let items: Vec<String> = items.into_iter().map(|item| item.to_string()).collect();
    (!items.is_empty()).then(|| items.join(", "))
}

/// Returns the word of an enum in the VM file.
pub(super) fn word<T: Serialize>(value: &T) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(word)) => word,
        Ok(other) => other.to_string(),
        Err(_) => String::new(),
    }
}
