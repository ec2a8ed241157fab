//! One run of a child process: reads its pipes, waits for its end, and kills its group at a limit.

use std::{
    io::{self, ErrorKind, Read},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::{net::UnixStream, process::CommandExt},
    },
    path::Path,
    process::{Child, ChildStderr, ChildStdout, Command, ExitStatus},
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    process::{
        Pid, PidfdFlags, Signal, getppid, kill_process_group, pidfd_open,
        set_parent_process_death_signal,
    },
};

use super::error::Error;

/// How often a caller's closure is asked whether the run continues.
const ASK_EVERY: Duration = Duration::from_millis(100);
/// How long the end of a killed process is awaited: one that waits for storage cannot be killed.
const KILLED_WITHIN: Duration = Duration::from_secs(1);

/// The bounds of a run.
pub(super) struct Limits {
    pub(super) time: Option<Duration>,
    /// In bytes, of each pipe.
    pub(super) output: usize,
}

/// How a run can be canceled.
pub(super) enum Cancel<'a> {
    Never,
    /// The closure returns false.
    Unless(&'a mut dyn FnMut() -> bool),
    /// The other end of the socket is closed.
    Dropped(UnixStream),
}

/// Runs a command that is fully configured. Returns how it ended, standard output and error.
pub(super) fn run(
    command: &mut Command,
    command_line: &str,
    limits: &Limits,
    mut cancel: Cancel<'_>,
) -> Result<(ExitStatus, Vec<u8>, Vec<u8>), Error> {
    let program = Path::new(command.get_program()).to_owned();
    let failed = |source| Error::Run { program: program.clone(), source };
    let canceled = || Error::Canceled { command: command_line.to_owned() };
    let ends = limits.time.map(|limit| Instant::now() + limit);
    if cancel.is_due() {
        return Err(canceled());
    }
    end_with_thread(command);
    let mut running = Running::spawn(command).map_err(failed)?;
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    loop {
        let left = ends.map(|ends| ends.saturating_duration_since(Instant::now()));
        let wait = match &cancel {
            Cancel::Unless(_) => Some(left.map_or(ASK_EVERY, |left| left.min(ASK_EVERY))),
            Cancel::Never | Cancel::Dropped(_) => left,
        };
        running.wait(&cancel, wait).map_err(failed)?;
        let ended = running.has_ended();
        running.read_pipes(&mut stdout, &mut stderr, limits.output).map_err(failed)?;
        if stdout.len() > limits.output {
            let command = command_line.to_owned();
            return Err(Error::OutputTooLong { command, limit: limits.output });
        }
        if ended {
            // The rest of the pipes was read after the exit. A child process of the program may
            // still have them open and is not waited for.
            return Ok((running.child.wait().map_err(failed)?, stdout, stderr));
        }
        if cancel.is_due() {
            return Err(canceled());
        }
        if let Some(limit) = limits.time
            && ends.is_some_and(|ends| Instant::now() >= ends)
        {
            return Err(Error::TimedOut { command: command_line.to_owned(), limit });
        }
    }
}

impl Cancel<'_> {
    fn is_due(&mut self) -> bool {
        match self {
            Self::Never => false,
            Self::Unless(goes_on) => !goes_on(),
            Self::Dropped(socket) => is_ready(socket.as_fd(), Duration::ZERO),
        }
    }
}

/// A child process. Its group is killed when this is dropped before its end is known.
struct Running {
    child: Child,
    pidfd: OwnedFd,
    stdout: Option<ChildStdout>,
    stderr: Option<ChildStderr>,
}

