//! One VM of the inventory, from its supervisor's answer or from its files.

use std::{error::Error, fmt, io, path::Path};

use crate::{
    control::{
        client,
        types::{State, Status},
    },
    spec::{self, Invalid, Vm},
    store::layout::{Layout, VmPaths},
    value::{ErrorCode, Explain, Note, NoteCode, VmName, chain, is_host_fault},
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
    /// The name of the VM, or the name of its file if that is not a valid VM name.
    pub name: String,
    /// The status from the supervisor; without one, from the VM file and the recorded ends.
    pub status: Status,
    /// The problem with the VM file or the supervisor; may have several lines.
    pub problem: Option<Problem>,
    /// Whether `status` came from a supervisor.
    pub answers: bool,
    /// Whether the VM has a VM file.
    pub file_exists: bool,
    /// Whether the VM file is valid, or was when the supervisor read it.
    pub file_valid: bool,
    /// Whether the VM exists: it has a VM file, a state directory or a supervisor.
    pub known: bool,
    /// Whether the files of the VM, or the directory that the entry stands for, cannot be read.
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

    /// The code of the error about it.
    pub fn error_code(&self) -> ErrorCode {
        match self.code {
            NoteCode::VmFileInvalid => ErrorCode::InvalidFile,
            NoteCode::SupervisorSilent => ErrorCode::SupervisorSilent,
            NoteCode::NoSupervisor => ErrorCode::NoSupervisor,
            _ => ErrorCode::StateUnknown,
        }
    }

    /// The note about it.
    pub fn note(&self) -> Note {
        Note::new(self.code, self.what.as_str()).hint(self.hint.clone())
    }
}

/// `error: web: a: b`, and the hint on a separate line.
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
    /// Returns the note of a VM without a VM file.
    pub fn orphan(&self) -> Option<Note> {
        let hint = match self.status.state {
            State::Stopped | State::Failed => Some("`qvm gc --disks` deletes its data"),
            State::Unknown => None,
            _ => Some("`qvm gc` stops it"),
        };
        let note = Note::new(NoteCode::Orphan, "its VM file is gone");
        self.status.orphan.then(|| note.hint(hint.map(str::to_owned)))
    }

    /// Creates an entry from a supervisor's answer.
    pub(crate) fn supervised(name: &VmName, status: Status) -> Self {
        let (name, file_exists) = (name.to_string(), !status.orphan);
        let (problem, file_valid) = (None, file_exists);
        let (answers, known, unread) = (true, true, false);
        Self { name, status, problem, answers, file_exists, file_valid, known, unread }
    }

    /// Creates an entry for a VM whose storage does not answer.
    pub(crate) fn no_answer(name: &str, error: &storage_reader::Error) -> Self {
        Self::unknown(name, Problem::new(NoteCode::Unknown, name, chain(error), error.hint()))
    }

    /// Creates an entry for a directory of VMs that cannot be listed.
    pub(crate) fn unlisted(dir: &Path, error: &(dyn Error + 'static)) -> Self {
        let dir = dir.display().to_string();
        let what = format!("error: cannot list `{dir}`: {}", chain(error));
        Self::unknown(&dir, Problem { code: NoteCode::Unknown, subject: None, what, hint: None })
    }

    /// Creates an entry for the directory of the VM files if it cannot be listed.
    pub(crate) fn unlisted_files(dir: &Path, invalid: &Invalid) -> Self {
        Self::unknown(&dir.display().to_string(), Problem::invalid(NoteCode::Unknown, invalid))
    }

    /// Creates an entry for a VM file whose name is not a valid VM name.
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

    /// Marks a VM whose supervisor accepts connections but does not answer: it may be running. If
    /// this process cannot connect at all, the state is unknown.
    pub(crate) fn is_silent(&mut self, error: &client::Error) {
        self.status.state = if is_host_fault(error) { State::Unknown } else { State::Running };
        self.status.since = None;
        let what = format!("cannot ask its supervisor: {}", chain(error));
        self.problem = Some(Problem::new(NoteCode::SupervisorSilent, &self.name, what, None));
    }

    /// Creates an entry for a VM without a readable VM file.
    pub(crate) fn without_file(name: &str, problem: Option<Problem>, file_exists: bool) -> Self {
        let status = Status::of_stopped(name);
        let file_valid = file_exists && problem.is_none();
        let name = name.to_owned();
        let (answers, known, unread) = (false, true, false);
        Self { name, status, problem, answers, file_exists, file_valid, known, unread }
    }
}

/// Copies settings of the VM file into the status.
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

/// Returns a VM without a supervisor from its files, and whether its QEMU process is running.
/// Blocks as long as the storage does; `position` records the path that is being read.
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
            // The supervisor was killed; the guest keeps running.
            entry.status.state = State::Running;
            entry.status.pid = Some(qemu.pid());
            entry.status.since = None;
            entry.status.started_at = Some(record.started_at.clone());
            entry.known = true;
            let what = format!(
                "its QEMU process (pid {}) runs without a supervisor; `qvm start {name}` adopts it",
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

/// Copies data of the state directory into the status.
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
            "its guest's state is saved ({mib} MiB): the next start restores it, or discards it \
             with `--discard-state`"
        );
        status.notes.push(Note::new(NoteCode::SavedState, text));
    }
    status.last_stop = status.ends.first().cloned();
    if let Some(end) = &status.last_stop {
        status.since = Some(end.at.clone());
        status.state = if end.failed { State::Failed } else { State::Stopped };
    }
}
