//! `qvm metrics`: metrics of all VMs in the Prometheus text format.

use std::path::{Path, PathBuf};

use crate::{
    cli::exit::Failure,
    fleet::{cpu_share::weigh, inventory::inventory, metrics::metrics, usage},
    store::layout::Layout,
    sys::{file, storage_reader::StorageReader},
};

/// The arguments of `qvm metrics`.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Replace this file atomically; the textfile collector of node_exporter reads names that end
    /// in `.prom`
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// Prints or writes the metrics; `proc` is `/proc`.
///
/// # Errors
/// The output cannot be written.
pub async fn run(args: &Args, layout: &Layout, proc: &Path) -> Result<(), Failure> {
    let mut entries = inventory(&StorageReader::default(), layout, &[]).await;
    weigh(&mut entries, proc);
    usage::fill_in(&mut entries, proc);
    let used = usage::usage(layout, &entries, proc).await;
    let text = metrics(&entries, &used);
    match &args.output {
        None => super::print(&text),
        Some(path) => {
            file::remove_abandoned_beside(path);
            // The collector runs as another user and reads the file.
            file::write_volatile(path, text.as_bytes(), 0o644)
                .map_err(|error| Failure::described(&error))
        }
    }
}
