//! Saving the guest's state to a file.
//!
//! QEMU sends the state to a socket of the supervisor, which writes the file and marks it complete
//! at the end. A state is used once: it is removed before the guest is resumed, which changes its
//! disks.

use std::{os::unix::net::UnixStream, time::Duration};

use tracing::{debug, info, warn};

use super::{event::VmEvent, freeze::Freeze, qemu::Qemu};
use crate::{
    control::types::Refusal,
    life,
    store::{
        layout::VmPaths,
        saved_header::Saved,
        saved_state::{self, Writing},
    },
    supervisor::{context::Context, limits::QMP_LIMIT},
    sys::{file, lane::OnLane, pipe_to_file},
    value::{ErrorCode, chain},
};

/// The space for devices and video memory in a saved state, in bytes.
const BESIDE_MEMORY: u64 = 64 << 20;
/// The time limit to set the clock: the agent may run a program.
const CLOCK_LIMIT: Duration = Duration::from_secs(10);
/// The interval of queries for the end of the migration, after QEMU has closed the socket.
const POLL: Duration = Duration::from_millis(10);

/// The data of a save.
pub(crate) struct StateToSave {
    /// The VM file that QEMU was started from.
    pub(crate) vm_file: String,
    /// The guest's memory, in bytes.
    pub(crate) memory: u64,
    /// Whether an operator paused the vCPUs, so that they remain paused after the next start.
    pub(crate) paused: bool,
    /// Why no machine could restore the state; `None` if one can.
    pub(crate) unusable: Option<String>,
}

/// The save of the guest's state.
#[derive(Debug, Default)]
pub(crate) struct StateSave(Option<OnLane>);

impl StateSave {
    /// Starts to save, after the guest's file systems are thawed.
    pub(crate) fn begin(
        &mut self,
        state: StateToSave,
        freeze: &Freeze,
        qemu: &mut Qemu,
        ctx: &Context,
    ) {
        probe_state(qemu, ctx);
        let thawed = freeze.thaw_first(qemu);
        let StateToSave { vm_file, memory, paused, unusable } = state;
        let record = qemu.record();
        let head = Saved {
            vm_file,
            at: ctx.now().to_string(),
            qemu_version: record.qemu_version.clone(),
            held: paused,
            ready: record.ready,
        };
        // The next supervisor must not take this pause for an operator's.
        let written = qemu.change_record(|record| record.saving = Some(paused));
        let (client, reports) = (qemu.client(), qemu.tasks().sender());
        let paths = ctx.paths().clone();
        let work = ctx.lanes().state.drive(async move {
            // A failure is logged, and does not prevent the save.
            let _ = written.await;
            let done = match (unusable, thawed.await) {
                (Some(why), _) => Err(why),
                (None, Err(why)) => Err(format!("cannot thaw the guest's file systems: {why}")),
                (None, Ok(())) => save(&client, &paths, &head, memory).await,
            };
            let done = done.map_err(|why| Refusal::Failed(ErrorCode::NotSuspended, why));
            let _ = reports.send(VmEvent::StateSaved(done)).await;
        });
        match work {
            Ok(work) => self.0 = Some(work),
            Err(refused) => {
                let refusal = Refusal::HostFault(refused.to_string());
                qemu.report(async move { VmEvent::StateSaved(Err(refusal)) });
            }
        }
    }

    /// Handles the result of the save. Returns the refusal for the client.
    pub(crate) fn on_saved(&mut self, done: &Result<(), Refusal>, ctx: &Context) -> life::Event {
        self.0 = None;
        match done {
            Ok(()) => life::Event::StateSaved,
            Err(refusal) => {
                let why = refusal.to_string();
                warn!("cannot save the guest's state: {why}");
                ctx.publish("QVM_NOT_SUSPENDED", serde_json::json!({ "why": why }));
                life::Event::SaveFailed(why)
            }
        }
    }

