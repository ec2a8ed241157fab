//! A process that is watched and signalled by descriptor, child or not: the pid cannot come to mean another process.

use std::{
    fs, io,
    os::fd::{AsFd, OwnedFd},
    time::Duration,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, WaitId, WaitIdOptions, pidfd_open, pidfd_send_signal, waitid},
};
use tokio::io::{Interest, unix::AsyncFd};

pub use rustix::process::Signal;

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// By itself, with this code.
    Code(i32),
    /// By this signal.
    Signal(i32),
    /// It was not our child: nobody can tell.
    Unknown,
}

/// A process.
#[derive(Debug)]
pub struct Process {
    pid: u32,
    fd: OwnedFd,
}

impl Process {
    /// The process that has `pid` now.
    ///
    /// # Errors
    /// There is none.
    pub fn open(pid: u32) -> io::Result<Self> {
        let raw = i32::try_from(pid).ok().and_then(Pid::from_raw);
        let raw = raw.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        Ok(Self { pid, fd: pidfd_open(raw, PidfdFlags::empty())? })
    }

    /// Its pid.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Whether it has not ended yet; a zombie has.
    pub fn is_alive(&self) -> bool {
        !self.ended_within(Duration::ZERO)
    }

    fn ended_within(&self, limit: Duration) -> bool {
        let timeout = Timespec { tv_sec: limit.as_secs() as i64, tv_nsec: 0 };
        let mut fds = [PollFd::new(&self.fd, PollFlags::IN)];
        poll(&mut fds, Some(&timeout)).is_ok_and(|ready| ready > 0)
    }

    /// Waits for its end, and reaps it if it is our child.
    pub async fn wait(&self) -> Exit {
        // Watching for readability registers the descriptor itself, so it is a copy that is registered.
        if let Ok(copy) = self.fd.try_clone()
            // SAFETY: an `OwnedFd` stays open, and the same, as long as the `AsyncFd` that owns it.
            && let Ok(watched) = unsafe { AsyncFd::register_with_interest(copy, Interest::READABLE) }
        {
            let _ = watched.readable().await;
        }
        self.reap()
    }

    fn reap(&self) -> Exit {
        match waitid(WaitId::PidFd(self.fd.as_fd()), WaitIdOptions::EXITED) {
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
    /// It has ended, or is not ours to signal.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        Ok(pidfd_send_signal(&self.fd, signal)?)
    }

    /// Ends it at once and waits until it has gone, for at most five seconds.
    pub fn kill_and_reap(&self) {
        let _ = self.signal(Signal::KILL);
        if self.ended_within(Duration::from_secs(5)) {
            self.reap();
        }
    }
}

/// The process with this pid that started then, on this boot; `None` where it has ended.
pub fn find(pid: u32, started: u64, boot: &str) -> Option<Process> {
    if boot != boot_id() {
        return None;
    }
    // The descriptor comes first: what it names cannot change any more while its start time is compared.
    let process = Process::open(pid).ok()?;
    (start_time(pid) == Some(started) && process.is_alive()).then_some(process)
}

/// When a process started, in clock ticks since boot (proc_pid_stat(5), field 22); `None` for one that has ended.
pub fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the command in parentheses, and may hold anything, even a parenthesis.
    let mut fields = stat.rsplit_once(") ")?.1.split(' ');
    let state = fields.next()?;
    (!matches!(state, "Z" | "X")).then(|| fields.nth(18)?.parse().ok())?
}

/// What tells this boot from all others.
pub fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .map(|id| id.trim().to_owned())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[tokio::test]
    async fn tells_how_a_child_ended() {
        for (script, exit) in [("exit 3", Exit::Code(3)), ("kill -9 $$", Exit::Signal(9))] {
            #[allow(clippy::zombie_processes)] // `wait` below is what is tested.
            let child = Command::new("sh").args(["-c", script]).spawn().unwrap();
            let process = Process::open(child.id()).unwrap();
            assert_eq!(process.wait().await, exit);
            assert!(!process.is_alive());
        }
    }

    #[tokio::test]
    async fn sees_the_end_of_a_process_that_is_not_its_child() {
        let script = "sleep 600 >/dev/null 2>&1 & echo $!";
        let output = Command::new("sh").args(["-c", script]).output().unwrap();
        let pid: u32 = String::from_utf8(output.stdout).unwrap().trim().parse().unwrap();
        let process = find(pid, start_time(pid).unwrap(), &boot_id()).unwrap();
        process.signal(Signal::KILL).unwrap();
        assert_eq!(process.wait().await, Exit::Unknown);
    }

    #[test]
    fn a_pid_that_was_used_again_is_not_the_same_process() {
        let own = std::process::id();
        let started = start_time(own).unwrap();
        assert!(find(own, started, &boot_id()).is_some());
        assert!(find(own, started + 1, &boot_id()).is_none());
        assert!(find(own, started, "another boot").is_none());
    }

    #[test]
    fn a_zombie_has_ended() {
        #[allow(clippy::zombie_processes)] // `reap` below is what is tested.
        let child = Command::new("true").spawn().unwrap();
        let process = Process::open(child.id()).unwrap();
        assert!(process.ended_within(Duration::from_secs(20)));
        assert_eq!(start_time(child.id()), None);
        process.reap();
    }
}
