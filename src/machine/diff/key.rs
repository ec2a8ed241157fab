//! The names of a VM file's keys in messages, in the pending changes and in the run record.

use crate::value::Label;

/// The table of the disks; as a key, the order of the disks.
pub(super) const DISK: &str = "disk";
/// The table of the NICs; as a key, the order of the NICs.
pub(super) const NIC: &str = "nic";
/// The key of the guest's memory.
pub(super) const MEM: &str = "mem";

/// Returns the key of a property of a disk: `disk.data.size`, or the flat key `diskSizeG`.
pub(super) fn of_disk(disk: &Label, property: &str) -> String {
    match (disk.as_str(), property) {
        (Label::ROOT, "size") => "diskSizeG".to_owned(),
        (Label::ROOT, "image") => property.to_owned(),
        (disk, property) => format!("{DISK}.{disk}.{property}"),
    }
}

/// Returns the key of a property of a NIC: `nic.lan.bridge`, or the flat key `bridge`.
pub(super) fn of_nic(nic: &Label, property: &str) -> String {
    match (nic.as_str(), property) {
        (Label::NET, "mac" | "ip" | "gateway" | "dns" | "bridge" | "forward" | "antiSpoof") => {
            property.to_owned()
        }
        (nic, property) => format!("{NIC}.{nic}.{property}"),
    }
}

/// Returns the key of a whole disk or NIC: `disk.data`.
pub(super) fn of_table(table: &str, name: &Label) -> String {
    format!("{table}.{name}")
}
