//! `qvm start`: starts VMs and returns when the guests run.

use std::path::Path;

use crate::{
    cli::exit::Failure,
    fleet::start::{StartOptions, StartOutcome, start_vm},
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

/// Starts the VMs with `exe`, which is this program; `manager` is the systemd manager whose units
/// use the directories of `layout`.
///
/// # Errors
/// A VM file is invalid, or a supervisor ended.
pub async fn run(
    args: &Args,
    layout: &Layout,
    exe: &Path,
    manager: Option<Scope>,
) -> Result<(), Failure> {
    let how = StartOptions { layout, exe, manager, wait: !args.no_wait, say: super::report };
    super::each(&args.names, async |name| {
        if args.discard_state {
            let paths = layout.vm(&name);
            let discarded = StorageReader::default().read(&layout.vm(&name).state, move |_| {
                vm_state::hold(&paths).and_then(|held| held.discard_state())
            });
            let discarded = discarded.await.map_err(|error| super::no_answer(&error, &name))?;
            discarded.map_err(|error| super::not_held(&error, &name))?;
        }
        match start_vm(&name, &how).await {
            Ok(StartOutcome::Running) => {
                super::report(&name, "running");
                super::print_notes(layout, &name).await;
            }
            Ok(StartOutcome::AlreadyRunning) => super::report(&name, "already running"),
            Ok(StartOutcome::Requested) => super::report(&name, "starting"),
            Err(error) => return Err(super::not_started(&error, &how, &name).await),
        }
        Ok(())
    })
    .await
}
