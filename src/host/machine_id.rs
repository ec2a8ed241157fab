//! What tells this host from others: machine-id(5).

/// The machine id; empty where there is none.
pub fn read() -> String {
    std::fs::read_to_string("/etc/machine-id").map(|id| id.trim().to_owned()).unwrap_or_default()
}
