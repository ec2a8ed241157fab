//! `qvm kill`: the power cut.

use crate::{
    control::types::Command, exit::Failure, plan::layout::Layout, run::ask_down::ask_down,
    value::VmName,
};

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
    super::each(&args.names, async |name| {
        let socket = layout.vm(&name).control_socket();
        let mut say = |text: &str| super::tell(&name, text);
        let done = ask_down(&socket, Command::Terminate, true, &mut say).await;
        done.map_err(|error| super::refused(&error, layout, &name))
    })
    .await
}
