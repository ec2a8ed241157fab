//! The operator's terminal: raw while a console is shown, and as it was before afterwards, whatever happens.

use std::{
    io::{self, IsTerminal, Read, Write},
    os::{fd::AsFd, unix::net::UnixStream},
    thread,
};

use rustix::{
    event::{PollFd, PollFlags, poll},
    io::Errno,
    termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr},
};
use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM},
    low_level::pipe,
};
use tokio::{
    io::AsyncReadExt,
    net,
    sync::{mpsc, oneshot},
};

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
        // What was typed and not read was for the guest. A terminal that has gone needs nothing.
        let _ = tcsetattr(io::stdin(), OptionalActions::Flush, &self.before);
    }
}

/// SIGTERM, SIGHUP and SIGINT, as they come; they no longer end the process by themselves. One that whoever started this process
/// had it ignore is ignored still, as nohup(1) and `&` of a shell have it.
#[derive(Debug)]
pub struct Interrupts {
    queue: mpsc::Receiver<i32>,
}

impl Interrupts {
    /// Begins to catch them; needs a runtime.
    ///
    /// # Errors
    /// No more descriptors, or no handler.
    pub fn new() -> io::Result<Self> {
        let (sender, queue) = mpsc::channel(8);
        let ignored = ignored();
        for signal in [SIGTERM, SIGHUP, SIGINT] {
            if ignored >> (signal - 1) & 1 == 1 {
                continue;
            }
            let (read, write) = UnixStream::pair()?;
            read.set_nonblocking(true)?;
            pipe::register(signal, write)?;
            let (mut read, sender) = (net::UnixStream::from_std(read)?, sender.clone());
            tokio::spawn(async move {
                while read.read_u8().await.is_ok() {
                    if sender.send(signal).await.is_err() {
                        return;
                    }
                }
            });
        }
        Ok(Self { queue })
    }

    /// None will come.
    pub fn never() -> Self {
        Self { queue: mpsc::channel(1).1 }
    }

    /// The number of the next one.
    pub async fn next(&mut self) -> i32 {
        match self.queue.recv().await {
            Some(signal) => signal,
            None => std::future::pending().await,
        }
    }

    /// The number of one that has come already.
    pub fn pending(&mut self) -> Option<i32> {
        self.queue.try_recv().ok()
    }
}

/// The signals that this process ignores, a bit each (proc_pid_status(5)).
fn ignored() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    line.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or_default()
}

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

/// Readable once SIGTERM, SIGHUP or SIGINT came; they no longer end the process by themselves.
///
/// # Errors
/// No pipe, or no handler.
pub fn signals() -> io::Result<UnixStream> {
    let (read, write) = UnixStream::pair()?;
    for signal in [SIGTERM, SIGHUP, SIGINT] {
        pipe::register(signal, write.try_clone()?)?;
    }
    read.set_nonblocking(true)?;
    Ok(read)
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
