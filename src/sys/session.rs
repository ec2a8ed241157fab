//! The operator's session: notifies a verb that runs until interrupted when the operator is gone.
//!
//! A verb ends at SIGHUP, SIGTERM and SIGINT, when its terminal hangs up, and when the reader of
//! its standard output closes it, even while the verb prints nothing. One thread waits for the last
//! two without polling often.

use std::{
    io::{self, IsTerminal},
    os::{
        fd::{AsFd, BorrowedFd},
        unix::net::UnixStream,
    },
    thread,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::{FileType, fstat},
    io::Errno,
};
use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGPIPE, SIGTERM},
    low_level::pipe,
};
use tokio::{io::AsyncReadExt, net, sync::mpsc};

use super::tasks::Tasks;

/// The signals that end a verb.
const SIGNALS: [i32; 3] = [SIGTERM, SIGHUP, SIGINT];
/// The poll interval of the thread: not every hangup wakes a poll(2) without other events.
const POLL_INTERVAL: Timespec = Timespec { tv_sec: 5, tv_nsec: 0 };

/// Why the session ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SessionEnd {
    /// This signal was received.
    Signal(i32),
    /// The terminal of standard input or output hung up.
    HungUp,
    /// Standard output is a pipe or socket without a reader.
    NoReader,
}

impl SessionEnd {
    /// Returns the signal number; SIGHUP or SIGPIPE for the other causes.
    pub fn signal(self) -> i32 {
        match self {
            Self::Signal(signal) => signal,
            Self::HungUp => SIGHUP,
            Self::NoReader => SIGPIPE,
        }
    }

    /// Returns the exit code as in a shell: 128 plus the signal number.
    pub fn exit_code(self) -> u8 {
        u8::try_from(128 + self.signal()).unwrap_or(u8::MAX)
    }
}

/// Watches the session until it is dropped.
#[derive(Debug)]
pub struct Session {
    queue: mpsc::Receiver<SessionEnd>,
    /// The end of the terminal or the reader is reported only once.
    is_gone: bool,
    /// One task reads the pipe of each signal.
    tasks: Tasks,
}

impl Session {
    /// Watches standard input and output, without changing signals: for verbs that need no cleanup.
    pub fn watch() -> Self {
        Self::begin().0
    }

    /// Also catches SIGTERM, SIGHUP and SIGINT, which then do not end the process. A signal that is
    /// ignored, as by nohup(1) and `&` of a shell, remains ignored. Requires a runtime.
    ///
    /// # Errors
    /// No free descriptor, or a handler cannot be installed.
    pub fn catch() -> io::Result<Self> {
        let (mut session, sender) = Self::begin();
        for signal in SIGNALS.into_iter().filter(|signal| !is_ignored(*signal)) {
            let (read, write) = UnixStream::pair()?;
            read.set_nonblocking(true)?;
            pipe::register(signal, write)?;
            let (mut read, sender) = (net::UnixStream::from_std(read)?, sender.clone());
            session.tasks.spawn(async move {
                while read.read_u8().await.is_ok() {
                    if sender.send(SessionEnd::Signal(signal)).await.is_err() {
                        return;
                    }
                }
            });
        }
        Ok(session)
    }

    /// Returns a session that never ends.
    pub fn never() -> Self {
        Self { queue: mpsc::channel(1).1, is_gone: false, tasks: Tasks::default() }
    }

    fn begin() -> (Self, mpsc::Sender<SessionEnd>) {
        let (sender, queue) = mpsc::channel(8);
        let watched = watched();
        if !watched.is_empty() {
            let sender = sender.clone();
            // Without a thread the verb ends at signals and at its next output.
            let _ = thread::Builder::new().name("session".into()).spawn(move || {
                if let Some(vanished) = wait_for_hangup(&watched) {
                    let _ = sender.blocking_send(vanished);
                }
            });
        }
        (Self { queue, is_gone: false, tasks: Tasks::default() }, sender)
    }

    /// Waits for the next cause to end; a second one asks for a faster end.
    pub async fn end(&mut self) -> SessionEnd {
        loop {
            match self.queue.recv().await {
                Some(vanished) if self.counts(vanished) => return vanished,
                Some(_) => {}
                None => std::future::pending().await,
            }
        }
    }

