//! Determines whether the QEMU process of a VM is running, from the run record, the liveness locks,
//! and a scan of /proc.
//!
//! "Not running" requires that both locks are free, that the process of the record is proven gone,
//! and that no other process is a QEMU of this VM: earlier versions started QEMU without locks.
//! Anything unknown is an error and stops every change.

use std::{
    fmt, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::Duration,
};

use super::layout::VmPaths;
use super::{
    identity_uuid, liveness,
    record::{Record, Unreadable},
};
use crate::sys::{
    liveness_lock::{self, LockState},
    pidfd::{self, Process},
    qemu_processes::{self, QemuProcess, QemuProcesses},
    socket,
};

use crate::value::{ErrorCode, Explain};

/// The number of probes of a held lock without a matching record: an exiting process releases its
/// locks one by one.
const PROBES: u32 = 5;
/// The interval between two probes.
const PAUSE: Duration = Duration::from_millis(10);

/// The QEMU process that an earlier supervisor started.
#[derive(Debug)]
pub enum PreviousQemu {
    /// No QEMU is running and the last end is known: a first start, a clean end, or a reboot of the
    /// host.
    None,
    /// QEMU has exited and no supervisor has recorded it.
    Exited,
    /// QEMU has exited, and its supervisor died before QEMU was known to be executed.
    NeverExecuted,
    /// QEMU is running.
    Running(Arc<Process>, Box<Record>),
}

impl PreviousQemu {
    /// Returns true if QEMU is running.
    pub fn is_running(&self) -> bool {
        matches!(self, Self::Running(..))
    }
}

/// Cannot determine whether a QEMU process of the VM is running.
#[derive(Debug, thiserror::Error)]
#[error("cannot determine whether the VM is running")]
pub struct Unknown {
    source: Cause,
}

/// The result of the search for a QEMU process of an earlier supervisor.
pub type Found = Result<PreviousQemu, Unknown>;

impl Explain for Unknown {
    fn own_code(&self) -> Option<ErrorCode> {
        Some(ErrorCode::StateUnknown)
    }

    fn own_hint(&self) -> Option<String> {
        Some(match &self.source {
            Cause::Locked { .. } => {
                "`qvm kill NAME` forces off the QEMU process that holds the lock; `unknown` in \
                 docs/operations.md describes other ways"
                    .into()
            }
            Cause::Unrecorded { pid, .. } => format!(
                "examine the process with `ps -fp {pid}` and end it with `kill {pid}` if it is not \
                 needed; see `unknown` in docs/operations.md"
            ),
            Cause::Hidden { .. } | Cause::InUse { .. } => "run the command as root".into(),
            Cause::Process { .. }
            | Cause::Lock { .. }
            | Cause::Scan { .. }
            | Cause::Served { .. } => {
                "run `qvm status NAME` again, as root; see `unknown` in docs/operations.md".into()
            }
        })
    }
}

impl From<Cause> for Unknown {
    fn from(source: Cause) -> Self {
        Self { source }
    }
}

/// Why the state is unknown.
#[derive(Debug, thiserror::Error)]
enum Cause {
    #[error("cannot determine whether process {pid} of the run record is running")]
    Process { pid: u32, source: io::Error },
    #[error(transparent)]
    Lock(#[from] liveness::Error),
    #[error("a QEMU process holds the lock `{}`, but {record}", lock.display())]
    Locked { lock: PathBuf, record: NoRecord },
    #[error("{record}, and cannot read the command lines of all processes")]
    Scan { record: NoRecord, source: io::Error },
    #[error("/proc hides the processes of other users")]
    Hidden { source: io::Error },
    #[error("a process has locked `{}`, /proc hides the processes of other users, and \
        {record}", file.display())]
    InUse { file: PathBuf, record: NoRecord },
    #[error("process {pid} is a QEMU process of this VM, but {record}")]
    Unrecorded { pid: u32, record: NoRecord },
    #[error("a process listens on `{}`, but {record}", socket.display())]
    Served { socket: PathBuf, record: NoRecord },
}

/// Why the record identifies no running process.
#[derive(Debug)]
enum NoRecord {
    Absent,
    Unreadable(Unreadable),
    /// The process of the record has provably exited.
    Stale {
        pid: u32,
    },
}

impl fmt::Display for NoRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absent => f.write_str("there is no run record"),
            Self::Unreadable(why) => write!(f, "{}", crate::value::chain(why)),
            Self::Stale { pid } => write!(f, "process {pid} of the run record has exited"),
        }
    }
}

/// The QEMU processes of this host, read on demand and shared for many VMs and threads.
#[derive(Debug, Default)]
pub struct Processes {
    all: OnceLock<QemuProcesses>,
    reading: Mutex<()>,
}

