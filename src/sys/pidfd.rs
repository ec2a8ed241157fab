//! A process referred to by descriptor, child or not: a reused PID never denotes another process.

use std::{
    fs, io,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::process::ExitStatusExt,
    },
    process::ExitStatus,
    sync::Arc,
    time::{Duration, Instant},
};

use nix::libc::{PIDFD_GET_INFO, PIDFD_INFO_EXIT, pidfd_info};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    process::{Pid, PidfdFlags, WaitId, WaitIdOptions, pidfd_open, pidfd_send_signal, waitid},
};
use tokio::io::unix::AsyncFd;

use super::readable_fd::readable;

pub use rustix::process::Signal;

/// The time for PID 1 to reap a process that is not our child, before its exit status counts as
/// unknown.
const REAPED_WITHIN: Duration = Duration::from_millis(100);

nix::ioctl_readwrite_bad!(
    /// The kernel's record of a process while a pidfd is open; includes the exit status since Linux
    /// 6.15.
    pidfd_get_info,
    PIDFD_GET_INFO,
    pidfd_info
);

/// The exit status of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// Exited with this code.
    Code(i32),
    /// Terminated by this signal.
    Signal(i32),
    /// Unknown: the process was not our child and the kernel is older than 6.15.
    Unknown,
}

/// A process.
#[derive(Debug)]
pub struct Process {
    pid: u32,
    fd: OwnedFd,
}

impl Process {
    /// Opens the process that currently has `pid`.
    ///
    /// # Errors
    /// No such process exists.
    pub fn open(pid: u32) -> io::Result<Self> {
        let raw = i32::try_from(pid).ok().and_then(Pid::from_raw);
        let raw = raw.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        Ok(Self { pid, fd: pidfd_open(raw, PidfdFlags::empty())? })
    }

    /// Returns the PID.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Returns true if the process has not ended; a zombie has ended.
    pub fn is_alive(&self) -> bool {
        !self.ended_within(Duration::ZERO)
    }

    fn ended_within(&self, limit: Duration) -> bool {
        let begun = Instant::now();
        loop {
            let left = limit.saturating_sub(begun.elapsed());
            let timeout =
                Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
            let mut fds = [PollFd::new(&self.fd, PollFlags::IN)];
            match poll(&mut fds, Some(&timeout)) {
                Err(rustix::io::Errno::INTR) => {}
                ready => return ready.is_ok_and(|ready| ready > 0),
            }
        }
    }

    /// Waits for the exit of the process, and reaps it if it is a child.
    pub async fn wait(&self) -> Exit {
        // The runtime registers the descriptor itself, so a copy is registered.
        if let Ok(copy) = self.fd.try_clone()
            && let Ok(watched) = readable(Arc::new(copy))
        {
            // A pidfd becomes readable when its process ends, pidfd_open(2).
            if let Ok(mut ready) = watched.readable().await {
                ready.clear_ready();
            }
            return match self.reap() {
                Exit::Unknown => exit_status_after_reap(&watched).await,
                exit => exit,
            };
        }
        self.reap()
    }

    fn reap(&self) -> Exit {
        let status = loop {
            match waitid(WaitId::PidFd(self.fd.as_fd()), WaitIdOptions::EXITED) {
                Err(rustix::io::Errno::INTR) => {}
                status => break status,
            }
        };
        match status {
            Ok(Some(status)) => match (status.exit_status(), status.terminating_signal()) {
                (Some(code), _) => Exit::Code(code),
                (None, Some(signal)) => Exit::Signal(signal),
                (None, None) => Exit::Unknown,
            },
            Ok(None) | Err(_) => Exit::Unknown,
        }
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// The process has ended, or belongs to another user.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        Ok(pidfd_send_signal(&self.fd, signal)?)
    }

    /// Sends SIGKILL and waits at most five seconds for the exit.
    pub fn kill_and_reap(&self) {
        let _ = self.signal(Signal::KILL);
        if self.ended_within(Duration::from_secs(5)) {
            self.reap();
        }
    }
}

/// Returns the exit status of a process that is not our child: the kernel provides it after the
/// parent has reaped the process, and wakes the descriptor again then.
async fn exit_status_after_reap(watched: &AsyncFd<Arc<OwnedFd>>) -> Exit {
    let reaped = async {
        loop {
            match info(watched.get_ref()) {
                // ESRCH: ended and not reaped, or not supported by this kernel.
                Ok(None) | Err(nix::errno::Errno::ESRCH) => {}
                Ok(Some(exit)) => return exit,
                Err(_) => return Exit::Unknown,
            }
            match watched.readable().await {
                Ok(mut ready) => ready.clear_ready(),
                Err(_) => return Exit::Unknown,
            }
        }
    };
    tokio::time::timeout(REAPED_WITHIN, reaped).await.unwrap_or(Exit::Unknown)
}

/// Returns the exit status stored with the descriptor; `None` while the process runs.
fn info(fd: &OwnedFd) -> nix::Result<Option<Exit>> {
    // SAFETY: `pidfd_info` contains only integers, for which zero is a valid value.
    let mut info: pidfd_info = unsafe { std::mem::zeroed() };
    info.mask = PIDFD_INFO_EXIT.into();
    // SAFETY: the descriptor is open, and the request encodes the size of this type, which outlives
    // the call.
    unsafe { pidfd_get_info(fd.as_raw_fd(), &raw mut info) }?;
    let has_exited = info.mask & u64::from(PIDFD_INFO_EXIT) != 0;
    let status = ExitStatus::from_raw(info.exit_code);
    let signal = || status.signal().map(Exit::Signal);
    Ok(has_exited.then(|| status.code().map(Exit::Code).or_else(signal).unwrap_or(Exit::Unknown)))
}

