//! `qvm rm --disks`: takes away what qvm keeps of a stopped VM. Its VM file stays.

use std::{
    io::{self, IsTerminal, Write},
    path::PathBuf,
};

use crate::{
    cli::exit::{self, Failure},
    fleet::lock_holder::{self, Holder},
    store::{layout::Layout, vm_state},
    value::VmName,
};

/// The arguments of `qvm rm`.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// The name of the VM
    name: VmName,
    /// Confirm that disks, identity and logs are deleted
    #[arg(long)]
    disks: bool,
    /// Do not ask for the name of the VM
    #[arg(long)]
    yes: bool,
}

/// Removes the state of a VM, after asking for its name.
///
/// # Errors
/// It runs, there is nothing of it, it was not confirmed, or it cannot be removed.
pub async fn run(args: &Args, layout: &Layout) -> Result<(), Failure> {
    let (name, paths) = (&args.name, layout.vm(&args.name));
    if !args.disks {
        let hint = format!(
            "say `qvm rm {name} --disks` to delete its disks; remove the VM file yourself to forget the VM"
        );
        let text = "nothing removed: it is not said what";
        return Err(Failure::new(exit::USAGE, text).about(name).hint(hint));
    }
    if let Holder::Supervisor(_) | Holder::Silent(_) =
        lock_holder::look(&paths.control_socket()).await
    {
        return Err(running(name));
    }
    let told = |error: vm_state::Error| super::not_held(&error, name);
    let found = vm_state::files(&paths).map_err(told)?;
    if found.is_empty() {
        return Err(match layout.vm_file(name).symlink_metadata() {
            Ok(_) => Failure::new(exit::NOT_RUNNING, "there is nothing to remove").about(name),
            Err(_) => super::not_running(layout, name).await,
        });
    }
    // Held until all is gone: nobody starts it meanwhile.
    let held = vm_state::hold(&paths).map_err(|error| match error {
        vm_state::Error::Alone(pid) => super::alone(name, pid),
        error => told(error),
    })?;
    if !args.yes {
        confirm(name, &found)?;
    }
    held.remove().map_err(told)?;
    super::print(&format!("{name}: removed {}\n", paths.state.display()))
}

fn running(name: &VmName) -> Failure {
    let hint = format!("stop it first: `qvm stop {name}`");
    Failure::new(exit::FAILED, "it is running").about(name).hint(hint)
}

/// Asks for the name on the terminal.
fn confirm(name: &VmName, found: &[(PathBuf, u64)]) -> Result<(), Failure> {
    if !io::stdin().is_terminal() {
        let failure = Failure::new(exit::USAGE, "nothing removed: there is no terminal to ask at");
        return Err(failure.about(name).hint("`--yes` does not ask".to_owned()));
    }
    let mut text = String::from("This deletes for ever:\n");
    for (path, bytes) in found {
        text.push_str(&format!("  {} ({})\n", path.display(), super::size(*bytes)));
    }
    let _ = write!(io::stderr(), "{text}Type the VM's name to go on: ");
    let mut answer = String::new();
    let read = io::stdin().read_line(&mut answer);
    match read {
        Ok(_) if answer.trim() == name.as_str() => Ok(()),
        _ => Err(Failure::new(exit::FAILED, "nothing removed: not confirmed").about(name)),
    }
}
