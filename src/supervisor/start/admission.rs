//! Admission: a start waits for memory on the host, and for its turn.

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use tokio::sync::mpsc;
use tracing::warn;

use super::{
    failure::start_failure,
    memory_budget::{Memory, Sums},
    message::Message,
    start_turns::{self, Busy, Seen},
};
use crate::{
    life::{Fault, StartFailure},
    store::reservation::{self, Others, Reservation},
    supervisor::settings::Settings,
    value::{ErrorCode, Explain},
};
use crate::{
    spec::{self, HostSettings},
    sys::{
        file, file_watch,
        lock::{self, Lock},
        meminfo, pressure,
    },
    value::chain,
};

/// The interval between two attempts to acquire the admission lock.
const MOMENT: Duration = Duration::from_millis(5);
/// After the first time the wait for the lock is reported, after the second the start continues
/// without the lock: a stopped or hung lock holder must not block all starts. At worst two starts
/// at the same time both use the last free memory.
const LONG_MOMENT: Duration = Duration::from_secs(1);
const TOO_LONG: Duration = Duration::from_secs(30);
/// How often a waiting start checks the memory without being woken: a supervisor that was killed
/// with its QEMU process does not remove its reservation.
const LOOK: Duration = Duration::from_secs(30);
/// How often a start in the queue attempts to get its turn; how often a start with its turn checks
/// whether others have started, and checks the pressure, which the kernel computes every 2 s.
const QUEUE: Duration = Duration::from_millis(100);
const STARTS: Duration = Duration::from_millis(20);
const PRESSURE: Duration = Duration::from_secs(1);
/// How long a start with its turn waits for lower pressure.
const TURN: Duration = Duration::from_secs(5);
/// How long the turn lasts after a start under pressure: the pressure that this start causes is
/// visible only then.
pub(crate) const SETTLE: Duration = Duration::from_secs(2);
/// How long a start waits for its turn.
const PATIENCE: Duration = Duration::from_secs(600);

