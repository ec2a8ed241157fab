//! `qvm apply`: re-reads VM files and applies what can be applied to a running guest.

use crate::{
    control::types::Command,
    exit::Failure,
    plan::{layout::Layout, unit::Scope},
    run::{inventory::PATIENCE, service::Unit},
    value::VmName,
};

/// What `qvm apply` takes.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// VMs
    #[arg(value_name = "NAME", required = true)]
    names: Vec<VmName>,
}

/// Reloads the VMs, and tells what of their files has to wait for more than that.
///
/// # Errors
/// Of each VM that is not running or does not take it.
pub async fn run(args: &Args, layout: &Layout, manager: Option<Scope>) -> Result<(), Failure> {
    super::each(&args.names, async |name| {
        let refused = |error| super::refused(&error, layout, &name);
        let mut client = super::connect(layout, &name).await?;
        if let Some(scope) = manager
            && let Some(unit) = Unit::find(&name, scope).await
        {
            // Weights are systemd's to set.
            unit.refresh().await.map_err(|error| Failure::of(&error).about(&name))?;
        }
        client.command(Command::Reload).await.map_err(refused)?;
        let status = client.status(PATIENCE).await.map_err(refused)?;
        super::tell(&name, "VM file read");
        for pending in &status.pending {
            super::tell(&name, &format!("pending: {}", super::change(pending)));
        }
        Ok(())
    })
    .await
}
