//! `qvm start`: starts VMs and returns when their guests run.

use std::path::Path;

use crate::{
    cli::exit::Failure,
    fleet::start::{Begin, Begun, begin},
    store::{layout::Layout, vm_state},
    sys::storage_reader::StorageReader,
    systemd::unit::Scope,
    value::VmName,
};

/// The arguments of `qvm start`.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Names of VMs
    #[arg(value_name = "NAME", required = true)]
    names: Vec<VmName>,
    /// Do not wait until the guests run
    #[arg(long)]
    no_wait: bool,
    /// Discard a saved state and boot
    #[arg(long)]
    discard_state: bool,
}

/// Starts the VMs by `exe`, which is this program; `manager` is the systemd whose units look where
/// `layout` does.
///
/// # Errors
/// Of each VM whose file is invalid, or whose supervisor ended.
pub async fn run(
    args: &Args,
    layout: &Layout,
    exe: &Path,
    manager: Option<Scope>,
) -> Result<(), Failure> {
    let how = Begin { layout, exe, manager, wait: !args.no_wait, say: super::tell };
    super::each(&args.names, async |name| {
        if args.discard_state {
            let paths = layout.vm(&name);
            let discarded = StorageReader::default().read(&layout.vm(&name).state, move |_| {
                vm_state::hold(&paths).and_then(|held| held.discard_state())
            });
            let discarded = discarded.await.map_err(|error| super::no_answer(&error, &name))?;
            discarded.map_err(|error| super::not_held(&error, &name))?;
        }
        match begin(&name, &how).await {
            Ok(Begun::Running) => {
                super::tell(&name, "running");
                super::tell_notes(layout, &name).await;
            }
            Ok(Begun::Already) => super::tell(&name, "already running"),
            Ok(Begun::Asked) => super::tell(&name, "starting"),
            Err(error) => return Err(super::not_begun(&error, &how, &name).await),
        }
        Ok(())
    })
    .await
}
