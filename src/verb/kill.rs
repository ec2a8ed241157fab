//! `qvm kill`: the power cut.

use crate::{
    control::{client, types::Command},
    exit::{self, Failure},
    plan::layout::Layout,
    run::{Settings, ask_down::ask_down, force_off::force_off, previous},
    value::VmName,
};

/// What `qvm kill` takes.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// VMs
    #[arg(value_name = "NAME", required = true)]
    names: Vec<VmName>,
}

/// Forces the VMs off and returns when they are down. The only verb that acts on a VM whose state is unknown: the QEMU process that
/// holds its liveness lock is killed. `settings` makes what a supervisor is told.
///
/// # Errors
/// Of each VM that is not running or does not take it.
pub async fn run(
    args: &Args,
    layout: &Layout,
    settings: &(dyn Fn(VmName) -> Settings + '_),
) -> Result<(), Failure> {
    super::each(&args.names, async |name| {
        let paths = layout.vm(&name);
        let mut say = |text: &str| super::tell(&name, text);
        match ask_down(&paths.control_socket(), Command::Terminate, true, &mut say).await {
            Ok(()) => Ok(()),
            Err(client::Error::NotRunning) if previous::find(&paths).is_err() => {
                force(&name, layout, settings(name.clone())).await
            }
            Err(error) => Err(super::refused(&error, layout, &name)),
        }
    })
    .await
}

/// Forces off a VM without a supervisor, whose state is unknown.
async fn force(name: &VmName, layout: &Layout, settings: Settings) -> Result<(), Failure> {
    match force_off(&settings).await {
        Ok(Some(pid)) => {
            super::tell(name, &format!("forced off: QEMU (pid {pid}) was killed"));
            Ok(())
        }
        Ok(None) => Err(super::not_running(layout, name)),
        Err(error) => {
            let hint = error.hint().map(|hint| hint.replace("NAME", name.as_str()));
            let code = if error.is_the_hosts() { exit::HOST } else { exit::FAILED };
            Err(Failure::of(&error).about(name).code(code).hint(hint))
        }
    }
}
