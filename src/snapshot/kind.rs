//! Decides how the disks of a VM can be kept in a snapshot.
//!
//! All snapshots of a VM have one kind: programs that mixed kinds have deleted the files that
//! others depended on.

use std::path::PathBuf;

use crate::{
    spec::Format,
    store::snapshot_record::SnapshotKind,
    value::{ErrorCode, Explain, Label},
};

/// What a disk of the VM file is, with regard to snapshots.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DiskSource {
    /// A regular file in the VM's state directory.
    File(Format),
    /// qvm creates it at the next start.
    NotCreated,
    /// The guest cannot write to it, so it is not part of a snapshot.
    ReadOnly,
    /// A symbolic link in the VM's state directory.
    Link,
    /// A file of the operator (`path`), which qvm never changes.
    OperatorFile,
    /// A block device.
    Device,
}

/// A disk of the VM file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskFacts {
    /// The disk.
    pub disk: Label,
    /// Its file or device.
    pub path: PathBuf,
    /// What it is.
    pub source: DiskSource,
}

/// Why no snapshot of the disks is possible.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// A disk cannot be part of a snapshot.
    #[error("disk {disk}: `{}` {why}", .path.display())]
    Disk {
        /// The disk.
        disk: Label,
        /// The file or device.
        path: PathBuf,
        /// The predicate of the message.
        why: &'static str,
        /// What to do.
        hint: &'static str,
    },
    /// No disk can be part of a snapshot.
    #[error("the VM has no disk that the guest can change")]
    NoDisk,
    /// The snapshots are reflinks, and the file system no longer supports them.
    #[error("the snapshots of this VM are reflinks, which `{}` does not support", .0.display())]
    ReflinksLost(PathBuf),
    /// Unknown whether the file system supports reflinks.
    #[error("cannot determine whether `{}` supports reflinks", .0.display())]
    Unknown(PathBuf),
}

impl Explain for Refusal {
    fn own_code(&self) -> Option<ErrorCode> {
        Some(match self {
            Self::Disk { .. } | Self::NoDisk | Self::ReflinksLost(..) | Self::Unknown(..) => {
                ErrorCode::SnapshotRefused
            }
        })
    }

    fn own_hint(&self) -> Option<String> {
        match self {
            Self::Disk { hint, .. } => Some((*hint).to_owned()),
            Self::NoDisk | Self::Unknown(_) => None,
            Self::ReflinksLost(_) => Some(
                "all snapshots of a VM have one kind: remove its snapshots with `qvm snapshot rm`, \
                 or move its state directory back"
                    .into(),
            ),
        }
    }

    fn is_own_host_fault(&self) -> bool {
        matches!(self, Self::Unknown(_))
    }
}

