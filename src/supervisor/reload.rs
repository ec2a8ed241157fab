//! Reads the VM file again, compares it with the running VM, and applies it.

use std::time::Duration;

use tracing::{info, warn};

use super::{
    Supervisor,
    config::UnknownOperators,
    context::Context,
    file_reading::{AfterReading, FileEvent, FileReading, FilesToRead},
    input::Input,
    refusal::Reply,
    running::event::VmEvent,
};
use crate::{
    control::types::Refusal,
    life,
    spec::Vm,
    sys::file,
    value::{ErrorCode, chain},
};

/// How long a reload request waits for the tasks that apply it.
const RELOAD_LIMIT: Duration = Duration::from_secs(10);

impl Supervisor {
    /// Reads the files for the purpose `then`.
    pub(crate) fn read_files(&mut self, then: AfterReading) {
        if self.files.is_late_for(&then) {
            return self.on_files_unread(vec![then], "the storage does not answer");
        }
        if !self.files.queue(then) {
            return;
        }
        let record = self.vm.as_ref().map(|vm| vm.record());
        let firmware = record.and_then(|record| record.firmware.as_ref());
        let settings = self.ctx.settings();
        let files = FilesToRead {
            file: settings.layout.vm_file(&settings.name),
            paths: self.ctx.paths().clone(),
            binary: record.and_then(|record| record.binary.clone()),
            firmware: firmware.map(|(path, _)| path.clone()),
        };
        self.files.read(files, &mut self.tasks, &self.ctx);
    }

    /// Handles the end of a reading, or its timeout.
    pub(crate) fn on_file_event(&mut self, event: FileEvent) {
        match event {
            FileEvent::Read(read) => self.on_files_read(read),
            FileEvent::Late => {
                let then = self.files.on_late();
                self.on_files_unread(then, "the storage does not answer");
            }
            FileEvent::StatusDue => self.answer_statuses(),
        }
    }

    fn on_files_read(&mut self, read: Result<Box<FileReading>, String>) {
        let (then, next) = self.files.on_read();
        match read {
            Ok(read) => {
                let FileReading { written, files } = *read;
                self.config.on_read(written, files);
                self.compare();
                for then in then {
                    match then {
                        AfterReading::Compare => {}
                        AfterReading::Reload(client) => self.on_reload_read(client),
                        AfterReading::Relaunch => self.feed(life::StartEvent::VmFileRead.into()),
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

    fn on_files_unread(&mut self, then: Vec<AfterReading>, why: &str) {
        for then in then {
            match then {
                AfterReading::Reload(Some(client)) => {
                    let why = format!("cannot read the VM file: {why}");
                    let _ = client.send(Err(Refusal::HostFault(why)));
                }
                // The relaunch uses the last valid VM file.
                AfterReading::Relaunch => self.feed(life::StartEvent::VmFileRead.into()),
                AfterReading::Reload(None) | AfterReading::Compare => {}
            }
        }
    }

    /// Applies a reading for a reload.
    fn on_reload_read(&mut self, client: Option<Reply>) {
        if let Some(problem) = self.config.problem() {
            warn!("the VM file is not valid, nothing was changed:\n{problem}");
            let refusal = Refusal::Failed(ErrorCode::InvalidFile, problem.to_owned());
            client.into_iter().for_each(|client| drop(client.send(Err(refusal.clone()))));
            return;
        }
        self.apply_live_keys(self.config.written().clone());
        let Some(vm) = &mut self.vm else { return self.on_reload_in_effect(client) };
        vm.on_reload(client);
        let copied = copy_for_next_supervisor(self.config.written_text().to_owned(), &self.ctx);
        let given = self.host_share.give(self.config.vm(), vm.qemu(), &self.ctx);
        let served = vm.open_screen_again(self.config.vm(), &self.ctx);
        vm.qemu().report(async move {
            let done = async {
                copied.await;
                given.await;
                served.await;
            };
            // A blocked task continues, and its result is reported later.
            let _ = tokio::time::timeout(RELOAD_LIMIT, done).await;
            VmEvent::Reloaded
        });
    }

    /// Handles the end of the earliest reload.
    pub(crate) fn on_reloaded(&mut self) {
        let Some(vm) = &mut self.vm else { return };
        let client = vm.on_reloaded();
        self.on_reload_in_effect(client);
    }

    fn on_reload_in_effect(&mut self, client: Option<Reply>) {
        self.compare();
        info!("VM file read again: {} changes pending", self.config.pending().len());
        match &mut self.vm {
            Some(vm) => vm.apply(client, &self.config, &self.ctx),
            None => client.into_iter().for_each(|client| drop(client.send(Ok(())))),
        }
    }

    /// Compares the VM file with the running VM.
    pub(crate) fn compare(&mut self) {
        match &mut self.vm {
            Some(vm) => vm.compare(&mut self.config, &self.ctx),
            None => self.config.compare(None),
        }
    }

    /// Sets the VM file that QEMU is started from.
    pub(crate) fn set_running(&mut self, vm: Vm, text: String) {
        let search = self.config.set_running(vm, text);
        self.look_up_operators(search);
    }

    /// Applies the keys of a VM file that take effect on a running guest at once.
    pub(crate) fn apply_live_keys(&mut self, new: Vm) {
        let owner = self.vm.as_ref().map(|vm| vm.screen_owner());
        let search = self.config.apply_live_keys(new, owner);
        self.look_up_operators(search);
    }

    /// Searches for operators that the host does not know.
    pub(crate) fn look_up_operators(&mut self, search: Option<UnknownOperators>) {
        if let Some(search) = search {
            self.tasks.report(async move { Input::UnknownOperators(search.await) });
        }
    }
}

/// Stores the reloaded VM file for the next supervisor, which would otherwise revert its changes.
fn copy_for_next_supervisor(
    text: String,
    ctx: &Context,
) -> impl Future<Output = ()> + Send + use<> {
    let path = ctx.paths().reloaded();
    let copied = ctx.lanes().run.ask(move || {
        if let Err(error) = file::write_volatile(&path, text.as_bytes(), 0o600) {
            warn!("cannot store the reloaded VM file for the next supervisor: {}", chain(&error));
        }
    });
    async move {
        if let Err(refused) = copied.await {
            warn!("cannot store the reloaded VM file for the next supervisor: {refused}");
        }
    }
}
