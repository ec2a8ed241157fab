//! `qvm kill`: forces VMs off.

use std::time::{Duration, Instant};

use tokio::time::sleep;

use crate::{
    cli::exit::Failure,
    control::{client, types::Command},
    fleet::{force_off::force_off, stop::end},
    store::layout::Layout,
    supervisor::settings::Settings,
    value::VmName,
};

/// The arguments of `qvm kill`.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Names of VMs
    #[arg(value_name = "NAME", required = true)]
    names: Vec<VmName>,
}

/// How long to wait for the next supervisor if QEMU runs without one: after a crash, systemd starts
/// a supervisor within this time. It gets the command, so that the unit stays down.
const NEXT_SUPERVISOR: Duration = Duration::from_secs(1);
/// The poll interval of that wait.
const POLL: Duration = Duration::from_millis(50);

/// Forces the VMs off and returns when they are down. Without a supervisor, the QEMU process of the
/// run record is killed. This is the only verb that acts on a VM whose state is unknown: it kills
/// the QEMU process that holds the liveness lock. `settings` returns the settings of a supervisor.
///
/// # Errors
/// A VM is not running, or cannot be forced off.
pub async fn run(
    args: &Args,
    layout: &Layout,
    settings: &(dyn Fn(VmName) -> Settings + '_),
) -> Result<(), Failure> {
    super::each(&args.names, async |name| {
        let paths = layout.vm(&name);
        let mut say = |text: &str| super::report(&name, text);
        let begun = Instant::now();
        loop {
            let is_alive = super::qemu_before(layout, &name).await;
            let error = match end(&paths, Command::Terminate, &mut say, is_alive).await {
                Ok(()) => return Ok(()),
                Err(error @ client::Error::NotRunning) => error,
                Err(error) => return Err(super::refused(&error, layout, &name).await),
            };
            match super::find(layout, &name).await? {
                Ok(found) if !found.is_running() => {
                    return Err(super::refused(&error, layout, &name).await);
                }
                Ok(_) if begun.elapsed() < NEXT_SUPERVISOR => sleep(POLL).await,
                Ok(_) | Err(_) => return force(&name, layout, settings(name.clone())).await,
            }
        }
    })
    .await
}

/// Forces off a VM without a supervisor.
async fn force(name: &VmName, layout: &Layout, settings: Settings) -> Result<(), Failure> {
    match force_off(&settings).await {
        Ok(Some(pid)) => {
            super::report(name, &format!("forced off: QEMU (pid {pid}) was killed"));
            Ok(())
        }
        Ok(None) => Err(super::not_running(layout, name).await),
        Err(error) => Err(Failure::explained_for(&error, name)),
    }
}
