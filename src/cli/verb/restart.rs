//! `qvm restart`: stops VMs and starts them with a new QEMU process and the current VM file.

use std::path::Path;

use crate::{
    cli::exit::Failure,
    control::{client, types::Command},
    fleet::{
        start::{StartOptions, start_vm},
        stop::{ask_down, released},
    },
    spec,
    store::layout::Layout,
    sys::storage_reader::StorageReader,
    systemd::unit::Scope,
    value::{Seconds, VmName},
};

/// The arguments of `qvm restart`.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Names of VMs; a stopped VM is started
    #[arg(value_name = "NAME", required = true)]
    names: Vec<VmName>,
    /// Force the guest off after this time instead of `shutdownTimeoutSec`
    #[arg(
        long,
        value_name = "SEC",
        value_parser = clap::value_parser!(u32).range(1..=i64::from(Seconds::MAX))
    )]
    timeout: Option<u32>,
}

/// Stops and starts the VMs. A VM with an invalid VM file keeps running.
///
/// # Errors
/// A VM does not stop or does not start.
pub async fn run(
    args: &Args,
    layout: &Layout,
    exe: &Path,
    manager: Option<Scope>,
) -> Result<(), Failure> {
    let how = StartOptions { layout, exe, manager, wait: true, say: super::report };
    let command = Command::PowerOff { timeout_sec: args.timeout };
    super::each(&args.names, async |name| {
        let file = layout.vm_file(&name);
        let written = StorageReader::default().read(&layout.vm_file(&name), move |_| {
            file.symlink_metadata().is_ok().then(|| spec::load(&file)).transpose()
        });
        let written = written.await.map_err(|error| super::no_answer(&error, &name))?;
        written.map_err(|invalid| Failure::invalid(&invalid))?;
        let paths = layout.vm(&name);
        let mut say = |text: &str| super::report(&name, text);
        match ask_down(&paths.control_socket(), command, true, &mut say).await {
            Ok(()) | Err(client::Error::NotRunning) => {}
            Err(error) => return Err(super::refused(&error, layout, &name).await),
        }
        if let Err(error) = super::find(layout, &name).await? {
            return Err(super::unknown(&error, &name));
        }
        let released = released(&paths).await;
        released.map_err(|error| Failure::described(&error).about(&name))?;
        if let Err(error) = start_vm(&name, &how).await {
            return Err(super::not_started(&error, &how, &name).await);
        }
        super::report(&name, "running");
        super::print_notes(layout, &name).await;
        Ok(())
    })
    .await
}
