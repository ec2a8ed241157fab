//! The records of snapshots: `snapshots/SNAP.toml` for each, and `snapshots.toml` for the present.
//!
//! The chain of files below a disk is taken from these records and never from a qcow2 header, which
//! a guest may have written.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{
    spec::Format,
    value::{Label, SnapshotName},
};

/// The version of the records.
pub const VERSION: u32 = 1;
/// The maximum number of frozen files below a disk.
pub const MAX_DEPTH: usize = 16;

/// How the disks of a snapshot are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SnapshotKind {
    /// A copy that shares the blocks of the disk (FICLONE, ioctl_ficlone(2)).
    Reflink,
    /// The disk itself, frozen; the present is a qcow2 overlay on it.
    Overlay,
}

impl SnapshotKind {
    /// Returns the word for tables and records.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Reflink => "reflink",
            Self::Overlay => "overlay",
        }
    }
}

/// What the disks of a snapshot are like to a guest that boots from them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Consistency {
    /// The VM was stopped.
    Stopped,
    /// The guest's file systems were frozen by its agent.
    Frozen,
    /// All disks at one instant, as after a power cut.
    Paused,
}

impl Consistency {
    /// Returns the word for tables and records.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Stopped => "stopped",
            Self::Frozen => "frozen",
            Self::Paused => "paused",
        }
    }
}

/// Whether a snapshot can be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// Complete.
    Complete,
    /// Its removal has begun and can only be completed: its files may have changed.
    Removing,
}

/// A disk of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DiskRecord {
    /// The format of the file.
    pub format: Format,
    /// What the guest saw, in bytes.
    pub virtual_bytes: u64,
    /// The name of the file, beside the disk.
    pub file: String,
    /// The name of the frozen file that it is an overlay on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backing: Option<String>,
}

/// `snapshots/SNAP.toml`. Fields of a newer version are kept.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SnapshotRecord {
    /// The version of the record.
    pub version: u32,
    /// The name, which is also that of the file.
    pub name: SnapshotName,
    /// When it was taken, RFC 3339.
    pub created_at: String,
    /// How its disks are kept.
    pub kind: SnapshotKind,
    /// What its disks are like.
    pub consistency: Consistency,
    /// Whether it can be used.
    pub phase: Phase,
    /// The snapshot before it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<SnapshotName>,
    /// A comment of the operator.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub comment: Option<String>,
    /// The machine type of the VM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine: Option<String>,
    /// The QEMU that ran the guest; `None` of a stopped VM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub qemu_version: Option<String>,
    /// The UEFI variables are in `SNAP.efivars.fd` beside the record.
    #[serde(default)]
    pub has_efi_vars: bool,
    /// The VM file. It is kept for comparison: a rollback does not change the VM file.
    pub vm_file: String,
    /// The disks.
    #[serde(default)]
    pub disks: BTreeMap<Label, DiskRecord>,
    /// Fields of a newer version.
    #[serde(flatten)]
    pub other: toml::Table,
}

/// How far a change of the present has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SwitchPhase {
    /// New files are made. The present is unchanged, and an interrupted change is undone.
    Preparing,
    /// All new files are complete. An interrupted change is completed.
    Switching,
}

/// A disk of a change of the present.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SwitchedDisk {
    /// The format of the disk.
    pub format: Format,
    /// The name of the file that the present content gets; of a discarded present a name that is
    /// removed at the end.
    pub kept: String,
    /// What becomes the new present.
    pub next: NextPresent,
}

/// What becomes the present of a disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "by")]
pub enum NextPresent {
    /// The present itself, of which `kept` is a reflink.
    Unchanged,
    /// A reflink of this file.
    Reflink {
        /// The name of the file.
        of: String,
    },
    /// A new overlay on this frozen file.
    Overlay {
        /// The name of the file.
        on: String,
        /// Its format.
        format: Format,
        /// The size that the guest sees, in bytes.
        virtual_bytes: u64,
    },
}

/// A change of the present: the creation of a snapshot, or a rollback. Written before the first
/// file is changed, so that the next verb or start completes or undoes it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Switch {
    /// How far it has come.
    pub phase: SwitchPhase,
    /// The snapshot that the present content becomes; `None` if it is discarded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep: Option<SnapshotRecord>,
    /// The snapshot that the new present is based on.
    pub parent: SnapshotName,
    /// The new present gets the UEFI variables of `parent`.
    pub restores_efi_vars: bool,
    /// The disks.
    pub disks: BTreeMap<Label, SwitchedDisk>,
}

/// `snapshots.toml`: what the present is based on. Fields of a newer version are kept.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Present {
    /// The version of the record.
    pub version: u32,
    /// The snapshot that the present is based on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<SnapshotName>,
    /// The frozen files that the disks are overlays on, by disk.
    #[serde(default)]
    pub backing: BTreeMap<Label, String>,
    /// The change in progress.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub switch: Option<Switch>,
    /// Fields of a newer version.
    #[serde(flatten)]
    pub other: toml::Table,
}

impl Default for Present {
    fn default() -> Self {
        Self {
            version: VERSION,
            parent: None,
            backing: BTreeMap::new(),
            switch: None,
            other: toml::Table::new(),
        }
    }
}

impl SnapshotRecord {
    /// Returns the name of a disk's file in a snapshot.
    pub fn file_name(disk: &Label, snapshot: &SnapshotName, format: Format) -> String {
        format!("{disk}@{snapshot}.{}", format.name())
    }