    /// Returns a cause that has already occurred.
    pub fn ended(&mut self) -> Option<SessionEnd> {
        while let Ok(vanished) = self.queue.try_recv() {
            if self.counts(vanished) {
                return Some(vanished);
            }
        }
        None
    }

    /// A hangup is signaled by SIGHUP and also visible on each descriptor.
    fn counts(&mut self, vanished: SessionEnd) -> bool {
        match vanished.signal() {
            SIGHUP | SIGPIPE => !std::mem::replace(&mut self.is_gone, true),
            _ => true,
        }
    }
}

/// Returns a socket that becomes readable at SIGTERM, SIGHUP or SIGINT, which then do not end the
/// process. Ignored signals remain ignored.
///
/// # Errors
/// The socket or a handler cannot be created.
pub fn signals() -> io::Result<UnixStream> {
    let (read, write) = UnixStream::pair()?;
    for signal in SIGNALS.into_iter().filter(|signal| !is_ignored(*signal)) {
        pipe::register(signal, write.try_clone()?)?;
    }
    read.set_nonblocking(true)?;
    Ok(read)
}

/// Returns true if this process ignores a signal (proc_pid_status(5)).
fn is_ignored(signal: i32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = line.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or_default();
    mask >> (signal - 1) & 1 == 1
}

/// Returns the streams that can hang up. If SIGHUP is ignored, the terminal is not watched.
fn watched() -> Vec<(BorrowedFd<'static>, SessionEnd)> {
    let hangs_up = !is_ignored(SIGHUP);
    // Both are open as long as the process.
    let (stdin, stdout) = (rustix::stdio::stdin(), rustix::stdio::stdout());
    let mut all = vec![];
    if hangs_up && io::stdin().is_terminal() {
        all.push((stdin, SessionEnd::HungUp));
    }
    match fstat(stdout).map(|found| FileType::from_raw_mode(found.st_mode)) {
        _ if io::stdout().is_terminal() => {
            all.extend(hangs_up.then_some((stdout, SessionEnd::HungUp)));
        }
        Ok(FileType::Fifo | FileType::Socket) => all.push((stdout, SessionEnd::NoReader)),
        // A regular file does not hang up.
        Ok(_) | Err(_) => {}
    }
    all
}

/// Waits until a stream hangs up; `None` on errors.
fn wait_for_hangup(watched: &[(BorrowedFd<'static>, SessionEnd)]) -> Option<SessionEnd> {
    let none = PollFlags::empty();
    let mut fds: Vec<PollFd<'_>> =
        watched.iter().map(|(fd, _)| PollFd::from_borrowed_fd(fd.as_fd(), none)).collect();
    loop {
        match poll(&mut fds, Some(&POLL_INTERVAL)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(_) => return None,
        }
        for (fd, (_, vanished)) in fds.iter().zip(watched) {
            if fd.revents().contains(PollFlags::NVAL) {
                return None;
            }
            if fd.revents().intersects(PollFlags::HUP | PollFlags::ERR) {
                return Some(*vanished);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hangup_is_reported_once_and_signals_always() {
        let (sender, queue) = mpsc::channel(8);
        let mut session = Session { queue, is_gone: false, tasks: Tasks::default() };
        let hup = SessionEnd::Signal(SIGHUP);
        for vanished in [SessionEnd::HungUp, hup, SessionEnd::NoReader, SessionEnd::Signal(SIGTERM)]
        {
            sender.try_send(vanished).unwrap();
        }
        assert_eq!(session.ended(), Some(SessionEnd::HungUp));
        assert_eq!(session.ended(), Some(SessionEnd::Signal(SIGTERM)));
        assert_eq!(session.ended(), None);
    }

    #[test]
    fn exit_codes_follow_signals() {
        let all = [SessionEnd::Signal(SIGINT), SessionEnd::Signal(SIGTERM), SessionEnd::HungUp];
        assert_eq!(all.map(SessionEnd::exit_code), [130, 143, 129]);
        assert_eq!(SessionEnd::NoReader.exit_code(), 141);
    }
}
