//! What the VM file and the files beside it are now: read beside the loop, one reading at a time.

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
};

/// How long a reading may take before the clients that wait for it get an error.
const LIMIT: Duration = Duration::from_secs(10);
/// How long a status waits for a reading under way, so that its pending changes are those of the file.
const STATUS_LIMIT: Duration = Duration::from_millis(50);

/// What is done with a reading.
#[derive(Debug)]
pub(crate) enum AfterReading {
    /// The VM file is compared with what runs.
    Compare,
    /// What can be applied is; the client is answered then.
    Reload(Option<Reply>),
    /// QEMU is started anew.
    Relaunch,
}

impl AfterReading {
    /// Whether a client or the start of a new QEMU process waits for it.
    fn is_waited_for(&self) -> bool {
        matches!(self, Self::Reload(Some(_)) | Self::Relaunch)
    }
}

/// The files beside the VM file, as the last reading found them.
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
    /// The files beside it.
    pub(crate) files: Files,
}

/// What a reading reports.
#[derive(Debug)]
pub(crate) enum FileEvent {
    /// The files are read; or why not.
    Read(Result<Box<FileReading>, String>),
    /// The reading takes longer than it may.
    Late,
    /// A status that waits for the reading waits no longer.
    StatusDue,
}

/// The readings of a supervisor.
#[derive(Debug, Default)]
pub(crate) struct FileReader {
    /// What is done with the reading under way; `None` if there is none.
    then: Option<Vec<AfterReading>>,
    /// What is done with the next one: the files may have changed since this one began.
    next: Vec<AfterReading>,
    /// The reading under way takes longer than it may.
    is_late: bool,
    /// The clients that asked for the status since the reading began.
    statuses: Vec<oneshot::Sender<Status>>,
    /// Watches the files; `None` where that is not possible.
    watching: Option<Watching>,
}

/// Which files are read.
#[derive(Debug)]
pub(crate) struct FilesToRead {
    /// The VM file.
    pub(crate) file: PathBuf,
    /// The VM's paths.
    pub(crate) paths: VmPaths,
    /// QEMU's program.
    pub(crate) binary: Option<PathBuf>,
    /// QEMU's firmware.
    pub(crate) firmware: Option<PathBuf>,
}

impl FilesToRead {
    /// Blocks for as long as the storage does.
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

/// Reads a VM's identity. Blocks for as long as the storage does.
pub(crate) fn identity(paths: &VmPaths) -> Option<Identity> {
    let text = std::fs::read_to_string(paths.identity()).ok()?;
    toml::from_str::<Identity>(&text).ok()
}

impl FileReader {
    /// A reader of files that are watched by `watching`.
    pub(crate) fn new(watching: Option<Watching>) -> Self {
        Self { watching, ..Self::default() }
    }

    /// Changes of the files are not of interest any more.
    pub(crate) fn stop_watching(&self) {
        if let Some(watching) = &self.watching {
            watching.end();
        }
    }

    /// Changes of the files are of interest again.
    pub(crate) fn watch_again(&self, ctx: &Context) {
        let Some(watching) = self.watching.clone() else { return };
        let _ = ctx.lanes().files.run(move || {
            if let Err(error) = watching.begin() {
                warn!("changes of the VM file will be seen only by `qvm reload`: {error}");
            }
        });
    }

    /// Watches QEMU's program as well: the next reading of the VM file sees that there is another.
    pub(crate) fn watch_program(&self, program: Option<PathBuf>, ctx: &Context) {
        let (Some(watching), Some(program)) = (self.watching.clone(), program) else { return };
        let _ = ctx.lanes().files.run(move || drop(watching.also(&program)));
    }

    /// Queues what is to be done with a reading. Returns whether a reading has to begin.
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

    /// Whether `then` has to wait for a reading that takes longer than it may: its client is answered now.
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

    /// The reading has ended. Returns what is done with it, and with the next one.
    pub(crate) fn on_read(&mut self) -> (Vec<AfterReading>, Vec<AfterReading>) {
        self.is_late = false;
        (self.then.take().unwrap_or_default(), std::mem::take(&mut self.next))
    }

    /// The reading takes longer than it may. Returns what was to be done with it, and what a client
    /// or a relaunch waits for behind it.
    pub(crate) fn on_late(&mut self) -> Vec<AfterReading> {
        self.is_late = true;
        warn!("{}", self.note().unwrap_or_default());
        let mut then = self.then.as_mut().map(std::mem::take).unwrap_or_default();
        then.extend(self.next.extract_if(.., |next| next.is_waited_for()));
        then
    }

    /// A client asks for the status. Returns whether it is answered now; it waits for a reading under way, within a bound.
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

    /// Returns the clients that wait for the status.
    pub(crate) fn take_statuses(&mut self) -> Vec<oneshot::Sender<Status>> {
        std::mem::take(&mut self.statuses)
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
        // Both came after the reading had begun.
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
    async fn valid_file_and_what_is_beside_it_are_read() {
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
    async fn missing_file_is_an_orphans() {
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
        assert!(reader.note().unwrap().contains("has not answered"));
        // A status does not wait for it.
        assert!(reader.wants_status(oneshot::channel().0, &mut tasks));
        assert!(!reader.queue(AfterReading::Compare));
        let (then, next) = reader.on_read();
        assert!(then.is_empty());
        assert_eq!(next.len(), 1);
        assert_eq!(reader.note(), None);
    }
}
