//! `qvm rm --disks`: deletes the state directory of a stopped VM. The VM file is kept.

use std::{
    io::{self, IsTerminal, Write},
    path::PathBuf,
};

use crate::{
    cli::exit::Failure,
    fleet::lock_holder::{self, LockHolder},
    store::{layout::Layout, vm_state},
    value::{ErrorCode, VmName},
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

/// Deletes the state of a VM, after a confirmation.
///
/// # Errors
/// The VM is running or has no state, the deletion was not confirmed, or it failed.
pub async fn run(args: &Args, layout: &Layout) -> Result<(), Failure> {
    let (name, paths) = (&args.name, layout.vm(&args.name));
    if !args.disks {
        let hint = format!(
            "`qvm rm {name} --disks` deletes its disks, identity and logs; the VM file is kept"
        );
        let text = "nothing removed: `--disks` is required";
        return Err(Failure::new(ErrorCode::Usage, text).about(name).hint(hint));
    }
    if let LockHolder::Supervisor(_) | LockHolder::Silent(_) =
        lock_holder::probe(&paths.control_socket()).await
    {
        return Err(running(name));
    }
    let failure = |error: vm_state::Error| super::not_held(&error, name);
    let found = vm_state::files(&paths).map_err(failure)?;
    if found.is_empty() {
        return Err(match layout.vm_file(name).symlink_metadata() {
            Ok(_) => Failure::new(ErrorCode::NothingToRemove, "nothing to remove").about(name),
            Err(_) => super::not_running(layout, name).await,
        });
    }
    // The locks are held until everything is deleted, so that the VM cannot be started meanwhile.
    let held = vm_state::hold(&paths).map_err(|error| match error {
        vm_state::Error::Alone(pid) => super::without_supervisor(name, pid),
        error => failure(error),
    })?;
    if !args.yes {
        confirm(name, &found)?;
    }
    held.remove().map_err(failure)?;
    super::print(&format!("{name}: removed {}\n", paths.state.display()))
}

fn running(name: &VmName) -> Failure {
    let hint = format!("stop it first: `qvm stop {name}`");
    Failure::new(ErrorCode::VmRunning, "it is running").about(name).hint(hint)
}

/// Asks for the name of the VM on the terminal.
fn confirm(name: &VmName, found: &[(PathBuf, u64)]) -> Result<(), Failure> {
    if !io::stdin().is_terminal() {
        let failure = Failure::new(
            ErrorCode::Usage,
            "nothing removed: cannot ask for confirmation without a terminal",
        );
        return Err(failure.about(name).hint("`--yes` skips the question".to_owned()));
    }
    let mut text = String::from("This deletes permanently:\n");
    for (path, bytes) in found {
        text.push_str(&format!("  {} ({})\n", path.display(), super::size(*bytes)));
    }
    let is_snapshot = |path: &PathBuf| {
        path.extension().is_some_and(|suffix| suffix == "toml")
            && path.parent().is_some_and(|dir| dir.ends_with("snapshots"))
    };
    let snapshots = found.iter().filter(|(path, _)| is_snapshot(path)).count();
    if snapshots > 0 {
        text.push_str(&format!("This includes all snapshots of the VM: {snapshots}\n"));
    }
    let _ = write!(io::stderr(), "{text}Type the name of the VM to confirm: ");
    let mut answer = String::new();
    let read = io::stdin().read_line(&mut answer);
    match read {
        Ok(_) if answer.trim() == name.as_str() => Ok(()),
        _ => {
            Err(Failure::new(ErrorCode::NotConfirmed, "nothing removed: not confirmed").about(name))
        }
    }
}
