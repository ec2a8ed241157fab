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
use tokio::sync::mpsc;

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