/// Why a start is not admitted.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// The host has not enough memory left.
    #[error("the host has not enough memory left: {sums}")]
    InsufficientMemory { sums: Sums, settings: PathBuf },
    /// The reservation cannot be written.
    #[error(transparent)]
    File(#[from] file::Error),
    /// The admission lock cannot be acquired.
    #[error(transparent)]
    Lock(#[from] lock::Error),
}

impl Error {
    /// The failure of the start.
    pub(super) fn failure(&self) -> StartFailure {
        let fault = match self {
            Self::InsufficientMemory { .. } => Fault::InsufficientMemory,
            Self::File(_) | Self::Lock(_) => Fault::Host,
        };
        StartFailure { fault, ..start_failure(self) }
    }
}

impl Explain for Error {
    fn wrapped(&self) -> Option<&dyn Explain> {
        match self {
            Self::File(error) => Some(error),
            Self::Lock(error) => Some(error),
            _ => None,
        }
    }

    fn own_code(&self) -> Option<ErrorCode> {
        Some(match self {
            Self::InsufficientMemory { .. } => ErrorCode::NoMemory,
            Self::File(..) | Self::Lock(..) => return None,
        })
    }

    fn own_hint(&self) -> Option<String> {
        match self {
            Self::InsufficientMemory { sums, settings } => {
                let first = match sums.never_fits() {
                    true => "reduce its `mem`",
                    false => "stop another VM, reduce the `mem` of this VM",
                };
                Some(format!(
                    "{first}, or write `admission = \"wait\"` or `\"off\"` into `{}`",
                    settings.display()
                ))
            }
            _ => None,
        }
    }
}

/// The result of a check of the host.
enum HostCheck {
    /// The start is admitted, and its memory is reserved.
    Go,
    /// The host has not enough memory left.
    InsufficientMemory(Sums),
    /// The memory is reserved, but other VMs are being started.
    Busy(Busy),
}

/// The admission of one VM.
pub(super) struct Admission {
    settings: Settings,
    mem: u64,
    messages: mpsc::Sender<Message>,
}

/// Writes the reservation of a VM that is running.
pub(super) fn reserve(settings: &Settings, mem: u64) {
    write(settings, mem);
}

fn write(settings: &Settings, mem: u64) {
    let written = Reservation::new(mem, true).and_then(|own| own.write(&settings.paths()));
    if let Err(error) = written {
        warn!("cannot write the memory reservation of the VM: {}", chain(&error));
    }
}

impl Admission {
    /// Creates the admission of a VM with `mem` bytes of memory.
    pub(super) fn new(settings: Settings, mem: u64, messages: mpsc::Sender<Message>) -> Self {
        Self { settings, mem, messages }
    }

    /// Waits until the start is admitted. Returns the turn if the host is under pressure.
    pub(super) async fn admitted(&self) -> Result<Option<Lock>, Error> {
        let layout = &self.settings.layout;
        // Left by a supervisor that crashed.
        reservation::remove(&self.settings.paths());
        file::make_dir(&layout.reservations())?;
        let busy = match self.check_host(None).await? {
            HostCheck::Go => return Ok(None),
            HostCheck::Busy(busy) => busy,
            HostCheck::InsufficientMemory(sums) => match self.wait_for_memory(sums).await? {
                None => return Ok(None),
                Some(busy) => busy,
            },
        };
        self.wait_for_turn(busy).await
    }

    /// Waits until the memory is free, or the host settings refuse to wait. Returns what else to
    /// wait for.
    async fn wait_for_memory(&self, mut sums: Sums) -> Result<Option<Busy>, Error> {
        let layout = &self.settings.layout;
        let mut woken = file_watch::directory(&layout.reservations());
        if let Ok((watching, _)) = &mut woken {
            // The directory may not exist.
            let _ = watching.also(&layout.host_settings());
        }
        let outcome = loop {
            if self.host_settings().admission == spec::Admission::Refuse {
                break Err(Error::InsufficientMemory { sums, settings: layout.host_settings() });
            }
            self.report(format!("waits for memory: {sums}")).await;
            match &mut woken {
                Ok((_, changes)) => drop(tokio::time::timeout(LOOK, changes.next()).await),
                Err(_) => tokio::time::sleep(LOOK).await,
            }
            match self.check_host(None).await {
                Ok(HostCheck::Go) => break Ok(None),
                Ok(HostCheck::Busy(busy)) => break Ok(Some(busy)),
                Ok(HostCheck::InsufficientMemory(now)) => sums = now,
                Err(error) => break Err(error),
            }
        };
        if let Ok((watching, _)) = woken {
            watching.end();
        }
        outcome
    }

    /// Waits for the turn, and then for lower pressure within a bound.
    async fn wait_for_turn(&self, busy: Busy) -> Result<Option<Lock>, Error> {
        let begun = Instant::now();
        let path = self.settings.layout.turn_lock();
        let mut reported = None;
        self.report_busy(&busy, &mut reported).await;
        let turn = loop {
            match Lock::acquire(&path) {
                Ok(turn) => break turn,
                Err(lock::Error::Held { .. }) if begun.elapsed() < PATIENCE => {}
                Err(error) => {
                    warn!("starts out of turn: {}", chain(&error));
                    write(&self.settings, self.mem);
                    return Ok(None);
                }
            }
            self.report_busy(&Busy::Queue, &mut reported).await;
            tokio::time::sleep(QUEUE).await;
        };
        let (begun, mut pressed) = (Instant::now(), false);
        loop {
            let HostCheck::Busy(busy) = self.check_host(Some(begun)).await? else { break };
            self.report_busy(&busy, &mut reported).await;
            let is_pressure = matches!(busy, Busy::Pressed(..));
            pressed |= is_pressure;
            tokio::time::sleep(if is_pressure { PRESSURE } else { STARTS }).await;
        }
        Ok(pressed.then_some(turn))
    }

    /// Checks the host under the admission lock, and reserves the memory if it is free. `turn` is
    /// the beginning of the VM's turn.
    async fn check_host(&self, turn: Option<Instant>) -> Result<HostCheck, Error> {
        let Settings { layout, name, .. } = &self.settings;
        let _alone = self.alone().await?;
        let others = reservation::others(layout, name);
        let settings = self.host_settings();
        if settings.admission != spec::Admission::Off
            && let Some(sums) = self.sums(&settings, &others)
            && !sums.fits()
        {
            return Ok(HostCheck::InsufficientMemory(sums));
        }
        let over = turn.is_some_and(|since| since.elapsed() >= TURN);
        let busy = if over { None } else { start_turns::busy(&self.seen(&others, turn.is_some())) };
        // A new start does not overtake those in the queue.
        let queue = || match turn {
            None if Lock::holder(&layout.turn_lock()).is_some() => Some(Busy::Queue),
            _ => None,
        };
        let busy = busy.or_else(queue);
        Reservation::new(self.mem, busy.is_none())?.write(&self.settings.paths())?;
        Ok(busy.map_or(HostCheck::Go, HostCheck::Busy))
    }

    /// Acquires the admission lock; `None` if it is held for too long.
    async fn alone(&self) -> Result<Option<Lock>, Error> {
        Ok(alone(&self.settings.layout.admission_lock(), &self.messages).await?)
    }

    /// Reserves the memory of a VM that ran until now, and warns where the host has too little.
    pub(super) fn renew(&self) {
        let Settings { layout, name, .. } = &self.settings;
        let settings = self.host_settings();
        if settings.admission != spec::Admission::Off
            && let Some(sums) = self.sums(&settings, &reservation::others(layout, name))
            && !sums.fits()
        {
            warn!("launching the guest again although the host has not enough memory left: {sums}");
        }
        write(&self.settings, self.mem);
    }

    /// `None` if the host's memory is unknown.
    fn sums(&self, settings: &HostSettings, others: &Others) -> Option<Sums> {
        let memory = memory(&self.settings.root, settings)?;
        Some(Sums::of(memory, &others.mem, self.mem))
    }

    /// Host settings that have become invalid since the supervisor was started are ignored.
    fn host_settings(&self) -> HostSettings {
        let file = self.settings.layout.host_settings();
        HostSettings::load(&file).unwrap_or_else(|invalid| {
            warn!("ignoring invalid host settings:\n{invalid}");
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

    /// Reports a reason once, and again at intervals, so that the service manager extends its
    /// timeout.
    async fn report_busy(&self, busy: &Busy, reported: &mut Option<(Busy, Instant)>) {
        if !reported.as_ref().is_some_and(|(earlier, at)| earlier == busy && at.elapsed() < LOOK) {
            self.report(format!("waits for its turn: {busy}")).await;
            *reported = Some((*busy, Instant::now()));
        }
    }

    async fn report(&self, why: String) {
        report(&self.messages, why).await;
    }
}

async fn report(messages: &mpsc::Sender<Message>, why: String) {
    let _ = messages.send(Message::Waiting(why)).await;
}

async fn alone(path: &Path, messages: &mpsc::Sender<Message>) -> Result<Option<Lock>, lock::Error> {
    let (begun, mut reported) = (tokio::time::Instant::now(), false);
    loop {
        match Lock::acquire(path) {
            Err(lock::Error::Held { pid }) => {
                let waited = begun.elapsed();
                // The last writer, if the holder only reads the file.
                let who =
                    || pid.map_or_else(|| "another process".into(), |pid| format!("process {pid}"));
                if waited > TOO_LONG {
                    let path = path.display();
                    warn!(
                        "{} has held `{path}` for {} s: checking the memory without the lock",
                        who(),
                        waited.as_secs()
                    );
                    return Ok(None);
                }
                if waited > LONG_MOMENT && !reported {
                    report(messages, format!("waits for {}, which checks the memory", who())).await;
                    reported = true;
                }
                tokio::time::sleep(MOMENT).await;
            }
            taken => return taken.map(Some),
        }
    }
}

/// The memory of the host below `root`; `None` if it is unknown.
pub(crate) fn memory(root: &Path, settings: &HostSettings) -> Option<Memory> {
    let proc = root.join("proc");
    let total = meminfo::total(&proc)?;
    Some(Memory::new(total, meminfo::huge_pages(&proc).unwrap_or(0), settings.reserve_mem))
}

#[cfg(test)]
mod tests;
