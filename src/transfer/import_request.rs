//! What is imported, and under which name.

use std::io::Read;

use crate::value::VmName;

/// What is to be imported, and as what.
pub struct Import<'a> {
    /// The archive.
    pub from: &'a mut dyn Read,
    /// What it is called, for messages.
    pub called: String,
    /// How long it is, in bytes, if that is known.
    pub length: Option<u64>,
    /// The name of the VM, if not the one that it had.
    pub name: Option<VmName>,
    /// It is to be a copy, which can run beside the one that was exported.
    pub new_identity: bool,
}
