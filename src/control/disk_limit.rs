//! A limit of a disk's I/O, as clients see it.

use serde::{Deserialize, Serialize};

/// A limit that applies to a running VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DiskLimit {
    /// The disk.
    pub disk: String,
    /// The key of the VM file, such as `iopsRead` or `bandwidth`.
    pub limit: String,
    /// Requests per second, or bytes per second.
    pub per_second: u64,
    /// The rate of a burst.
    pub burst: Option<u64>,
    /// The length of a burst, in seconds.
    pub burst_sec: Option<u64>,
}