impl Processes {
    fn all(&self) -> io::Result<&QemuProcesses> {
        let _reading = self.reading.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(all) = self.all.get() {
            return Ok(all);
        }
        let all = qemu_processes::list()?;
        Ok(self.all.get_or_init(|| all))
    }
}

/// Finds the QEMU process of a VM.
///
/// # Errors
/// Cannot determine whether QEMU is running.
pub fn find(paths: &VmPaths) -> Result<PreviousQemu, Unknown> {
    find_among(paths, &Processes::default())
}

/// Like [`find`], for one of many VMs.
///
/// # Errors
/// As for [`find`].
pub fn find_among(paths: &VmPaths, processes: &Processes) -> Result<PreviousQemu, Unknown> {
    retry_held_lock(|| {
        let (found, record) = probe(paths)?;
        // Even if the process of the record has exited: the record may be older than QEMU.
        if let Some(record) = record {
            none_without_lock(paths, processes, record)?;
        }
        Ok(found)
    })
}

/// Like [`find`], without the scan of /proc, which takes milliseconds. A missing record and free
/// locks do not prove that no QEMU is running: the QEMU of an earlier version holds no lock.
///
/// # Errors
/// As for [`find`].
pub fn find_without_scan(paths: &VmPaths) -> Result<PreviousQemu, Unknown> {
    retry_held_lock(|| Ok(probe(paths)?.0))
}

fn retry_held_lock(probe: impl Fn() -> Found) -> Found {
    let mut found = probe();
    for _ in 1..PROBES {
        if !matches!(found, Err(Unknown { source: Cause::Locked { .. } })) {
            break;
        }
        std::thread::sleep(PAUSE);
        found = probe();
    }
    found
}

/// Evaluates the run record and the locks, and returns why the record identifies no running
/// process.
fn probe(paths: &VmPaths) -> Result<(PreviousQemu, Option<NoRecord>), Unknown> {
    let (not_running, record) = match Record::read(paths) {
        Ok(None) => (PreviousQemu::None, NoRecord::Absent),
        Err(why) => (PreviousQemu::None, NoRecord::Unreadable(why)),
        Ok(Some(record)) => {
            let pid = record.pid;
            let failed = |source| Cause::Process { pid, source };
            let is_of_this_boot = pidfd::boot_id().map_err(failed)? == record.boot_id;
            let found = pidfd::find(pid, record.start_time, &record.boot_id).map_err(failed)?;
            if let Some(process) = found {
                return Ok((PreviousQemu::Running(Arc::new(process), Box::new(record)), None));
            }
            let not_running = match (is_of_this_boot, &record.isolation) {
                (false, _) => PreviousQemu::None,
                (true, None) => PreviousQemu::NeverExecuted,
                (true, Some(_)) => PreviousQemu::Exited,
            };
            (not_running, NoRecord::Stale { pid })
        }
    };
    if let Some(lock) = liveness::held_lock(paths).map_err(Cause::from)? {
        return Err(Cause::Locked { lock, record }.into());
    }
    Ok((not_running, Some(record)))
}

/// Proves that no QEMU of an earlier version, which holds no lock, is running.
fn none_without_lock(
    paths: &VmPaths,
    processes: &Processes,
    record: NoRecord,
) -> Result<(), Unknown> {
    let all = match processes.all() {
        Ok(all) => all,
        Err(source) => return Err(Cause::Scan { record, source }.into()),
    };
    let vm = Identifying::of(paths);
    if let Some(process) = all.all.iter().find(|process| vm.is_of(process)) {
        return Err(Cause::Unrecorded { pid: process.pid, record }.into());
    }
    let socket = paths.qmp_socket();
    match socket::is_served(&socket) {
        Ok(false) => {}
        Ok(true) => return Err(Cause::Served { socket, record }.into()),
        // Without permission to connect, the scan decides.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {}
        Err(source) => return Err(Cause::Scan { record, source }.into()),
    }
    // QEMU of any version locks its disks, but so do other programs: a lock alone proves nothing.
    match all.is_partial.then(|| locked_file(paths)) {
        None | Some(Ok(None)) => Ok(()),
        Some(Ok(Some(file))) => Err(Cause::InUse { file, record }.into()),
        Some(Err(source)) => Err(Cause::Hidden { source }.into()),
    }
}

/// Returns a file of the state directory that a process has locked.
fn locked_file(paths: &VmPaths) -> io::Result<Option<PathBuf>> {
    let entries = match std::fs::read_dir(&paths.state) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let entry = entry?;
        let path = entry.path();
        if !entry.file_type()?.is_file() || VmPaths::is_qemu_state_lock(&path) {
            continue;
        }
        if matches!(liveness_lock::probe(&path)?, LockState::HeldByQemu | LockState::HeldByQvm) {
            return Ok(Some(path));
        }
    }
    Ok(None)
}

