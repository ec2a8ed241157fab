//! `qvm suspend`: saves the guest's state to the disk and ends; the next start goes on from it.

use crate::{cli::exit::Failure, control::types::Command, store::layout::Layout, value::VmName};

/// The arguments of `qvm suspend`.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Names of VMs
    #[arg(value_name = "NAME", required = true)]
    names: Vec<VmName>,
}

/// Suspends the VMs and returns when they are down. A guest whose state cannot be saved goes on.
///
/// # Errors
/// Of each VM that is not running, or cannot be saved.
pub async fn run(args: &Args, layout: &Layout) -> Result<(), Failure> {
    super::ask_down(layout, &args.names, Command::Suspend, true).await
}