    /// Cancels a running save and removes the partial file. Returns the refusal for its client.
    pub(crate) fn cancel(&mut self, qemu: &mut Qemu, ctx: &Context) -> Option<Refusal> {
        let why = self.0.take().map(|_| {
            let why = "the save was canceled, or took longer than `shutdownTimeoutSec`";
            ctx.publish("QVM_NOT_SUSPENDED", serde_json::json!({ "why": why }));
            Refusal::Failed(ErrorCode::NotSuspended, why.to_owned())
        });
        // On the lane of the save, so after it.
        let path = ctx.paths().saved();
        let removed = ctx.lanes().state.run(move || {
            if let Err(error) = saved_state::remove(&path) {
                warn!("cannot remove the partial saved state: {}", chain(&error));
            }
        });
        if let Err(refused) = removed {
            warn!("cannot remove the partial saved state: {refused}");
        }
        drop(qemu.change_record(|record| record.saving = None));
        qemu.tell("cancel the save of the state", |q| async move {
            q.cancel_migration(QMP_LIMIT).await
        });
        why
    }
}

/// Reports the save as failed if the state directory does not answer; the guest is not paused
/// before that.
fn probe_state(qemu: &mut Qemu, ctx: &Context) {
    let state = ctx.paths().state.clone();
    let probed = ctx.lanes().probes.read(&ctx.paths().state, move |_| file::available(&state));
    let reports = qemu.sender();
    qemu.tasks().spawn(async move {
        if let Err(error) = probed.await {
            let refusal = Refusal::HostFault(error.to_string());
            let _ = reports.send(VmEvent::StateSaved(Err(refusal))).await;
        }
    });
}

/// Sets the guest's clock from the host's, through the agent, because the guest did not notice its
/// suspend.
pub(crate) fn set_guest_clock(qemu: &mut Qemu, ctx: &Context) {
    let (agent, sync, now) = (qemu.agent(), qemu.next_sync(), ctx.settings().now);
    qemu.tasks().spawn(async move {
        let time = i64::try_from(now().as_nanosecond()).unwrap_or(i64::MAX);
        let mut set = agent.set_time(time, sync, CLOCK_LIMIT).await;
        if let Err(qmp::Error::Refused { .. }) = set {
            // The agent requires hwclock(8); without it date(1) is used.
            let time = format!("@{}", now().as_second());
            let date = ["date".to_owned(), "-s".into(), time];
            set = agent.exec(&date, sync.wrapping_add(1), CLOCK_LIMIT).await.map(drop);
        }
        match set {
            Ok(()) => info!("the guest's clock was set"),
            Err(error) => debug!("cannot set the guest's clock: {error}"),
        }
    });
}

