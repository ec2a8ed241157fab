//! The block nodes and objects behind the device of a disk: its file, its format, its limits.

use std::path::Path;

use serde_json::{Value, json};

use super::{
    disk_file::DiskFile,
    fdset::{Access, Files},
};
use crate::{
    spec::{Cache, Disk, DiskLimits, Media},
    value::Label,
};

/// The uppermost block node of a disk, which its device uses. It limits the disk's I/O; before
/// qvm had limits, the format's node had this name.
pub fn node(disk: &Label) -> String {
    format!("node-{disk}")
}

/// The block node of a disk's format, below [`node`]. Its file's is [`file_node_of`].
pub fn format_node(disk: &Label) -> String {
    format!("format-{disk}")
}

/// The block node of a disk's file, the lowest.
pub fn file_node_of(disk: &Label) -> String {
    format!("{}-file", node(disk))
}

/// The object that has a disk's limits.
pub fn throttle_group(disk: &Label) -> String {
    format!("throttle-{disk}")
}

/// The thread of a disk's requests.
pub fn iothread(disk: &Label) -> String {
    format!("iothread-{disk}")
}

/// The disk of a block node, or of the one below it.
pub fn disk_of_node(node: &str) -> Option<Label> {
    node.strip_prefix("node-")?.parse().ok()
}

/// The block node of a file or device itself, below that of its format; QEMU and the supervisor
/// open it with `access`. `name` is its own, `of` the node that its descriptor is for.
pub(super) fn file_node(
    (driver, name): (&str, Option<String>),
    of: &str,
    path: &Path,
    access: Access,
    files: &mut Files,
) -> Value {
    let mut node = json!({"driver": driver});
    if let Some(name) = name {
        node["node-name"] = name.into();
    }
    node["filename"] = files.add(of, path, access).into();
    access.apply_to(&mut node);
    node
}

/// The names of the nodes of a file: the file's own, its format's, and the one that its descriptor
/// is for.
pub(super) struct NodeNames {
    pub(super) file: String,
    pub(super) format: String,
    pub(super) owner: String,
}

/// A file and the format on top of it, as two block nodes. What is below them has no names.
pub(super) fn nodes(
    names: NodeNames,
    file: &DiskFile,
    read_only: bool,
    direct: bool,
    files: &mut Files,
) -> [Value; 2] {
    let driver = if file.is_device { "host_device" } else { "file" };
    // `native` needs O_DIRECT, and blocks where a file system allocates.
    let aio = if file.is_device && direct { "native" } else { "threads" };
    let access = Access { write: !read_only, direct };
    let name = Some(names.file.clone());
    let mut lower = file_node((driver, name), &names.owner, &file.path, access, files);
    lower["discard"] = "unmap".into();
    lower["aio"] = aio.into();
    let mut upper = json!({
        "driver": file.format.name(), "node-name": names.format, "file": names.file,
        "read-only": read_only,
    });
    if !read_only {
        upper["discard"] = "unmap".into();
        upper["detect-zeroes"] = "unmap".into();
    }
    let below: Vec<Value> = file
        .backing
        .iter()
        .map(|below| {
            let path = &below.path;
            let mut file = file_node(("file", None), &names.owner, path, Access::READ, files);
            // No process writes to a cached image: a lock protects nothing, and a QEMU that has the
            // image open could exclude all others.
            file["locking"] = "off".into();
            json!({"driver": below.format.name(), "read-only": true, "file": file})
        })
        .collect();
    let below = below.into_iter().rev().reduce(|lower, mut above| {
        above["backing"] = lower;
        above
    });
    if let Some(below) = below {
        upper["backing"] = below;
    }
    [lower, upper]
}

/// The objects and block nodes of a disk, in the order in which QEMU has to get them.
#[derive(Debug, Clone, PartialEq)]
pub struct DiskParts {
    /// Objects: the limits, and the thread where there is one.
    pub objects: Vec<Value>,
    /// Block nodes, the lowest first.
    pub nodes: Vec<Value>,
}

/// What is behind the device of a disk.
pub(super) fn parts(disk: &Disk, file: &DiskFile, files: &mut Files) -> DiskParts {
    let read_only = disk.read_only || disk.media == Media::Cdrom;
    // A block device has no file system's cache to fill twice, and always takes O_DIRECT.
    let direct = disk.cache.map_or(file.is_device, |cache| cache == Cache::None);
    let names = NodeNames {
        file: file_node_of(&disk.name),
        format: format_node(&disk.name),
        owner: node(&disk.name),
    };
    let mut nodes = nodes(names, file, read_only, direct, files).to_vec();
    // A node passes only the discards that its options permit.
    let mut top = json!({"driver": "throttle", "node-name": node(&disk.name),
        "throttle-group": throttle_group(&disk.name), "file": format_node(&disk.name),
        "read-only": read_only});
    if !read_only {
        top["discard"] = "unmap".into();
    }
    nodes.push(top);
    let mut group = json!({"qom-type": "throttle-group", "id": throttle_group(&disk.name)});
    if !disk.limits.is_empty() {
        group["limits"] = limits(&disk.limits, false);
    }
    let mut objects = vec![group];
    if disk.iothread {
        objects.push(json!({"qom-type": "iothread", "id": iothread(&disk.name)}));
    }
    DiskParts { objects, nodes }
}

/// The limits as QEMU's `ThrottleLimits`. With `all`, those that are absent are reset: a change
/// keeps what it does not name.
pub fn limits(limits: &DiskLimits, all: bool) -> Value {
    let mut value = json!({});
    for (kind, limit) in limits.iter().filter(|(_, limit)| all || limit.rate.is_some()) {
        let of = |suffix: &str| format!("{}{suffix}", kind.qemu);
        value[of("")] = limit.rate.unwrap_or(0).into();
        if all || limit.burst.is_some() {
            value[of("-max")] = limit.burst.unwrap_or(0).into();
            value[of("-max-length")] = limit.burst_sec.unwrap_or(1).into();
        }
    }
    value
}
