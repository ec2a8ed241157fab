//! The operator's session: how a verb that follows something learns that nobody follows the verb any more.
//!
//! A verb ends at SIGHUP, SIGTERM and SIGINT, at a terminal that is hung up, and at a standard output that nobody reads, also while the
//! verb prints nothing. One thread waits for the last two, without waking up for anything else.

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
/// How long the thread sleeps at most: not every hangup wakes a poll(2) that waits for nothing else.
const LOOK: Timespec = Timespec { tv_sec: 5, tv_nsec: 0 };

/// Why nobody follows the verb any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Vanished {
    /// A signal, by its number.
    Signal(i32),
    /// Standard input or output was a terminal, which is hung up.
    HungUp,
    /// Standard output is a pipe or a socket that nobody reads.
    NoReader,
}

impl Vanished {
    /// The number of the signal, or of the one that the kernel has for it: SIGHUP, SIGPIPE.
    pub fn signal(self) -> i32 {
        match self {
            Self::Signal(signal) => signal,
            Self::HungUp => SIGHUP,
            Self::NoReader => SIGPIPE,
        }
    }

    /// The exit code, as a shell has it of a process that the signal ended: 128 and its number.
    pub fn exit_code(self) -> u8 {
        u8::try_from(128 + self.signal()).unwrap_or(u8::MAX)
    }
}

/// The session, watched for as long as this lives.
#[derive(Debug)]
pub struct Session {
    queue: mpsc::Receiver<Vanished>,
    /// The terminal or the reader is gone: that is told once, however many signs of it come.
    is_gone: bool,
    /// One reads the pipe of each signal.
    tasks: Tasks,
}

impl Session {
    /// Watches standard input and output. Signals keep their default action, or stay ignored: for verbs that leave nothing behind.
    pub fn watch() -> Self {
        Self::begin().0
    }

    /// The same, and catches SIGTERM, SIGHUP and SIGINT, which no longer end the process. A signal that whoever started this process
    /// had it ignore stays ignored, as nohup(1) and `&` of a shell have it. Needs a runtime.
    ///
    /// # Errors
    /// No more descriptors, or no handler.
    pub fn catch() -> io::Result<Self> {
        let (mut session, sender) = Self::begin();
        for signal in SIGNALS.into_iter().filter(|signal| !is_ignored(*signal)) {
            let (read, write) = UnixStream::pair()?;
            read.set_nonblocking(true)?;
            pipe::register(signal, write)?;
            let (mut read, sender) = (net::UnixStream::from_std(read)?, sender.clone());
            session.tasks.spawn(async move {
                while read.read_u8().await.is_ok() {
                    if sender.send(Vanished::Signal(signal)).await.is_err() {
                        return;
                    }
                }
            });
        }
        Ok(session)
    }

    /// One that never ends.
    pub fn never() -> Self {
        Self { queue: mpsc::channel(1).1, is_gone: false, tasks: Tasks::default() }
    }

    fn begin() -> (Self, mpsc::Sender<Vanished>) {
        let (sender, queue) = mpsc::channel(8);
        let watched = watched();
        if !watched.is_empty() {
            let sender = sender.clone();
            // Without a thread the verb ends at signals, and when it prints.
            let _ = thread::Builder::new().name("session".into()).spawn(move || {
                if let Some(vanished) = until_vanished(&watched) {
                    let _ = sender.blocking_send(vanished);
                }
            });
        }
        (Self { queue, is_gone: false, tasks: Tasks::default() }, sender)
    }

    /// The next sign of the end; the second one asks for a faster end.
    pub async fn end(&mut self) -> Vanished {
        loop {
            match self.queue.recv().await {
                Some(vanished) if self.counts(vanished) => return vanished,
                Some(_) => {}
                None => std::future::pending().await,
            }
        }
    }

    /// A sign that has come already.
    pub fn ended(&mut self) -> Option<Vanished> {
        while let Ok(vanished) = self.queue.try_recv() {
            if self.counts(vanished) {
                return Some(vanished);
            }
        }
        None
    }

    /// A hangup of a terminal comes as SIGHUP, and shows at each descriptor.
    fn counts(&mut self, vanished: Vanished) -> bool {
        match vanished.signal() {
            SIGHUP | SIGPIPE => !std::mem::replace(&mut self.is_gone, true),
            _ => true,
        }
    }
}

/// Readable once SIGTERM, SIGHUP or SIGINT came; they no longer end the process by themselves. Ignored signals stay ignored.
///
/// # Errors
/// No pipe, or no handler.
pub fn signals() -> io::Result<UnixStream> {
    let (read, write) = UnixStream::pair()?;
    for signal in SIGNALS.into_iter().filter(|signal| !is_ignored(*signal)) {
        pipe::register(signal, write.try_clone()?)?;
    }
    read.set_nonblocking(true)?;
    Ok(read)
}

/// Whether this process ignores a signal (proc_pid_status(5)).
fn is_ignored(signal: i32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = line.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or_default();
    mask >> (signal - 1) & 1 == 1
}

/// The streams that can vanish, and what that is. Whoever ignores SIGHUP wants to outlive the terminal.
fn watched() -> Vec<(BorrowedFd<'static>, Vanished)> {
    let hangs_up = !is_ignored(SIGHUP);
    // Both live as long as the process.
    let (stdin, stdout) = (rustix::stdio::stdin(), rustix::stdio::stdout());
    let mut all = vec![];
    if hangs_up && io::stdin().is_terminal() {
        all.push((stdin, Vanished::HungUp));
    }
    match fstat(stdout).map(|found| FileType::from_raw_mode(found.st_mode)) {
        _ if io::stdout().is_terminal() => {
            all.extend(hangs_up.then_some((stdout, Vanished::HungUp)));
        }
        Ok(FileType::Fifo | FileType::Socket) => all.push((stdout, Vanished::NoReader)),
        // A file does not vanish.
        Ok(_) | Err(_) => {}
    }
    all
}

/// Waits until one of them vanishes; `None` where that cannot be told.
fn until_vanished(watched: &[(BorrowedFd<'static>, Vanished)]) -> Option<Vanished> {
    let none = PollFlags::empty();
    let mut fds: Vec<PollFd<'_>> =
        watched.iter().map(|(fd, _)| PollFd::from_borrowed_fd(fd.as_fd(), none)).collect();
    loop {
        match poll(&mut fds, Some(&LOOK)) {
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
    fn a_hangup_is_told_once_and_signals_each_time() {
        let (sender, queue) = mpsc::channel(8);
        let mut session = Session { queue, is_gone: false, tasks: Tasks::default() };
        let hup = Vanished::Signal(SIGHUP);
        for vanished in [Vanished::HungUp, hup, Vanished::NoReader, Vanished::Signal(SIGTERM)] {
            sender.try_send(vanished).unwrap();
        }
        assert_eq!(session.ended(), Some(Vanished::HungUp));
        assert_eq!(session.ended(), Some(Vanished::Signal(SIGTERM)));
        assert_eq!(session.ended(), None);
    }

    #[test]
    fn exit_codes_are_those_of_the_signals() {
        let all = [Vanished::Signal(SIGINT), Vanished::Signal(SIGTERM), Vanished::HungUp];
        assert_eq!(all.map(Vanished::exit_code), [130, 143, 129]);
        assert_eq!(Vanished::NoReader.exit_code(), 141);
    }
}
