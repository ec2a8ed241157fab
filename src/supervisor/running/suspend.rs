//! Saving the guest's state, and going on from a saved one.
//!
//! QEMU sends the state to a socket of ours, and it goes from there into a file that counts only when it is whole. A state is used
//! once: it is removed before the guest goes on, since from then on its disks are others.

use crate::supervisor::limits::QMP_LIMIT;
use std::{os::unix::net::UnixStream, time::Duration};

use tracing::{debug, info, warn};

use crate::{
    life, spec,
    store::{layout::VmPaths, saved_header::Saved},
    sys::{file, pipe_to_file},
    value::chain,
};
use crate::{
    store::saved_state::{self, Writing},
    supervisor::{Supervisor, input::Fact},
    systemd::service,
};

/// What a state needs on the disk beside the guest's memory: devices, and video memory.
const BESIDE_MEMORY: u64 = 64 << 20;
/// How long the agent may take: it may run a program for the machine's clock.
const CLOCK_LIMIT: Duration = Duration::from_secs(10);
/// How often QEMU is asked whether all is sent, once it has closed the socket.
const POLL: Duration = Duration::from_millis(10);

impl Supervisor {
    /// SIGTERM: where the guest's state is to be saved when the host goes down, systemd is asked whether it does.
    pub(crate) fn told_to_stop(&mut self) {
        let saves = self.vm.host_shutdown == spec::HostShutdown::Suspend;
        if !(saves && self.under_systemd && !self.winding_up) {
            return self.feed(life::Event::Signalled);
        }
        let (facts, scope) = (self.facts.clone(), self.settings.scope);
        self.tasks.spawn(async move {
            let host_down = service::host_goes_down(scope).await;
            let _ = facts.send(Fact::Stopped { host_down }).await;
        });
    }

    /// Begins to save.
    pub(crate) fn save(&mut self) {
        // A state can only be taken up by a machine like the one that it is of.
        let replugged = self.is_replugged();
        let held =
            matches!(self.life.state, life::State::Suspending(life::Saving { held: true, .. }));
        let thawed = self.thaw_first();
        let Some(qemu) = &mut self.qemu else { return };
        let head = Saved {
            vm_file: self.text.clone(),
            at: (self.settings.now)().to_string(),
            qemu_version: qemu.record.qemu_version.clone(),
            held,
            ready: qemu.record.ready,
        };
        // Whoever supervises next must know that the guest is not held by anybody's wish.
        qemu.record.saving = Some(held);
        let written = self.records.write(&qemu.record);
        let (client, facts, generation) =
            (qemu.client.clone(), self.facts.clone(), self.generation);
        let (paths, memory) = (self.paths.clone(), self.vm.mem.bytes());
        let task = self.lanes.state.drive(async move {
            // A failure is logged; a guest that is saved all the same is no worse off.
            let _ = written.await;
            let result = match (replugged, thawed.await) {
                (true, _) => {
                    Err("disks or NICs were plugged in or out since it was started".to_owned())
                }
                (false, Err(why)) => {
                    Err(format!("its file systems are frozen, and cannot be thawed: {why}"))
                }
                (false, Ok(())) => save(&client, &paths, &head, memory).await,
            };
            let _ = facts.send(Fact::Saved(generation, result)).await;
        });
        match task {
            Ok(task) => self.saving = Some(task),
            Err(refused) => {
                let facts = self.facts.clone();
                self.tasks.spawn(async move {
                    let result = Err(refused.to_string());
                    let _ = facts.send(Fact::Saved(generation, result)).await;
                });
            }
        }
    }

    /// It is done, or not.
    pub(crate) fn saved(&mut self, result: Result<(), String>) {
        // One that was given up meanwhile.
        if !matches!(self.life.state, life::State::Suspending(_)) {
            return;
        }
        match result {
            Ok(()) => {
                self.saving = None;
                self.feed(life::Event::Saved);
            }
            Err(why) => {
                self.saving = None;
                warn!("cannot save the guest's state: {why}");
                self.effects.not_saved = Some(why.clone());
                self.publish("QVM_NOT_SUSPENDED", serde_json::json!({ "why": why }));
                self.feed(life::Event::NotSaved(why));
            }
        }
    }

