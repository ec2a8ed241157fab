//! The operator's terminal: raw while a console is shown, and as it was before afterwards, whatever happens.

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

/// Standard input in raw mode for as long as this lives, also through a panic.
#[derive(Debug)]
pub struct Raw {
    before: Termios,
}

impl Raw {
    /// Every key goes to whoever reads, Ctrl-C too. `None` where standard input is no terminal.
    ///
    /// # Errors
    /// The terminal's modes cannot be read or set.
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
        // A process in the background has lost the terminal to the shell, which has set its own modes, and would be stopped (SIGTTOU).
        let stdin = io::stdin();
        if tcgetpgrp(&stdin).is_ok_and(|group| group != getpgrp()) {
            return;
        }
        // Not after the output is drained, which a terminal that is held (Ctrl-S) never is.
        let _ = tcsetattr(&stdin, OptionalActions::Now, &self.before);
        // What was typed and not read was for the guest.
        let _ = tcflush(&stdin, QueueSelector::IFlush);
    }
}

/// How long a terminal may take for the last bytes.
const LAST_WRITE: Duration = Duration::from_secs(1);

/// Standard output or standard error. A thread writes: who does not read must not hold up whoever has to hear a signal, and a
/// pipe that is shared with other programs must not be made non-blocking.
#[derive(Debug)]
pub struct Output {
    to: mpsc::Sender<Vec<u8>>,
    done: oneshot::Receiver<io::Result<()>>,
}

impl Output {
    /// Standard output.
    pub fn stdout() -> Self {
        Self::of(io::stdout())
    }

    /// Standard error.
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

    /// Writes, when what was given before last has been written.
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

    /// Returns when the next write does not wait.
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

    /// Writes the last bytes and waits until all is written, but not for a terminal that is held.
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

/// Columns and rows of the terminal that standard output is, if it is one.
pub fn size() -> Option<(u16, u16)> {
    let size = tcgetwinsize(io::stdout()).ok()?;
    (size.ws_col > 0 && size.ws_row > 0).then_some((size.ws_col, size.ws_row))
}

/// Whether this process is in the foreground of its terminal, which sends the signals of Ctrl-C to all processes there.
pub fn is_in_foreground() -> bool {
    tcgetpgrp(io::stdin()).is_ok_and(|group| group == getpgrp())
}

/// What came of a wait for input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Waited {
    /// There is something to read.
    Ready,
    /// There is nothing yet.
    Nothing,
    /// The terminal is hung up.
    HungUp,
}

/// Waits until there is something to read on standard input, for at most `limit`.
///
/// # Errors
/// It cannot be waited for.
pub fn wait_for_input(limit: Duration) -> io::Result<Waited> {
    let stdin = io::stdin();
    let mut fds = [PollFd::new(&stdin, PollFlags::IN)];
    let limit = Timespec::try_from(limit).map_err(io::Error::other)?;
    match poll(&mut fds, Some(&limit)) {
        Ok(_) | Err(Errno::INTR) => {}
        Err(error) => return Err(error.into()),
    }
    let found = fds[0].revents();
    Ok(match found.intersects(PollFlags::HUP | PollFlags::ERR | PollFlags::NVAL) {
        true => Waited::HungUp,
        false if found.contains(PollFlags::IN) => Waited::Ready,
        false => Waited::Nothing,
    })
}

/// Whether there is somebody who can be asked: on standard input, and who sees standard error.
pub fn is_there() -> bool {
    io::stdin().is_terminal() && io::stderr().is_terminal()
}

/// Asks on standard error, and returns the line that is answered; `None` at the end of the input, or where one of `signals`
/// came instead. What came before is not for this question.
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
    // A terminal gives whole lines.
    let mut answer = String::new();
    let read = stdin.read_line(&mut answer).ok()?;
    (read > 0).then(|| answer.trim().to_owned())
}

/// What comes in on standard input, as it comes; closed at its end. A thread reads: a file or a pipe that is
/// shared with other programs must not be made non-blocking.
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

/// How much is read at once, in bytes.
pub const PIECE: usize = 32 << 10;

/// What was read, or why nothing can be any more.
pub type Input = io::Result<Vec<u8>>;

/// What comes in on a stream, to its end, in pieces of at most [`PIECE`]; read by a thread, as by [`input`].
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
