//! The VM file as it is now beside what runs: read again when it changes, and taken up where it can be.

use crate::supervisor::limits::QMP_LIMIT;
use std::time::Duration;

use tracing::{info, warn};

use super::{
    Supervisor, file_reading::AfterReading, input::Fact, running::live_update::Asker,
    start::prepare,
};
use crate::{
    control::types::Refusal,
    machine::diff::{
        Facts, ScreenServer, VmDiff, copy_at_once,
        running_machine::{RunningMachine, Versions},
    },
    spec::Vm,
    sys::file,
    value::chain,
};

/// How long who asked for a reload waits for what is done beside the loop.
const RELOAD_LIMIT: Duration = Duration::from_secs(10);

impl Supervisor {
    /// Re-reads the VM file and applies what can be applied live. Who asks is answered when that is done.
    pub(crate) fn reload(&mut self, asker: Option<Asker>) {
        self.read_files(AfterReading::Reload(asker));
    }

    /// The VM file has been read again.
    pub(crate) fn on_reload_read(&mut self, asker: Option<Asker>) {
        if let Some(problem) = &self.written_problem {
            warn!("the VM file is not valid, nothing was changed:\n{problem}");
            let refusal = Refusal::Failed(problem.clone());
            asker.into_iter().for_each(|asker| drop(asker.send(Err(refusal.clone()))));
            return;
        }
        self.apply_live_keys(self.written.clone());
        let copied = self.qemu.is_some().then(|| {
            // For the next supervisor, which would else take back what is applied now.
            let (path, text) = (self.paths.reloaded(), self.written_text.clone());
            self.lanes.run.ask(move || {
                if let Err(error) = file::write_volatile(&path, text.as_bytes(), 0o600) {
                    warn!("a later supervisor will not know of this: {}", chain(&error));
                }
            })
        });
        let (given, served) = (self.give_resources(), self.serve_screen_again());
        let facts = self.facts.clone();
        self.tasks.spawn(async move {
            let done = async {
                if let Some(copied) = copied
                    && let Err(refused) = copied.await
                {
                    warn!("a later supervisor will not know of this: {refused}");
                }
                given.await;
                served.await;
            };
            // What hangs goes on beside it, and is told of when it is done.
            let _ = tokio::time::timeout(RELOAD_LIMIT, done).await;
            let _ = facts.send(Fact::Reloaded(asker)).await;
        });
    }

    /// What counts at once is so.
    pub(crate) fn reloaded(&mut self, asker: Option<Asker>) {
        self.compare();
        info!("VM file read again: {} changes pending", self.pending.changes.len());
        self.apply_live(asker);
    }

    /// Sets the VM file that QEMU is started from.
    pub(crate) fn set_running(&mut self, vm: Vm) {
        self.running = RunningMachine::started_from(&vm);
        self.vm = vm;
        self.tell_operators();
    }

    /// Applies the keys of a VM file that count for a running guest at once.
    pub(crate) fn apply_live_keys(&mut self, new: Vm) {
        copy_at_once(&mut self.vm, &new);
        self.move_screen(&new);
        self.vm.lines = new.lines;
        self.tell_operators();
    }

    /// Compares the VM file, as it was read last, with what runs, and has the guest's next reboot wait for us if it is to bring a change.
    pub(crate) fn compare(&mut self) {
        self.look_at_qemu();
        self.retell_taps();
        let is_served_by_qemu = self.qemu.as_ref().is_some_and(|qemu| qemu.listens);
        let facts = Facts {
            max_memory: self.vm.mem,
            screen: match (is_served_by_qemu, self.running.is_screen_failed) {
                (true, _) => ScreenServer::Qemu,
                (false, true) => ScreenServer::Failed,
                (false, false) => ScreenServer::Supervisor,
            },
            running: &self.running.versions,
            installed: &self.versions_installed(),
        };
        self.pending = VmDiff::between(&self.running.vm(&self.vm), &self.written, &facts);
        let relaunch = self.pending.wants_relaunch();
        if relaunch != self.reboot_relaunches && self.qemu.is_some() {
            self.reboot_relaunches = relaunch;
            let action = if relaunch { "shutdown" } else { "reset" };
            self.tell_qemu("set what a reboot does", move |q| async move {
                q.set_reboot_action(action, QMP_LIMIT).await
            });
        }
    }

    /// Returns the versions that a QEMU started now would have.
    fn versions_installed(&self) -> Versions {
        let Some(qemu) = &self.qemu else { return Versions::default() };
        let running = self.running.versions.clone();
        let firmware = qemu.record.firmware.as_ref();
        let firmware = firmware.and_then(|(path, _)| Some(built(path, self.files.firmware?)));
        let seeded = self.written.cloud_init.is_some() && qemu.record.instance.is_some();
        let identity = self.files.identity.as_ref().filter(|_| seeded);
        let instance = identity.map(|identity| identity.instance_id.clone());
        Versions {
            qemu: self.installed.clone().or(running.qemu),
            firmware: firmware.or(running.firmware),
            instance: instance.or(running.instance),
        }
    }

    /// Takes over from the run record what runs beside the VM file, of a QEMU that was started or
    /// adopted.
    pub(crate) fn recall(&mut self) {
        let Some(record) = self.qemu.as_ref().map(|qemu| &qemu.record) else { return };
        let firmware = record.firmware.as_ref().map(|(path, at)| built(path, *at));
        let versions = Versions {
            qemu: Some(record.qemu_version.clone()),
            firmware,
            instance: record.instance.clone(),
        };
        self.recall_applied();
        self.running.versions = versions;
        (self.installed, self.asks_installed) = (None, None);
    }

    /// Whether QEMU's program is another than the one that runs; its version is asked for beside the loop.
    fn look_at_qemu(&mut self) {
        let Some(record) = self.qemu.as_ref().map(|qemu| &qemu.record) else { return };
        let (Some(runs), Some(there)) = (record.binary_id, self.files.binary) else { return };
        if runs == there {
            self.installed = None;
            return;
        }
        if self.installed.is_some() || self.asks_installed == Some(there) {
            return;
        }
        self.asks_installed = Some(there);
        let (settings, facts, generation) =
            (self.settings.clone(), self.facts.clone(), self.generation);
        let own = record.qemu_version.clone();
        let asked = std::thread::Builder::new().name("installed".into()).spawn(move || {
            let Ok(found) = prepare::facts_of(&settings) else { return };
            let version = match found.qemu.version.to_string() {
                same if same == own => format!("{same}, another build"),
                other => other,
            };
            let _ = facts.blocking_send(Fact::Installed(generation, version));
        });
        if let Err(error) = asked {
            warn!("cannot ask the installed QEMU for its version: {error}");
        }
    }
}

/// A firmware file, told from another of that name by when it was written.
fn built(path: &std::path::Path, at: i64) -> String {
    let at = jiff::Timestamp::from_second(at).map_or_else(|_| at.to_string(), |at| at.to_string());
    format!("{} of {at}", path.display())
}
