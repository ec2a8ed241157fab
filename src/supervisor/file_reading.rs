//! Reads the VM file and the files beside it, in a task and one reading at a time.

use std::{path::PathBuf, time::Duration};

use tokio::{sync::oneshot, time::sleep};
use tracing::warn;

use super::{context::Context, refusal::Reply};
use crate::{
    control::types::Status,
    spec::{self, Vm},
    store::{identity::Identity, layout::VmPaths},
    sys::{
        file::{self, FileId, file_id},
        file_watch::Watching,
        tasks::Reporters,
    },
    value::{Note, NoteCode},
};

/// The time limit of a reading; then the waiting clients get an error.
const LIMIT: Duration = Duration::from_secs(10);
/// How long a status waits for a running reading, to report current pending changes.
const STATUS_LIMIT: Duration = Duration::from_millis(50);

/// The purpose of a reading.
#[derive(Debug)]
pub(crate) enum AfterReading {
    /// Compare the VM file with the running VM.
    Compare,
    /// Apply the changes, then answer the client.
    Reload(Option<Reply>),
    /// Relaunch QEMU.
    Relaunch,
}

impl AfterReading {
    /// Whether a client or a relaunch waits for the reading.
    fn is_waited_for(&self) -> bool {
        matches!(self, Self::Reload(Some(_)) | Self::Relaunch)
    }
}

/// The state of the files beside the VM file at the last reading.
#[derive(Debug, Default)]
pub(crate) struct Files {
    /// There is no VM file.
    pub(crate) orphan: bool,
    /// The identity; `None` if it does not exist or cannot be read.
    pub(crate) identity: Option<Identity>,
    /// Whether the identity was read.
    pub(crate) is_read: bool,
    /// The file of QEMU's program.
    pub(crate) binary: Option<FileId>,
    /// The modification time of QEMU's firmware, in seconds since 1970.
    pub(crate) firmware: Option<i64>,
}

/// The result of a reading.
#[derive(Debug)]
pub(crate) struct FileReading {
    /// The VM file and its text, or its problem.
    pub(crate) written: Result<(Vm, String), String>,
    pub(crate) files: Files,
}

/// What a reading reports.
#[derive(Debug)]
pub(crate) enum FileEvent {
    /// The reading has ended.
    Read(Result<Box<FileReading>, String>),
    /// The reading exceeds its time limit.
    Late,
    /// A status does not wait any longer.
    StatusDue,
}

/// The readings of a supervisor.
#[derive(Debug, Default)]
pub(crate) struct FileReader {
    /// The purposes of the running reading; `None` if there is none.
    then: Option<Vec<AfterReading>>,
    /// The purposes of the next reading: the files may have changed since this one began.
    next: Vec<AfterReading>,
    /// Whether the running reading has exceeded its time limit.
    is_late: bool,
    /// The status requests since the reading began.
    statuses: Vec<oneshot::Sender<Status>>,
    /// Watches the files; `None` if that is not possible.
    watching: Option<Watching>,
}

/// The paths of the files to read.
#[derive(Debug)]
pub(crate) struct FilesToRead {
    pub(crate) file: PathBuf,
    pub(crate) paths: VmPaths,
    pub(crate) binary: Option<PathBuf>,
    pub(crate) firmware: Option<PathBuf>,
}

