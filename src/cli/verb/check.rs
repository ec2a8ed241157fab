//! `qvm check`: validates VM files, alone and together, and the host settings, without changing
//! anything.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    io::{self, Write},
    path::{Path, PathBuf},
};

use crate::{
    cli::exit,
    spec::{self, HostSettings, Invalid, Problem, Vm, check::across},
    store::layout::Layout,
    value::{VmName, shown},
};

/// The arguments of `qvm check`.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Args {
    /// VM files (paths that contain `/` or `.toml`), `qvm.toml` of the host, or names of VMs;
    /// without arguments, all VM files and the host settings
    #[arg(value_name = "FILE|NAME")]
    pub what: Vec<OsString>,
    /// Print the problems as a JSON array
    #[arg(long)]
    pub json: bool,
    /// Do not read files named by `userData`, which may exist only on another machine
    #[arg(long)]
    pub no_user_data: bool,
}

/// Checks each file together with all others of its directory. Prints `NAME: ok` to `out` and
/// problems to `err`, or all problems as JSON to `out`. Returns the exit code.
pub fn run(args: &Args, layout: &Layout, out: &mut dyn Write, err: &mut dyn Write) -> u8 {
    let (mut files, missing) = match files(args, layout) {
        Ok(found) => found,
        Err(invalid) => {
            // A failed write to these outputs has no other place to be reported.
            let _ = writeln!(err, "{invalid}");
            return if invalid.is_host_fault() { exit::HOST } else { exit::FAILED };
        }
    };
    let settings = settings(&mut files, args, layout);
    let load: Load = match args.no_user_data {
        true => |file| spec::load_early(file).map_err(|(invalid, _)| invalid),
        false => spec::load,
    };
    let checked = settings.iter().map(|file| {
        let problems = HostSettings::load(file).err().map(|Invalid(problems)| problems);
        let (name, problems) = ("the host settings".into(), problems.unwrap_or_default());
        Checked { name, problems, notes: vec![] }
    });
    let checked: Vec<Checked> = checked.chain(check(&files, load)).collect();
    let printed = match args.json {
        true => print_json(&missing, &checked, out),
        false => print(&missing, &checked, out, err),
    };
    let note = args.what.is_empty() && files.is_empty();
    let printed = printed.and_then(|()| match note && !args.json {
        true => writeln!(err, "there are no VM files in {}", layout.vm_files().display()),
        false => Ok(()),
    });
    let is_unread = |one: &Checked| one.problems.iter().any(|problem| problem.is_host_fault);
    if printed.is_err() {
        exit::FAILED
    } else if checked.iter().any(is_unread) {
        exit::HOST
    } else if checked.iter().any(|one| !one.problems.is_empty()) {
        exit::INVALID
    } else if !missing.is_empty() {
        exit::NOT_RUNNING
    } else {
        0
    }
}

/// Returns the files to check, without duplicates, and the problems of VMs without a file.
fn files(args: &Args, layout: &Layout) -> Result<(Vec<PathBuf>, Vec<Problem>), Invalid> {
    let (mut files, mut missing) = (Vec::new(), Vec::new());
    if args.what.is_empty() {
        files = spec::files_in(&layout.vm_files())?;
    }
    for what in &args.what {
        let text = what.to_string_lossy();
        let file = if text.contains('/') || text.ends_with(".toml") {
            PathBuf::from(what)
        } else {
            match named(&text, layout) {
                Ok(file) => file,
                Err(Invalid(problems)) => {
                    missing.extend(problems);
                    continue;
                }
            }
        };
        if !files.contains(&file) {
            files.push(file);
        }
    }
    Ok((files, missing))
}

/// Moves the host settings out of `files`. Without arguments, returns the default file.
fn settings(files: &mut Vec<PathBuf>, args: &Args, layout: &Layout) -> Vec<PathBuf> {
    let own = layout.host_settings();
    if args.what.is_empty() {
        return if own.symlink_metadata().is_ok() { vec![own] } else { vec![] };
    }
    files.extract_if(.., |file| *file == own || spec::is_host_settings(file)).collect()
}