    /// Gives it up, and leaves nothing of it.
    pub(crate) fn cancel_save(&mut self) {
        if self.saving.take().is_some() {
            let why = "it was called off, or took longer than `shutdownTimeoutSec`";
            self.publish("QVM_NOT_SUSPENDED", serde_json::json!({ "why": why }));
            self.effects.not_saved = Some(why.to_owned());
        }
        // Behind what was saving: it is on the same lane.
        let path = self.paths.saved();
        let removed = self.lanes.state.run(move || {
            if let Err(error) = saved_state::remove(&path) {
                warn!("a saved state is left that must not be used: {}", chain(&error));
            }
        });
        if let Err(refused) = removed {
            warn!("a saved state is left that must not be used: {refused}");
        }
        if let Some(qemu) = &mut self.qemu {
            qemu.record.saving = None;
            drop(self.records.write(&qemu.record));
        }
        self.tell_qemu("give up saving the state", |q| async move {
            q.cancel_migration(QMP_LIMIT).await
        });
    }

    /// The host was suspended.
    pub(crate) fn host_slept(&mut self, slept: Duration) {
        info!("the host has slept for {} s", slept.as_secs());
        self.set_guests_clock();
    }

    /// The guest has slept without knowing it: its agent, if there is one, sets its clock by the machine's.
    pub(crate) fn set_guests_clock(&mut self) {
        let sync = self.next_sync();
        let Some(qemu) = &self.qemu else { return };
        let (agent, now) = (qemu.agent.clone(), self.settings.now);
        self.tasks.spawn(async move {
            let time = i64::try_from(now().as_nanosecond()).unwrap_or(i64::MAX);
            let mut set = agent.set_time(time, sync, CLOCK_LIMIT).await;
            if let Err(qmp::Error::Refused { .. }) = set {
                // A Linux without hwclock(8), which the agent insists on; it has date(1).
                let time = format!("@{}", now().as_second());
                let date = ["date".to_owned(), "-s".into(), time];
                set = agent.exec(&date, sync.wrapping_add(1), CLOCK_LIMIT).await.map(drop);
            }
            match set {
                Ok(()) => info!("the guest's clock is set"),
                Err(error) => debug!("the guest's clock is not set: {error}"),
            }
        });
    }
}

/// Holds the guest, and writes its state down.
async fn save(
    client: &qmp::Client,
    paths: &VmPaths,
    head: &Saved,
    memory: u64,
) -> Result<(), String> {
    let needed = memory + BESIDE_MEMORY;
    let there = file::available(&paths.state).map_err(|error| chain(&error))?;
    if there < needed {
        let mib = |bytes: u64| bytes >> 20;
        return Err(format!(
            "no room in `{}`: {} MiB may be needed, {} MiB are free",
            paths.state.display(),
            mib(needed),
            mib(there)
        ));
    }
    let (from, theirs) = UnixStream::pair().map_err(|error| error.to_string())?;
    let (writing, to) = Writing::begin(&paths.saved(), head).map_err(|error| chain(&error))?;
    client.stop(QMP_LIMIT).await.map_err(|error| error.to_string())?;
    client.migrate(theirs.into(), QMP_LIMIT).await.map_err(|error| error.to_string())?;
    let received = tokio::task::spawn_blocking(move || pipe_to_file::receive(from, to)).await;
    let bytes = received.map_err(|error| error.to_string())?.map_err(|error| error.to_string())?;
    loop {
        match client.migration(QMP_LIMIT).await.map_err(|error| error.to_string())? {
            qmp::Migration::Active => tokio::time::sleep(POLL).await,
            qmp::Migration::Failed(why) => return Err(why),
            qmp::Migration::Completed => break,
        }
    }
    writing.commit().map_err(|error| chain(&error))?;
    debug!("the guest's state has {bytes} bytes");
    Ok(())
}