impl FilesToRead {
    /// Blocks as long as the storage does.
    fn read(&self) -> FileReading {
        let written = spec::load_with_text(&self.file).map_err(|problem| problem.to_string());
        let is_missing = |error: std::io::Error| error.kind() == std::io::ErrorKind::NotFound;
        let orphan = self.file.symlink_metadata().is_err_and(is_missing);
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

/// Reads a VM's identity. Blocks as long as the storage does.
pub(crate) fn identity(paths: &VmPaths) -> Option<Identity> {
    let text = std::fs::read_to_string(paths.identity()).ok()?;
    toml::from_str::<Identity>(&text).ok()
}

impl FileReader {
    /// Creates a reader of files that are watched by `watching`.
    pub(crate) fn new(watching: Option<Watching>) -> Self {
        Self { watching, ..Self::default() }
    }

    /// Stops watching the files.
    pub(crate) fn stop_watching(&self) {
        if let Some(watching) = &self.watching {
            watching.end();
        }
    }

    /// Watches the files again.
    pub(crate) fn watch_again(&self, ctx: &Context) {
        let Some(watching) = self.watching.clone() else { return };
        let _ = ctx.lanes().files.run(move || {
            if let Err(error) = watching.begin() {
                warn!("changes of the VM file will be seen only by `qvm reload`: {error}");
            }
        });
    }

    /// Also watches QEMU's program: the next reading of the VM file detects an upgrade.
    pub(crate) fn watch_program(&self, program: Option<PathBuf>, ctx: &Context) {
        let (Some(watching), Some(program)) = (self.watching.clone(), program) else { return };
        let _ = ctx.lanes().files.run(move || drop(watching.also(&program)));
    }

    /// Adds a purpose to the next reading. Returns whether a reading has to begin.
    pub(crate) fn queue(&mut self, then: AfterReading) -> bool {
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

    /// Whether `then` would wait for a reading beyond its time limit: its client is answered now.
    pub(crate) fn is_late_for(&self, then: &AfterReading) -> bool {
        self.is_late && then.is_waited_for()
    }

    /// Begins a reading and reports its result.
    pub(crate) fn read<E: From<FileEvent> + Send + 'static>(
        &self,
        files: FilesToRead,
        tasks: &mut Reporters<E>,
        ctx: &Context,
    ) {
        let mut read = ctx.lanes().files.ask(move || files.read());
        let reports = tasks.sender();
        tasks.report(async move {
            let found = match tokio::time::timeout(LIMIT, &mut read).await {
                Ok(found) => found,
                Err(_) => {
                    let _ = reports.send(FileEvent::Late.into()).await;
                    read.await
                }
            };
            FileEvent::Read(found.map(Box::new).map_err(|refused| refused.to_string())).into()
        });
    }

    /// Ends the reading. Returns its purposes and those of the next one.
    pub(crate) fn on_read(&mut self) -> (Vec<AfterReading>, Vec<AfterReading>) {
        self.is_late = false;
        (self.then.take().unwrap_or_default(), std::mem::take(&mut self.next))
    }

    /// Handles a reading that exceeds its time limit. Returns its purposes, and those of the next
    /// reading for which a client or a relaunch waits.
    pub(crate) fn on_late(&mut self) -> Vec<AfterReading> {
        self.is_late = true;
        warn!("{}", late_text());
        let mut then = self.then.as_mut().map(std::mem::take).unwrap_or_default();
        then.extend(self.next.extract_if(.., |next| next.is_waited_for()));
        then
    }

    /// Registers a status request. Returns whether it is answered now, without a wait for the
    /// reading.
    pub(crate) fn wants_status<E: From<FileEvent> + Send + 'static>(
        &mut self,
        reply: oneshot::Sender<Status>,
        tasks: &mut Reporters<E>,
    ) -> bool {
        self.statuses.push(reply);
        if self.then.is_none() || self.is_late {
            return true;
        }
        if self.statuses.len() == 1 {
            tasks.report(async move {
                sleep(STATUS_LIMIT).await;
                FileEvent::StatusDue.into()
            });
        }
        false
    }

    /// Returns the waiting status requests.
    pub(crate) fn take_statuses(&mut self) -> Vec<oneshot::Sender<Status>> {
        std::mem::take(&mut self.statuses)
    }

    /// Returns the notes for the status.
    pub(crate) fn note(&self) -> Option<Note> {
        self.is_late.then(|| Note::new(NoteCode::VmFileUnread, late_text()))
    }
}

fn late_text() -> String {
    let seconds = LIMIT.as_secs();
    format!(
        "cannot read the VM file and the VM's identity: the storage has not answered for more \
         than {seconds} s"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::supervisor::{input::Input, tests::Host};

    fn files(host: &Host) -> FilesToRead {
        let file = host.dir.path().join("web.toml");
        FilesToRead { file, paths: host.ctx.paths().clone(), binary: None, firmware: None }
    }

    #[test]
    fn equal_readings_are_one() {
        let mut reader = FileReader::default();
        assert!(reader.queue(AfterReading::Compare));
        assert!(!reader.queue(AfterReading::Compare));
        assert!(!reader.queue(AfterReading::Compare));
        assert!(!reader.queue(AfterReading::Reload(None)));
        let (then, next) = reader.on_read();
        assert!(matches!(then[..], [AfterReading::Compare]));
        // Both were requested after the reading had begun.
        assert!(matches!(next[..], [AfterReading::Compare, AfterReading::Reload(None)]));
        assert!(reader.queue(AfterReading::Relaunch));
    }

    #[test]
    fn each_client_of_a_reload_is_kept() {
        let mut reader = FileReader::default();
        reader.queue(AfterReading::Compare);
        for _ in 0..2 {
            reader.queue(AfterReading::Reload(Some(oneshot::channel().0)));
        }
        assert_eq!(reader.on_read().1.len(), 2);
    }

    #[tokio::test]
    async fn vm_file_and_related_files_are_read() {
        let host = Host::new();
        let (mut tasks, mut inputs) = Reporters::<Input>::new(4);
        let files = files(&host);
        let text = "vcpu = 1\n";
        std::fs::write(&files.file, text).unwrap();
        let program = host.dir.path().join("qemu");
        std::fs::write(&program, "").unwrap();
        let firmware = Some(program.clone());
        let files = FilesToRead { binary: Some(program), firmware, ..files };
        FileReader::default().read(files, &mut tasks, &host.ctx);
        let Some(Input::Files(FileEvent::Read(Ok(read)))) = inputs.recv().await else { panic!() };
        assert_eq!(read.written.unwrap().1, text);
        assert!(read.files.is_read && !read.files.orphan && read.files.identity.is_none());
        assert!(read.files.binary.is_some() && read.files.firmware.is_some());
    }

    #[tokio::test]
    async fn missing_file_makes_an_orphan() {
        let host = Host::new();
        let (mut tasks, mut inputs) = Reporters::<Input>::new(4);
        FileReader::default().read(files(&host), &mut tasks, &host.ctx);
        let Some(Input::Files(FileEvent::Read(Ok(read)))) = inputs.recv().await else { panic!() };
        assert!(read.files.orphan && read.written.is_err());
    }

    #[test]
    fn identity_that_cannot_be_parsed_is_none() {
        let host = Host::new();
        let paths = host.ctx.paths();
        assert!(identity(paths).is_none());
        std::fs::write(paths.identity(), "not = [toml").unwrap();
        assert!(identity(paths).is_none());
    }

    #[tokio::test]
    async fn status_waits_for_a_reading_within_a_bound() {
        let (mut tasks, mut inputs) = Reporters::<Input>::new(4);
        let mut reader = FileReader::default();
        // Without a reading it does not wait.
        assert!(reader.wants_status(oneshot::channel().0, &mut tasks));
        assert_eq!(reader.take_statuses().len(), 1);
        reader.queue(AfterReading::Compare);
        assert!(!reader.wants_status(oneshot::channel().0, &mut tasks));
        assert!(!reader.wants_status(oneshot::channel().0, &mut tasks));
        let due = inputs.recv().await;
        assert!(matches!(due, Some(Input::Files(FileEvent::StatusDue))));
        assert_eq!(reader.take_statuses().len(), 2);
    }

    #[test]
    fn late_reading_holds_up_no_client_behind_it() {
        let mut reader = FileReader::default();
        assert!(reader.queue(AfterReading::Compare));
        let (reply, _client) = oneshot::channel();
        for then in
            [AfterReading::Reload(Some(reply)), AfterReading::Compare, AfterReading::Relaunch]
        {
            assert!(!reader.queue(then));
        }
        let late = reader.on_late();
        assert!(
            matches!(
                late[..],
                [AfterReading::Compare, AfterReading::Reload(Some(_)), AfterReading::Relaunch]
            ),
            "{late:?}"
        );
        // The files are still compared when they can be read.
        let (_, next) = reader.on_read();
        assert!(matches!(next[..], [AfterReading::Compare]), "{next:?}");
    }

    #[tokio::test]
    async fn late_reading_is_noted_until_it_ends() {
        let (mut tasks, _inputs) = Reporters::<Input>::new(4);
        let mut reader = FileReader::default();
        assert_eq!(reader.note(), None);
        reader.queue(AfterReading::Reload(Some(oneshot::channel().0)));
        // Its client is answered now.
        assert_eq!(reader.on_late().len(), 1);
        assert!(reader.note().unwrap().code == NoteCode::VmFileUnread);
        // A status does not wait for it.
        assert!(reader.wants_status(oneshot::channel().0, &mut tasks));
        assert!(!reader.queue(AfterReading::Compare));
        let (then, next) = reader.on_read();
        assert!(then.is_empty());
        assert_eq!(next.len(), 1);
        assert_eq!(reader.note(), None);
    }
}
