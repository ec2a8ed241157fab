//! A guest that QEMU holds because the host's file system under a disk is full: told, looked after, and let go when there is room.
//!
//! QEMU keeps the write that failed and tries it again at `cont` (`werror=enospc`), so the guest knows nothing of it. Nothing is polled
//! but the free space, and that only while such a guest is held.

use crate::supervisor::limits::QMP_LIMIT;
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::{task::AbortHandle, time::Instant};
use tracing::{info, warn};

use crate::supervisor::{
    Supervisor,
    input::{Fact, Trouble},
    start::prepare,
};
use crate::{
    life::{self, Hold, State},
    machine::device,
    spec::Disk,
    store::layout::VmPaths,
    sys::{file, file_system},
    value::{Label, chain},
};

/// How much must be free until a guest goes on: one that writes would else be held again at once.
const RESERVE: u64 = 16 << 20;
/// How long it is looked where a disk lies.
const PLACE_LIMIT: Duration = Duration::from_secs(5);
/// How often the free space is looked at, while a guest is held for want of it.
const LOOK: Duration = Duration::from_secs(2);
/// A guest that is held again within this time went on in vain: the free space did not tell the truth (a quota, a thin volume). Each
/// time it is let go after a pause twice as long, up to this.
const LONGEST_LOOK: Duration = Duration::from_secs(64);

/// What there is no room for.
#[derive(Debug, Default)]
pub(crate) struct Room {
    /// The disks, and where they lie.
    full: BTreeMap<Label, Place>,
    looking: Option<AbortHandle>,
    /// How often the guest went on in vain, and when it went on last.
    in_vain: u32,
    went_on: Option<Instant>,
    /// Each STOP and RESUME has a number.
    turn: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    file: PathBuf,
    /// Where its file system is mounted; a device has none, and no free space that could be looked at.
    mounted: Option<PathBuf>,
}

impl Place {
    /// `no space left on /srv for disk data`.
    fn told(&self, disk: &Label) -> String {
        let on = self.mounted.as_ref().unwrap_or(&self.file).display();
        format!("no space left on `{on}` for disk `{disk}` (`{}`)", self.file.display())
    }

    /// Blocks for as long as the file system does.
    fn has_room(&self) -> bool {
        let free = |dir: &PathBuf| file::available(dir).is_ok_and(|free| free >= RESERVE);
        self.mounted.as_ref().is_none_or(free)
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.look_no_more();
    }
}

impl Room {
    /// There is a disk that has none.
    pub(crate) fn is_wanted(&self) -> bool {
        !self.full.is_empty()
    }

    fn look_no_more(&mut self) {
        self.looking.take().inspect(AbortHandle::abort);
    }
}

impl Supervisor {
    /// The vCPUs are held: QEMU is asked whether for want of room.
    pub(crate) fn ask_why_held(&mut self) {
        self.room.turn += 1;
        let Some(qemu) = &self.qemu else { return };
        let client = qemu.client.clone();
        let (facts, generation, turn) = (self.facts.clone(), self.generation, self.room.turn);
        let disks: Vec<Disk> = self.vm.disks.iter().chain(&self.written.disks).cloned().collect();
        let paths = self.paths.clone();
        self.tasks.spawn(async move {
            match client.full_nodes(QMP_LIMIT).await {
                Ok(nodes) if nodes.is_empty() => {}
                // QEMU is about to end.
                Err(qmp::Error::Closed) => {}
                Ok(nodes) => {
                    let full = nodes.iter().filter_map(|node| device::disk_of_node(node)).collect();
                    let places = places(full, disks, paths).await;
                    let held = Trouble::NoSpace { turn, places };
                    let _ = facts.send(Fact::Trouble(generation, held)).await;
                }
                Err(error) => warn!("cannot find out why the guest is held: {}", chain(&error)),
            }
        });
    }

    /// They go on.
    pub(crate) fn goes_on(&mut self) {
        self.room.turn += 1;
        self.room.look_no_more();
        if !self.room.full.is_empty() {
            self.room.full.clear();
            self.room.went_on = Some(Instant::now());
        }
    }

