//! The operator's terminal: raw mode for consoles, restored afterwards in every case.

use std::{
    io::{self, IsTerminal, Read, Write},
    os::{fd::AsFd, unix::net::UnixStream},
    thread,
    time::Duration,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    process::getpgrp,
    termios::{
        OptionalActions, QueueSelector, Termios, tcflush, tcgetattr, tcgetpgrp, tcgetwinsize,
        tcsetattr,
    },
};
use tokio::sync::{mpsc, oneshot};

/// Standard input in raw mode; restored on drop, also after a panic.
#[derive(Debug)]
pub struct Raw {
    before: Termios,
}

impl Raw {
    /// Enters raw mode, in which every key, also Ctrl-C, is input. `None` if standard input is not
    /// a terminal.
    ///
    /// # Errors
    /// The terminal modes cannot be read or set.
    pub fn enter() -> io::Result<Option<Self>> {
        let stdin = io::stdin();
        if !stdin.is_terminal() {
            return Ok(None);
        }
        let before = tcgetattr(&stdin)?;
        let mut raw = before.clone();
        raw.make_raw();
        let guard = Self { before };
        tcsetattr(&stdin, OptionalActions::Now, &raw)?;
        Ok(Some(guard))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // A background process would be stopped (SIGTTOU), and the shell has already set its own
        // modes.
        let stdin = io::stdin();
        if tcgetpgrp(&stdin).is_ok_and(|group| group != getpgrp()) {
            return;
        }
        // Not after draining output, which never completes on a terminal stopped by Ctrl-S.
        let _ = tcsetattr(&stdin, OptionalActions::Now, &self.before);
        // Discard unread input, which was for the guest.
        let _ = tcflush(&stdin, QueueSelector::IFlush);
    }
}

/// The timeout for writing the last bytes to a terminal.
const LAST_WRITE: Duration = Duration::from_secs(1);

/// Standard output or standard error, written by a thread: a slow reader must not delay signal
/// handling, and a pipe shared with other programs must not be made non-blocking.
#[derive(Debug)]
pub struct Output {
    to: mpsc::Sender<Vec<u8>>,
    done: oneshot::Receiver<io::Result<()>>,
}

impl Output {
    /// Returns standard output.
    pub fn stdout() -> Self {
        Self::of(io::stdout())
    }

    /// Returns standard error.
    pub fn stderr() -> Self {
        Self::of(io::stderr())
    }

    fn of(mut stream: impl Write + Send + 'static) -> Self {
        let (to, mut from) = mpsc::channel::<Vec<u8>>(1);
        let (tell, done) = oneshot::channel();
        thread::spawn(move || {
            let mut written = Ok(());
            while let (Ok(()), Some(bytes)) = (&written, from.blocking_recv()) {
                written = stream.write_all(&bytes).and_then(|()| stream.flush());
            }
            let _ = tell.send(written);
        });
        Self { to, done }
    }

    /// Waits until the previous bytes are written, then writes.
    ///
    /// # Errors
    /// An earlier write failed.
    pub async fn write(&mut self, bytes: Vec<u8>) -> io::Result<()> {
        if self.to.send(bytes).await.is_ok() {
            return Ok(());
        }
        let done = (&mut self.done).await;
        Err(done.ok().and_then(Result::err).unwrap_or(io::ErrorKind::BrokenPipe.into()))
    }

    /// Waits until the next write does not wait.
    ///
    /// # Errors
    /// An earlier write failed.
    pub async fn has_room(&mut self) -> io::Result<()> {
        if self.to.reserve().await.is_ok() {
            return Ok(());
        }
        let done = (&mut self.done).await;
        Err(done.ok().and_then(Result::err).unwrap_or(io::ErrorKind::BrokenPipe.into()))
    }

    /// Writes the last bytes and waits until all is written, for a limited time on a stopped
    /// terminal.
    pub async fn finish_with(mut self, bytes: &[u8]) {
        let last = async {
            let _ = self.write(bytes.to_vec()).await;
            let _ = self.finish().await;
        };
        let _ = tokio::time::timeout(LAST_WRITE, last).await;
    }

    /// Waits until all is written.
    ///
    /// # Errors
    /// A write failed.
    pub async fn finish(self) -> io::Result<()> {
        drop(self.to);
        self.done.await.unwrap_or(Ok(()))
    }
}

