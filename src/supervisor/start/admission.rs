//! Lets a VM start: when there is memory for it, and when it is its turn.

use crate::supervisor::{
    limits::START_STEP,
    outcome::{Fault, NotBegun},
};
use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use tokio::sync::mpsc;
use tracing::{info, warn};

use super::{
    memory_budget::{Memory, Sums},
    start_turns::{self, Busy, Seen},
};
use crate::{
    spec::{Admission, HostSettings},
    sys::{
        file, file_watch,
        lock::{self, Lock},
        meminfo, pressure,
    },
    value::chain,
};
use crate::{
    store::reservation::{self, Others, Reservation},
    supervisor::{Supervisor, input::Fact, settings::Settings},
};

/// Between two tries for a lock that somebody holds for a moment.
const MOMENT: Duration = Duration::from_millis(5);
/// How long such a moment may be until it is told, and until the lock is done without: whoever holds it then is stopped or hangs, and
/// must not keep every VM of the host down. At worst two that look at the same time both find the last of the memory.
const LONG_MOMENT: Duration = Duration::from_secs(1);
const TOO_LONG: Duration = Duration::from_secs(30);
/// How often whoever waits looks again though nobody woke it: one that was killed with its QEMU gives no memory back.
const LOOK: Duration = Duration::from_secs(30);
/// How often whoever is in the queue tries; how often whoever has its turn looks whether others have started, and at the pressure,
/// which the kernel works out every 2 s.
const QUEUE: Duration = Duration::from_millis(100);
const STARTS: Duration = Duration::from_millis(20);
const PRESSURE: Duration = Duration::from_secs(1);
/// The longest that one VM waits for the pressure to fall when it has its turn.
const TURN: Duration = Duration::from_secs(5);
/// How long after a start under pressure the next one has to wait: so long what the first does to the host is not to be seen.
const SETTLE: Duration = Duration::from_secs(2);
/// How long anybody waits for its turn.
const PATIENCE: Duration = Duration::from_secs(600);