/// Returns the kind of the next snapshot. `existing` is that of the snapshots of the VM,
/// `can_reflink` whether the file system of `directory` shares blocks; `None` is not known.
///
/// # Errors
/// A disk cannot be part of a snapshot of that kind.
pub fn decide(
    existing: Option<SnapshotKind>,
    disks: &[DiskFacts],
    can_reflink: Option<bool>,
    directory: &std::path::Path,
) -> Result<SnapshotKind, Refusal> {
    let mut formats = Vec::new();
    for one in disks {
        let refused = |why, hint| {
            Err(Refusal::Disk { disk: one.disk.clone(), path: one.path.clone(), why, hint })
        };
        match one.source {
            DiskSource::File(format) => formats.push((one, format)),
            DiskSource::ReadOnly => {}
            DiskSource::NotCreated => {
                return refused("does not exist yet", "start the VM once, which creates the disk");
            }
            DiskSource::Link => {
                return refused(
                    "is a symbolic link, so its snapshots would be in another directory",
                    "replace the link by the file; the state directory may be a link or a mount",
                );
            }
            DiskSource::OperatorFile => {
                return refused(
                    "was not created by qvm, which never changes such a file",
                    "move the file into the VM's state directory as `DISK.FORMAT` and remove \
                     `path`; or back it up while the guest is frozen: `qvm fsfreeze NAME -- \
                     COMMAND`",
                );
            }
            DiskSource::Device => {
                return refused(
                    "is a block device, of which qvm makes no snapshots yet",
                    "run the snapshot command of the storage while the guest is frozen: \
                     `qvm fsfreeze NAME -- COMMAND`",
                );
            }
        }
    }
    if formats.is_empty() {
        return Err(Refusal::NoDisk);
    }
    let overlay = || match formats.iter().find(|(_, format)| *format == Format::Raw) {
        None => Ok(SnapshotKind::Overlay),
        Some((one, _)) => Err(Refusal::Disk {
            disk: one.disk.clone(),
            path: one.path.clone(),
            why: "is raw, and its file system does not support reflinks",
            hint: "use a file system with reflinks, such as btrfs or XFS; or convert the disk \
                   while the VM is stopped: `qemu-img convert -f raw -O qcow2 DISK.raw \
                   DISK.qcow2`, then remove `DISK.raw`",
        }),
    };
    match (existing, can_reflink) {
        (Some(SnapshotKind::Overlay), _) | (None, Some(false)) => overlay(),
        (Some(SnapshotKind::Reflink) | None, Some(true)) => Ok(SnapshotKind::Reflink),
        (Some(SnapshotKind::Reflink), Some(false)) => {
            Err(Refusal::ReflinksLost(directory.to_owned()))
        }
        (Some(SnapshotKind::Reflink) | None, None) => Err(Refusal::Unknown(directory.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use proptest::prelude::*;

    use super::*;

    fn disk(name: &str, source: DiskSource) -> DiskFacts {
        let path = format!("/s/{name}").into();
        DiskFacts { disk: name.parse().unwrap(), path, source }
    }

    fn decided(
        existing: Option<SnapshotKind>,
        sources: &[DiskSource],
        can_reflink: Option<bool>,
    ) -> Result<SnapshotKind, Refusal> {
        let disks: Vec<DiskFacts> = sources.iter().map(|one| disk("root", one.clone())).collect();
        decide(existing, &disks, can_reflink, Path::new("/s"))
    }

    const QCOW2: DiskSource = DiskSource::File(Format::Qcow2);
    const RAW: DiskSource = DiskSource::File(Format::Raw);
    const REFLINK: SnapshotKind = SnapshotKind::Reflink;
    const OVERLAY: SnapshotKind = SnapshotKind::Overlay;

    #[test]
    fn kind_follows_the_file_system() {
        assert_eq!(decided(None, &[QCOW2, RAW], Some(true)), Ok(REFLINK));
        assert_eq!(decided(None, &[QCOW2], Some(false)), Ok(OVERLAY));
        assert_eq!(decided(None, &[QCOW2, DiskSource::ReadOnly], Some(false)), Ok(OVERLAY));
        let raw = decided(None, &[QCOW2, RAW], Some(false)).unwrap_err();
        assert!(raw.hint().unwrap().contains("qemu-img convert"), "{raw}");
        let unknown = decided(None, &[QCOW2], None).unwrap_err();
        assert!(unknown.is_host_fault());
    }

    #[test]
    fn kind_of_existing_snapshots_is_kept() {
        // A chain is continued wherever the directory is.
        for can_reflink in [Some(true), Some(false), None] {
            assert_eq!(decided(Some(OVERLAY), &[QCOW2], can_reflink), Ok(OVERLAY));
        }
        assert!(decided(Some(OVERLAY), &[RAW], Some(true)).is_err());
        assert_eq!(decided(Some(REFLINK), &[RAW], Some(true)), Ok(REFLINK));
        let lost = decided(Some(REFLINK), &[QCOW2], Some(false));
        assert!(matches!(lost, Err(Refusal::ReflinksLost(_))), "{lost:?}");
        assert!(decided(Some(REFLINK), &[QCOW2], None).unwrap_err().is_host_fault());
    }

    #[test]
    fn other_disks_are_refused_with_hints() {
        for source in
            [DiskSource::NotCreated, DiskSource::Link, DiskSource::OperatorFile, DiskSource::Device]
        {
            let refused = decided(None, &[QCOW2, source], Some(true)).unwrap_err();
            assert!(matches!(refused, Refusal::Disk { .. }) && refused.hint().is_some());
            assert!(!refused.is_host_fault());
        }
        assert_eq!(decided(None, &[DiskSource::ReadOnly], Some(true)), Err(Refusal::NoDisk));
        assert_eq!(decided(None, &[], Some(true)), Err(Refusal::NoDisk));
    }

    fn sources() -> impl Strategy<Value = Vec<DiskSource>> {
        let one = prop_oneof![
            Just(QCOW2),
            Just(RAW),
            Just(DiskSource::NotCreated),
            Just(DiskSource::ReadOnly),
            Just(DiskSource::Link),
            Just(DiskSource::OperatorFile),
            Just(DiskSource::Device),
        ];
        prop::collection::vec(one, 0..5)
    }

    proptest! {
        #[test]
        fn kinds_are_never_mixed(
            existing in prop::option::of(prop_oneof![Just(REFLINK), Just(OVERLAY)]),
            sources in sources(),
            can_reflink: Option<bool>,
        ) {
            if let Ok(kind) = decided(existing, &sources, can_reflink) {
                prop_assert!(existing.is_none_or(|existing| existing == kind));
                prop_assert!(kind != REFLINK || can_reflink == Some(true));
                prop_assert!(kind != OVERLAY || !sources.contains(&RAW));
                let is_usable = |one: &DiskSource| {
                    matches!(one, DiskSource::File(_) | DiskSource::ReadOnly)
                };
                prop_assert!(sources.iter().all(is_usable));
            }
        }
    }
}