/// Pauses the guest and writes its state.
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
            "not enough space in `{}`: {} MiB may be required, {} MiB are free",
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::supervisor::tests::{Answer, FakeQemu, Host};

    fn state() -> StateToSave {
        StateToSave { vm_file: "".into(), memory: 1, paused: false, unusable: None }
    }

    async fn saved(fake: &mut FakeQemu) -> Result<(), Refusal> {
        let VmEvent::StateSaved(done) = fake.event().await else { panic!() };
        done
    }

    #[tokio::test]
    async fn state_is_saved_whole() {
        let mut host = Host::new();
        let mut fake = FakeQemu::new(&host).await;
        let completed = json!({ "status": "completed" });
        fake.peer.script.on("query-migrate", Answer::Return(completed));
        let mut save = StateSave::default();
        save.begin(state(), &Freeze::default(), &mut fake.qemu, &host.ctx);
        let done = saved(&mut fake).await;
        assert_eq!(done, Ok(()));
        let names = fake.peer.commands.names();
        let at = |name: &str| names.iter().position(|other| other == name).unwrap();
        assert!(at("stop") < at("migrate"), "{names:?}");
        let (head, _) = saved_state::open(&host.ctx.paths().saved()).unwrap().unwrap();
        assert_eq!(head.vm_file, "");
        assert_eq!(fake.qemu.record().saving, Some(false));
        assert_eq!(save.on_saved(&done, &host.ctx), life::Event::StateSaved);
        assert_eq!(host.published(), Vec::<String>::new());
    }

    #[tokio::test]
    async fn failed_migration_leaves_no_state() {
        let mut host = Host::new();
        let mut fake = FakeQemu::new(&host).await;
        let failed = json!({ "status": "failed", "error-desc": "disk broke" });
        fake.peer.script.on("query-migrate", Answer::Return(failed));
        let mut save = StateSave::default();
        save.begin(state(), &Freeze::default(), &mut fake.qemu, &host.ctx);
        let done = saved(&mut fake).await;
        assert!(done.as_ref().is_err_and(|why| why.to_string().contains("disk broke")), "{done:?}");
        assert!(!host.ctx.paths().saved().exists());
        assert!(matches!(save.on_saved(&done, &host.ctx), life::Event::SaveFailed(_)));
        assert_eq!(host.published(), ["QVM_NOT_SUSPENDED"]);
    }

    #[tokio::test]
    async fn machine_that_no_start_makes_is_not_saved() {
        let host = Host::new();
        let mut fake = FakeQemu::new(&host).await;
        let state = StateToSave { unusable: Some("plugged".into()), ..state() };
        let mut save = StateSave::default();
        save.begin(state, &Freeze::default(), &mut fake.qemu, &host.ctx);
        assert_eq!(
            saved(&mut fake).await,
            Err(Refusal::Failed(ErrorCode::NotSuspended, "plugged".into()))
        );
        assert_eq!(fake.peer.commands.names(), ["qmp_capabilities"]);
    }

    #[tokio::test]
    async fn state_that_does_not_fit_is_not_saved() {
        let host = Host::new();
        let mut fake = FakeQemu::new(&host).await;
        let mut save = StateSave::default();
        let state = StateToSave { memory: 1 << 60, ..state() };
        save.begin(state, &Freeze::default(), &mut fake.qemu, &host.ctx);
        let done = saved(&mut fake).await;
        let is_short = |why: &Refusal| why.to_string().contains("not enough space in");
        assert!(done.as_ref().is_err_and(is_short), "{done:?}");
        assert_eq!(fake.peer.commands.names(), ["qmp_capabilities"]);
    }

    #[tokio::test]
    async fn canceled_save_removes_the_state() {
        let mut host = Host::new();
        let mut fake = FakeQemu::new(&host).await;
        std::fs::write(host.ctx.paths().saved(), "half").unwrap();
        fake.peer.script.on("stop", Answer::Silence);
        let mut save = StateSave::default();
        save.begin(state(), &Freeze::default(), &mut fake.qemu, &host.ctx);
        fake.peer.commands.until("stop").await;
        let why = save.cancel(&mut fake.qemu, &host.ctx);
        assert!(why.unwrap().to_string().contains("shutdownTimeoutSec"));
        host.ctx.lanes().state.flush().await.unwrap();
        assert!(!host.ctx.paths().saved().exists());
        assert_eq!(fake.qemu.record().saving, None);
        fake.peer.commands.until("migrate_cancel").await;
        assert_eq!(host.published(), ["QVM_NOT_SUSPENDED"]);
        // Without a save there is no report.
        assert_eq!(save.cancel(&mut fake.qemu, &host.ctx), None);
    }

    #[tokio::test]
    async fn clock_is_set_by_the_agent_or_by_date() {
        let host = Host::new();
        let mut fake = FakeQemu::new(&host).await;
        set_guest_clock(&mut fake.qemu, &host.ctx);
        fake.peer.calls.until("guest-set-time").await;
        fake.peer.script.on("guest-set-time", Answer::Refuse("no hwclock"));
        fake.peer.script.on("guest-exec", Answer::Return(json!({ "pid": 1 })));
        let exited = json!({ "exited": true, "exitcode": 0 });
        fake.peer.script.on("guest-exec-status", Answer::Return(exited));
        set_guest_clock(&mut fake.qemu, &host.ctx);
        fake.peer.calls.until("guest-exec").await;
        assert_eq!(fake.peer.calls.arguments("guest-exec")["path"], json!("date"));
    }
}