/// Why a VM is not let start.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// There is too little memory.
    #[error("the host has not enough memory left: {sums}")]
    NoRoom { sums: Sums, settings: PathBuf },
    /// What it may take cannot be written down.
    #[error(transparent)]
    File(#[from] file::Error),
    /// Nobody can be kept from looking at the same time.
    #[error(transparent)]
    Lock(#[from] lock::Error),
}

impl Error {
    fn hint(&self) -> Option<String> {
        match self {
            Self::NoRoom { sums, settings } => {
                let first = match sums.never_fits() {
                    true => "give it less `mem`",
                    false => "stop another VM, give this one less `mem`",
                };
                Some(format!(
                    "{first}, or write `admission = \"wait\"` or `\"off\"` into `{}`",
                    settings.display()
                ))
            }
            Self::File(error) => error.hint(),
            Self::Lock(error) => error.hint(),
        }
    }

    fn fault(&self) -> Fault {
        match self {
            Self::NoRoom { .. } => Fault::NoRoom,
            Self::File(_) | Self::Lock(_) => Fault::Host,
        }
    }
}

/// Where a start is.
#[derive(Debug)]
pub(crate) enum Step {
    /// It waits, and for what.
    Waits(String),
    /// It may go on; or not.
    /// Its turn lasts a while longer where the host is pressed.
    Done(Result<Option<Lock>, NotBegun>),
}

/// What a look at the host came to.
enum Look {
    /// The VM may start, and that is written down.
    Go,
    /// There is too little memory.
    NoRoom(Sums),
    /// There is memory, which is the VM's now, but others start.
    Busy(Busy),
}

/// One VM that wants to start.
struct Start {
    settings: Settings,
    mem: u64,
    facts: mpsc::Sender<Fact>,
}

impl Supervisor {
    /// Asks whether the VM may start, beside the loop. A QEMU that is started anew for a guest that ran may: the host has room for it
    /// already, and a reboot must not become an outage.
    pub(crate) fn ask_to_start(&mut self) {
        self.notifier.extend_timeout(START_STEP);
        let (settings, mem) = (self.settings.clone(), self.vm.mem.bytes());
        let start = Start { settings, mem, facts: self.facts.clone() };
        if self.generation > 0 {
            self.prepare(move || start.again());
            return;
        }
        let facts = self.facts.clone();
        let task = self.lanes.launch.drive(async move {
            let done = start.admitted().await;
            let done = done.map_err(|error| NotBegun {
                fault: error.fault(),
                ..NotBegun::new(&error, error.hint(), false)
            });
            let _ = facts.send(Fact::Admission(Step::Done(done))).await;
        });
        match task {
            Ok(task) => self.starting = Some(task),
            Err(refused) => self.not_begun(NotBegun::refused(refused)),
        }
    }

    pub(crate) fn admission(&mut self, step: Step) {
        match step {
            // It was called off meanwhile.
            _ if self.cancel.is_set() => {}
            Step::Waits(why) => {
                self.notifier.status(&why);
                self.notifier.extend_timeout(START_STEP);
                if self.notes.first() != Some(&why) {
                    info!("{why}");
                    self.notes = vec![why];
                }
            }
            Step::Done(result) => {
                self.starting = None;
                self.notes.clear();
                match result {
                    Ok(turn) => {
                        if let Some(turn) = turn {
                            // The start does not wait for the end of its turn.
                            self.tasks.spawn(async move {
                                tokio::time::sleep(SETTLE).await;
                                drop(turn);
                            });
                        }
                        self.prepare(|| ());
                    }
                    Err(not) => self.not_begun(not),
                }
            }
        }
    }

    /// What a QEMU of an earlier supervisor has is ours from now on.
    pub(crate) fn take_over_memory(&self) {
        let (settings, mem) = (self.settings.clone(), self.vm.mem.bytes());
        if let Err(refused) = self.lanes.run.run(move || write(&settings, mem)) {
            warn!("cannot write the memory reservation of the VM: {refused}");
        }
    }
}

fn write(settings: &Settings, mem: u64) {
    let written = Reservation::new(mem, true).and_then(|own| own.write(&settings.paths()));
    if let Err(error) = written {
        warn!("cannot write the memory reservation of the VM: {}", chain(&error));
    }
}

impl Start {
    /// Waits as long as has to be.
    async fn admitted(&self) -> Result<Option<Lock>, Error> {
        let layout = &self.settings.layout;
        // What a supervisor that crashed has left.
        reservation::remove(&self.settings.paths());
        file::make_dir(&layout.reservations())?;
        let busy = match self.look(None).await? {
            Look::Go => return Ok(None),
            Look::Busy(busy) => busy,
            Look::NoRoom(sums) => match self.wait_for_memory(sums).await? {
                None => return Ok(None),
                Some(busy) => busy,
            },
        };
        self.wait_for_turn(busy).await
    }

    /// Until there is room, or the host's settings are others. What there is to wait for then.
    async fn wait_for_memory(&self, mut sums: Sums) -> Result<Option<Busy>, Error> {
        let layout = &self.settings.layout;
        let mut woken = file_watch::directory(&layout.reservations());
        if let Ok((watching, _)) = &mut woken {
            // Its directory need not be there.
            let _ = watching.also(&layout.host_settings());
        }
        let outcome = loop {
            if self.host_settings().admission == Admission::Refuse {
                break Err(Error::NoRoom { sums, settings: layout.host_settings() });
            }
            self.say(format!("waits for memory: {sums}")).await;
            match &mut woken {
                Ok((_, changes)) => drop(tokio::time::timeout(LOOK, changes.next()).await),
                Err(_) => tokio::time::sleep(LOOK).await,
            }
            match self.look(None).await {
                Ok(Look::Go) => break Ok(None),
                Ok(Look::Busy(busy)) => break Ok(Some(busy)),
                Ok(Look::NoRoom(now)) => sums = now,
                Err(error) => break Err(error),
            }
        };
        if let Ok((watching, _)) = woken {
            watching.end();
        }
        outcome
    }

    /// One after the other, each when the pressure has fallen or it has waited long enough.
    async fn wait_for_turn(&self, busy: Busy) -> Result<Option<Lock>, Error> {
        let begun = Instant::now();
        let path = self.settings.layout.turn_lock();
        let mut told = None;
        self.say_busy(&busy, &mut told).await;
        let turn = loop {
            match Lock::acquire(&path) {
                Ok(turn) => break turn,
                Err(lock::Error::Taken { .. }) if begun.elapsed() < PATIENCE => {}
                Err(error) => {
                    warn!("starts out of turn: {}", chain(&error));
                    write(&self.settings, self.mem);
                    return Ok(None);
                }
            }
            self.say_busy(&Busy::Queue, &mut told).await;
            tokio::time::sleep(QUEUE).await;
        };
        let (begun, mut pressed) = (Instant::now(), false);
        loop {
            let Look::Busy(busy) = self.look(Some(begun)).await? else { break };
            self.say_busy(&busy, &mut told).await;
            let is_pressure = matches!(busy, Busy::Pressed(..));
            pressed |= is_pressure;
            tokio::time::sleep(if is_pressure { PRESSURE } else { STARTS }).await;
        }
        Ok(pressed.then_some(turn))
    }

    /// Looks at the host while nobody else does; with room, that is the VM's when this returns. `turn` is since when it has its turn.
    async fn look(&self, turn: Option<Instant>) -> Result<Look, Error> {
        let Settings { layout, name, .. } = &self.settings;
        let _alone = self.alone().await?;
        let others = reservation::others(layout, name);
        let settings = self.host_settings();
        if settings.admission != Admission::Off
            && let Some(sums) = self.sums(&settings, &others)
            && !sums.fits()
        {
            return Ok(Look::NoRoom(sums));
        }
        let over = turn.is_some_and(|since| since.elapsed() >= TURN);
        let busy = if over { None } else { start_turns::busy(&self.seen(&others, turn.is_some())) };
        // Nobody overtakes those who are in the queue.
        let queue = || match turn {
            None if Lock::holder(&layout.turn_lock()).is_some() => Some(Busy::Queue),
            _ => None,
        };
        let busy = busy.or_else(queue);
        Reservation::new(self.mem, busy.is_none())?.write(&self.settings.paths())?;
        Ok(busy.map_or(Look::Go, Look::Busy))
    }

    /// The lock that is held for a look; none where it cannot be had in time.
    async fn alone(&self) -> Result<Option<Lock>, Error> {
        Ok(alone(&self.settings.layout.admission_lock(), &self.facts).await?)
    }

    /// A QEMU more for the same guest: written down, and told where that is too much.
    fn again(&self) {
        let Settings { layout, name, .. } = &self.settings;
        let settings = self.host_settings();
        if settings.admission != Admission::Off
            && let Some(sums) = self.sums(&settings, &reservation::others(layout, name))
            && !sums.fits()
        {
            warn!("the guest is started again though the host has not enough memory left: {sums}");
        }
        write(&self.settings, self.mem);
    }

    /// None where the host does not tell what it has.
    fn sums(&self, settings: &HostSettings, others: &Others) -> Option<Sums> {
        let memory = memory(&self.settings.root, settings)?;
        Some(Sums::of(memory, &others.mem, self.mem))
    }

    /// A file that has become invalid since the supervisor was started is as good as none.
    fn host_settings(&self) -> HostSettings {
        let file = self.settings.layout.host_settings();
        HostSettings::load(&file).unwrap_or_else(|invalid| {
            warn!("the host's settings do not count:\n{invalid}");
            HostSettings::absent(&file)
        })
    }

    fn seen(&self, others: &Others, queued: bool) -> Seen {
        let proc = self.settings.root.join("proc");
        let pressures = pressure::of(&proc.join("pressure"));
        Seen {
            cpu: pressures.map(|of| of.cpu.some_avg10),
            io: pressures.map(|of| of.io.some_avg10),
            memory: pressures.map(|of| of.memory.some_avg10),
            queued,
            starting: others.starting,
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
        }
    }

    /// What has been said is said again only after a while, so that the service manager knows.
    async fn say_busy(&self, busy: &Busy, told: &mut Option<(Busy, Instant)>) {
        if !told.as_ref().is_some_and(|(said, at)| said == busy && at.elapsed() < LOOK) {
            self.say(format!("waits for its turn: {busy}")).await;
            *told = Some((*busy, Instant::now()));
        }
    }

    async fn say(&self, why: String) {
        say(&self.facts, why).await;
    }
}

async fn say(facts: &mpsc::Sender<Fact>, why: String) {
    let _ = facts.send(Fact::Admission(Step::Waits(why))).await;
}

async fn alone(path: &Path, facts: &mpsc::Sender<Fact>) -> Result<Option<Lock>, lock::Error> {
    let (begun, mut told) = (tokio::time::Instant::now(), false);
    loop {
        match Lock::acquire(path) {
            Err(lock::Error::Taken { pid }) => {
                let waited = begun.elapsed();
                // The last that took it, if another holds it that only reads it.
                let who =
                    || pid.map_or_else(|| "another process".into(), |pid| format!("process {pid}"));
                if waited > TOO_LONG {
                    let path = path.display();
                    warn!(
                        "{} has held `{path}` for {} s: looks for memory without it",
                        who(),
                        waited.as_secs()
                    );
                    return Ok(None);
                }
                if waited > LONG_MOMENT && !told {
                    say(facts, format!("waits for {}, which looks for memory", who())).await;
                    told = true;
                }
                tokio::time::sleep(MOMENT).await;
            }
            taken => return taken.map(Some),
        }
    }
}

/// What the host below `root` has; none where it does not tell.
pub(crate) fn memory(root: &Path, settings: &HostSettings) -> Option<Memory> {
    let proc = root.join("proc");
    let total = meminfo::total(&proc)?;
    Some(Memory::new(total, meminfo::huge_pages(&proc).unwrap_or(0), settings.reserve_mem))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_look_waits_for_another_and_for_one_that_never_ends_not_for_ever() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let (facts, mut said) = mpsc::channel(9);
        let waits = format!("waits for process {}, which looks for memory", std::process::id());
        let held = Lock::acquire(&path).unwrap();
        let (short, ()) = tokio::join!(alone(&path, &facts), async {
            tokio::time::sleep(TOO_LONG / 2).await;
            drop(held);
        });
        assert!(short.unwrap().is_some());
        let _held = Lock::acquire(&path).unwrap();
        assert!(alone(&path, &facts).await.unwrap().is_none());
        for _ in ["of the one", "of the other"] {
            let told = said.try_recv();
            assert!(
                matches!(&told, Ok(Fact::Admission(Step::Waits(why))) if *why == waits),
                "{told:?}"
            );
        }
        assert!(said.try_recv().is_err());
    }
}
