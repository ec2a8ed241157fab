//! `qvm snapshot create|list|rollback|rm`: snapshots of the disks of a stopped VM.

use std::{ffi::OsStr, path::Path};

use clap::Subcommand;
use jiff::Timestamp;
use serde::Serialize;

use crate::{
    cli::{
        exit::{self, Failure},
        table::{Cell, Screen, Table},
    },
    fleet::{
        inventory,
        lock_holder::{self, LockHolder},
        start::{StartOptions, start_vm},
    },
    image::qemu_img::QemuImg,
    snapshot::{
        self, StoppedVm,
        create::Request,
        list::{self, ListedSnapshot},
        rollback::{Now, RolledBack},
    },
    store::{layout::Layout, snapshot_record::Phase, vm_state},
    supervisor::start::prepare::qemu_img_beside,
    sys::{progress::TerminalProgress, storage_reader::StorageReader},
    systemd::unit::Scope,
    value::{ErrorCode, SnapshotName, VmName},
};

/// The arguments of `qvm snapshot`.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Clone, Subcommand)]
enum What {
    /// Create a snapshot of the disks of a stopped VM
    Create {
        /// The name of the VM; it must be stopped
        name: VmName,
        /// The name of the snapshot [default: the time]
        #[arg(value_name = "SNAP")]
        snapshot: Option<SnapshotName>,
        /// Store a comment with the snapshot
        #[arg(long, value_name = "TEXT")]
        comment: Option<String>,
    },
    /// List snapshots as a tree: age, size, consistency
    List {
        /// The names of the VMs; without any, all VMs
        #[arg(value_name = "NAME")]
        names: Vec<VmName>,
        /// Print a JSON array of objects
        #[arg(long)]
        json: bool,
    },
    /// Return the disks of a stopped VM to a snapshot; the present becomes a snapshot
    Rollback {
        /// The name of the VM; it must be stopped
        name: VmName,
        /// The name of the snapshot
        #[arg(value_name = "SNAP")]
        snapshot: SnapshotName,
        /// Start the VM afterward
        #[arg(long)]
        start: bool,
        /// Delete the present instead of keeping it as `before-rollback-TIME`
        #[arg(long)]
        discard_current: bool,
    },
    /// Remove snapshots of a stopped VM; the other snapshots and the present are unchanged
    Rm {
        /// The name of the VM; it must be stopped
        name: VmName,
        /// The names of the snapshots
        #[arg(value_name = "SNAP", required = true)]
        snapshots: Vec<SnapshotName>,
    },
}

/// What the verb needs of its surroundings.
#[derive(Debug)]
pub struct Context<'a> {
    /// The directories.
    pub layout: &'a Layout,
    /// The QEMU that the environment names; qemu-img is beside it.
    pub qemu: Option<&'a OsStr>,
    /// This program.
    pub exe: &'a Path,
    /// The systemd manager whose units use these directories.
    pub manager: Option<Scope>,
    /// The time.
    pub now: Timestamp,
    /// Standard output.
    pub screen: Screen,
    /// Standard error is a terminal.
    pub terminal: bool,
}

/// Creates, lists, removes snapshots, or returns to one.
///
/// # Errors
/// A VM or snapshot is not known, the VM is running, or the operation failed.
pub async fn run(args: &Args, context: &Context<'_>) -> Result<(), Failure> {
    match &args.what {
        What::Create { name, snapshot, comment } => {
            let (comment, now) = (comment.clone(), context.now);
            let request = Request { name: snapshot.clone(), comment, now };
            create(name, request, context).await
        }
        What::List { names, json } => list(names, *json, context).await,
        What::Rollback { name, snapshot, start, discard_current } => {
            let present = if *discard_current { Now::Discard } else { Now::Keep };
            rollback(name, snapshot, present, context).await?;
            if *start { start_again(name, context).await } else { Ok(()) }
        }
        What::Rm { name, snapshots } => remove(name, snapshots, context).await,
    }
}

async fn create(name: &VmName, request: Request, context: &Context<'_>) -> Result<(), Failure> {
    let record = stopped(name, context, move |vm, _| vm.create(&request)).await?;
    let (kind, consistency) = (record.kind.word(), record.consistency.word());
    super::report(name, &format!("snapshot {} created ({kind}, {consistency})", record.name));
    Ok(())
}

async fn rollback(
    name: &VmName,
    to: &SnapshotName,
    present: Now,
    context: &Context<'_>,
) -> Result<(), Failure> {
    let (target, now) = (to.clone(), context.now);
    let done = stopped(name, context, move |vm, _| vm.rollback(&target, now, present)).await?;
    let RolledBack { kept, unchanged, left_out, vm_file_differs } = done;
    super::report(name, &format!("rolled back to {to}"));
    if let Some(kept) = kept {
        super::report(name, &format!("the present before it is the snapshot {kept}"));
    }
    for disk in unchanged {
        super::report(name, &format!("disk {disk} is unchanged: the snapshot does not have it"));
    }
    for disk in left_out {
        let text = format!(
            "disk {disk} of the snapshot is not restored: the VM file has no such \
                            disk"
        );
        super::report(name, &text);
    }
    if vm_file_differs {
        let record = context.layout.vm(name).snapshot(to);
        super::advise(&format!(
            "the VM file has changed since the snapshot and is not rolled back; the VM file of \
             that time is `vmFile` in {}",
            record.display()
        ));
    }
    Ok(())
}

async fn start_again(name: &VmName, context: &Context<'_>) -> Result<(), Failure> {
    let (layout, exe, manager) = (context.layout, context.exe, context.manager);
    let how = StartOptions { layout, exe, manager, wait: true, say: super::report };
    if let Err(error) = start_vm(name, &how).await {
        return Err(super::not_started(&error, &how, name).await);
    }
    super::report(name, "running");
    Ok(())
}

