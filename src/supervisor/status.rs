//! The status of the VM, as clients see it.

use super::Supervisor;
use crate::{
    control::types::{self, Status},
    life::{Readiness, State},
    spec::Link,
    value::{Note, NoteCode},
};

impl Supervisor {
    /// Returns the public state.
    pub(crate) fn public_state(&self) -> types::State {
        match self.life.state() {
            State::Starting(_) => types::State::Starting,
            State::Running => types::State::Running,
            State::Paused(_) => types::State::Paused,
            State::Canceling { .. }
            | State::Suspending(_)
            | State::Stopping(_)
            | State::Quitting { .. }
            | State::Killing { .. } => types::State::Stopping,
            State::Ended if self.history.last_end().is_some_and(|end| end.failed) => {
                types::State::Failed
            }
            State::Ended => types::State::Stopped,
        }
    }

    /// Returns the readiness of the guest; `None` without a guest.
    pub(crate) fn public_readiness(&self) -> Option<types::Ready> {
        if !self.life.state().is_up() {
            return None;
        }
        match self.life.readiness() {
            Readiness::Before => None,
            Readiness::Awaited { .. } => Some(types::Ready::Waiting),
            Readiness::Met | Readiness::Missed(_) => {
                // As recorded by an earlier supervisor.
                let missed = self.vm.as_ref().is_some_and(|vm| vm.record().missed.is_some());
                Some(if missed { types::Ready::No } else { types::Ready::Yes })
            }
        }
    }

    /// Returns the notes for the status.
    fn notes(&self) -> Vec<Note> {
        let (vm, config) = (self.vm.as_ref(), &self.config);
        let mut notes = self.history.notes().to_vec();
        notes.extend(vm.and_then(|vm| vm.readiness_note()));
        notes.extend_from_slice(self.host_share.notes());
        notes.extend(vm.into_iter().flat_map(|vm| vm.update_notes().iter().cloned()));
        if let Some(problem) = config.problem()
            && !config.files().orphan
        {
            let text = format!("the VM file is no longer valid: {problem}");
            notes.push(Note::new(NoteCode::VmFileInvalid, text));
        }
        notes.extend(self.files.note());
        notes.extend(self.console.note());
        notes.extend(vm.into_iter().flat_map(|vm| vm.notes(self.life.state(), &self.ctx)));
        notes.extend(config.network_notes());
        notes.extend(vm.and_then(|vm| vm.screen_note()));
        notes.extend(config.operator_notes());
        if let Some(why) = vm.and_then(|vm| vm.record().missed.as_ref()) {
            let ready = config.vm().ready;
            let text = format!("the guest is not ready (`ready = \"{ready}\"`): {why}");
            notes.push(Note::new(NoteCode::NotReady, text).key("ready"));
        }
        notes
    }

    /// Returns the status.
    pub(crate) fn status(&self) -> Status {
        let (running, vm) = (self.vm.as_ref(), self.config.vm());
        let record = running.map(|running| running.record());
        let nic = vm.nics.first();
        let written_tap = nic.and_then(|nic| match &nic.link {
            Link::Bridge { tap, .. } => Some(tap.to_string()),
            Link::User { .. } => None,
        });
        Status {
            name: self.ctx.settings().name.to_string(),
            state: self.public_state(),
            ready: self.public_readiness(),
            trouble: running.and_then(|running| running.trouble()).map(str::to_owned),
            pid: record.map(|record| record.pid).or_else(|| self.start.as_ref()?.adopting_pid()),
            supervisor_pid: Some(std::process::id()),
            since: Some(self.history.since().to_string()),
            started_at: record.map(|record| record.started_at.clone()),
            vcpu: vm.vcpu.into(),
            mem_bytes: vm.mem.bytes(),
            mem_actual_bytes: running.and_then(|running| running.memory().actual()),
            mem_resident_bytes: None,
            cpu_seconds: None,
            mem_target_bytes: running.and_then(|running| running.memory().target()),
            mac: record
                .and_then(|record| record.mac.clone())
                .or_else(|| nic?.mac.map(|mac| mac.to_string())),
            ip: nic.and_then(|nic| nic.ip).map(|ip| ip.to_string()),
            tap: record.map_or(written_tap, |record| record.tap.clone()),
            forward: vm.forwards(),
            vnc: running.and_then(|running| running.screen_address(vm, &self.ctx)),
            disk_limits: running.map(|_| self.config.disk_limits()).unwrap_or_default(),
            operators: vm.operators.clone(),
            isolation: record.and_then(|record| record.isolation.clone()),
            cpu_weight: vm.cpu_weight.get(),
            cpu_weight_effective: None,
            cpu_share: None,
            accel: record.map(|record| record.accel.clone()),
            qemu_version: record.map(|record| record.qemu_version.clone()),
            machine: record.map(|record| record.machine.clone()),
            console: Some(self.ctx.paths().console_log().display().to_string()),
            autostart: vm.autostart,
            orphan: self.config.files().orphan,
            description: vm.description.clone(),
            pending: self.config.pending(),
            notes: self.notes().into(),
            last_stop: self.history.last_end().cloned(),
            ends: self.history.ends().to_vec(),
        }
    }
}
