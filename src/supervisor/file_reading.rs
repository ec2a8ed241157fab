//! What the VM file and the files beside it are now: read beside the loop, one reading at a time.

use std::{path::PathBuf, time::Duration};

use tokio::{sync::oneshot, time::sleep};
use tracing::warn;

use super::{Supervisor, input::Fact, running::live_update::Asker};
use crate::sys::file::{FileId, file_id};
use crate::{
    control::types::{Refusal, Status},
    spec::{self, Vm},
    store::{identity::Identity, layout::VmPaths},
    sys::file,
};

/// How long a reading may take before who waits for it is told.
const LIMIT: Duration = Duration::from_secs(10);
/// How long a status waits for a reading under way, so that its pending changes are those of the file.
const STATUS_LIMIT: Duration = Duration::from_millis(50);

/// What is done with a reading.
#[derive(Debug)]
pub(crate) enum AfterReading {
    /// The pending changes are worked out.
    Compare,
    /// What can be applied is; who asked is answered then.
    Reload(Option<Asker>),
    /// QEMU is started anew.
    Relaunch,
}

/// The files, as the last reading found them.
#[derive(Debug, Default)]
pub(crate) struct Files {
    /// There is no VM file.
    pub(crate) orphan: bool,
    /// The identity; `None` if there is none that can be read.
    pub(crate) identity: Option<Identity>,
    /// The identity was looked for.
    pub(crate) is_read: bool,
    /// Which file QEMU's program is.
    pub(crate) binary: Option<FileId>,
    /// When QEMU's firmware was written, in seconds since 1970.
    pub(crate) firmware: Option<i64>,
}

/// A reading.
#[derive(Debug)]
pub(crate) struct FileReading {
    /// The VM file and its text, or why it is not valid.
    pub(crate) written: Result<(Vm, String), String>,
    pub(crate) files: Files,
}

/// The readings of a supervisor.
#[derive(Debug, Default)]
pub(crate) struct FileReadings {
    /// What is done with the reading under way; `None` if there is none.
    then: Option<Vec<AfterReading>>,
    /// What is done with the next one: the files may have changed since this one began.
    next: Vec<AfterReading>,
    /// The reading under way takes longer than it may.
    is_late: bool,
    /// Who asked for the status since the reading began.
    statuses: Vec<oneshot::Sender<Status>>,
}

/// Of what a reading is.
struct Wanted {
    file: PathBuf,
    paths: VmPaths,
    binary: Option<PathBuf>,
    firmware: Option<PathBuf>,
}

impl Wanted {
    /// Blocks for as long as the storage does.
    fn read(&self) -> FileReading {
        let written = spec::load_with_text(&self.file).map_err(|problem| problem.to_string());
        let gone = |error: std::io::Error| error.kind() == std::io::ErrorKind::NotFound;
        let orphan = self.file.symlink_metadata().is_err_and(gone);
        let files = Files {
            orphan,
            identity: identity(&self.paths),
            is_read: true,
            binary: self.binary.as_deref().and_then(file_id),
            firmware: self.firmware.as_deref().and_then(file::written_at),
        };
        FileReading { written, files }
    }
}

/// Reads a VM's identity. Blocks for as long as the storage does.
pub(crate) fn identity(paths: &VmPaths) -> Option<Identity> {
    let text = std::fs::read_to_string(paths.identity()).ok()?;
    toml::from_str::<Identity>(&text).ok()
}

impl FileReadings {
    /// Takes up what is to be done with a reading; `true` if one has to begin.
    fn queue(&mut self, then: AfterReading) -> bool {
        let begins = self.then.is_none();
        let to = if begins { self.then.get_or_insert_default() } else { &mut self.next };
        let again = |other: &AfterReading| {
            matches!(
                (other, &then),
                (AfterReading::Compare, AfterReading::Compare)
                    | (AfterReading::Reload(None), AfterReading::Reload(None))
                    | (AfterReading::Relaunch, AfterReading::Relaunch)
            )
        };
        if !to.iter().any(again) {
            to.push(then);
        }
        begins
    }

