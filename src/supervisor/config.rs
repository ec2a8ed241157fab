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
    machine::{
        facets::Facets,
        pending::{self, AT_ONCE, pending, wants_relaunch},
    },
    spec::Vm,
    sys::file,
    value::chain,
};

/// The keys of what no VM file says: QEMU, its firmware, and whom cloud-init takes the guest for.
const QEMU: &str = "qemu";
const FIRMWARE: &str = "firmware file";
const INSTANCE: &str = "instance-id";

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
        self.take_live(self.written.clone());
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
        info!("VM file read again: {} changes pending", self.pending.len());
        self.apply_live(asker);
    }

    /// This is what QEMU is started from.
    pub(crate) fn runs(&mut self, vm: Vm) {
        self.running = Facets::of(&vm);
        self.vm = vm;
        self.tell_operators();
    }

    /// Takes of a VM file what counts for a running guest at once.
    pub(crate) fn take_live(&mut self, new: Vm) {
        self.take_facets(&new, &AT_ONCE);
        self.move_screen(&new);
        self.vm.description = new.description;
        self.vm.autostart = new.autostart;
        self.vm.after = new.after;
        self.vm.cpu_weight = new.cpu_weight;
        self.vm.cpu_quota = new.cpu_quota;
        self.vm.memory_max = new.memory_max;
        self.vm.io_weight = new.io_weight;
        self.vm.oom_score_adjust = new.oom_score_adjust;
        self.vm.cpu_pin = new.cpu_pin;
        self.vm.ready_failure = new.ready_failure;
        self.vm.host_shutdown = new.host_shutdown;
        self.vm.shutdown_timeout = new.shutdown_timeout;
        self.vm.operators = new.operators;
        self.vm.on_panic = new.on_panic;
        self.vm.on_guest_reboot = new.on_guest_reboot;
        self.vm.tap_heal = new.tap_heal;
        self.vm.lines = new.lines;
        self.tell_operators();
    }

    /// What runs is as a VM file says, by these keys.
    pub(crate) fn take_facets(&mut self, from: &Vm, keys: &[&str]) {
        let facets = Facets::of(from);
        for key in keys {
            self.running.set(*key, facets.get(key).map(str::to_owned));
        }
    }

    /// Compares the VM file, as it was read last, with what runs, and has the guest's next reboot wait for us if it is to bring a change.
    pub(crate) fn compare(&mut self) {
        self.look_at_qemu();
        self.retell_taps();
        let written = self.facets_written();
        let listens = self.qemu.as_ref().is_some_and(|qemu| qemu.listens);
        let machine = pending::Machine { listens, ..pending::machine(&self.vm) };
        self.pending = pending(&self.running, &written, &machine);
        let relaunch = wants_relaunch(&self.pending);
        if relaunch != self.reboot_relaunches && self.qemu.is_some() {
            self.reboot_relaunches = relaunch;
            let action = if relaunch { "shutdown" } else { "reset" };
            self.tell_qemu("set what a reboot does", move |q| async move {
                q.set_reboot_action(action, QMP_LIMIT).await
            });
        }
    }

    /// What a QEMU that were started now would be.
    pub(crate) fn facets_written(&self) -> Facets {
        let mut written = Facets::of(&self.written);
        let Some(qemu) = &self.qemu else { return written };
        let same = |key: &str| self.running.get(key).map(str::to_owned);
        written.set(QEMU, self.installed.clone().or_else(|| same(QEMU)));
        let firmware = qemu.record.firmware.as_ref();
        let now = firmware.and_then(|(path, _)| Some(built(path, self.files.firmware?)));
        written.set(FIRMWARE, now.or_else(|| same(FIRMWARE)));
        let seeded = self.written.cloud_init.is_some() && qemu.record.instance.is_some();
        let identity = self.files.identity.as_ref().filter(|_| seeded);
        let instance = identity.map(|identity| identity.instance_id.clone());
        written.set(INSTANCE, instance.or_else(|| same(INSTANCE)));
        written
    }

    /// What runs beside the VM file: taken down when a QEMU has begun, or was taken over.
    pub(crate) fn recall(&mut self) {
        let Some(record) = self.qemu.as_ref().map(|qemu| &qemu.record) else { return };
        let firmware = record.firmware.as_ref().map(|(path, at)| built(path, *at));
        self.running.set(QEMU, Some(record.qemu_version.clone()));
        self.running.set(FIRMWARE, firmware);
        self.running.set(INSTANCE, record.instance.clone());
        (self.installed, self.asks_installed) = (None, None);
        self.recall_applied();
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
