//! Which VMs there are, and what each is doing: from VM files, kept state and running supervisors.

use std::{collections::BTreeMap, fs, path::Path, time::Duration};

use futures_util::future::join_all;
use tokio::time::Instant;

use crate::store::{
    record,
    running::{self, PreviousQemu, Processes},
};
use crate::{
    control::{
        client::{self, Client},
        types::{State, Status},
    },
    spec::{self, Vm},
    store::layout::{Layout, VmPaths},
    sys::{pidfd::Process, socket},
    value::{VmName, chain},
};

/// How long a supervisor may take to tell its status.
pub const PATIENCE: Duration = Duration::from_secs(2);

/// Between two calls to a supervisor that did not answer one.
const AGAIN: Duration = Duration::from_millis(20);

/// One VM.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// Its name, or what its file is called where that is no VM's name.
    pub name: String,
    /// What its supervisor tells; where there is none, what its file and its last ends tell.
    pub status: Status,
    /// What is wrong with its file, or with its supervisor; may have several lines.
    pub problem: Option<String>,
    /// A supervisor told the status.
    pub answers: bool,
    /// It has a VM file.
    pub file_exists: bool,
    /// That file is valid, or was when its supervisor read it.
    pub file_valid: bool,
    /// There is anything of it: a file, kept state, a supervisor.
    pub known: bool,
}

impl Entry {
    /// What there is to be said of a VM whose file is gone.
    pub fn orphan(&self) -> Option<&'static str> {
        self.status.orphan.then_some(match self.status.state {
            State::Stopped | State::Failed => {
                "its VM file is gone: `qvm gc --disks` deletes what is kept of it"
            }
            State::Unknown => "its VM file is gone",
            _ => "its VM file is gone: `qvm gc` stops it",
        })
    }
}

/// The VMs of these names in that order, or without names every VM by name. Asks all supervisors at once.
pub async fn inventory(layout: &Layout, names: &[VmName]) -> Vec<Entry> {
    let mut entries = Vec::new();
    let names = if names.is_empty() { every(layout, &mut entries) } else { names.to_vec() };
    let processes = Processes::default();
    entries.extend(join_all(names.iter().map(|name| entry(layout, name, &processes))).await);
    for entry in &mut entries {
        entry.status.notes.extend(entry.problem.clone());
        entry.status.notes.extend(entry.orphan().map(Into::into));
    }
    if entries.len() > names.len() {
        entries.sort_by(|a, b| a.name.cmp(&b.name));
    }
    entries
}

/// The names of all VMs, without asking any.
pub fn names(layout: &Layout) -> Vec<VmName> {
    every(layout, &mut Vec::new())
}

/// A VM of which it is not known whether it is running, if there is one. Asks no supervisor: one that listens knows.
pub fn first_unknown(layout: &Layout) -> Option<(VmName, running::Unknown)> {
    let processes = Processes::default();
    names(layout).into_iter().find_map(|name| {
        let paths = layout.vm(&name);
        let unknown = running::find_among(&paths, &processes).err()?;
        let is_supervised = socket::is_served(&paths.control_socket()).unwrap_or(false);
        (!is_supervised).then_some((name, unknown))
    })
}

/// Every name that anything is called by. Files whose names no VM can have become entries at once.
fn every(layout: &Layout, misnamed: &mut Vec<Entry>) -> Vec<VmName> {
    let mut names: BTreeMap<VmName, ()> = BTreeMap::new();
    match spec::files_in(&layout.vm_files()) {
        Ok(files) => {
            for file in files {
                match spec::name_of(&file) {
                    Ok(name) => drop(names.insert(name, ())),
                    Err(invalid) => {
                        let stem = file.file_stem().unwrap_or_default().to_string_lossy();
                        misnamed.push(without_file(&stem, Some(invalid.to_string()), true));
                    }
                }
            }
        }
        Err(invalid) => {
            let dir = layout.vm_files().display().to_string();
            misnamed.push(without_file(&dir, Some(invalid.to_string()), true));
        }
    }
    let runs = |dir: &Path| {
        let has = |file: &str| dir.join(file).symlink_metadata().is_ok();
        has("control.sock") || has("record.json")
    };
    names.extend(dirs(&layout.vm_states()).into_iter().map(|(name, _)| (name, ())));
    let running = dirs(&layout.runtime).into_iter().filter(|(_, dir)| runs(dir));
    names.extend(running.map(|(name, _)| (name, ())));
    names.into_keys().collect()
}

