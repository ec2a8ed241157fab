//! `qvm suspend`: saves the state of guests to disk and ends; the next start restores it.

use crate::{cli::exit::Failure, control::types::Command, store::layout::Layout, value::VmName};

/// The arguments of `qvm suspend`.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Names of VMs
    #[arg(value_name = "NAME", required = true)]
    names: Vec<VmName>,
}

/// Suspends the VMs and returns when they are down. A guest whose state cannot be saved keeps
/// running.
///
/// # Errors
/// A VM is not running, or its state cannot be saved.
pub async fn run(args: &Args, layout: &Layout) -> Result<(), Failure> {
    super::ask_down(layout, &args.names, Command::Suspend, true).await
}
