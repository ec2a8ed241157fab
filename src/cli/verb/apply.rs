//! `qvm apply`: re-reads VM files and applies what can be applied to running guests; without names,
//! also starts what is new.

use std::path::Path;

use crate::{
    cli::exit::{self, Failure},
    control::types::{Command, Pending, State, Status, TakesEffect},
    fleet::{
        inventory::{Entry, PATIENCE, inventory},
        start::{Begin, Begun, begin},
    },
    store::layout::Layout,
    sys::storage_reader::StorageReader,
    systemd::{service::Unit, unit::Scope},
    value::{Note, VmName},
};

/// The arguments of `qvm apply`.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Running VMs; without names, all running VMs, and VMs with `autostart` that have never run
    /// are started
    #[arg(value_name = "NAME")]
    names: Vec<VmName>,
}

/// Applies the files, and tells what of them has to wait for more than that.
///
/// # Errors
/// Of each VM that was named and is not running, or that does not take what is written.
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
        failures.extend(unread.map(|told| Failure::told(exit::HOST, told.to_string())));
        let Ok(name) = entry.name.parse::<VmName>() else { continue };
        match what(entry, layout, &name).await {
            What::Reload => running.push(name),
            What::Start => new.push(name),
            What::Tell(text) => super::tell(&name, text),
            What::Leave => {}
        }
        let problem = entry.problem.as_ref().filter(|_| entry.file_exists && !entry.answers);
        let code = match entry.status.state {
            State::Unknown => exit::HOST,
            _ if entry.file_valid => exit::FAILED,
            _ => exit::INVALID,
        };
        failures.extend(problem.map(|told| Failure::told(code, told.to_string())));
    }
    let how = Begin { layout, exe, manager, wait: true, say: super::tell };
    let reloaded = super::each(&running, async |name| reload(&name, layout, manager).await);
    let started = super::each(&new, async |name| match begin(&name, &how).await {
        Ok(Begun::Running | Begun::Already | Begun::Asked) => {
            super::tell(&name, "new, started");
            Ok(())
        }
        Err(error) => Err(super::not_begun(&error, &how, &name).await),
    });
    let (reloaded, started) = tokio::join!(reloaded, started);
    failures.extend(reloaded.err().into_iter().chain(started.err()));
    Failure::all(failures)
}

/// What is done about a VM when all are applied.
enum What {
    Reload,
    Start,
    Tell(&'static str),
    Leave,
}

async fn what(entry: &Entry, layout: &Layout, name: &VmName) -> What {
    match entry {
        Entry { status: Status { orphan: true, .. }, answers: true, .. } => {
            What::Tell("its VM file is gone; it is left running: `qvm gc` would stop it")
        }
        Entry { answers: true, .. } => What::Reload,
        // What was stopped by somebody stays so.
        Entry { status, problem: None, file_exists: true, .. } if status.autostart => {
            let identity = layout.vm(name).identity();
            let ran = StorageReader::default()
                .read(&layout.vm(name).state, move |_| identity.symlink_metadata().is_ok());
            // Of a VM whose storage hangs by now nobody knows; the next `qvm apply` says so.
            if ran.await.unwrap_or(true) { What::Leave } else { What::Start }
        }
        _ => What::Leave,
    }
}

async fn reload(name: &VmName, layout: &Layout, manager: Option<Scope>) -> Result<(), Failure> {
    let mut client = super::connect(layout, name).await?;
    if let Some(scope) = manager
        && let Some(unit) =
            Unit::find(name, scope).await.map_err(|error| Failure::of(&error).about(name))?
    {
        // Weights are systemd's to set.
        unit.refresh().await.map_err(|error| Failure::of(&error).about(name))?;
    }
    let before = super::or_refused(client.status(PATIENCE).await, layout, name).await?;
    super::or_refused(client.command(Command::Reload).await, layout, name).await?;
    let after = super::or_refused(client.status(PATIENCE).await, layout, name).await?;
    super::tell(name, "VM file read");
    for done in before.pending.iter().filter(|one| is_done(one, &after)) {
        super::tell(name, &format!("applied: {}", super::difference(done)));
    }
    for pending in &after.pending {
        super::tell(name, &format!("pending: {}", super::change(pending)));
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
        exit::FAILED,
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