/// The directories in `dir` that are called as a VM can be called.
fn dirs(dir: &Path) -> Vec<(VmName, std::path::PathBuf)> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    let dirs = entries.flatten().filter(|e| e.file_type().is_ok_and(|kind| kind.is_dir()));
    dirs.filter_map(|e| Some((e.file_name().to_str()?.parse().ok()?, e.path()))).collect()
}

/// Who tells about a VM.
enum Source {
    Supervisor(Box<Status>),
    /// There is one, and it does not answer.
    Silent(client::Error),
    /// There is none.
    Proof(Result<PreviousQemu, running::Unknown>),
}

async fn source(paths: &VmPaths, processes: &Processes) -> Source {
    for attempt in 0.. {
        match ask(paths).await {
            Ok(status) => return Source::Supervisor(Box::new(status)),
            Err(client::Error::NotRunning) => {}
            Err(error) => return Source::Silent(error),
        }
        match running::find_among(paths, processes) {
            // A supervisor that began a moment ago holds the locks, and answers by now.
            Err(_) if attempt == 0 => {}
            found => return Source::Proof(found),
        }
    }
    Source::Silent(client::Error::NotRunning)
}

async fn entry(layout: &Layout, name: &VmName, processes: &Processes) -> Entry {
    let (paths, file) = (layout.vm(name), layout.vm_file(name));
    // The supervisor is asked first: it answers also where the VM file's storage hangs.
    let source = match source(&paths, processes).await {
        Source::Supervisor(status) => {
            let (name, status) = (name.to_string(), *status);
            let file_exists = !status.orphan;
            let (problem, file_valid) = (None, file_exists);
            let (answers, known) = (true, true);
            return Entry { name, status, problem, answers, file_exists, file_valid, known };
        }
        source => source,
    };
    let file_exists = file.symlink_metadata().is_ok();
    let vm = file_exists.then(|| spec::load(&file)).transpose();
    let invalid = vm.as_ref().err().map(ToString::to_string);
    let mut entry = without_file(name.as_str(), invalid, file_exists);
    if let Ok(Some(vm)) = vm {
        written(&mut entry.status, &vm);
    }
    let is_proven = matches!(source, Source::Proof(Ok(_)));
    entry.known = file_exists || !is_proven || paths.state.is_dir();
    let gone = |error: std::io::Error| error.kind() == std::io::ErrorKind::NotFound;
    entry.status.orphan = file.symlink_metadata().is_err_and(gone);
    entry.status.console =
        paths.console_log().is_file().then(|| paths.console_log().display().to_string());
    match record::read_ends(&paths) {
        Ok(ends) => entry.status.ends = ends,
        Err(error) => {
            let problem = format!("cannot read `{}`: {error}", paths.ends().display());
            entry.status.notes.push(problem);
        }
    }
    if let Ok(meta) = paths.saved().symlink_metadata() {
        entry.status.notes.push(format!(
            "its guest's state is saved ({} MiB): the next start goes on from it, or boots with `--discard-state`",
            meta.len().div_ceil(1 << 20)
        ));
    }
    entry.status.last_stop = entry.status.ends.first().cloned();
    if let Some(end) = &entry.status.last_stop {
        entry.status.since = Some(end.at.clone());
        entry.status.state = if end.failed { State::Failed } else { State::Stopped };
    }
    match source {
        Source::Proof(Ok(PreviousQemu::Running(qemu, record))) => {
            // Its supervisor was killed. The guest does not know, and goes on.
            entry.status.state = State::Running;
            entry.status.pid = Some(qemu.pid());
            entry.status.since = None;
            entry.status.started_at = Some(record.started_at.clone());
            entry.known = true;
            entry.problem = Some(format!(
                "error: {name}: its QEMU runs without a supervisor, pid {}; `qvm start {name}` takes it over",
                qemu.pid()
            ));
        }
        Source::Proof(Err(unknown)) => {
            entry.status.state = State::Unknown;
            entry.status.since = None;
            let hint = unknown.hint().replace("NAME", name.as_str());
            entry.problem = Some(format!("error: {name}: {}\nhint: {hint}", chain(&unknown)));
        }
        Source::Silent(error) => {
            // Somebody holds the socket: to call it stopped would be to guess.
            entry.status.state = State::Running;
            entry.status.since = None;
            if let Ok(PreviousQemu::Running(qemu, record)) = running::find_among(&paths, processes)
            {
                entry.status.pid = Some(qemu.pid());
                entry.status.started_at = Some(record.started_at.clone());
            }
            entry.problem =
                Some(format!("error: {name}: cannot ask its supervisor: {}", chain(&error)));
        }
        Source::Proof(Ok(_)) | Source::Supervisor(_) => {}
    }
    entry
}

