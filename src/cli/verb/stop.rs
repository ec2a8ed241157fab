//! `qvm stop`: shuts guests down cleanly within a time limit, and prints each rung.

use crate::{
    cli::exit::Failure,
    control::types::Command,
    store::layout::Layout,
    value::{Seconds, VmName},
};

/// The arguments of `qvm stop`.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Names of VMs
    #[arg(value_name = "NAME", required = true)]
    names: Vec<VmName>,
    /// Force the guest off after this time instead of `shutdownTimeoutSec`
    #[arg(
        long,
        value_name = "SEC",
        value_parser = clap::value_parser!(u32).range(1..=i64::from(Seconds::MAX))
    )]
    timeout: Option<u32>,
    /// Request the shutdown and return without waiting
    #[arg(long)]
    no_wait: bool,
}

/// Stops the VMs and returns when they are down.
///
/// # Errors
/// A VM is not running, or refuses.
pub async fn run(args: &Args, layout: &Layout) -> Result<(), Failure> {
    let command = Command::PowerOff { timeout_sec: args.timeout };
    super::ask_down(layout, &args.names, command, !args.no_wait).await
}
