//! `qvm diff`: the differences between running VMs and their VM files, and when each takes effect.

use serde_json::json;

use crate::{
    cli::exit::Failure,
    control::types::Status,
    fleet::inventory::{Entry, inventory},
    store::layout::Layout,
    sys::storage_reader::StorageReader,
    value::VmName,
};

/// The arguments of `qvm diff`.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Names of VMs; without names, all running VMs
    #[arg(value_name = "NAME")]
    names: Vec<VmName>,
    /// Print a JSON array of objects
    #[arg(long)]
    json: bool,
}

/// Prints the differences; nothing if there are none.
///
/// # Errors
/// A VM in `names` is not running (3), or its VM file is invalid.
pub async fn run(args: &Args, layout: &Layout) -> Result<(), Failure> {
    let entries = inventory(&StorageReader::default(), layout, &args.names).await;
    let mut failures = Vec::new();
    for (entry, name) in entries.iter().zip(&args.names) {
        if !entry.answers {
            failures.push(super::not_running(layout, name).await);
        }
    }
    let running: Vec<&Entry> = entries.iter().filter(|entry| entry.answers).collect();
    if args.json {
        let all: Vec<_> = running
            .iter()
            .map(|entry| json!({ "name": entry.status.name, "pending": entry.status.pending }))
            .collect();
        let json =
            serde_json::to_string_pretty(&all).map_err(|error| Failure::from_error(&error))?;
        super::print(&format!("{json}\n"))?;
    } else {
        let text: String = running.iter().map(|entry| differences(&entry.status)).collect();
        super::print(&text)?;
    }
    Failure::all(failures)
}

fn differences(status: &Status) -> String {
    let changes = status.pending.iter().map(super::change);
    // An invalid file is a difference too, and hides all others.
    let invalid = status.notes.iter().filter(|note| note.starts_with("the VM file is not valid"));
    let lines =
        changes.chain(invalid.map(|note| note.lines().next().unwrap_or_default().to_owned()));
    lines.map(|line| format!("{}: {line}\n", status.name)).collect()
}