/// Asks a supervisor, and again while one is there that does not take or finish a call: its program may be being replaced.
async fn ask(paths: &VmPaths) -> Result<Status, client::Error> {
    let (socket, begun) = (paths.control_socket(), Instant::now());
    loop {
        let asked = async { Client::connect(&socket).await?.status(PATIENCE).await };
        let error = match asked.await {
            Ok(status) => return Ok(status),
            Err(error) => error,
        };
        let again = match &error {
            client::Error::Closed | client::Error::Io(_) => true,
            client::Error::NotRunning => is_supervised(paths),
            _ => false,
        };
        if !again || begun.elapsed() >= PATIENCE {
            return Err(error);
        }
        tokio::time::sleep(AGAIN).await;
    }
}

/// A QEMU lives, and the process that wrote itself down as its supervisor as well.
fn is_supervised(paths: &VmPaths) -> bool {
    let written = fs::read_to_string(paths.lock()).ok().and_then(|text| text.trim().parse().ok());
    let lives = |pid| Process::open(pid).is_ok_and(|process| process.is_alive());
    written.is_some_and(lives) && !matches!(running::find(paths), Ok(found) if !found.is_running())
}

fn without_file(name: &str, problem: Option<String>, file_exists: bool) -> Entry {
    let status = Status {
        name: name.to_owned(),
        state: State::Stopped,
        ready: None,
        trouble: None,
        pid: None,
        supervisor_pid: None,
        since: None,
        started_at: None,
        vcpu: 0,
        mem_bytes: 0,
        mem_actual_bytes: None,
        mem_resident_bytes: None,
        cpu_seconds: None,
        mem_target_bytes: None,
        mac: None,
        ip: None,
        tap: None,
        forward: vec![],
        vnc: None,
        operators: vec![],
        isolation: None,
        cpu_weight: 0,
        cpu_weight_effective: None,
        cpu_share: None,
        accel: None,
        qemu_version: None,
        machine: None,
        console: None,
        autostart: false,
        orphan: false,
        description: None,
        pending: vec![],
        notes: vec![],
        last_stop: None,
        ends: vec![],
    };
    let file_valid = file_exists && problem.is_none();
    let name = name.to_owned();
    Entry { name, status, problem, answers: false, file_exists, file_valid, known: true }
}

/// What the VM file tells.
fn written(status: &mut Status, vm: &Vm) {
    let nic = vm.nics.first();
    status.vcpu = u32::from(vm.vcpu);
    status.mem_bytes = vm.mem.bytes();
    status.mac = nic.and_then(|nic| nic.mac).map(|mac| mac.to_string());
    status.ip = nic.and_then(|nic| nic.ip).map(|ip| ip.to_string());
    status.forward = vm.forwards();
    status.operators.clone_from(&vm.operators);
    status.cpu_weight = vm.cpu_weight.get();
    status.autostart = vm.autostart;
    status.description.clone_from(&vm.description);
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn all(dir: &Path) -> Vec<Entry> {
        let layout = Layout { config: dir.into(), state: dir.join("s"), runtime: dir.join("r") };
        inventory(&layout, &[]).await
    }

    #[tokio::test(flavor = "current_thread")]
    async fn files_states_and_ends() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(all(dir.path()).await, vec![]);
        let write = |path: &str, text: &str| {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write("vms/web.toml", "vcpu = 2\n");
        write("vms/Bad.toml", "vcpu = 2\n");
        write("vms/broken.toml", "vcpu = \n");
        let end =
            r#"[{"reason":"start-failed","at":"2026-01-01T00:00:00Z","detail":"x","failed":true}]"#;
        write("s/vms/web/ends.json", end);
        write("s/vms/orphan/ends.json", "{");
        let all = all(dir.path()).await;
        let names: Vec<&str> = all.iter().map(|e| e.name.as_str()).collect();
        assert_eq!(names, ["Bad", "broken", "orphan", "web"]);
        assert!(all[0].problem.as_ref().unwrap().contains("`Bad` is not a VM's name"));
        assert!(all[1].problem.as_ref().unwrap().contains("broken.toml:1:"));
        assert!(!all[2].file_exists && all[2].known && all[2].status.notes.len() == 2);
        let web = &all[3].status;
        assert_eq!((web.state, web.vcpu, web.ends.len()), (State::Failed, 2, 1));
        assert_eq!(web.since.as_deref(), Some("2026-01-01T00:00:00Z"));
    }
}
