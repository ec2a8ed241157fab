//! `qvm apply`: reads VM files again and applies live changes to running guests; without names, it
//! also starts new VMs with `autostart`.

use std::path::Path;

use crate::{
    cli::exit::{self, Failure},
    control::types::{Command, Pending, State, Status, TakesEffect},
    fleet::{
        inventory::{Entry, Problem, STATUS_LIMIT, inventory},
        start::{StartOptions, StartOutcome, start_vm},
    },
    store::layout::Layout,
    sys::storage_reader::StorageReader,
    systemd::{service::Unit, unit::Scope},
    value::{ErrorCode, Note, VmName},
};

/// The arguments of `qvm apply`.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Running VMs; without names, all running VMs, and VMs with `autostart` that have never run
    /// are started
    #[arg(value_name = "NAME")]
    names: Vec<VmName>,
}

/// Applies the VM files and prints the changes that are pending.
///
/// # Errors
/// A VM in `names` is not running, or a change cannot be applied.
pub async fn run(
    args: &Args,
    layout: &Layout,
    exe: &Path,
    manager: Option<Scope>,
) -> Result<(), Failure> {
    if !args.names.is_empty() {
        return super::each(&args.names, async |name| reload(&name, layout, manager).await).await;
    }
    let entries = inventory(&StorageReader::default(), layout, &[]).await;
    let (mut running, mut new, mut failures) = (vec![], vec![], vec![]);
    for entry in &entries {
        let unread = entry.problem.as_ref().filter(|_| entry.unread);
        failures.extend(unread.map(|problem| broken(exit::HOST, problem)));
        let Ok(name) = entry.name.parse::<VmName>() else { continue };
        match step_for(entry, layout, &name).await {
            Step::Reload => running.push(name),
            Step::Start => new.push(name),
            Step::Print(text) => super::report(&name, text),
            Step::Leave => {}
        }
        let problem = entry.problem.as_ref().filter(|_| entry.file_exists && !entry.answers);
        let code = match entry.status.state {
            State::Unknown => exit::HOST,
            _ if entry.file_valid => exit::FAILED,
            _ => exit::INVALID,
        };
        failures.extend(problem.map(|problem| broken(code, problem)));
    }
    let how = StartOptions { layout, exe, manager, wait: true, say: super::report };
    let reloaded = super::each(&running, async |name| reload(&name, layout, manager).await);
    let started = super::each(&new, async |name| match start_vm(&name, &how).await {
        Ok(StartOutcome::Running | StartOutcome::AlreadyRunning | StartOutcome::Requested) => {
            super::report(&name, "new, started");
            Ok(())
        }
        Err(error) => Err(super::not_started(&error, &how, &name).await),
    });
    let (reloaded, started) = tokio::join!(reloaded, started);
    failures.extend(reloaded.err().into_iter().chain(started.err()));
    Failure::all(failures)
}

/// The failure for a VM that no supervisor reports on.
fn broken(exit: u8, problem: &Problem) -> Failure {
    Failure::preformatted(exit, problem.to_string()).error_code(problem.error_code())
}

/// Step to do with a VM when the VM files of all are applied.
enum Step {
    Reload,
    Start,
    Print(&'static str),
    Leave,
}

async fn step_for(entry: &Entry, layout: &Layout, name: &VmName) -> Step {
    match entry {
        Entry { status: Status { orphan: true, .. }, answers: true, .. } => {
            Step::Print("its VM file does not exist; it keeps running: `qvm gc` stops it")
        }
        Entry { answers: true, .. } => Step::Reload,
        // A VM that an operator stopped is not started.
        Entry { status, problem: None, file_exists: true, .. } if status.autostart => {
            let identity = layout.vm(name).identity();
            let ran = StorageReader::default()
                .read(&layout.vm(name).state, move |_| identity.symlink_metadata().is_ok());
            // If the storage does not answer, the VM is skipped; the next `qvm apply` tries again.
            if ran.await.unwrap_or(true) { Step::Leave } else { Step::Start }
        }
        _ => Step::Leave,
    }
}

async fn reload(name: &VmName, layout: &Layout, manager: Option<Scope>) -> Result<(), Failure> {
    let mut client = super::connect(layout, name).await?;
    if let Some(scope) = manager
        && let Some(unit) = Unit::find(name, scope)
            .await
            .map_err(|error| Failure::described(&error).hint(None).about(name))?
    {
        // systemd sets the cgroup weights.
        unit.refresh().await.map_err(|error| Failure::described(&error).hint(None).about(name))?;
    }
    let before = super::or_refused(client.status(STATUS_LIMIT).await, layout, name).await?;
    super::or_refused(client.command(Command::Reload).await, layout, name).await?;
    let after = super::or_refused(client.status(STATUS_LIMIT).await, layout, name).await?;
    super::report(name, "VM file read");
    for done in before.pending.iter().filter(|one| is_done(one, &after)) {
        super::report(name, &format!("applied: {}", super::difference(done)));
    }
    for pending in &after.pending {
        super::report(name, &format!("pending: {}", super::change(pending)));
    }
    let left = |one: &&Pending| one.takes_effect == TakesEffect::Live;
    let failed: Vec<String> =
        after.pending.iter().filter(left).map(|one| one.key.clone()).collect();
    if failed.is_empty() {
        return Ok(());
    }
    let is_of_failed = |note: &&Note| note.key.as_ref().is_some_and(|key| failed.contains(key));
    let why: Vec<String> = after.notes.iter().filter(is_of_failed).map(Note::to_string).collect();
    Err(Failure::new(
        ErrorCode::NotApplied,
        match why.is_empty() {
            true => format!("not applied: {}", failed.join(", ")),
            false => why.join("; "),
        },
    )
    .about(name))
}

fn is_done(one: &Pending, after: &Status) -> bool {
    one.takes_effect == TakesEffect::Live && !after.pending.iter().any(|p| p.key == one.key)
}
