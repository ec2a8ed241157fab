//! One VM of the inventory, by its supervisor's answer or by what its files tell.

use std::{error::Error, fmt, io, path::Path};

use crate::{
    control::{
        client,
        types::{State, Status},
    },
    spec::{self, Invalid, Vm},
    store::layout::{Layout, VmPaths},
    value::{Explain, Note, NoteCode, Notes, VmName, chain, is_host_fault},
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
    pub problem: Option<Problem>,
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

/// What is wrong with a VM that no supervisor reports on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The code of the note about it.
    pub code: NoteCode,
    /// The VM, unless `what` is the text of [`Invalid`], which has the file and an `error: ` in
    /// each line.
    subject: Option<String>,
    /// The chain of causes; may have several lines.
    pub what: String,
    /// What the operator can do.
    pub hint: Option<String>,
}

impl Problem {
    fn new(code: NoteCode, subject: &str, what: String, hint: Option<String>) -> Self {
        Self { code, subject: Some(subject.to_owned()), what, hint }
    }

    fn invalid(code: NoteCode, invalid: &Invalid) -> Self {
        Self { code, subject: None, what: invalid.to_string(), hint: None }
    }

    /// The note about it.
    pub fn note(&self) -> Note {
        Note::new(self.code, self.what.as_str()).hint(self.hint.clone())
    }
}

/// `error: web: a: b`, and the hint on a line of its own.
impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(subject) = &self.subject {
            write!(f, "error: {subject}: ")?;
        }
        f.write_str(&self.what)?;
        match &self.hint {
            Some(hint) => write!(f, "\nhint: {hint}"),
            None => Ok(()),
        }
    }
}

impl Entry {
    /// The note about a VM whose file is gone.
    pub fn orphan(&self) -> Option<Note> {
        let hint = match self.status.state {
            State::Stopped | State::Failed => Some("`qvm gc --disks` deletes what is kept of it"),
            State::Unknown => None,
            _ => Some("`qvm gc` stops it"),
        };
        let note = Note::new(NoteCode::Orphan, "its VM file is gone");
        self.status.orphan.then(|| note.hint(hint.map(str::to_owned)))
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
        Self::unknown(name, Problem::new(NoteCode::Unknown, name, chain(error), error.hint()))
    }

    /// A directory of VMs that cannot be listed.
    pub(crate) fn unlisted(dir: &Path, error: &(dyn Error + 'static)) -> Self {
        let dir = dir.display().to_string();
        let what = format!("error: cannot list `{dir}`: {}", chain(error));
        Self::unknown(&dir, Problem { code: NoteCode::Unknown, subject: None, what, hint: None })
    }

    /// The directory of the VM files that cannot be listed.
    pub(crate) fn unlisted_files(dir: &Path, invalid: &Invalid) -> Self {
        Self::unknown(&dir.display().to_string(), Problem::invalid(NoteCode::Unknown, invalid))
    }

    /// A VM file whose name no VM can have.
    pub(crate) fn misnamed(file: &Path, invalid: &Invalid) -> Self {
        let stem = file.file_stem().unwrap_or_default().to_string_lossy();
        Self::without_file(&stem, Some(Problem::invalid(NoteCode::VmFileInvalid, invalid)), true)
    }

    fn unknown(name: &str, problem: Problem) -> Self {
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
        let what = format!("cannot ask its supervisor: {}", chain(error));
        self.problem = Some(Problem::new(NoteCode::SupervisorSilent, &self.name, what, None));
    }

    /// What there is without a VM file that can be read.
    pub(crate) fn without_file(name: &str, problem: Option<Problem>, file_exists: bool) -> Self {
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
            notes: Notes::default(),
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
    let invalid = |invalid| Problem::invalid(NoteCode::VmFileInvalid, invalid);
    let invalid = vm.as_ref().err().map(invalid);
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
            let what = format!(
                "its QEMU runs without a supervisor, pid {}; `qvm start {name}` takes it over",
                qemu.pid()
            );
            let problem = Problem::new(NoteCode::NoSupervisor, name.as_str(), what, None);
            entry.problem = Some(problem);
        }
        Err(unknown) => {
            entry.status.state = State::Unknown;
            entry.status.since = None;
            let (what, hint) = (chain(unknown), unknown.hint_for(name));
            entry.problem = Some(Problem::new(NoteCode::Unknown, name.as_str(), what, hint));
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
            let text = format!("cannot read `{}`: {error}", paths.ends().display());
            status.notes.push(Note::new(NoteCode::EndsUnreadable, text));
        }
    }
    if let Ok(meta) = paths.saved().symlink_metadata() {
        let mib = meta.len().div_ceil(1 << 20);
        let text = format!(
            "its guest's state is saved ({mib} MiB): the next start goes on from it, or boots with \
             `--discard-state`"
        );
        status.notes.push(Note::new(NoteCode::SavedState, text));
    }
    status.last_stop = status.ends.first().cloned();
    if let Some(end) = &status.last_stop {
        status.since = Some(end.at.clone());
        status.state = if end.failed { State::Failed } else { State::Stopped };
    }
}
