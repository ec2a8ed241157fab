//! One VM of the inventory, by its supervisor's answer or by what its files tell.

use std::{error::Error, io, path::Path};

use crate::{
    control::{
        client,
        types::{State, Status},
    },
    spec::{self, Invalid, Vm},
    store::layout::{Layout, VmPaths},
    value::{VmName, chain, chain_with_hint, is_host_fault},
};
use crate::{
    store::{
        record,
        running::{self, PreviousQemu, Processes},
    },
    sys::storage_reader::{self, ReadPosition},
};

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
    /// Its files, or the directory of VMs that it stands for, cannot be read.
    pub unread: bool,
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

    /// What a supervisor answered.
    pub(crate) fn supervised(name: &VmName, status: Status) -> Self {
        let (name, file_exists) = (name.to_string(), !status.orphan);
        let (problem, file_valid) = (None, file_exists);
        let (answers, known, unread) = (true, true, false);
        Self { name, status, problem, answers, file_exists, file_valid, known, unread }
    }

    /// A VM on storage that does not answer: nothing is known.
    pub(crate) fn no_answer(name: &str, error: &storage_reader::Error) -> Self {
        Self::unknown(name, format!("error: {name}: {}", chain_with_hint(error)))
    }

    /// A directory of VMs that cannot be listed.
    pub(crate) fn unlisted(dir: &Path, error: &(dyn Error + 'static)) -> Self {
        let dir = dir.display();
        Self::unknown(&dir.to_string(), format!("error: cannot list `{dir}`: {}", chain(error)))
    }

    /// The directory of the VM files that cannot be listed.
    pub(crate) fn unlisted_files(dir: &Path, invalid: &Invalid) -> Self {
        Self::unknown(&dir.display().to_string(), invalid.to_string())
    }

    /// A VM file whose name no VM can have.
    pub(crate) fn misnamed(file: &Path, invalid: &Invalid) -> Self {
        let stem = file.file_stem().unwrap_or_default().to_string_lossy();
        Self::without_file(&stem, Some(invalid.to_string()), true)
    }

    fn unknown(name: &str, problem: String) -> Self {
        let mut entry = Self::without_file(name, Some(problem), false);
        entry.status.state = State::Unknown;
        entry.unread = true;
        entry
    }

    /// What the VM is where its supervisor takes calls but answers none: to call it stopped would be
    /// to guess. Where this process cannot even call, nothing is known.
    pub(crate) fn is_silent(&mut self, error: &client::Error) {
        self.status.state = if is_host_fault(error) { State::Unknown } else { State::Running };
        self.status.since = None;
        let (name, why) = (&self.name, chain(error));
        self.problem = Some(format!("error: {name}: cannot ask its supervisor: {why}"));
    }

    /// What there is without a VM file that can be read.
    pub(crate) fn without_file(name: &str, problem: Option<String>, file_exists: bool) -> Self {
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
            disk_limits: vec![],
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
        let (answers, known, unread) = (false, true, false);
        Self { name, status, problem, answers, file_exists, file_valid, known, unread }
    }
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

/// What the files of a VM tell that no supervisor answers for, and whether a QEMU process of it is
/// running. Blocks as long as the storage does; `position` is set to the path being read.
pub(crate) fn unsupervised(
    layout: &Layout,
    name: &VmName,
    processes: &Processes,
    position: &ReadPosition,
) -> (Entry, running::Found) {
    let (paths, file) = (layout.vm(name), layout.vm_file(name));
    position.set(&paths.state);
    let found = running::find_among(&paths, processes);
    position.set(&file);
    let file_exists = file.symlink_metadata().is_ok();
    let vm = file_exists.then(|| spec::load(&file)).transpose();
    let invalid = vm.as_ref().err().map(ToString::to_string);
    let mut entry = Entry::without_file(name.as_str(), invalid, file_exists);
    if let Ok(Some(vm)) = vm {
        written(&mut entry.status, &vm);
    }
    let gone = |error: io::Error| error.kind() == io::ErrorKind::NotFound;
    entry.status.orphan = file.symlink_metadata().is_err_and(gone);
    position.set(&paths.state);
    entry.known = file_exists || found.is_err() || paths.state.is_dir();
    kept(&mut entry.status, &paths);
    match &found {
        Ok(PreviousQemu::Running(qemu, record)) => {
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
        Err(unknown) => {
            entry.status.state = State::Unknown;
            entry.status.since = None;
            let why = chain_with_hint(unknown).replace("NAME", name.as_str());
            entry.problem = Some(format!("error: {name}: {why}"));
        }
        Ok(_) => {}
    }
    (entry, found)
}

/// What the state directory tells.
fn kept(status: &mut Status, paths: &VmPaths) {
    let log = paths.console_log();
    status.console = log.is_file().then(|| log.display().to_string());
    match record::read_ends(paths) {
        Ok(ends) => status.ends = ends,
        Err(error) => {
            status.notes.push(format!("cannot read `{}`: {error}", paths.ends().display()));
        }
    }
    if let Ok(meta) = paths.saved().symlink_metadata() {
        status.notes.push(format!(
            "its guest's state is saved ({} MiB): the next start goes on from it, or boots with `--discard-state`",
            meta.len().div_ceil(1 << 20)
        ));
    }
    status.last_stop = status.ends.first().cloned();
    if let Some(end) = &status.last_stop {
        status.since = Some(end.at.clone());
        status.state = if end.failed { State::Failed } else { State::Stopped };
    }
}
