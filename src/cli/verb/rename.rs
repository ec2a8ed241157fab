//! `qvm rename`: another name for a VM that is down. Its guest does not learn of it.

use crate::{
    cli::exit::Failure,
    store::layout::Layout,
    systemd::{
        service::{self, Unit},
        unit::Scope,
    },
    transfer::rename::rename,
    value::VmName,
};

/// The arguments of `qvm rename`.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// The current name; the VM must be stopped
    old: VmName,
    /// The new name
    new: VmName,
}

/// Renames a VM; `manager` is the systemd whose units look where `layout` does.
///
/// # Errors
/// It runs, the name is taken, or its VM file is not valid.
pub async fn run(args: &Args, layout: &Layout, manager: Option<Scope>) -> Result<(), Failure> {
    let Args { old, new } = args;
    let renamed = rename(layout, old, new).map_err(|error| super::not_carried(&error, old))?;
    super::take_up(new, manager).await?;
    if let Some(scope) = manager
        && let Ok(Some(_)) = Unit::find(old, scope).await
    {
        // Or it would be listed as failed for ever, if it was.
        let _ = service::forget_starts(old, scope).await;
    }
    super::tell(old, &format!("renamed to {new}"));
    if let Some(hostname) = renamed.hostname {
        super::keeps_hostname(&hostname);
    }
    for file in renamed.after {
        super::advise(&format!("`after` in `{}` still says `{old}`", file.display()));
    }
    Ok(())
}
