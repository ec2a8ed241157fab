//! `qvm rm --disks`: takes away what qvm keeps of a stopped VM. Its VM file stays.

use std::{
    fs,
    io::{self, IsTerminal, Write},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use crate::{
    control::client::Client,
    exit::{self, Failure},
    host::{file, lock::Lock},
    plan::layout::Layout,
    run::adopt::{self, Found},
    value::VmName,
};

/// What `qvm rm` takes.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// The VM
    name: VmName,
    /// Yes, its disks, its identity and its logs
    #[arg(long)]
    disks: bool,
    /// Do not ask
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
    if Client::connect(&paths.control_socket()).await.is_ok() {
        return Err(running(name));
    }
    let cannot = |doing: &str, path: &Path, error: io::Error| {
        let text = format!("cannot {doing} `{}`: {error}", path.display());
        Failure::new(exit::FAILED, text).about(name)
    };
    let mut found = Vec::new();
    collect(&paths.state, &mut found).map_err(|e| cannot("list", &paths.state, e))?;
    if found.is_empty() {
        return Err(match layout.vm_file(name).symlink_metadata() {
            Ok(_) => Failure::new(exit::NOT_RUNNING, "there is nothing to remove").about(name),
            Err(_) => super::not_running(layout, name),
        });
    }
    // Held until all is gone: nobody starts it meanwhile.
    let told = |error: file::Error| Failure::of(&error).about(name).hint(error.hint());
    file::make_dir(&paths.runtime).map_err(told)?;
    let lock = Lock::acquire(&paths.lock());
    let lock = lock.map_err(|error| Failure::of(&error).about(name).hint(error.hint()))?;
    // A QEMU goes on where its supervisor was killed, and writes to these disks.
    if let Found::Alive(qemu, _) = adopt::find(&paths) {
        return Err(super::alone(name, qemu.pid()));
    }
    if !args.yes {
        confirm(name, &found)?;
    }
    // `remove_dir_all` removes a symbolic link, not what it leads to; so must the top be no link. The runtime directory
    // stays, as after a stop: who waits for the lock must not come to hold a file that nobody else will find.
    let removed = match paths.state.symlink_metadata() {
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(&paths.state),
        Ok(_) => fs::remove_file(&paths.state),
        Err(error) => Err(error),
    };
    removed.map_err(|error| cannot("remove", &paths.state, error))?;
    drop(lock);
    file::sync_dir(&paths.state).map_err(told)?;
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

/// Everything below a path with the bytes it takes on the disk; links are not followed.
fn collect(path: &Path, found: &mut Vec<(PathBuf, u64)>) -> io::Result<()> {
    let meta = match path.symlink_metadata() {
        Ok(meta) => meta,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    found.push((path.to_owned(), meta.blocks() * 512));
    if meta.is_dir() {
        let mut entries = fs::read_dir(path)?.collect::<Result<Vec<_>, _>>()?;
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            collect(&entry.path(), found)?;
        }
    }
    Ok(())
}
