//! `qvm resume`: lets a paused guest go on.

use crate::{cli::exit::Failure, control::types::Command, store::layout::Layout, value::VmName};

/// The arguments of `qvm resume`.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Names of VMs
    #[arg(value_name = "NAME", required = true)]
    names: Vec<VmName>,
}

/// Resumes the VMs.
///
/// # Errors
/// Of each VM that is not running or does not take it.
pub async fn run(args: &Args, layout: &Layout) -> Result<(), Failure> {
    super::command(layout, &args.names, Command::Resume).await
}