    /// There is no room for these disks, as of that turn.
    pub(crate) fn no_space(&mut self, turn: u64, places: Vec<(Label, Place)>) {
        if turn != self.room.turn {
            return;
        }
        for (disk, place) in places {
            let why = place.told(&disk);
            warn!("the guest is held: {why}");
            let data = serde_json::json!({
                "disk": disk.as_str(), "file": place.file, "filesystem": place.mounted, "why": why,
            });
            self.publish("QVM_NO_SPACE", data);
            self.notifier.status(&format!("paused: {why}"));
            self.room.full.insert(disk, place);
        }
        let last = self.room.went_on.take();
        let in_vain = last.is_some_and(|last| last.elapsed() < LONGEST_LOOK);
        self.room.in_vain = if in_vain { self.room.in_vain + 1 } else { 0 };
        // What somebody wants held stays held.
        if self.qemu.as_ref().is_some_and(|qemu| !qemu.record.held) {
            self.feed(life::Event::NoSpace);
        }
        if self.waits_for_room() {
            self.look_for_room();
        }
    }

    /// There is room again.
    pub(crate) fn has_room(&mut self) {
        self.room.looking = None;
        if !self.waits_for_room() || self.room.full.is_empty() {
            return;
        }
        let disks: Vec<String> = self.room.full.keys().map(ToString::to_string).collect();
        info!("there is room again for disk {}: the guest goes on", disks.join(", "));
        self.publish("QVM_ROOM", serde_json::json!({ "disks": disks }));
        self.feed(life::Event::Room);
    }

    /// Takes down whether an operator wants the vCPUs held: room alone does not make such a guest go on, and no later supervisor does.
    pub(crate) fn wishes(
        &mut self,
        command: life::Command,
    ) -> Option<impl Future<Output = Result<(), String>> + Send + use<>> {
        let held = match command {
            life::Command::Pause => true,
            life::Command::Resume | life::Command::Reset => false,
            _ => return None,
        };
        let Some(qemu) = &mut self.qemu else { return None };
        let changes = std::mem::replace(&mut qemu.record.held, held) != held;
        let written = changes.then(|| self.records.write(&qemu.record));
        if held {
            self.room.look_no_more();
        }
        written
    }

    /// What an operator should know.
    pub(crate) fn room_notes(&self) -> impl Iterator<Item = String> + '_ {
        let goes_on = match self.waits_for_room() {
            true => format!("; the guest goes on when {} MiB are free", RESERVE >> 20),
            false => "; `qvm resume` lets the guest go on".to_owned(),
        };
        self.room.full.iter().map(move |(disk, place)| place.told(disk) + &goes_on)
    }

    fn waits_for_room(&self) -> bool {
        matches!(self.life.state, State::Paused(Hold::NoSpace) | State::Stopping(_))
    }

    fn look_for_room(&mut self) {
        let places: Vec<Place> = self.room.full.values().cloned().collect();
        let pause = LOOK.saturating_mul(1 << self.room.in_vain.min(16)).min(LONGEST_LOOK);
        let (facts, generation) = (self.facts.clone(), self.generation);
        let looking = self.tasks.spawn(async move {
            let mut pause = pause;
            loop {
                tokio::time::sleep(pause).await;
                pause = LOOK;
                let places = places.clone();
                let look = move || places.iter().all(Place::has_room);
                if tokio::task::spawn_blocking(look).await.unwrap_or(false) {
                    break;
                }
            }
            let _ = facts.send(Fact::Trouble(generation, Trouble::Room)).await;
        });
        self.room.look_no_more();
        self.room.looking = Some(looking);
    }
}

/// Where disks lie; where the storage does not say so in time, the file system is left open.
async fn places(full: Vec<Label>, disks: Vec<Disk>, paths: VmPaths) -> Vec<(Label, Place)> {
    let unknown: Vec<(Label, Place)> = full
        .iter()
        .map(|disk| (disk.clone(), Place { file: paths.state.clone(), mounted: None }))
        .collect();
    let look = move || {
        let place = |disk: Label| {
            let place = place_of(&disk, &disks, &paths);
            (disk, place)
        };
        full.into_iter().map(place).collect()
    };
    match tokio::time::timeout(PLACE_LIMIT, tokio::task::spawn_blocking(look)).await {
        Ok(Ok(places)) => places,
        Ok(Err(_)) | Err(_) => unknown,
    }
}

/// Blocks for as long as the file system does.
fn place_of(disk: &Label, known: &[Disk], paths: &VmPaths) -> Place {
    let found = known.iter().find(|one| one.name == *disk);
    match found.map(|disk| prepare::disk_place(paths, disk)) {
        Some(found) => {
            let on = |file: &Path| file_system::mount_point(file);
            let mounted = if found.is_device { None } else { on(&found.path) };
            Place { file: found.path, mounted }
        }
        // A disk that no file names any more.
        None => Place { file: paths.state.clone(), mounted: None },
    }
}