    /// Returns what is wrong with a record of this name, whose values become paths.
    pub fn flaw(&self, name: &SnapshotName) -> Option<&'static str> {
        let is_beside = |disk: &Label, file: &str| is_snapshot_file(disk, file);
        let disks_are_sound = self.disks.iter().all(|(disk, one)| {
            is_beside(disk, &one.file) && one.backing.iter().all(|file| is_beside(disk, file))
        });
        if self.name != *name {
            Some("`name` is not that of the file")
        } else if self.created_at.parse::<Timestamp>().is_err() {
            Some("`createdAt` is not a time")
        } else if !disks_are_sound {
            Some("a file of `disks` is not one of a snapshot")
        } else {
            None
        }
    }
}

impl Present {
    /// Returns what is wrong with the record, whose values become paths.
    pub fn flaw(&self) -> Option<&'static str> {
        if !self.backing.iter().all(|(disk, file)| is_snapshot_file(disk, file)) {
            return Some("a file of `backing` is not one of a snapshot");
        }
        let switch = self.switch.as_ref()?;
        if let Some(flaw) = switch.keep.as_ref().and_then(|keep| keep.flaw(&keep.name)) {
            return Some(flaw);
        }
        let is_sound = |(disk, one): (&Label, &SwitchedDisk)| {
            let from = match &one.next {
                NextPresent::Unchanged => None,
                NextPresent::Reflink { of } => Some(of),
                NextPresent::Overlay { on, .. } => Some(on),
            };
            let is_kept = match switch.keep {
                Some(_) => is_snapshot_file(disk, &one.kept),
                None => one.kept == discarded_name(disk, one.format),
            };
            is_kept && from.is_none_or(|from| is_snapshot_file(disk, from))
        };
        let all = switch.disks.iter().all(is_sound);
        (!all).then_some("a file of `switch` is not one of a snapshot")
    }
}

/// Returns the name of a discarded present until it is removed. No snapshot has such a name.
pub fn discarded_name(disk: &Label, format: Format) -> String {
    format!("{disk}@.discarded.{}", format.name())
}

/// Returns true for `DISK@SNAP.FORMAT`.
fn is_snapshot_file(disk: &Label, file: &str) -> bool {
    let snapshot = file.strip_prefix(disk.as_str()).and_then(|rest| rest.strip_prefix('@'));
    let name = snapshot.and_then(|rest| {
        [Format::Qcow2, Format::Raw]
            .iter()
            .find_map(|format| rest.strip_suffix(format.name())?.strip_suffix('.'))
    });
    name.is_some_and(|name| name.parse::<SnapshotName>().is_ok())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn record(name: &str, backing: Option<&str>) -> SnapshotRecord {
        let disk = DiskRecord {
            format: Format::Qcow2,
            virtual_bytes: 8 << 20,
            file: format!("root@{name}.qcow2"),
            backing: backing.map(|name| format!("root@{name}.qcow2")),
        };
        SnapshotRecord {
            version: VERSION,
            name: name.parse().unwrap(),
            created_at: "2026-01-02T03:04:05Z".into(),
            kind: SnapshotKind::Overlay,
            consistency: Consistency::Stopped,
            phase: Phase::Complete,
            parent: backing.map(|name| name.parse().unwrap()),
            comment: Some("before \"it\"".into()),
            machine: Some("pc-q35-10.0".into()),
            qemu_version: None,
            has_efi_vars: false,
            vm_file: "mem = \"1G\"\n[disk.root]\nsize = \"8M\"\n".into(),
            disks: BTreeMap::from([("root".parse().unwrap(), disk)]),
            other: toml::Table::new(),
        }
    }

    #[test]
    fn record_round_trips_with_unknown_fields() {
        let mut one = record("a", Some("b"));
        one.other.insert("future".into(), toml::Value::from(7));
        let text = toml::to_string(&one).unwrap();
        assert_eq!(toml::from_str::<SnapshotRecord>(&text).unwrap(), one);
        assert_eq!(one.flaw(&"a".parse().unwrap()), None);
    }

    #[test]
    fn present_round_trips() {
        let disk: Label = "root".parse().unwrap();
        let next = NextPresent::Overlay {
            on: "root@a.qcow2".into(),
            format: Format::Qcow2,
            virtual_bytes: 1 << 40,
        };
        let kept = "root@b.qcow2".into();
        let one = Present {
            parent: Some("a".parse().unwrap()),
            backing: BTreeMap::from([(disk.clone(), "root@a.qcow2".into())]),
            switch: Some(Switch {
                phase: SwitchPhase::Switching,
                keep: Some(record("b", Some("a"))),
                parent: "a".parse().unwrap(),
                restores_efi_vars: true,
                disks: BTreeMap::from([(disk, SwitchedDisk { format: Format::Qcow2, kept, next })]),
            }),
            ..Present::default()
        };
        let text = toml::to_string(&one).unwrap();
        assert_eq!(toml::from_str::<Present>(&text).unwrap(), one);
        assert_eq!(one.flaw(), None);
    }

    #[test]
    fn files_outside_the_directory_are_flaws() {
        let name: SnapshotName = "a".parse().unwrap();
        let with = |file: &str| {
            let mut one = record("a", None);
            one.disks.values_mut().for_each(|disk| disk.file = file.into());
            one.flaw(&name)
        };
        assert_eq!(with("root@a.raw"), None);
        for file in
            ["/etc/passwd", "root@../a.qcow2", "data@a.qcow2", "root.qcow2", "root@.qcow2", ""]
        {
            assert!(with(file).is_some(), "{file}");
        }
        assert!(record("a", None).flaw(&"b".parse().unwrap()).is_some());
        let mut one = record("a", None);
        one.created_at = "yesterday".into();
        assert!(one.flaw(&name).is_some());
        let present = Present {
            backing: BTreeMap::from([("root".parse().unwrap(), "x".into())]),
            ..Present::default()
        };
        assert!(present.flaw().is_some());
    }
}
