//! Reports a guest that is paused because the file system of a disk is full, and resumes it once
//! space is free.
//!
//! QEMU repeats the failed write at `cont` (`werror=enospc`), so the guest gets no error. The free
//! space is polled only while such a guest is paused.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::{task::AbortHandle, time::Instant};
use tracing::{info, warn};

use super::{
    event::{DiskLocation, DiskSpaceEvent, VmEvent},
    qemu::Qemu,
};
use crate::{
    life::{self, PauseReason, State},
    machine::device,
    spec::Disk,
    store::layout::VmPaths,
    supervisor::{context::Context, limits::QMP_LIMIT, start::prepare},
    sys::{file, file_system},
    value::{Label, Note, NoteCode, chain},
};

/// The free space required to resume a guest, in bytes; with less it would soon be paused again.
const RESERVE: u64 = 16 << 20;
/// The time limit to locate a disk.
const LOCATE_LIMIT: Duration = Duration::from_secs(5);
/// The interval of checks of the free space.
const POLL: Duration = Duration::from_secs(2);
/// A guest that is paused again within this time was resumed in vain: the free space is not usable
/// (a quota, a thin volume). The delay then doubles each time, up to this limit.
const LONGEST_POLL: Duration = Duration::from_secs(64);

/// The state of the disks without space.
#[derive(Debug, Default)]
pub(crate) struct DiskSpace {
    full: BTreeMap<Label, DiskLocation>,
    waiting: Option<AbortHandle>,
    /// The number of resumes in vain, and the time of the last one.
    in_vain: u32,
    resumed: Option<Instant>,
    /// The number of STOP and RESUME events: a result for an earlier one is ignored.
    pause: u64,
}

impl DiskLocation {
    /// `no space left on /srv for disk data`.
    fn describe(&self, disk: &Label) -> String {
        let on = self.mounted.as_ref().unwrap_or(&self.file).display();
        format!("no space left on `{on}` for disk `{disk}` (`{}`)", self.file.display())
    }

    /// Blocks as long as the file system does.
    fn has_space(&self) -> bool {
        let is_free = |dir: &PathBuf| file::available(dir).is_ok_and(|free| free >= RESERVE);
        self.mounted.as_ref().is_none_or(is_free)
    }
}

impl DiskSpace {
    /// Whether a disk has no space.
    pub(crate) fn is_short(&self) -> bool {
        !self.full.is_empty()
    }

    /// Handles a pause of the vCPUs: queries QEMU for disks without space. `disks` are those of the
    /// running VM and of the VM file.
    pub(crate) fn on_paused(&mut self, disks: Vec<Disk>, qemu: &mut Qemu, ctx: &Context) {
        self.pause += 1;
        let (pause, paths) = (self.pause, ctx.paths().clone());
        let (client, reports) = (qemu.client(), qemu.tasks().sender());
        qemu.tasks().spawn(async move {
            match client.full_nodes(QMP_LIMIT).await {
                Ok(nodes) if nodes.is_empty() => {}
                // QEMU is about to exit.
                Err(qmp::Error::Closed) => {}
                Ok(nodes) => {
                    let full = nodes.iter().filter_map(|node| device::disk_of_node(node)).collect();
                    let disks = locations(full, disks, paths).await;
                    let full = VmEvent::DiskSpace(DiskSpaceEvent::Full { pause, disks });
                    let _ = reports.send(full).await;
                }
                Err(error) => {
                    warn!("cannot determine why the guest is paused: {}", chain(&error));
                }
            }
        });
    }

    /// Handles a resume of the vCPUs.
    pub(crate) fn on_resumed(&mut self) {
        self.pause += 1;
        self.stop_waiting();
        if self.is_short() {
            self.full.clear();
            self.resumed = Some(Instant::now());
        }
    }

    /// Handles the result of a query; `state` is the VM's.
    pub(crate) fn handle(
        &mut self,
        event: DiskSpaceEvent,
        state: &State,
        qemu: &Qemu,
        ctx: &Context,
    ) -> Option<life::Event> {
        match event {
            DiskSpaceEvent::Full { pause, .. } if pause != self.pause => None,
            DiskSpaceEvent::Full { disks, .. } => {
                self.on_full(disks, ctx);
                // A guest paused by an operator remains paused.
                (!qemu.record().held).then_some(life::Event::DiskSpaceExhausted)
            }
            DiskSpaceEvent::Available => {
                self.waiting = None;
                if !waits(state) || !self.is_short() {
                    return None;
                }
                let disks: Vec<&str> = self.full.keys().map(Label::as_str).collect();
                info!("the guest's disks have space again: {}", disks.join(", "));
                ctx.publish("QVM_ROOM", serde_json::json!({ "disks": disks }));
                Some(life::Event::DiskSpaceFreed)
            }
        }
    }

