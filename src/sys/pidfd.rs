//! A process that is watched and signalled by descriptor, child or not: the pid cannot come to mean another process.

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

/// How long init may take to reap a process that is not our child, before its status is given up.
const REAPED_WITHIN: Duration = Duration::from_millis(100);

nix::ioctl_readwrite_bad!(
    /// What the kernel keeps of a process for as long as a pidfd is open; its exit status since Linux 6.15.
    pidfd_get_info,
    PIDFD_GET_INFO,
    pidfd_info
);

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// By itself, with this code.
    Code(i32),
    /// By this signal.
    Signal(i32),
    /// It was not our child, and the kernel is older than 6.15: nobody can tell.
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

    /// Waits for its end, and reaps it if it is our child.
    pub async fn wait(&self) -> Exit {
        // Watching for readability registers the descriptor itself, so it is a copy that is registered.
        if let Ok(copy) = self.fd.try_clone()
            && let Ok(watched) = readable(Arc::new(copy))
        {
            // A pidfd becomes readable when the process ends, pidfd_open(2).
            if let Ok(mut ready) = watched.readable().await {
                ready.clear_ready();
            }
            return match self.reap() {
                Exit::Unknown => told_afterwards(&watched).await,
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

/// The status of an ended process that is another's child: the kernel tells it once that one has reaped it, and wakes
/// the descriptor a second time then.
async fn told_afterwards(watched: &AsyncFd<Arc<OwnedFd>>) -> Exit {
    let reaped = async {
        loop {
            match info(watched.get_ref()) {
                // ESRCH: ended, not reaped, or not told by this kernel.
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

/// The exit status that is kept with the descriptor; `None` while there is none.
fn info(fd: &OwnedFd) -> nix::Result<Option<Exit>> {
    // SAFETY: a pidfd_info is integers only: all zeros is one of its values.
    let mut info: pidfd_info = unsafe { std::mem::zeroed() };
    info.mask = PIDFD_INFO_EXIT.into();
    // SAFETY: the descriptor is open, and the request names the size of this very type, which outlives the call.
    unsafe { pidfd_get_info(fd.as_raw_fd(), &raw mut info) }?;
    let told = info.mask & u64::from(PIDFD_INFO_EXIT) != 0;
    let status = ExitStatus::from_raw(info.exit_code);
    let signal = || status.signal().map(Exit::Signal);
    Ok(told.then(|| status.code().map(Exit::Code).or_else(signal).unwrap_or(Exit::Unknown)))
}

/// The process with this pid that started then, on this boot; `None` where it is proven to have ended.
///
/// # Errors
/// It is not known whether it has ended.
pub fn find(pid: u32, started: u64, boot: &str) -> io::Result<Option<Process>> {
    if boot != boot_id()? {
        return Ok(None);
    }
    // The descriptor comes first: what it names cannot change any more while its start time is compared.
    let process = match Process::open(pid) {
        Ok(process) => process,
        // EINVAL, since Linux 6.16 ENOENT: the pid is that of a thread, so no process has it.
        Err(error) => match error.raw_os_error().map(Errno::from_raw_os_error) {
            Some(Errno::SRCH | Errno::INVAL | Errno::NOENT) => return Ok(None),
            _ => return Err(error),
        },
    };
    let is_same = match start_time(pid) {
        Ok(time) => time == started,
        // The entry in /proc goes with the process.
        Err(_) if !process.is_alive() => false,
        Err(error) => return Err(error),
    };
    Ok((is_same && process.is_alive()).then_some(process))
}

/// When a process started, in clock ticks since boot (proc_pid_stat(5), field 22). A process that has ended has one until it is reaped.
///
/// # Errors
/// There is no such process, or its start time cannot be read.
pub fn start_time(pid: u32) -> io::Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The second field is the command in parentheses, and may hold anything, even a parenthesis.
    let field = stat.rsplit_once(") ").and_then(|(_, fields)| fields.split(' ').nth(19));
    let malformed =
        || io::Error::new(io::ErrorKind::InvalidData, "no start time in /proc/PID/stat");
    field.and_then(|field| field.parse().ok()).ok_or_else(malformed)
}

/// What tells this boot from all others.
///
/// # Errors
/// It cannot be read.
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
        let process = find(pid, start_time(pid).unwrap(), &boot_id().unwrap()).unwrap().unwrap();
        process.signal(Signal::KILL).unwrap();
        // `Unknown` on Linux older than 6.15, and where PID 1 does not reap within 100 ms.
        let exit = process.wait().await;
        assert!(matches!(exit, Exit::Signal(9) | Exit::Unknown), "{exit:?}");
    }

    #[test]
    fn a_pid_that_was_used_again_is_not_the_same_process() {
        let own = std::process::id();
        let started = start_time(own).unwrap();
        let boot = boot_id().unwrap();
        assert!(find(own, started, &boot).unwrap().is_some());
        assert!(find(own, started + 1, &boot).unwrap().is_none());
        assert!(find(own, started, "another boot").unwrap().is_none());
    }

    #[test]
    fn pid_of_a_thread_is_no_process() {
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
        assert!(find(0, 1, &boot_id().unwrap()).is_err(), "no pid at all");
    }

    #[test]
    fn a_part_of_a_second_is_waited_for() {
        let mut child = Command::new("sleep").arg("600").spawn().unwrap();
        let process = Process::open(child.id()).unwrap();
        let (begun, limit) = (Instant::now(), Duration::from_millis(50));
        assert!(!process.ended_within(limit));
        assert!(begun.elapsed() >= limit);
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn a_zombie_has_ended() {
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