/// Identifies the command line of a VM's QEMU, since another VM can have the same name in other
/// directories.
struct Identifying<'a> {
    name: &'a str,
    /// The state directory, as named and with links resolved.
    states: Vec<PathBuf>,
    /// `None` if the identity cannot be read.
    uuid: Option<Option<String>>,
}

impl<'a> Identifying<'a> {
    fn of(paths: &'a VmPaths) -> Self {
        let name = paths.runtime.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let led = std::fs::canonicalize(&paths.state).ok();
        let states = [paths.state.clone()].into_iter().chain(led).collect();
        Self { name, states, uuid: identity_uuid::stored_uuid(paths).ok() }
    }

    fn is_of(&self, process: &QemuProcess) -> bool {
        if process.name() != Some(self.name) {
            return false;
        }
        let files: Vec<PathBuf> = process.files().collect();
        if files.iter().any(|file| self.states.iter().any(|state| file.starts_with(state))) {
            return true;
        }
        // Files in a state directory of a VM with this name.
        let own = Path::new("vms").join(self.name);
        if files.iter().any(|file| file.parent().is_some_and(|dir| dir.ends_with(&own))) {
            return false;
        }
        match &self.uuid {
            Some(Some(uuid)) => process.uuid() == Some(uuid),
            // A VM without an identity has never been started.
            Some(None) => false,
            None => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, process::Command};

    use super::*;
    use crate::store::{layout::Layout, liveness::Liveness};

    fn layout(dir: &Path) -> Layout {
        let [config, state, runtime] = ["c", "s", "r"].map(|place| dir.join(place));
        Layout { config, state, runtime }
    }

    fn vm(dir: &Path) -> VmPaths {
        let paths = layout(dir).vm(&"web".parse().unwrap());
        fs::create_dir_all(&paths.state).unwrap();
        fs::create_dir_all(&paths.runtime).unwrap();
        paths
    }

    fn write(paths: &VmPaths, pid: u32, change: impl FnOnce(&mut serde_json::Value)) {
        let text = include_str!("../../tests/golden/record-newer.json");
        let mut record: serde_json::Value = serde_json::from_str(text).unwrap();
        record["pid"] = pid.into();
        record["startTime"] = pidfd::start_time(pid).unwrap_or(7).into();
        record["bootId"] = pidfd::boot_id().unwrap().into();
        change(&mut record);
        fs::write(paths.record(), record.to_string()).unwrap();
    }

    /// Returns the PID of an ended process.
    fn ended() -> u32 {
        let mut child = Command::new("true").spawn().unwrap();
        child.wait().unwrap();
        child.id()
    }

    /// Waits until a file is closed everywhere: a child of another test, forked meanwhile, has it
    /// open until it executes its program.
    fn until_released<T>(mut released: impl FnMut() -> Option<T>) -> T {
        let mut attempt = || {
            std::thread::sleep(std::time::Duration::from_millis(5));
            released()
        };
        (0..12_000).find_map(|_| attempt()).unwrap()
    }

    #[test]
    fn proof_is_needed_for_not_running() {
        let dir = tempfile::tempdir().unwrap();
        let paths = vm(dir.path());
        let own = std::process::id();
        let states: [(&str, &dyn Fn()); 8] = [
            ("none", &|| {}),
            ("running", &|| write(&paths, own, |_| {})),
            ("exited", &|| write(&paths, ended(), |_| {})),
            ("exited", &|| write(&paths, own, |record| record["startTime"] = 7.into())),
            ("never", &|| {
                write(&paths, own, |record| {
                    record["startTime"] = 7.into();
                    record["isolation"] = serde_json::Value::Null;
                });
            }),
            ("none", &|| write(&paths, own, |record| record["bootId"] = "another".into())),
            ("none", &|| fs::write(paths.record(), "").unwrap()),
            ("none", &|| fs::write(paths.record(), "{\"pid\":").unwrap()),
        ];
        let word = |found: Result<PreviousQemu, Unknown>| match found {
            Ok(PreviousQemu::None) => "none",
            Ok(PreviousQemu::Exited) => "exited",
            Ok(PreviousQemu::NeverExecuted) => "never",
            Ok(PreviousQemu::Running(..)) => "running",
            Err(_) => "unknown",
        };
        for (free, make) in states {
            let _ = fs::remove_file(paths.record());
            make();
            assert_eq!(word(find(&paths)), free);
            // A held lock proves that QEMU runs, whatever the record contains.
            let held = if free == "running" { "running" } else { "unknown" };
            let locks = Liveness::for_qemu(&paths).unwrap();
            assert_eq!(word(find(&paths)), free, "a preparing supervisor holds the lock");
            let locks = locks.into_fds([7, 8]).unwrap();
            assert_eq!(word(find(&paths)), held);
            fs::remove_file(paths.qemu_lock()).unwrap();
            assert_eq!(word(find(&paths)), held, "the lock beside the disks is held");
            drop(locks);
            // The lock of a verb proves that QEMU does not hold it.
            let locks = until_released(|| Liveness::for_verb(&paths).ok());
            assert_eq!(word(find(&paths)), free);
            drop(locks);
        }
    }

    #[test]
    fn processes_are_identified_by_files_and_uuid() {
        let dir = tempfile::tempdir().unwrap();
        // VMs called `web` of other tests must not match these processes.
        let paths = layout(dir.path()).vm(&"apart".parse().unwrap());
        fs::create_dir_all(&paths.state).unwrap();
        let state = paths.state.display().to_string();
        let started = |name: &str, uuid: &str, file: &str| {
            let text = format!("-name\0{name},debug-threads=on\0-uuid\0{uuid}\0-add-fd\0{file}\0");
            let mut child = Command::new("sh");
            child.args(["-c", "read line; :", "x"]);
            child.args(text.trim_end_matches('\0').split('\0'));
            child.stdin(std::process::Stdio::piped()).spawn().unwrap()
        };
        let identity = "uuid = \"1\"\nof = \"a newer version\"\n";
        let here = format!("fd=40,set=40,opaque=root {state}/root.qcow2");
        let elsewhere = "fd=40,set=40,opaque=root /elsewhere/vms/apart/root.qcow2".to_owned();
        let outside = "fd=40,set=40,opaque=root /dev/sdx".to_owned();
        for (name, uuid, file, identity, is_of) in [
            ("apart", "1", &here, Some(identity), true),
            ("apart", "2", &here, None, true),
            ("db", "1", &here, Some(identity), false),
            ("apart", "1", &elsewhere, Some(identity), false),
            ("apart", "1", &elsewhere, Some("broken"), false),
            ("apart", "1", &outside, Some(identity), true),
            ("apart", "2", &outside, Some(identity), false),
            ("apart", "2", &outside, Some("broken"), true),
            ("apart", "1", &outside, None, false),
        ] {
            let _ = fs::remove_file(paths.identity());
            if let Some(identity) = identity {
                fs::write(paths.identity(), identity).unwrap();
            }
            let mut child = started(name, uuid, file);
            let line = format!("/proc/{}/cmdline", child.id());
            // The process has these arguments only after exec.
            while !fs::read(&line).unwrap().ends_with(format!("{file}\0").as_bytes()) {
                std::thread::yield_now();
            }
            let found = find(&paths);
            drop(child.stdin.take());
            child.wait().unwrap();
            assert_eq!(found.is_err(), is_of, "{name} {uuid} {file} {identity:?}");
        }
    }

    #[test]
    fn locked_disk_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let paths = vm(dir.path());
        let _locks = Liveness::for_qemu(&paths).unwrap();
        let disk = paths.state.join("root.raw");
        fs::write(&disk, "").unwrap();
        assert_eq!(locked_file(&paths).unwrap(), None);
        let _held = liveness_lock::LivenessLock::acquire(&disk).unwrap();
        assert_eq!(locked_file(&paths).unwrap(), Some(disk));
    }

