//! `qvm gc`: stops VMs without a VM file, and with `--disks` deletes their data.

use std::{
    collections::BTreeSet,
    io::{self, IsTerminal, Write as _},
    path::{Path, PathBuf},
};

use jiff::Timestamp;
use serde_json::json;

use crate::{
    cli::exit::{self, Failure},
    control::types::{Command, State},
    fleet::{
        inventory::{Entry, first_unknown, inventory, names},
        orphans,
    },
    spec::{self, Source, Vm},
    store::{layout::Layout, running, vm_file_copies, vm_state},
    supervisor::settings::Settings,
    sys::storage_reader::StorageReader,
    value::{ErrorCode, VmName},
};

/// The arguments of `qvm gc`.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Also delete disks, identities and logs of stopped VMs
    #[arg(long)]
    disks: bool,
    /// Do not ask for confirmation
    #[arg(long, conflicts_with = "json")]
    yes: bool,
    /// Only list the VMs, as JSON
    #[arg(long, conflicts_with = "disks")]
    json: bool,
}

/// A VM without a VM file.
struct Orphan {
    name: VmName,
    entry: Entry,
    state: PathBuf,
    /// The files of the VM with their sizes in bytes.
    files: Vec<(PathBuf, u64)>,
}

impl Orphan {
    fn bytes(&self) -> u64 {
        self.files.iter().map(|(_, bytes)| bytes).sum()
    }

    fn runs(&self) -> bool {
        self.entry.answers || self.entry.status.pid.is_some()
    }
}