/// Returns the file of the VM with this name.
fn named(text: &str, layout: &Layout) -> Result<PathBuf, Invalid> {
    let dir = layout.vm_files();
    let name: VmName =
        text.parse().map_err(|refused| Problem::of_file(&dir, format!("{refused}"), None))?;
    let file = layout.vm_file(&name);
    // A dangling symbolic link is an invalid file, not a missing VM.
    if file.symlink_metadata().is_err() {
        let message = format!("there is no VM `{}`: it has no VM file", shown(text));
        let hint = "` or `.toml`/` or `.toml`";
        return Err(Problem::of_file(&file, message, Some(hint.into())).into());
    }
    Ok(file)
}

/// A reader of VM files.
type Load = fn(&Path) -> Result<Vm, Invalid>;

/// A file and its contents.
type Loaded<'f> = (&'f PathBuf, Result<Vm, Invalid>);

/// The results for one file.
struct Checked {
    name: String,
    problems: Vec<Problem>,
    /// Warnings: valid, but possibly unintended.
    notes: Vec<String>,
}

/// Returns the problems of each file, in the order of `files`.
fn check(files: &[PathBuf], load: Load) -> Vec<Checked> {
    let loaded: Vec<Loaded<'_>> = files.iter().map(|file| (file, load(file))).collect();
    let mut groups: BTreeMap<&Path, Vec<&Loaded<'_>>> = BTreeMap::new();
    for file in &loaded {
        groups.entry(dir_of(file.0)).or_default().push(file);
    }
    let beside: Vec<Problem> =
        groups.into_iter().flat_map(|(dir, group)| check_beside(dir, &group, load)).collect();
    let problems = |file: &Path, vm: Result<Vm, Invalid>| {
        let own = vm.err().map(|Invalid(problems)| problems).unwrap_or_default();
        own.into_iter().chain(beside.iter().filter(|p| p.file == file).cloned()).collect()
    };
    let name = |file: &Path| file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let checked = |(file, vm): Loaded<'_>| {
        let data = vm.as_ref().ok().and_then(|vm| vm.cloud_init.as_ref()?.user_data.as_ref());
        let notes = data.map(|data| data.advice().collect()).unwrap_or_default();
        Checked { name: name(file), problems: problems(file, vm), notes }
    };
    loaded.into_iter().map(checked).collect()
}

/// Checks the files of one directory against each other and against the others of the directory.
fn check_beside(dir: &Path, group: &[&Loaded<'_>], load: Load) -> Vec<Problem> {
    let mut unread: Vec<VmName> = Vec::new();
    let mut siblings: Vec<Vm> = Vec::new();
    let listed = spec::files_in(dir).unwrap_or_else(|_| {
        // If the directory cannot be listed, the other VMs are unknown: none is reported as
        // missing.
        let good = group.iter().filter_map(|(_, vm)| vm.as_ref().ok());
        unread.extend(good.flat_map(|vm| vm.after.iter().cloned()));
        Vec::new()
    });
    for sibling in listed {
        if group.iter().any(|(file, _)| file.file_name() == sibling.file_name()) {
            continue;
        }
        match load(&sibling) {
            Ok(vm) => siblings.push(vm),
            Err(_) => unread.extend(spec::name_of(&sibling)),
        }
    }
    unread.extend(
        group.iter().filter(|(_, vm)| vm.is_err()).filter_map(|(file, _)| spec::name_of(file).ok()),
    );
    // Of two files with the same claim, the later one gets the problem: the requested files are
    // last.
    let vms: Vec<&Vm> =
        siblings.iter().chain(group.iter().filter_map(|(_, vm)| vm.as_ref().ok())).collect();
    across(&vms, &unread)
}

fn dir_of(file: &Path) -> &Path {
    match file.parent() {
        Some(dir) if dir != Path::new("") => dir,
        _ => Path::new("."),
    }
}

fn print(
    missing: &[Problem],
    checked: &[Checked],
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> io::Result<()> {
    for problem in missing {
        writeln!(err, "{problem}")?;
    }
    for Checked { name, problems, notes } in checked {
        for note in notes {
            writeln!(err, "note: {name}: {note}")?;
        }
        if problems.is_empty() {
            writeln!(out, "{name}: ok")?;
        } else {
            writeln!(err, "{}", Invalid(problems.clone()))?;
        }
    }
    out.flush()
}

fn print_json(missing: &[Problem], checked: &[Checked], out: &mut dyn Write) -> io::Result<()> {
    let problems: Vec<&Problem> =
        missing.iter().chain(checked.iter().flat_map(|one| &one.problems)).collect();
    serde_json::to_writer_pretty(&mut *out, &problems)?;
    writeln!(out)?;
    out.flush()
}