/// Returns columns and rows of the terminal at standard output, if it is one.
pub fn size() -> Option<(u16, u16)> {
    let size = tcgetwinsize(io::stdout()).ok()?;
    (size.ws_col > 0 && size.ws_row > 0).then_some((size.ws_col, size.ws_row))
}

/// Returns true if this process is in the foreground of its terminal, which sends the signal of
/// Ctrl-C to all foreground processes.
pub fn is_in_foreground() -> bool {
    tcgetpgrp(io::stdin()).is_ok_and(|group| group == getpgrp())
}

/// The result of waiting for input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InputState {
    /// Input is available.
    Ready,
    /// The time limit expired.
    Nothing,
    /// The terminal hung up.
    HungUp,
}

/// Waits for input on standard input, at most `limit`.
///
/// # Errors
/// poll(2) fails.
pub fn wait_for_input(limit: Duration) -> io::Result<InputState> {
    let stdin = io::stdin();
    let mut fds = [PollFd::new(&stdin, PollFlags::IN)];
    let limit = Timespec::try_from(limit).map_err(io::Error::other)?;
    match poll(&mut fds, Some(&limit)) {
        Ok(_) | Err(Errno::INTR) => {}
        Err(error) => return Err(error.into()),
    }
    let found = fds[0].revents();
    Ok(match found.intersects(PollFlags::HUP | PollFlags::ERR | PollFlags::NVAL) {
        true => InputState::HungUp,
        false if found.contains(PollFlags::IN) => InputState::Ready,
        false => InputState::Nothing,
    })
}

/// Returns true if an operator can be asked: standard input and standard error are terminals.
pub fn is_interactive() -> bool {
    io::stdin().is_terminal() && io::stderr().is_terminal()
}

/// Asks on standard error and returns the line of the answer; `None` at the end of input, or if one
/// of `signals` arrives. Earlier input is discarded.
pub fn ask(question: &str, signals: &UnixStream) -> Option<String> {
    let mut earlier = [0; 64];
    while (&mut &*signals).read(&mut earlier).is_ok_and(|count| count > 0) {}
    let _ = write!(io::stderr(), "{question}");
    let stdin = io::stdin();
    let mut both = [
        PollFd::new(&stdin, PollFlags::IN),
        PollFd::from_borrowed_fd(signals.as_fd(), PollFlags::IN),
    ];
    loop {
        match poll(&mut both, None) {
            Err(Errno::INTR) => {}
            Err(_) => return None,
            Ok(_) if !both[1].revents().is_empty() => return None,
            Ok(_) => break,
        }
    }
    // A terminal returns whole lines.
    let mut answer = String::new();
    let read = stdin.read_line(&mut answer).ok()?;
    (read > 0).then(|| answer.trim().to_owned())
}

/// Returns the data from standard input; the channel is closed at its end. A thread reads, because
/// a file or a pipe shared with other programs must not be made non-blocking.
pub fn input() -> mpsc::Receiver<Vec<u8>> {
    let (to, from) = mpsc::channel(16);
    thread::spawn(move || {
        let mut bytes = [0; 4096];
        let mut stdin = io::stdin().lock();
        loop {
            match stdin.read(&mut bytes) {
                Ok(0) => break,
                Ok(n) if to.blocking_send(bytes[..n].to_vec()).is_err() => break,
                Err(error) if error.kind() != io::ErrorKind::Interrupted => break,
                Ok(_) | Err(_) => {}
            }
        }
    });
    from
}

/// The maximum number of bytes of one read.
pub const PIECE: usize = 32 << 10;

/// Data, or the error that ended the stream.
pub type Input = io::Result<Vec<u8>>;

/// Returns the data of a stream up to its end, in chunks of at most [`PIECE`] bytes; read by a
/// thread as in [`input`].
pub fn input_of(mut stream: impl Read + Send + 'static) -> mpsc::Receiver<Input> {
    let (to, from) = mpsc::channel(16);
    thread::spawn(move || {
        let mut bytes = vec![0; PIECE];
        loop {
            let read = match stream.read(&mut bytes) {
                Ok(0) => break,
                Ok(n) => Ok(bytes[..n].to_vec()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => Err(error),
            };
            let end = read.is_err();
            if to.blocking_send(read).is_err() || end {
                break;
            }
        }
    });
    from
}
