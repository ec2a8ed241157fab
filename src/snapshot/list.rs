//! The snapshots of a VM as a list: order of the tree, sizes, consistency.

use std::{fs::File, os::unix::fs::MetadataExt, path::Path};

use serde::Serialize;

use super::tree;
use crate::{
    spec::Format,
    store::{
        layout::VmPaths,
        snapshot_record::{Consistency, Phase, SnapshotKind, SnapshotRecord},
        snapshots::{self, Snapshots},
    },
    sys::extents,
    value::{Label, SnapshotName},
};

/// A snapshot of a VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ListedSnapshot {
    /// Its name.
    pub name: SnapshotName,
    /// When it was taken, RFC 3339.
    pub created_at: String,
    /// How its disks are kept.
    pub kind: SnapshotKind,
    /// What its disks are like.
    pub consistency: Consistency,
    /// It has the guest's memory.
    pub ram: bool,
    /// Whether it can be used.
    pub phase: Phase,
    /// The snapshot before it.
    pub parent: Option<SnapshotName>,
    /// The present is based on it.
    pub is_parent_of_present: bool,
    /// A comment of the operator.
    pub comment: Option<String>,
    /// The bytes that no other file shares; `None` if a file cannot be examined.
    pub own_bytes: Option<u64>,
    /// The disks.
    pub disks: Vec<ListedFile>,
    /// The number of its ancestors in the list.
    #[serde(skip)]
    pub depth: usize,
}

/// A disk of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ListedFile {
    /// The disk.
    pub disk: Label,
    /// The format of the file.
    pub format: Format,
    /// What the guest saw, in bytes.
    pub virtual_bytes: u64,
    /// The file.
    pub file: std::path::PathBuf,
    /// The bytes that no other file shares; `None` if the file cannot be examined.
    pub own_bytes: Option<u64>,
}

/// Returns the snapshots of a VM in the order of the tree, and the number of ancestors of the
/// present.
///
/// # Errors
/// The records cannot be used.
pub fn list(paths: &VmPaths) -> Result<Vec<ListedSnapshot>, snapshots::Error> {
    let all = Snapshots::read(paths)?;
    let parents: Vec<_> =
        all.all.iter().map(|one| (one.name.clone(), one.parent.clone())).collect();
    let lines = tree::branches(&parents, all.present.parent.as_ref());
    let listed = lines.into_iter().filter_map(|line| {
        let record = all.get(&line.name?)?;
        let is_parent = all.present.parent.as_ref() == Some(&record.name);
        Some(listed(record, paths, is_parent, line.depth))
    });
    Ok(listed.collect())
}

fn listed(
    record: &SnapshotRecord,
    paths: &VmPaths,
    is_parent_of_present: bool,
    depth: usize,
) -> ListedSnapshot {
    let file = |(disk, one): (&Label, &crate::store::snapshot_record::DiskRecord)| {
        let file = paths.state.join(&one.file);
        ListedFile {
            disk: disk.clone(),
            format: one.format,
            virtual_bytes: one.virtual_bytes,
            own_bytes: own_bytes(&file),
            file,
        }
    };
    let disks: Vec<ListedFile> = record.disks.iter().map(file).collect();
    ListedSnapshot {
        name: record.name.clone(),
        created_at: record.created_at.clone(),
        kind: record.kind,
        consistency: record.consistency,
        ram: false,
        phase: record.phase,
        parent: record.parent.clone(),
        is_parent_of_present,
        comment: record.comment.clone(),
        own_bytes: disks.iter().map(|disk| disk.own_bytes).sum(),
        disks,
        depth,
    }
}

/// The bytes of a file that no other file shares.
fn own_bytes(path: &Path) -> Option<u64> {
    let file = File::open(path).ok()?;
    let allocated = file.metadata().ok()?.blocks() * 512;
    // A file system that does not report extents does not share them either.
    let shared = extents::shared_bytes(&file).unwrap_or(0);
    Some(allocated.saturating_sub(shared))
}