/// Lists the VMs, asks, and stops or deletes them. `settings` returns the settings for a QEMU
/// process without a supervisor.
///
/// # Errors
/// The VM files cannot be listed, the question was not confirmed, or a VM cannot be stopped or
/// deleted.
pub async fn run(
    args: &Args,
    layout: &Layout,
    now: Timestamp,
    settings: &(dyn Fn(VmName) -> Settings + '_),
) -> Result<(), Failure> {
    let orphans = find(layout).await?;
    if args.json {
        return list_json(&orphans);
    }
    if args.disks {
        // The deletion of these began in an earlier run.
        vm_state::sweep(layout, None);
    }
    // A VM whose state is unknown is not touched.
    let (unknown, orphans): (Vec<Orphan>, Vec<Orphan>) =
        orphans.into_iter().partition(|orphan| orphan.entry.status.state == State::Unknown);
    let (running, down): (Vec<Orphan>, Vec<Orphan>) = orphans.into_iter().partition(Orphan::runs);
    if unknown.is_empty() || !(running.is_empty() && down.is_empty()) {
        super::print(&report(&running, &down, args.disks, now))?;
    }
    if !running.is_empty() {
        let question = format!("Stop {}?", count(running.len()));
        confirm(args.yes, &question, "y", "not stopped")?;
        stop(&running, layout, settings).await?;
    }
    // The data of a VM that has just been stopped is kept, for inspection.
    if args.disks && !down.is_empty() {
        delete(args, layout, &down)?;
    }
    let unknown = unknown.into_iter().filter_map(|orphan| orphan.entry.problem);
    let failed = |problem: crate::fleet::inventory::Problem| {
        let text = problem.to_string();
        Failure::preformatted(exit::HOST, text).error_code(problem.error_code())
    };
    Failure::all(unknown.map(failed).collect())
}

async fn find(layout: &Layout) -> Result<Vec<Orphan>, Failure> {
    // If the VM files cannot be listed, every VM would seem to be without one.
    let dir = layout.vm_files();
    if let Err(error) = std::fs::read_dir(&dir) {
        let doing = format!("cannot list the VM files in `{}`", dir.display());
        return Err(Failure::from_io(&doing, &error));
    }
    let mut orphans = Vec::new();
    for entry in inventory(&StorageReader::default(), layout, &[]).await {
        let Ok(name) = entry.name.parse::<VmName>() else { continue };
        if !entry.status.orphan {
            continue;
        }
        let paths = layout.vm(&name);
        let files = vm_state::files(&paths);
        let files = files.map_err(|error| Failure::described(&error).about(&name))?;
        orphans.push(Orphan { name, entry, state: paths.state, files });
    }
    Ok(orphans)
}

fn list_json(orphans: &[Orphan]) -> Result<(), Failure> {
    let all = orphans.iter().map(|orphan| {
        json!({
            "name": orphan.name.as_str(),
            "state": orphan.entry.status.state,
            "pid": orphan.entry.status.pid,
            "directory": orphan.state,
            "bytes": orphan.bytes(),
            "files": orphan
                .files
                .iter()
                .map(|(path, bytes)| json!({ "path": path, "bytes": bytes }))
                .collect::<Vec<_>>(),
        })
    });
    let all: Vec<serde_json::Value> = all.collect();
    let json = serde_json::to_string_pretty(&all).map_err(|error| Failure::from_error(&error))?;
    super::print(&format!("{json}\n"))
}

fn report(running: &[Orphan], down: &[Orphan], disks: bool, now: Timestamp) -> String {
    let mut text = String::new();
    if running.is_empty() && down.is_empty() {
        text.push_str("every VM has its VM file: nothing to do\n");
    }
    if !running.is_empty() {
        text.push_str("running without a VM file:\n");
    }
    for orphan in running {
        let status = &orphan.entry.status;
        let pid = status.pid.map_or_else(String::new, |pid| format!(", pid {pid}"));
        let age = status.started_at.as_ref().and_then(|at| super::age(at, now));
        let age = age.map_or_else(String::new, |age| format!(", up {age}"));
        text.push_str(&format!("  {}: {}{pid}{age}\n", orphan.name, status.state.word()));
    }
    if !down.is_empty() {
        let hint = if disks { "" } else { "; `qvm gc --disks` deletes it" };
        text.push_str(&format!("data of stopped VMs without a VM file{hint}:\n"));
    }
    for orphan in down {
        let (size, dir) = (super::size(orphan.bytes()), orphan.state.display());
        text.push_str(&format!("  {}: {size} in {dir}\n", orphan.name));
    }
    text
}

fn count(number: usize) -> String {
    if number == 1 { "this VM".to_owned() } else { format!("these {number} VMs") }
}

/// Asks for `answer` on the terminal.
fn confirm(yes: bool, question: &str, answer: &str, otherwise: &str) -> Result<(), Failure> {
    if yes {
        return Ok(());
    }
    if !io::stdin().is_terminal() {
        let text = format!("{otherwise}: cannot ask for confirmation without a terminal");
        return Err(
            Failure::new(ErrorCode::Usage, text).hint("`--yes` skips the question".to_owned())
        );
    }
    let _ = write!(io::stderr(), "{question} Type `{answer}` to confirm: ");
    let mut typed = String::new();
    match io::stdin().read_line(&mut typed) {
        Ok(_) if typed.trim() == answer => Ok(()),
        _ => Err(Failure::new(ErrorCode::NotConfirmed, format!("{otherwise}: not confirmed"))),
    }
}

/// Stops all VMs at once, each with its own stop ladder.
async fn stop(
    running: &[Orphan],
    layout: &Layout,
    settings: &(dyn Fn(VmName) -> Settings + '_),
) -> Result<(), Failure> {
    let supervised: Vec<VmName> =
        running.iter().filter(|o| o.entry.answers).map(|o| o.name.clone()).collect();
    let command = Command::PowerOff { timeout_sec: None };
    super::ask_down(layout, &supervised, command, true).await?;
    for orphan in running.iter().filter(|orphan| !orphan.entry.answers) {
        let done = orphans::end(settings(orphan.name.clone())).await;
        done.map_err(|e| super::not_ended(&e, &orphan.name))?;
        match running::find(&layout.vm(&orphan.name)) {
            Ok(found) if !found.is_running() => super::report(&orphan.name, "its QEMU has ended"),
            // The supervisor did not release the lock.
            Ok(_) => {
                let text = "not stopped: its supervisor does not answer";
                let failure = Failure::new(ErrorCode::SupervisorSilent, text).exit(exit::HOST);
                let hint = format!("`qvm kill {}` forces the VM off", orphan.name);
                return Err(failure.about(&orphan.name).hint(hint));
            }
            Err(unknown) => return Err(super::unknown(&unknown, &orphan.name)),
        }
    }
    super::print("their disks are kept: `qvm gc --disks` deletes them\n")
}

fn delete(args: &Args, layout: &Layout, down: &[Orphan]) -> Result<(), Failure> {
    let files = spec::load_all(&layout.vm_files());
    if files.is_empty() && args.yes {
        let text =
            format!("nothing deleted: `{}` contains no VM file", layout.vm_files().display());
        let hint = "is the directory correct and mounted? without `--yes` the command asks";
        return Err(Failure::new(ErrorCode::NoVmFiles, text).hint(hint.to_owned()));
    }
    let mut needed: BTreeSet<PathBuf> = BTreeSet::new();
    for (file, vm) in files {
        let Ok(vm) = vm else {
            let text = format!(
                "nothing deleted: cannot determine which disks `{}` refers to",
                file.display()
            );
            let hint = format!("`qvm check {}` shows the problem", file.display());
            return Err(Failure::new(ErrorCode::InvalidFile, text).hint(hint));
        };
        needed.extend(disks(&vm).map(Path::to_owned));
    }
    needed.extend(disks_in_use(layout)?);
    let mut text = String::from("This deletes permanently:\n");
    let mut deleted = Vec::new();
    for orphan in down {
        if let Some(path) = needed.iter().find(|path| path.starts_with(&orphan.state)) {
            super::report(&orphan.name, &format!("kept: another VM uses {}", path.display()));
            continue;
        }
        for (path, bytes) in &orphan.files {
            text.push_str(&format!("  {} ({})\n", path.display(), super::size(*bytes)));
        }
        deleted.push(orphan);
    }
    if deleted.is_empty() {
        return Ok(());
    }
    let question = format!("{text}This is all data of {}.", count(deleted.len()));
    confirm(args.yes, &question, "delete", "nothing deleted")?;
    let mut failures = Vec::new();
    for orphan in deleted {
        let paths = layout.vm(&orphan.name);
        // A VM may have got its VM file back, or have been started, since the question.
        if layout.vm_file(&orphan.name).symlink_metadata().is_ok() {
            super::report(&orphan.name, "kept: it has a VM file again");
            continue;
        }
        match vm_state::hold(&paths).and_then(vm_state::Held::remove) {
            Ok(()) => super::report(&orphan.name, &format!("removed {}", paths.state.display())),
            Err(e) => failures.push(super::not_held(&e, &orphan.name)),
        }
    }
    Failure::all(failures)
}

/// Returns the disks that running VMs use by the VM files that they were started from. The VM files
/// may have changed since.
///
/// # Errors
/// It is not known whether a VM is running, or from which VM file a running VM was started.
fn disks_in_use(layout: &Layout) -> Result<Vec<PathBuf>, Failure> {
    if let Some((name, unknown)) = first_unknown(layout) {
        return Err(super::unknown(&unknown, &name));
    }
    let (mut used, processes) = (Vec::new(), running::Processes::default());
    for name in names(layout) {
        let (paths, file) = (layout.vm(&name), layout.vm_file(&name));
        let found = running::find_among(&paths, &processes);
        if found.is_ok_and(|found| !found.is_running()) {
            continue;
        }
        match vm_file_copies::booted(&paths, &name, &file) {
            Some((vm, _)) => used.extend(disks(&vm).map(Path::to_owned)),
            None => {
                let text = format!(
                    "cannot determine which disks the VM uses: cannot read `{}`",
                    paths.booted().display()
                );
                let hint = format!("stop it first: `qvm stop {name}`");
                return Err(Failure::new(ErrorCode::StateUnknown, text).about(&name).hint(hint));
            }
        }
        let reloaded = vm_file_copies::reloaded(&paths, &name, &file);
        used.extend(reloaded.iter().flat_map(disks).map(Path::to_owned));
    }
    Ok(used)
}

/// Returns the files of a VM's disks, including base images.
fn disks(vm: &Vm) -> impl Iterator<Item = &Path> {
    vm.disks.iter().filter_map(|disk| match &disk.source {
        Source::File(path) | Source::Device(path) => Some(path.as_path()),
        Source::Image(image) => match &image.origin {
            spec::Origin::Path(path) => Some(path.as_path()),
            spec::Origin::Http(_) => None,
        },
        Source::Blank | Source::Existing => None,
    })
}