    /// What an operator should know.
    pub(crate) fn note(&self) -> Option<String> {
        let seconds = LIMIT.as_secs();
        self.is_late.then(|| {
            format!(
                "cannot read the VM file and the VM's identity: the storage has not answered for \
                 more than {seconds} s"
            )
        })
    }
}

impl Supervisor {
    /// Reads the files, and does `then`.
    pub(crate) fn read_files(&mut self, then: AfterReading) {
        if self.readings.queue(then) {
            self.begin_reading();
        }
    }

    fn begin_reading(&mut self) {
        let record = self.qemu.as_ref().map(|qemu| &qemu.record);
        let firmware = record.and_then(|record| record.firmware.as_ref());
        let wanted = Wanted {
            file: self.settings.layout.vm_file(&self.settings.name),
            paths: self.paths.clone(),
            binary: record.and_then(|record| record.binary.clone()),
            firmware: firmware.map(|(path, _)| path.clone()),
        };
        let mut seen = self.lanes.files.ask(move || wanted.read());
        let facts = self.facts.clone();
        self.tasks.spawn(async move {
            let found = match tokio::time::timeout(LIMIT, &mut seen).await {
                Ok(found) => found,
                Err(_) => {
                    let _ = facts.send(Fact::FilesLate).await;
                    seen.await
                }
            };
            let found = found.map_err(|refused| refused.to_string());
            let _ = facts.send(Fact::FilesRead(found.map(Box::new))).await;
        });
    }

    /// Answers with the status once the reading under way has ended, or at a bound.
    pub(crate) fn answer_status(&mut self, reply: oneshot::Sender<Status>) {
        self.readings.statuses.push(reply);
        if self.readings.then.is_none() || self.readings.is_late {
            self.answer_statuses();
        } else if self.readings.statuses.len() == 1 {
            let facts = self.facts.clone();
            self.tasks.spawn(async move {
                sleep(STATUS_LIMIT).await;
                let _ = facts.send(Fact::StatusDue).await;
            });
        }
    }

    pub(crate) fn answer_statuses(&mut self) {
        if self.readings.statuses.is_empty() {
            return;
        }
        self.look_at_monitor();
        let status = self.status();
        for reply in std::mem::take(&mut self.readings.statuses) {
            let _ = reply.send(status.clone());
        }
    }

    /// A reading takes longer than it may: who waits for it waits no longer.
    pub(crate) fn on_files_late(&mut self) {
        self.readings.is_late = true;
        warn!("{}", self.readings.note().unwrap_or_default());
        let then = self.readings.then.as_mut().map(std::mem::take);
        self.on_files_unread(then.unwrap_or_default(), "the storage does not answer");
    }

    fn on_files_unread(&mut self, then: Vec<AfterReading>, why: &str) {
        for then in then {
            match then {
                AfterReading::Reload(Some(asker)) => {
                    let why = format!("cannot read the VM file: {why}");
                    let _ = asker.send(Err(Refusal::Failed(why)));
                }
                // By the VM file as it was read last.
                AfterReading::Relaunch => self.relaunch(),
                AfterReading::Reload(None) | AfterReading::Compare => {}
            }
        }
    }

    /// The files are read.
    pub(crate) fn on_files_read(&mut self, seen: Result<Box<FileReading>, String>) {
        self.readings.is_late = false;
        let then = self.readings.then.take().unwrap_or_default();
        let next = std::mem::take(&mut self.readings.next);
        match seen {
            Ok(seen) => {
                let FileReading { written, files } = *seen;
                match written {
                    Ok((vm, text)) => {
                        (self.written, self.written_text) = (vm, text);
                        self.written_problem = None;
                    }
                    Err(problem) => self.written_problem = Some(problem),
                }
                self.files = files;
                self.compare();
                for then in then {
                    match then {
                        AfterReading::Compare => {}
                        AfterReading::Reload(asker) => self.on_reload_read(asker),
                        AfterReading::Relaunch => self.relaunch(),
                    }
                }
            }
            Err(why) => self.on_files_unread(then, &why),
        }
        if next.is_empty() {
            self.answer_statuses();
        }
        for then in next {
            self.read_files(then);
        }
    }
}
