//! The VM file as it is now beside what runs: read again when it changes, and taken up where it can be.

use std::os::unix::fs::MetadataExt;

use tokio::sync::oneshot;
use tracing::{info, warn};

use super::{
    fact::Fact,
    prepare,
    supervise::{QMP_LIMIT, Supervisor},
};
use crate::{
    control::types::Refusal,
    host::file,
    plan::{
        facets::Facets,
        identity::Identity,
        pending::{self, AT_ONCE, pending, wants_relaunch},
    },
    spec::{self, Vm},
    value::chain,
};

/// The keys of what no VM file says: QEMU, its firmware, and whom cloud-init takes the guest for.
const QEMU: &str = "qemu";
const FIRMWARE: &str = "firmware file";
const INSTANCE: &str = "instance-id";

impl Supervisor {
    /// Re-reads the VM file and applies what can be applied live. Who asks is answered when that is done.
    pub(super) fn reload(&mut self, asker: Option<oneshot::Sender<Result<(), Refusal>>>) {
        self.reread();
        if let Some(problem) = &self.written_problem {
            warn!("the VM file is not valid, nothing was changed:\n{problem}");
            let refusal = Refusal::Failed(problem.clone());
            asker.into_iter().for_each(|asker| drop(asker.send(Err(refusal.clone()))));
            return;
        }
        self.take_live(self.written.clone());
        if self.qemu.is_some() {
            // For the next supervisor, which would else take back what is applied now.
            let text = self.written_text.as_bytes();
            if let Err(error) = file::write_volatile(&self.paths.reloaded(), text, 0o600) {
                warn!("a later supervisor will not know of this: {}", chain(&error));
            }
        }
        self.give_resources();
        self.serve_screen_again();
        self.reread();
        info!("VM file read again: {} changes pending", self.pending.len());
        self.apply_live(asker);
    }

    /// This is what QEMU is started from.
    pub(super) fn runs(&mut self, vm: Vm) {
        self.running = Facets::of(&vm);
        self.vm = vm;
        self.tell_operators();
    }

    /// Takes of a VM file what counts for a running guest at once.
    pub(super) fn take_live(&mut self, new: Vm) {
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
    pub(super) fn take_facets(&mut self, from: &Vm, keys: &[&str]) {
        let facets = Facets::of(from);
        for key in keys {
            self.running.set(*key, facets.get(key).map(str::to_owned));
        }
    }

    /// Compares the VM file with what runs, and has the guest's next reboot wait for us if it is to bring a change.
    pub(super) fn reread(&mut self) {
        let file = self.settings.layout.vm_file(&self.settings.name);
        match spec::load_with_text(&file) {
            Ok((vm, text)) => {
                (self.written, self.written_text) = (vm, text);
                self.written_problem = None;
            }
            Err(problem) => self.written_problem = Some(problem.to_string()),
        }
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
    pub(super) fn facets_written(&self) -> Facets {
        let mut written = Facets::of(&self.written);
        let Some(qemu) = &self.qemu else { return written };
        let same = |key: &str| self.running.get(key).map(str::to_owned);
        written.set(QEMU, self.installed.clone().or_else(|| same(QEMU)));
        let firmware = qemu.record.firmware.as_ref();
        let now = firmware.and_then(|(path, _)| Some(built(path, file::written_at(path)?)));
        written.set(FIRMWARE, now.or_else(|| same(FIRMWARE)));
        let seeded = self.written.cloud_init.is_some() && qemu.record.instance.is_some();
        let instance = seeded.then(|| self.instance()).flatten();
        written.set(INSTANCE, instance.or_else(|| same(INSTANCE)));
        written
    }

    /// What runs beside the VM file: taken down when a QEMU has begun, or was taken over.
    pub(super) fn recall(&mut self) {
        let Some(record) = self.qemu.as_ref().map(|qemu| &qemu.record) else { return };
        let firmware = record.firmware.as_ref().map(|(path, at)| built(path, *at));
        self.running.set(QEMU, Some(record.qemu_version.clone()));
        self.running.set(FIRMWARE, firmware);
        self.running.set(INSTANCE, record.instance.clone());
        self.installed = None;
        self.recall_applied();
    }

    fn instance(&self) -> Option<String> {
        let text = std::fs::read_to_string(self.paths.identity()).ok()?;
        Some(toml::from_str::<Identity>(&text).ok()?.instance_id)
    }

    /// Whether QEMU's program is another than the one that runs; its version is asked for beside the loop.
    fn look_at_qemu(&mut self) {
        let Some(record) = self.qemu.as_ref().map(|qemu| &qemu.record) else { return };
        let Some(binary) = &record.binary else { return };
        let (Some(runs), Some(there)) = (record.binary_id, file_id(binary)) else { return };
        if runs == there {
            self.installed = None;
            return;
        }
        if self.installed.is_some() {
            return;
        }
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

/// What tells a file from another that takes its name: device, inode, and when it was written, in seconds since 1970. Of a process it
/// cannot be asked for: what QEMU runs from is shown to its own user, who is another, and to who may trace it (proc_pid_exe(5)).
pub(super) fn file_id(path: &std::path::Path) -> Option<(u64, u64, i64)> {
    path.metadata().ok().map(|found| (found.dev(), found.ino(), found.mtime()))
}

/// A firmware file, told from another of that name by when it was written.
fn built(path: &std::path::Path, at: i64) -> String {
    let at = jiff::Timestamp::from_second(at).map_or_else(|_| at.to_string(), |at| at.to_string());
    format!("{} of {at}", path.display())
}
