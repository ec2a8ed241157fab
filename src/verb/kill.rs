//! `qvm kill`: the power cut.

use crate::{control::types::Command, exit::Failure, plan::layout::Layout, value::VmName};

/// What `qvm kill` takes.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// VMs
    #[arg(value_name = "NAME", required = true)]
    names: Vec<VmName>,
}

/// Forces the VMs off and returns when they are down.
///
/// # Errors
/// Of each VM that is not running or does not take it.
pub async fn run(args: &Args, layout: &Layout) -> Result<(), Failure> {
    super::ask_down(layout, &args.names, Command::Terminate, true).await
}
