//! The options of an import.

use std::io::Read;

use crate::value::VmName;

/// The options of an import.
pub struct Import<'a> {
    /// The archive.
    pub from: &'a mut dyn Read,
    /// The name of the archive for messages.
    pub called: String,
    /// The size of the archive in bytes, if it is known.
    pub length: Option<u64>,
    /// The new name of the VM; `None` is the name in the archive.
    pub name: Option<VmName>,
    /// Whether to create a new identity, so that the copy can run at the same time as the original.
    pub new_identity: bool,
}
