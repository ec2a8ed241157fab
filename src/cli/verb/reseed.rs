//! `qvm reseed`: makes the guest's next boot a first boot for cloud-init.

use crate::{
    cli::exit::{self, Failure},
    control::{client::Client, types::Command},
    spec,
    store::{identity_lock::Waiter, running},
    supervisor::{settings::Settings, start::prepare},
    sys::progress::Cancel,
    value::{ErrorCode, VmName},
};

/// The arguments of `qvm reseed`.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// The name of the VM
    pub name: VmName,
}

/// Replaces the instance-id and prints when the guest will see it.
///
/// # Errors
/// The VM has no seed or has never run.
pub async fn run(settings: &Settings) -> Result<(), Failure> {
    let name = &settings.name;
    let file = settings.layout.vm_file(name);
    if file.symlink_metadata().is_err() {
        return Err(super::not_running(&settings.layout, name).await);
    }
    let vm = spec::load_early(&file).map_err(|(invalid, _)| Failure::invalid(&invalid))?;
    if let Err(error) = running::find(&settings.paths())
        && Client::connect(&settings.paths().control_socket()).await.is_err()
    {
        return Err(super::unknown(&error, name));
    }
    if vm.cloud_init.is_none() {
        let hint = "`[cloudInit]` in the VM file adds one".to_owned();
        return Err(Failure::new(ErrorCode::NoSeed, "it has no seed")
            .exit(exit::FAILED)
            .about(name)
            .hint(hint));
    }
    let waiter = Waiter { cancel: &Cancel::default(), say: &|text| super::report(name, &text) };
    let renewed = prepare::renew_instance(settings, waiter)
        .map_err(|error| Failure::explained(&error).about(name))?;
    let Some((old, new)) = renewed else {
        let failure =
            Failure::new(ErrorCode::NeverRun, "it has never run: its first boot is a new instance");
        return Err(failure.about(name));
    };
    let mut when = "at the next start";
    if let Ok(mut client) = Client::connect(&settings.paths().control_socket()).await {
        let reply = client.command(Command::Reload).await;
        super::or_refused(reply, &settings.layout, name).await?;
        when = "when the guest reboots";
    }
    super::report(
        name,
        &format!("instance-id: {old} -> {new}, {when}: cloud-init then runs as on a first boot"),
    );
    Ok(())
}
