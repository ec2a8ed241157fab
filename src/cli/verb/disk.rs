//! `qvm disk list|check`: the disks of VMs on the host.

use std::{
    ffi::OsStr,
    path::{Path, PathBuf},
};

use clap::Subcommand;
use serde::Serialize;

use crate::{
    cli::{
        exit::{self, Failure},
        table::{Cell, Screen, Style, Table},
    },
    disk::{
        check::{self, CheckResult, CheckedDisk},
        listing::{self, ListedDisk, Place},
    },
    fleet::{
        inventory,
        lock_holder::{self, LockHolder},
    },
    image::qemu_img::QemuImg,
    spec::{self, Vm},
    store::{layout::Layout, vm_state},
    supervisor::start::prepare::qemu_img_beside,
    sys::storage_reader::StorageReader,
    value::{ErrorCode, Label, VmName},
};

/// The arguments of `qvm disk`.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Clone, Subcommand)]
enum What {
    /// List disks: sizes, backing files, where they are and what that place can do
    List {
        /// The names of the VMs; without any, all VMs
        #[arg(value_name = "NAME")]
        names: Vec<VmName>,
        /// Print a JSON array of objects
        #[arg(long)]
        json: bool,
    },
    /// Check the qcow2 disks of a stopped VM: exit code 0 if clean, 4 with leaks, 5 if corrupt
    Check {
        /// The name of the VM; it must be stopped
        name: VmName,
        /// Check this disk only
        #[arg(long, value_name = "DISK")]
        disk: Option<Label>,
        /// Print a JSON array of objects
        #[arg(long)]
        json: bool,
    },
}

/// What the verb needs of its surroundings.
#[derive(Debug)]
pub struct Context<'a> {
    /// The directories.
    pub layout: &'a Layout,
    /// The QEMU that the environment names; qemu-img is beside it.
    pub qemu: Option<&'a OsStr>,
    /// The directory that sysfs is mounted on.
    pub sys: &'a Path,
    /// Standard output.
    pub screen: Screen,
}

/// Lists or checks disks.
///
/// # Errors
/// A VM is not known, a disk is not clean or cannot be checked, or the VM is running.
pub async fn run(args: &Args, context: &Context<'_>) -> Result<(), Failure> {
    match &args.what {
        What::List { names, json } => list(names, *json, context).await,
        What::Check { name, disk, json } => check(name, disk.as_ref(), *json, context).await,
    }
}

/// A disk with the name of its VM.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct OfVm<T> {
    vm: VmName,
    #[serde(flatten)]
    disk: T,
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
    let (mut disks, mut failures) = (vec![], vec![]);
    for name in wanted {
        match disks_of(&name, &storage, context).await {
            Ok(Some(found)) => {
                disks.extend(found.into_iter().map(|disk| OfVm { vm: name.clone(), disk }));
            }
            // A VM without a VM file, of which only a log may be there.
            Ok(None) if names.is_empty() => {}
            Ok(None) => failures.push(super::not_running(context.layout, &name).await),
            Err(failure) => failures.push(failure),
        }
    }
    if json {
        print_json(&disks)?;
    } else {
        super::print(&table(&disks, context.screen))?;
    }
    Failure::all(failures)
}

/// The disks of a VM; `None` if there is no VM file.
async fn disks_of(
    name: &VmName,
    storage: &StorageReader,
    context: &Context<'_>,
) -> Result<Option<Vec<ListedDisk>>, Failure> {
    let (file, paths) = (context.layout.vm_file(name), context.layout.vm(name));
    let sys = context.sys.to_owned();
    let found = storage.read(&context.layout.vm_file(name), move |place| {
        if file.symlink_metadata().is_err() {
            return Ok(None);
        }
        let vm = spec::load(&file)?;
        place.set(&paths.state);
        Ok(Some(listing::list(&vm, &paths, &sys)))
    });
    let found = found.await.map_err(|error| super::refusal::no_answer(&error, name))?;
    found.map_err(|invalid| Failure::invalid(&invalid))
}

fn table(disks: &[OfVm<ListedDisk>], screen: Screen) -> String {
    let mut table =
        Table::new(["VM", "DISK", "FORMAT", "VIRTUAL", "ALLOCATED", "OWN", "ON", "CAN", "PATH"]);
    for OfVm { vm, disk } in disks {
        let bytes = |bytes: Option<u64>| {
            let text = bytes.map_or_else(|| "-".to_owned(), super::size);
            Cell::from(text).right()
        };
        let place = disk.place.as_ref();
        let on = place.and_then(|place| place.file_system.clone());
        let row = vec![
            vm.to_string().into(),
            disk.disk.to_string().into(),
            disk.format.name().into(),
            bytes(disk.virtual_bytes),
            bytes(disk.allocated_bytes),
            bytes(disk.own_bytes),
            on.unwrap_or_else(|| "-".to_owned()).into(),
            place.map_or_else(|| "-".to_owned(), capabilities).into(),
            disk.path.display().to_string().into(),
        ];
        let mut notes: Vec<String> =
            disk.backing.iter().map(|below| format!("on {below}")).collect();
        if disk.source == listing::DiskOrigin::Unnamed {
            notes.push("the VM file does not name it".to_owned());
        } else if !disk.exists && disk.problem.is_none() {
            notes.push("it does not exist yet".to_owned());
        }
        notes.extend(disk.problem.clone());
        table.row(row, notes);
    }
    table.text(screen)
}