    fn on_full(&mut self, disks: Vec<(Label, DiskLocation)>, ctx: &Context) {
        for (disk, location) in disks {
            let why = location.describe(&disk);
            warn!("the guest is paused: {why}");
            let data = serde_json::json!({
                "disk": disk.as_str(),
                "file": location.file,
                "filesystem": location.mounted,
                "why": why,
            });
            ctx.publish("QVM_NO_SPACE", data);
            ctx.notifier().status(&format!("paused: {why}"));
            self.full.insert(disk, location);
        }
        let last = self.resumed.take();
        let in_vain = last.is_some_and(|last| last.elapsed() < LONGEST_POLL);
        self.in_vain = if in_vain { self.in_vain + 1 } else { 0 };
    }

    /// Waits for space if the VM is paused for that reason.
    pub(crate) fn wait_for_space(&mut self, state: &State, qemu: &mut Qemu) {
        if !waits(state) || !self.is_short() {
            return;
        }
        let locations: Vec<DiskLocation> = self.full.values().cloned().collect();
        let first = POLL.saturating_mul(1 << self.in_vain.min(16)).min(LONGEST_POLL);
        let waiting = qemu.report(async move {
            let mut pause = first;
            loop {
                tokio::time::sleep(pause).await;
                pause = POLL;
                let locations = locations.clone();
                let look = move || locations.iter().all(DiskLocation::has_space);
                if tokio::task::spawn_blocking(look).await.unwrap_or(false) {
                    return VmEvent::DiskSpace(DiskSpaceEvent::Available);
                }
            }
        });
        self.stop_waiting();
        self.waiting = Some(waiting);
    }

    /// Ends the wait for space: an operator paused the guest.
    pub(crate) fn stop_waiting(&mut self) {
        self.waiting.take().inspect(AbortHandle::abort);
    }

    /// Returns the notes; `state` is the VM's.
    pub(crate) fn notes(&self, state: &State) -> impl Iterator<Item = Note> + '_ {
        let next = if waits(state) {
            format!("; the guest is resumed once {} MiB are free", RESERVE >> 20)
        } else {
            "; `qvm resume` resumes the guest".to_owned()
        };
        let note = move |(disk, location): (&Label, &DiskLocation)| {
            Note::new(NoteCode::NoSpace, location.describe(disk) + &next)
                .key(format!("disk.{disk}"))
        };
        self.full.iter().map(note)
    }
}

/// Whether a guest in this state is resumed once space is free.
fn waits(state: &State) -> bool {
    matches!(state, State::Paused(PauseReason::DiskFull) | State::Stopping(_))
}

/// Returns the locations of the disks; the file system is unknown if the storage does not answer in
/// time.
async fn locations(
    full: Vec<Label>,
    disks: Vec<Disk>,
    paths: VmPaths,
) -> Vec<(Label, DiskLocation)> {
    let unknown: Vec<(Label, DiskLocation)> = full
        .iter()
        .map(|disk| (disk.clone(), DiskLocation { file: paths.state.clone(), mounted: None }))
        .collect();
    let look = move || {
        let locate = |disk: Label| {
            let location = location_of(&disk, &disks, &paths);
            (disk, location)
        };
        full.into_iter().map(locate).collect()
    };
    match tokio::time::timeout(LOCATE_LIMIT, tokio::task::spawn_blocking(look)).await {
        Ok(Ok(locations)) => locations,
        Ok(Err(_)) | Err(_) => unknown,
    }
}

