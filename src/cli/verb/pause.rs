//! `qvm pause`: pauses the vCPUs of guests.

use crate::{cli::exit::Failure, control::types::Command, store::layout::Layout, value::VmName};

/// The arguments of `qvm pause`.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Names of VMs
    #[arg(value_name = "NAME", required = true)]
    names: Vec<VmName>,
}

/// Pauses the VMs.
///
/// # Errors
/// A VM is not running, or refuses.
pub async fn run(args: &Args, layout: &Layout) -> Result<(), Failure> {
    super::command(layout, &args.names, Command::Pause).await
}