/// `reflink,direct,discard`: what is known to be possible; `?` marks what is not known.
fn capabilities(place: &Place) -> String {
    let all = [("reflink", place.reflink), ("direct", place.direct), ("discard", place.discard)];
    let named = all.into_iter().filter_map(|(name, can)| match can {
        Some(true) => Some(name.to_owned()),
        Some(false) => None,
        None => Some(format!("{name}?")),
    });
    let named: Vec<String> = named.collect();
    if named.is_empty() { "-".to_owned() } else { named.join(",") }
}

async fn check(
    name: &VmName,
    only: Option<&Label>,
    json: bool,
    context: &Context<'_>,
) -> Result<(), Failure> {
    let (layout, paths) = (context.layout, context.layout.vm(name));
    if let LockHolder::Supervisor(_) | LockHolder::Silent(_) =
        lock_holder::probe(&paths.control_socket()).await
    {
        return Err(running(name));
    }
    if !super::is_known(layout, name).await? {
        return Err(super::not_running(layout, name).await);
    }
    let qemu_img = QemuImg::new(match context.qemu {
        Some(qemu) => qemu_img_beside(Path::new(qemu)),
        None => PathBuf::from("qemu-img"),
    });
    let (file, owner, only) = (layout.vm_file(name), name.clone(), only.cloned());
    let checked = super::long(move |cancel| {
        // The VM cannot be started while these locks are held.
        let _locks = vm_state::down(&paths).map_err(|error| match error {
            vm_state::Error::Alone(pid) => super::without_supervisor(&owner, pid),
            error => super::not_held(&error, &owner),
        })?;
        let vm = spec::load(&file).map_err(|invalid| Failure::invalid(&invalid))?;
        let disks = wanted(&vm, only.as_ref())?;
        let mut checked = vec![];
        for disk in disks {
            let done = check::check(disk, &paths, &qemu_img, cancel);
            checked.push(done.map_err(|error| Failure::explained_for(&error, &owner))?);
        }
        Ok::<Vec<CheckedDisk>, Failure>(checked)
    });
    let checked = checked.await??;
    if json {
        let disks = checked.iter().map(|disk| OfVm { vm: name.clone(), disk });
        print_json(&disks.collect::<Vec<_>>())?;
    } else {
        super::print(&report(name, &checked, context.screen))?;
        for disk in &checked {
            disk.hint.iter().for_each(|hint| super::advise(&format!("{}: {hint}", disk.disk)));
        }
    }
    match exit_code(&checked) {
        0 => Ok(()),
        code => Err(Failure::quiet(code)),
    }
}

fn running(name: &VmName) -> Failure {
    let hint = format!("QEMU changes the disks of a running VM; stop it first: `qvm stop {name}`");
    Failure::new(ErrorCode::VmRunning, "it is running").about(name).hint(hint)
}

fn wanted<'a>(vm: &'a Vm, only: Option<&Label>) -> Result<Vec<&'a spec::Disk>, Failure> {
    let disks: Vec<&spec::Disk> =
        vm.disks.iter().filter(|disk| only.is_none_or(|only| disk.name == *only)).collect();
    match only {
        Some(only) if disks.is_empty() => {
            let names: Vec<&str> = vm.disks.iter().map(|disk| disk.name.as_str()).collect();
            let text = format!("there is no disk `{only}`");
            let hint = format!("its disks are {}", names.join(", "));
            Err(Failure::new(ErrorCode::DiskUnknown, text).about(&vm.name).hint(hint))
        }
        _ => Ok(disks),
    }
}

fn report(name: &VmName, disks: &[CheckedDisk], screen: Screen) -> String {
    let mut text = String::new();
    for disk in disks {
        let (word, look) = match disk.result {
            CheckResult::NothingToCheck => ("nothing to check".to_owned(), Style::Faint),
            CheckResult::Clean => ("clean".to_owned(), Style::Good),
            CheckResult::Leaks => {
                let text = format!("{} leaked clusters: space is lost, no data", disk.leaks);
                (text, Style::Doubtful)
            }
            CheckResult::NotChecked => ("not checked".to_owned(), Style::Bad),
            CheckResult::Corrupt if disk.corruptions > 0 => {
                (format!("corrupt: {} errors in its tables", disk.corruptions), Style::Bad)
            }
            CheckResult::Corrupt => ("corrupt".to_owned(), Style::Bad),
        };
        let detail = disk.detail.as_deref().map_or_else(String::new, |it| format!(": {it}"));
        let word = look.paint(&word, screen.colours);
        text.push_str(&format!("{name}: {}: {word}{}\n", disk.disk, crate::value::plain(&detail)));
    }
    text
}

/// The exit code: of the worst result.
fn exit_code(disks: &[CheckedDisk]) -> u8 {
    match disks.iter().map(|disk| disk.result).max() {
        Some(CheckResult::Corrupt) => exit::CORRUPT,
        Some(CheckResult::NotChecked) => {
            let is_host_fault = disks.iter().any(|disk| disk.is_host_fault);
            if is_host_fault { exit::HOST } else { exit::FAILED }
        }
        Some(CheckResult::Leaks) => exit::LEAKS,
        Some(CheckResult::Clean | CheckResult::NothingToCheck) | None => 0,
    }
}

fn print_json<T: Serialize>(all: &[T]) -> Result<(), Failure> {
    let json = serde_json::to_string_pretty(all);
    super::print(&format!("{}\n", json.map_err(|error| Failure::from_error(&error))?))
}