/// Blocks as long as the file system does.
fn location_of(disk: &Label, known: &[Disk], paths: &VmPaths) -> DiskLocation {
    let found = known.iter().find(|one| one.name == *disk);
    match found.map(|disk| prepare::disk_file(paths, disk)) {
        Some(found) => {
            let on = |file: &Path| file_system::mount_point(file);
            let mounted = if found.is_device { None } else { on(&found.path) };
            DiskLocation { file: found.path, mounted }
        }
        // The disk was removed from the VM file.
        None => DiskLocation { file: paths.state.clone(), mounted: None },
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{
        life::StopLadder,
        store::record::Record,
        supervisor::tests::{Answer, FakeQemu, Host, record, vm},
    };

    const SHORT: State = State::Paused(PauseReason::DiskFull);

    fn location(host: &Host) -> DiskLocation {
        let dir = host.dir.path().to_owned();
        DiskLocation { file: dir.join("root.qcow2"), mounted: Some(dir) }
    }

    fn full(pause: u64, host: &Host) -> DiskSpaceEvent {
        DiskSpaceEvent::Full { pause, disks: vec![("root".parse().unwrap(), location(host))] }
    }

    #[tokio::test]
    async fn full_disk_pauses_and_is_noted() {
        let mut host = Host::new();
        let fake = FakeQemu::new(&host).await;
        let mut space = DiskSpace::default();
        let event = space.handle(full(0, &host), &State::Running, &fake.qemu, &host.ctx);
        assert_eq!(event, Some(life::Event::DiskSpaceExhausted));
        assert!(space.is_short());
        let notes: Vec<Note> = space.notes(&SHORT).collect();
        assert!(
            notes[0].is_of(NoteCode::NoSpace, "disk.root") && notes[0].text.contains("16 MiB"),
            "{notes:?}"
        );
        let notes: Vec<Note> = space.notes(&State::Running).collect();
        assert!(notes[0].text.contains("`qvm resume`"), "{notes:?}");
        assert_eq!(host.published(), ["QVM_NO_SPACE"]);
    }

    #[tokio::test]
    async fn guest_paused_by_an_operator_stays_paused() {
        let host = Host::new();
        let fake = FakeQemu::of(&host, Record { held: true, ..record() }).await;
        let mut space = DiskSpace::default();
        let event = space.handle(full(0, &host), &State::Running, &fake.qemu, &host.ctx);
        assert_eq!(event, None);
        assert!(space.is_short());
    }

    #[tokio::test]
    async fn answer_about_an_earlier_pause_does_not_count() {
        let host = Host::new();
        let fake = FakeQemu::new(&host).await;
        let mut space = DiskSpace::default();
        space.on_resumed();
        assert_eq!(space.handle(full(0, &host), &SHORT, &fake.qemu, &host.ctx), None);
        assert!(!space.is_short());
    }

    #[tokio::test]
    async fn space_resumes_only_a_guest_that_waits() {
        let mut host = Host::new();
        let fake = FakeQemu::new(&host).await;
        let mut space = DiskSpace::default();
        let available = || DiskSpaceEvent::Available;
        // All disks have space.
        assert_eq!(space.handle(available(), &SHORT, &fake.qemu, &host.ctx), None);
        space.handle(full(0, &host), &State::Running, &fake.qemu, &host.ctx);
        let paused = State::Paused(PauseReason::Operator);
        assert_eq!(space.handle(available(), &paused, &fake.qemu, &host.ctx), None);
        let event = space.handle(available(), &SHORT, &fake.qemu, &host.ctx);
        assert_eq!(event, Some(life::Event::DiskSpaceFreed));
        assert_eq!(host.published(), ["QVM_NO_SPACE", "QVM_ROOM"]);
    }

    #[tokio::test]
    async fn waiting_ends_when_there_is_space() {
        let host = Host::new();
        let mut fake = FakeQemu::new(&host).await;
        let mut space = DiskSpace::default();
        space.handle(full(0, &host), &State::Running, &fake.qemu, &host.ctx);
        let until = Duration::from_secs(9);
        let then = life::AfterQemu::Relaunch;
        let stopping = State::Stopping(StopLadder { deadline: until, press_at: until, then });
        for state in [SHORT, stopping] {
            space.wait_for_space(&state, &mut fake.qemu);
            let event = fake.event().await;
            assert!(matches!(event, VmEvent::DiskSpace(DiskSpaceEvent::Available)), "{event:?}");
        }
        // A guest in this state is not resumed.
        space.waiting = None;
        space.wait_for_space(&State::Running, &mut fake.qemu);
        assert!(space.waiting.is_none());
    }

    #[tokio::test]
    async fn guest_resumed_in_vain_waits_longer() {
        let host = Host::new();
        let fake = FakeQemu::new(&host).await;
        let mut space = DiskSpace::default();
        for (round, expected) in [0, 1, 2].into_iter().enumerate() {
            let event = full(space.pause, &host);
            space.handle(event, &State::Running, &fake.qemu, &host.ctx);
            assert_eq!(space.in_vain, expected, "{round}");
            space.on_resumed();
            assert!(!space.is_short());
        }
        space.resumed = Instant::now().checked_sub(LONGEST_POLL);
        if space.resumed.is_some() {
            let event = full(space.pause, &host);
            space.handle(event, &State::Running, &fake.qemu, &host.ctx);
            assert_eq!(space.in_vain, 0);
        }
    }

    #[tokio::test]
    async fn qemu_names_the_full_disks() {
        let host = Host::new();
        let mut fake = FakeQemu::new(&host).await;
        let node = device::node(&"root".parse().unwrap());
        let blocks = json!([
            { "io-status": "nospace", "inserted": { "node-name": node } },
            { "io-status": "ok", "inserted": { "node-name": "other" } },
        ]);
        let status = json!({ "status": "io-error", "running": false });
        let script = &fake.peer.script;
        script.on("query-status", Answer::Return(status)).on("query-block", Answer::Return(blocks));
        let mut space = DiskSpace::default();
        let vm = vm("vcpu = 1\n");
        space.on_paused(vm.disks.clone(), &mut fake.qemu, &host.ctx);
        let VmEvent::DiskSpace(DiskSpaceEvent::Full { pause, disks }) = fake.event().await else {
            panic!()
        };
        assert_eq!(pause, 1);
        assert_eq!(disks[0].0.as_str(), "root");
        assert!(disks[0].1.file.starts_with(host.dir.path()));
    }

    #[test]
    fn disk_without_file_uses_state_directory() {
        let host = Host::new();
        let paths = host.ctx.paths();
        let location = location_of(&"gone".parse().unwrap(), &[], paths);
        assert_eq!(location, DiskLocation { file: paths.state.clone(), mounted: None });
        // A device has no file system.
        assert!(location.has_space());
        let missing = DiskLocation { mounted: Some("/no/such/dir".into()), ..location };
        assert!(!missing.has_space());
    }
}
