//! The side that lends: all callers at once, and none of them is waited for.

use std::{
    collections::VecDeque,
    io::{self, Read},
    mem::MaybeUninit,
    os::{
        fd::{AsFd, FromRawFd},
        unix::net::{UnixListener, UnixStream},
    },
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    net::{
        SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg, sockopt::socket_peercred,
    },
};

use super::network::{ANSWER, Kind, opened};

/// How long nobody may ask until it ends.
const IDLE: Duration = Duration::from_secs(30);
/// How many may have said nothing yet. Whoever has something to ask does so at once; of more the oldest has to go.
const CALLERS: usize = 128;
/// How long no further one is accepted where the host has nothing left for it.
const PAUSE: Duration = Duration::from_millis(100);

/// Somebody who has not asked yet.
#[derive(Debug)]
struct Caller {
    stream: UnixStream,
    until: Instant,
}

/// What systemd listens at for this process (sd_listen_fds(3)); once.
pub fn listener() -> Option<UnixListener> {
    let fd = sd_notify::listen_fds().ok()?.next()?;
    // SAFETY: systemd has opened it for this process, which asks for it once and uses it nowhere else.
    let listener = unsafe { UnixListener::from_raw_fd(fd) };
    Some(listener).filter(|listener| listener.local_addr().is_ok())
}

/// Lends to whoever asks, as long as somebody does; for ever where `stays`. Only this process' own user is lent anything.
///
/// # Errors
/// The socket is no good.
pub fn lend(listener: &UnixListener, stays: bool) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let own = rustix::process::geteuid();
    // The oldest first, and so the one whose time is up first.
    let mut callers: VecDeque<Caller> = VecDeque::new();
    let mut paused: Option<Instant> = None;
    loop {
        let now = Instant::now();
        callers.retain(|caller| caller.until > now);
        let until = callers.front().map(|caller| caller.until).into_iter().chain(paused).min();
        let wait = match until {
            Some(until) => Some(until.saturating_duration_since(now)),
            None => (!stays).then_some(IDLE),
        };
        let wait = wait.and_then(|wait| Timespec::try_from(wait).ok());
        let takes = if paused.is_none() { PollFlags::IN } else { PollFlags::empty() };
        let mut fds = vec![PollFd::new(listener, takes)];
        fds.extend(callers.iter().map(|caller| PollFd::new(&caller.stream, PollFlags::IN)));
        match poll(&mut fds, wait.as_ref()) {
            Ok(0) if until.is_none() => return Ok(()),
            Ok(_) => {}
            Err(Errno::INTR) => continue,
            Err(error) => return Err(error.into()),
        }
        let mut ready: VecDeque<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        let another = ready.pop_front() == Some(true);
        callers.retain(|caller| {
            let asks = ready.pop_front() == Some(true);
            if asks && let Err(error) = answer(&caller.stream) {
                tracing::debug!("a caller was not answered: {error}");
            }
            !asks
        });
        let was_paused = paused.take_if(|until| *until <= Instant::now()).is_some();
        if !another && !was_paused {
            continue;
        }
        match listener.accept() {
            Ok((stream, _)) => {
                let is_own = socket_peercred(&stream).is_ok_and(|peer| peer.uid == own);
                if is_own && stream.set_nonblocking(true).is_ok() {
                    if callers.len() == CALLERS {
                        callers.pop_front();
                    }
                    callers.push_back(Caller { stream, until: Instant::now() + ANSWER });
                }
            }
            Err(error) if is_short(&error) => {
                if !was_paused {
                    tracing::warn!("nobody else can be lent anything for now: {error}");
                }
                // Whoever has not asked by now has waited long enough.
                callers.drain(..callers.len().div_ceil(2));
                paused = Some(Instant::now() + PAUSE);
            }
            // Gone before it was its turn, or already accepted.
            Err(error) if is_passing(&error) => {}
            Err(error) => return Err(error),
        }
    }
}

/// There is nothing left for a further descriptor (accept(2)).
fn is_short(error: &io::Error) -> bool {
    let short = [Errno::MFILE, Errno::NFILE, Errno::NOMEM, Errno::NOBUFS];
    short.iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

fn is_passing(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, Interrupted, WouldBlock};
    matches!(error.kind(), ConnectionAborted | Interrupted | WouldBlock)
}

/// Answers what was asked: there is something to be read, or nothing ever will be.
fn answer(mut stream: &UnixStream) -> io::Result<()> {
    let mut asked = [0];
    stream.read_exact(&mut asked)?;
    let found = match asked {
        [b'r'] => opened(Kind::Route),
        [b't'] => opened(Kind::Tun),
        _ => Err(Errno::INVAL.into()),
    };
    let errno = match &found {
        Ok(_) => 0,
        Err(error) => error.raw_os_error().unwrap_or(Errno::IO.raw_os_error()),
    };
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let fds: Vec<_> = found.iter().map(AsFd::as_fd).collect();
    if !fds.is_empty() {
        ancillary.push(SendAncillaryMessage::ScmRights(&fds));
    }
    let errno = errno.to_ne_bytes();
    let bytes = [io::IoSlice::new(&errno)];
    sendmsg(stream, &bytes, &mut ancillary, SendFlags::NOSIGNAL)?;
    Ok(())
}
