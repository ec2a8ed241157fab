//! `qvm reload`: re-reads VM files and applies what can be applied to a running guest.

use crate::{control::types::Command, exit::Failure, plan::layout::Layout, value::VmName};

/// What `qvm reload` takes.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// VMs
    #[arg(value_name = "NAME", required = true)]
    names: Vec<VmName>,
}

/// Reloads the VMs.
///
/// # Errors
/// Of each VM that is not running or does not take it.
pub async fn run(args: &Args, layout: &Layout) -> Result<(), Failure> {
    super::command(layout, &args.names, Command::Reload).await
}