/// Returns the process with this PID and start time on this boot; `None` if it has provably ended.
///
/// # Errors
/// Cannot determine whether the process has ended.
pub fn find(pid: u32, started: u64, boot: &str) -> io::Result<Option<Process>> {
    if boot != boot_id()? {
        return Ok(None);
    }
    // Opened first: the process that it denotes cannot change while the start time is compared.
    let process = match Process::open(pid) {
        Ok(process) => process,
        // EINVAL (since Linux 6.16 ENOENT): the PID is that of a thread, so no process has it.
        Err(error) => match error.raw_os_error().map(Errno::from_raw_os_error) {
            Some(Errno::SRCH | Errno::INVAL | Errno::NOENT) => return Ok(None),
            _ => return Err(error),
        },
    };
    let is_same = match start_time(pid) {
        Ok(time) => time == started,
        // The /proc entry vanishes with the process.
        Err(_) if !process.is_alive() => false,
        Err(error) => return Err(error),
    };
    Ok((is_same && process.is_alive()).then_some(process))
}

/// Returns the start time of a process in clock ticks since boot (proc_pid_stat(5), field 22). An
/// ended process has one until it is reaped.
///
/// # Errors
/// The process does not exist, or its start time cannot be read.
pub fn start_time(pid: u32) -> io::Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The second field is the command in parentheses, which may itself contain parentheses.
    let field = stat.rsplit_once(") ").and_then(|(_, fields)| fields.split(' ').nth(19));
    let malformed =
        || io::Error::new(io::ErrorKind::InvalidData, "no start time in /proc/PID/stat");
    field.and_then(|field| field.parse().ok()).ok_or_else(malformed)
}

/// Returns the boot ID, which is unique to this boot.
///
/// # Errors
/// The file cannot be read.
pub fn boot_id() -> io::Result<String> {
    let id = fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned();
    match id.is_empty() {
        true => Err(io::Error::new(io::ErrorKind::InvalidData, "the boot id is empty")),
        false => Ok(id),
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[tokio::test]
    async fn exit_of_a_child_is_reported() {
        for (script, exit) in [("exit 3", Exit::Code(3)), ("kill -9 $$", Exit::Signal(9))] {
            #[allow(clippy::zombie_processes)] // `wait` below is what is tested.
            let child = Command::new("sh").args(["-c", script]).spawn().unwrap();
            let process = Process::open(child.id()).unwrap();
            assert_eq!(process.wait().await, exit);
            assert!(!process.is_alive());
        }
    }

    #[tokio::test]
    async fn exit_of_a_non_child_is_reported() {
        let script = "sleep 600 >/dev/null 2>&1 & echo $!";
        let output = Command::new("sh").args(["-c", script]).output().unwrap();
        let pid: u32 = String::from_utf8(output.stdout).unwrap().trim().parse().unwrap();
        let process = find(pid, start_time(pid).unwrap(), &boot_id().unwrap()).unwrap().unwrap();
        process.signal(Signal::KILL).unwrap();
        // `Unknown` before Linux 6.15, and if PID 1 does not reap within 100 ms.
        let exit = process.wait().await;
        assert!(matches!(exit, Exit::Signal(9) | Exit::Unknown), "{exit:?}");
    }

    #[test]
    fn reused_pid_is_another_process() {
        let own = std::process::id();
        let started = start_time(own).unwrap();
        let boot = boot_id().unwrap();
        assert!(find(own, started, &boot).unwrap().is_some());
        assert!(find(own, started + 1, &boot).unwrap().is_none());
        assert!(find(own, started, "another boot").unwrap().is_none());
    }

    #[test]
    fn pid_of_a_thread_is_not_found() {
        let (send, receive) = std::sync::mpsc::channel();
        let (done, wait) = std::sync::mpsc::channel::<()>();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                send.send(rustix::thread::gettid().as_raw_pid()).unwrap();
                let _ = wait.recv();
            });
            let thread = u32::try_from(receive.recv().unwrap()).unwrap();
            assert!(find(thread, 1, &boot_id().unwrap()).unwrap().is_none());
            drop(done);
        });
        assert!(find(0, 1, &boot_id().unwrap()).is_err(), "0 is not a PID");
    }

    #[test]
    fn partial_seconds_are_waited_for() {
        let mut child = Command::new("sleep").arg("600").spawn().unwrap();
        let process = Process::open(child.id()).unwrap();
        let (begun, limit) = (Instant::now(), Duration::from_millis(50));
        assert!(!process.ended_within(limit));
        assert!(begun.elapsed() >= limit);
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn zombie_has_ended() {
        #[allow(clippy::zombie_processes)] // `reap` below is what is tested.
        let child = Command::new("true").spawn().unwrap();
        let process = Process::open(child.id()).unwrap();
        assert!(process.ended_within(Duration::from_secs(20)));
        let (started, boot) = (start_time(child.id()).unwrap(), boot_id().unwrap());
        assert!(find(child.id(), started, &boot).unwrap().is_none());
        process.reap();
        assert!(find(child.id(), started, &boot).unwrap().is_none());
    }
}
