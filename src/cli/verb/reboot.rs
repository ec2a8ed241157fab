//! `qvm reboot`: asks guests to reboot, or resets them.

use crate::{cli::exit::Failure, control::types::Command, store::layout::Layout, value::VmName};

/// The arguments of `qvm reboot`.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Names of VMs
    #[arg(value_name = "NAME", required = true)]
    names: Vec<VmName>,
    /// Reset the machine immediately, like a reset button
    #[arg(long)]
    force: bool,
}

/// Reboots the VMs.
///
/// # Errors
/// A VM is not running, or refuses.
pub async fn run(args: &Args, layout: &Layout) -> Result<(), Failure> {
    let command = if args.force { Command::Reset } else { Command::Reboot };
    super::command(layout, &args.names, command).await
}
