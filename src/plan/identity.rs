//! What must never change under a guest: kept in `identity.toml`, made on the first start.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::value::{Label, MacAddr};

/// The content of `identity.toml`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Identity {
    /// The machine's UUID (SMBIOS type 1), hyphenated lower case.
    pub uuid: String,
    /// cloud-init's instance-id.
    pub instance_id: String,
    /// The pinned machine type, such as `pc-q35-10.0`.
    pub machine: String,
    /// The address of every NIC whose `mac` is not written, by its name.
    #[serde(default)]
    pub macs: BTreeMap<Label, MacAddr>,
}