async fn remove(
    name: &VmName,
    snapshots: &[SnapshotName],
    context: &Context<'_>,
) -> Result<(), Failure> {
    let (wanted, terminal, owner) = (snapshots.to_vec(), context.terminal, name.clone());
    stopped(name, context, move |vm, cancel| {
        for snapshot in &wanted {
            vm.remove(snapshot, &mut TerminalProgress::new(terminal), cancel)?;
            super::report(&owner, &format!("snapshot {snapshot} removed"));
        }
        Ok(())
    })
    .await
}

/// Runs an operation on a stopped VM whose locks are held.
async fn stopped<T: Send + 'static>(
    name: &VmName,
    context: &Context<'_>,
    work: impl FnOnce(&mut StoppedVm, &crate::sys::progress::Cancel) -> Result<T, snapshot::Error>
    + Send
    + 'static,
) -> Result<T, Failure> {
    let paths = context.layout.vm(name);
    if let LockHolder::Supervisor(_) | LockHolder::Silent(_) =
        lock_holder::probe(&paths.control_socket()).await
    {
        return Err(running(name));
    }
    let qemu_img = QemuImg::new(match context.qemu {
        Some(qemu) => qemu_img_beside(Path::new(qemu)),
        None => "qemu-img".into(),
    });
    let (layout, owner) = (context.layout.clone(), name.clone());
    let done = super::long(move |cancel| {
        let mut vm = StoppedVm::lock(&layout, &owner, qemu_img)?;
        if let Some(settled) = vm.settled() {
            super::report(&owner, settled.text());
        }
        work(&mut vm, cancel)
    });
    done.await?.map_err(|error| failure(&error, name))
}

fn failure(error: &snapshot::Error, name: &VmName) -> Failure {
    match error {
        snapshot::Error::Invalid(invalid) => Failure::invalid(invalid),
        snapshot::Error::NoVm(_) => Failure::described(error).exit(exit::NOT_RUNNING),
        snapshot::Error::NoFile(_) => Failure::described(error).exit(exit::NOT_RUNNING).about(name),
        snapshot::Error::NotFound(_) => Failure::explained_for(error, name).exit(exit::NOT_RUNNING),
        snapshot::Error::Runs(vm_state::Error::Alone(pid)) => super::without_supervisor(name, *pid),
        error => Failure::explained_for(error, name),
    }
}

fn running(name: &VmName) -> Failure {
    let hint =
        format!("qvm changes the snapshots of a stopped VM only; stop it first: `qvm stop {name}`");
    Failure::new(ErrorCode::VmRunning, "it is running").about(name).hint(hint)
}

/// A snapshot with the name of its VM.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct OfVm {
    vm: VmName,
    #[serde(flatten)]
    snapshot: ListedSnapshot,
}

async fn list(names: &[VmName], json: bool, context: &Context<'_>) -> Result<(), Failure> {
    let storage = StorageReader::default();
    let wanted = match names.is_empty() {
        false => names.to_vec(),
        true => {
            let layout = context.layout.clone();
            let files = layout.vm_files();
            let all = storage.read(&files, move |_| inventory::names(&layout)).await;
            all.map_err(|error| Failure::described(&error).exit(exit::HOST))?
        }
    };
    let (mut all, mut failures) = (vec![], vec![]);
    for name in wanted {
        if !names.is_empty() && !super::is_known(context.layout, &name).await? {
            failures.push(super::not_running(context.layout, &name).await);
            continue;
        }
        let paths = context.layout.vm(&name);
        let read = storage.read(&context.layout.vm(&name).state, move |_| list::list(&paths)).await;
        match read.map_err(|error| super::no_answer(&error, &name))? {
            Ok(found) => {
                all.extend(found.into_iter().map(|snapshot| OfVm { vm: name.clone(), snapshot }))
            }
            Err(error) => failures.push(Failure::explained_for(&error, &name)),
        }
    }
    if json {
        let text = serde_json::to_string_pretty(&all);
        let text = text.map_err(|error| Failure::from_error(&error))?;
        super::print(&format!("{text}\n"))?;
    } else {
        super::print(&table(&all, context))?;
    }
    Failure::all(failures)
}

fn table(all: &[OfVm], context: &Context<'_>) -> String {
    let mut table =
        Table::new(["VM", "SNAPSHOT", "AGE", "OWN", "KIND", "CONSISTENCY", "RAM", "DISKS"]);
    for OfVm { vm, snapshot } in all {
        let own = snapshot.own_bytes.map_or_else(|| "-".to_owned(), super::size);
        let age = super::age(&snapshot.created_at, context.now);
        let disks: Vec<&str> = snapshot.disks.iter().map(|disk| disk.disk.as_str()).collect();
        let row = vec![
            vm.to_string().into(),
            format!("{}{}", "  ".repeat(snapshot.depth), snapshot.name).into(),
            age.unwrap_or_else(|| "-".to_owned()).into(),
            Cell::from(own).right(),
            snapshot.kind.word().into(),
            snapshot.consistency.word().into(),
            if snapshot.ram { "yes" } else { "no" }.into(),
            disks.join(",").into(),
        ];
        let mut notes: Vec<String> = snapshot.comment.iter().cloned().collect();
        if snapshot.is_parent_of_present {
            notes.push("the present is based on it".to_owned());
        }
        if snapshot.phase == Phase::Removing {
            let name = &snapshot.name;
            notes.push(format!("its removal was interrupted: `qvm snapshot rm {vm} {name}`"));
        }
        table.row(row, notes);
    }
    table.text(context.screen)
}
