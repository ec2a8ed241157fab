//! `qvm rename`: renames a stopped VM. The guest is not changed.

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

/// Renames a VM; `manager` is the systemd manager whose units use the directories of `layout`.
///
/// # Errors
/// The VM is running, the new name exists, or the VM file is invalid.
pub async fn run(args: &Args, layout: &Layout, manager: Option<Scope>) -> Result<(), Failure> {
    let Args { old, new } = args;
    let renamed = rename(layout, old, new).map_err(|error| super::transfer_failure(&error, old))?;
    super::reload_units(new, manager).await?;
    if let Some(scope) = manager
        && let Ok(Some(_)) = Unit::find(old, scope).await
    {
        // A failed unit of the old name would stay listed.
        let _ = service::forget_starts(old, scope).await;
    }
    super::report(old, &format!("renamed to {new}"));
    if let Some(hostname) = renamed.hostname {
        super::keeps_hostname(&hostname);
    }
    for file in renamed.after {
        super::advise(&format!("`after` in `{}` still names `{old}`", file.display()));
    }
    Ok(())
}
