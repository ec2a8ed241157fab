//! A place of its own for the measurements: three directories, guests, supervisors; all of it gone at the end.

use std::{
    fs::{self, File},
    io,
    os::{fd::OwnedFd, unix::net::UnixDatagram},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use qvm::store::layout::{Layout, VmPaths};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal},
};

use crate::figure::Outcome;

/// How long anything may take; nothing is expected to take as long.
const LONG: Duration = Duration::from_secs(120);

/// The place.
pub(crate) struct Place {
    dir: tempfile::TempDir,
    guests: PathBuf,
    program: PathBuf,
}

/// The variable with the path of another `qvm`, which is measured in turns with this one.
pub(crate) const BEFORE: &str = "QVM_BENCH_BEFORE";

/// A place for the program of this build, and one for the program that [`BEFORE`] names.
pub(crate) fn places() -> Outcome<Vec<Place>> {
    let before = std::env::var_os(BEFORE).filter(|path| !path.is_empty());
    let mut places = vec![Place::new()?];
    if let Some(program) = before {
        places.push(Place { program: program.into(), ..Place::new()? });
    }
    Ok(places)
}

/// The places in the order of a round: each is first in every other round.
pub(crate) fn in_turns(places: &[Place], round: usize) -> impl Iterator<Item = (usize, &Place)> {
    let count = places.len();
    (0..count).map(move |nr| (nr + round) % count).map(|nr| (nr, &places[nr]))
}

impl Place {
    /// An empty place with a short path, since sockets lie in it.
    pub(crate) fn new() -> Outcome<Self> {
        let dir = tempfile::Builder::new().prefix("qvm").tempdir_in("/tmp")?;
        fs::create_dir_all(dir.path().join("c/vms"))?;
        let here = || Path::new(env!("CARGO_MANIFEST_DIR")).join("target/guests");
        let guests = std::env::var_os("QVM_GUESTS").map_or_else(here, PathBuf::from);
        let program = env!("CARGO_BIN_EXE_qvm").into();
        Ok(Self { dir, guests, program })
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn layout(&self) -> Layout {
        let below = |name| self.dir.path().join(name);
        Layout { config: below("c"), state: below("s"), runtime: below("r") }
    }

    pub(crate) fn paths(&self, name: &str) -> Outcome<VmPaths> {
        Ok(self.layout().vm(&name.parse()?))
    }

    /// A guest's image.
    pub(crate) fn guest(&self, name: &str) -> Outcome<PathBuf> {
        let image = self.guests.join(name);
        if image.exists() {
            return Ok(image);
        }
        Err(format!("{} is missing: run `make guests`", image.display()).into())
    }

    /// Writes a VM file around one of the guests that `make guests` builds.
    pub(crate) fn vm(&self, name: &str, guest: &str, more: &str) -> Outcome<()> {
        let image = self.guest(guest)?;
        let text = format!(
            "accel = \"tcg\"\nmem = \"32M\"\n{more}[image]\npath = \"{}\"\n",
            image.display()
        );
        Ok(fs::write(self.layout().vm_file(&name.parse()?), text)?)
    }

    /// The command that runs `qvm` on the VMs of this place.
    pub(crate) fn qvm(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        for (key, dir) in [("CONFIG", "c"), ("STATE", "s"), ("RUNTIME", "r")] {
            command.env(format!("QVM_{key}_DIR"), self.dir.path().join(dir));
        }
        for key in ["INVOCATION_ID", "QVM_LOG", "QVM_QEMU", "JOURNAL_STREAM", "WATCHDOG_USEC"] {
            command.env_remove(key);
        }
        command
    }

    /// Starts `qvm run NAME`, as a service manager does.
    pub(crate) fn start(&self, name: &str) -> Outcome<Starting<'_>> {
        let notify = self.dir.path().join(format!("{name}.notify"));
        let _ = fs::remove_file(&notify);
        let socket = UnixDatagram::bind(&notify)?;
        socket.set_read_timeout(Some(LONG))?;
        let log = File::create(self.dir.path().join(format!("{name}.log")))?;
        let mut command = self.qvm(&["run", name]);
        command.env("NOTIFY_SOCKET", notify).stderr(log);
        let begun = Instant::now();
        Ok(Starting {
            place: self,
            name: name.to_owned(),
            child: Owned(command.spawn()?),
            socket,
            begun,
        })
    }
}

/// A supervisor on its way.
pub(crate) struct Starting<'p> {
    place: &'p Place,
    name: String,
    child: Owned,
    socket: UnixDatagram,
    begun: Instant,
}

impl Starting<'_> {
    /// Waits for `READY=1`. Nobody listens any longer then: a supervisor's later words are refused, and cost nothing.
    pub(crate) fn ready(self) -> Outcome<(Running, Duration)> {
        let mut buffer = [0; 4096];
        loop {
            let count = self.socket.recv(&mut buffer).map_err(|e| self.failed(&e))?;
            if buffer[..count].starts_with(b"READY=1") {
                break;
            }
        }
        let took = self.begun.elapsed();
        let record = fs::read(self.place.paths(&self.name)?.record())?;
        let record: serde_json::Value = serde_json::from_slice(&record)?;
        let pid = u32::try_from(record["pid"].as_u64().unwrap_or_default())?;
        Ok((Running { qemu: Watched::new(pid)?, supervisor: self.child }, took))
    }

    fn failed(&self, error: &io::Error) -> String {
        let log = self.place.path().join(format!("{}.log", self.name));
        format!(
            "{} is not ready: {error}\n{}",
            self.name,
            fs::read_to_string(log).unwrap_or_default()
        )
    }
}

/// A VM that runs, supervised.
pub(crate) struct Running {
    // The supervisor goes first, so that it does not report the end of its QEMU.
    pub(crate) supervisor: Owned,
    pub(crate) qemu: Watched,
}

/// A child that does not outlive this.
pub(crate) struct Owned(pub(crate) Child);

impl Owned {
    pub(crate) fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A process by descriptor, killed when this is dropped.
pub(crate) struct Watched {
    pub(crate) pid: u32,
    fd: OwnedFd,
}

impl Watched {
    pub(crate) fn new(pid: u32) -> Outcome<Self> {
        let raw = Pid::from_raw(i32::try_from(pid)?).ok_or("no pid")?;
        Ok(Self { pid, fd: pidfd_open(raw, PidfdFlags::empty())? })
    }

    /// Waits for its end.
    pub(crate) fn gone(&self) -> Outcome<Instant> {
        let limit = Timespec { tv_sec: LONG.as_secs().try_into()?, tv_nsec: 0 };
        match poll(&mut [PollFd::new(&self.fd, PollFlags::IN)], Some(&limit))? {
            0 => Err(format!("process {} does not end", self.pid).into()),
            _ => Ok(Instant::now()),
        }
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        let _ = pidfd_send_signal(&self.fd, Signal::KILL);
    }
}

/// Runs a command that has to succeed, and tells how long it took.
pub(crate) fn timed(command: &mut Command) -> Outcome<Duration> {
    let begun = Instant::now();
    let status = command.status()?;
    let took = begun.elapsed();
    if status.success() { Ok(took) } else { Err(format!("{command:?}: {status}").into()) }
}