    #[test]
    fn stale_record_hides_no_qemu() {
        let dir = tempfile::tempdir().unwrap();
        let paths = layout(dir.path()).vm(&"stale".parse().unwrap());
        fs::create_dir_all(&paths.state).unwrap();
        fs::create_dir_all(&paths.runtime).unwrap();
        let file = format!("fd=40,set=40,opaque=root {}/root.qcow2", paths.state.display());
        let mut child = Command::new("sh");
        child.args(["-c", "read line; :", "x", "-name", "stale", "-uuid", "1", "-add-fd", &file]);
        let mut child = child.stdin(std::process::Stdio::piped()).spawn().unwrap();
        let line = format!("/proc/{}/cmdline", child.id());
        while !fs::read(&line).unwrap().ends_with(format!("{file}\0").as_bytes()) {
            std::thread::yield_now();
        }
        // A record from a backup, and one of an earlier boot.
        write(&paths, ended(), |_| {});
        let exited = find(&paths);
        write(&paths, child.id(), |record| record["bootId"] = "another".into());
        let of_another_boot = find(&paths);
        drop(child.stdin.take());
        child.wait().unwrap();
        assert!(exited.is_err() && of_another_boot.is_err());
        assert!(matches!(find(&paths), Ok(PreviousQemu::None)));
    }

    #[test]
    fn qmp_socket_with_a_listener_is_unknown() {
        let dir = tempfile::tempdir().unwrap();
        let paths = vm(dir.path());
        let listener = std::os::unix::net::UnixListener::bind(paths.qmp_socket()).unwrap();
        assert!(find(&paths).is_err());
        drop(listener);
        until_released(|| matches!(find(&paths), Ok(PreviousQemu::None)).then_some(()));
    }
}