impl Running {
    fn spawn(command: &mut Command) -> io::Result<Self> {
        let mut child = command.spawn()?;
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        let pidfd = pid.ok_or(Errno::SRCH).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()));
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let pidfd = match pidfd {
            Ok(pidfd) => pidfd,
            Err(error) => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(error.into());
            }
        };
        let running = Self { child, pidfd, stdout, stderr };
        if let Some(pipe) = &running.stdout {
            rustix::io::ioctl_fionbio(pipe, true)?;
        }
        if let Some(pipe) = &running.stderr {
            rustix::io::ioctl_fionbio(pipe, true)?;
        }
        Ok(running)
    }

    /// Waits for output, the end of the process or of the caller's interest; `None`: without limit.
    fn wait(&self, cancel: &Cancel<'_>, limit: Option<Duration>) -> io::Result<()> {
        let mut fds = vec![PollFd::new(&self.pidfd, PollFlags::IN)];
        fds.extend(self.stdout.iter().map(|pipe| PollFd::new(pipe, PollFlags::IN)));
        fds.extend(self.stderr.iter().map(|pipe| PollFd::new(pipe, PollFlags::IN)));
        if let Cancel::Dropped(socket) = cancel {
            fds.push(PollFd::new(socket, PollFlags::IN));
        }
        match poll(&mut fds, limit.map(timespec).as_ref()) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn has_ended(&self) -> bool {
        is_ready(self.pidfd.as_fd(), Duration::ZERO)
    }

    /// Reads what the pipes contain now. Beyond `limit` bytes, standard error is read and its
    /// middle part dropped, so that the process never blocks on a full pipe.
    fn read_pipes(
        &mut self,
        stdout: &mut Vec<u8>,
        stderr: &mut Vec<u8>,
        limit: usize,
    ) -> io::Result<()> {
        if let Some(pipe) = &mut self.stdout
            && read_available(pipe, stdout, |bytes| bytes.len() > limit)?
        {
            self.stdout = None;
        }
        let drop_middle = |bytes: &mut Vec<u8>| {
            if bytes.len() > limit {
                let surplus = bytes.len() - limit;
                bytes.drain(limit / 2..limit / 2 + surplus);
            }
            false
        };
        if let Some(pipe) = &mut self.stderr
            && read_available(pipe, stderr, drop_middle)?
        {
            self.stderr = None;
        }
        Ok(())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // The pid is the child's until it is reaped, so the group is the child's too.
        if matches!(self.child.try_wait(), Ok(None))
            && let Some(group) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw)
        {
            let _ = kill_process_group(group, Signal::KILL);
            if is_ready(self.pidfd.as_fd(), KILLED_WITHIN) {
                let _ = self.child.wait();
            }
        }
    }
}

/// Reads until the pipe is empty, or `is_full` returns true; whether it is closed.
fn read_available(
    pipe: &mut impl Read,
    bytes: &mut Vec<u8>,
    mut is_full: impl FnMut(&mut Vec<u8>) -> bool,
) -> io::Result<bool> {
    let mut buffer = [0; 16 << 10];
    // More than a pipe contains. A process that writes without end must not hide its time limit.
    for _ in 0..64 {
        match pipe.read(&mut buffer) {
            Ok(0) => return Ok(true),
            Ok(length) => {
                bytes.extend_from_slice(&buffer[..length]);
                if is_full(bytes) {
                    return Ok(false);
                }
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(false)
}

fn timespec(limit: Duration) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(limit.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: limit.subsec_nanos().into(),
    }
}

/// Whether the descriptor becomes readable or is hung up within the limit.
fn is_ready(fd: BorrowedFd<'_>, limit: Duration) -> bool {
    let ends = Instant::now() + limit;
    loop {
        let left = ends.saturating_duration_since(Instant::now());
        match poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&timespec(left))) {
            Err(Errno::INTR) => {}
            ready => return ready.is_ok_and(|ready| ready > 0),
        }
    }
}

/// Makes the kernel kill the child when the waiting thread ends: its result is not needed then, and
/// the next start would find its files in use (PR_SET_PDEATHSIG(2const)).
fn end_with_thread(command: &mut Command) {
    let parent = std::process::id();
    // SAFETY: between fork and exec only async-signal-safe calls are allowed: these are bare system
    // calls, and nothing is allocated.
    unsafe {
        command.pre_exec(move || {
            set_parent_process_death_signal(Some(Signal::KILL))?;
            // The parent may have died before that call.
            if getppid().is_none_or(|pid| pid.as_raw_nonzero().get().cast_unsigned() != parent) {
                nix::libc::_exit(1);
            }
            Ok(())
        });
    }
}
