//! The server side of the network broker: serves all clients concurrently without waiting for any.

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

/// The idle time after which the broker exits.
const IDLE: Duration = Duration::from_secs(30);
/// The maximum number of clients that have not sent a request. Clients send it at once; beyond the
/// limit the oldest are dropped.
const CALLERS: usize = 128;
/// The pause in accepting clients if the host has no free descriptor.
const PAUSE: Duration = Duration::from_millis(100);

/// A client that has not sent its request.
#[derive(Debug)]
struct Caller {
    stream: UnixStream,
    until: Instant,
}

/// Returns the listening socket from systemd (sd_listen_fds(3)); only at the first call.
pub fn listener() -> Option<UnixListener> {
    let fd = sd_notify::listen_fds().ok()?.next()?;
    // SAFETY: systemd opened the descriptor for this process, which takes it only here and once.
    let listener = unsafe { UnixListener::from_raw_fd(fd) };
    Some(listener).filter(|listener| listener.local_addr().is_ok())
}

/// Serves clients until the idle timeout, or forever if `stays`. Only clients with this process's
/// UID get descriptors.
///
/// # Errors
/// The socket fails.
pub fn lend(listener: &UnixListener, stays: bool) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let own = rustix::process::geteuid();
    // Ordered by age, and therefore by timeout.
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
                tracing::debug!("cannot answer a client: {error}");
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
                    tracing::warn!("cannot accept clients of the network broker for now: {error}");
                }
                // The oldest clients without a request are dropped.
                callers.drain(..callers.len().div_ceil(2));
                paused = Some(Instant::now() + PAUSE);
            }
            // The client disconnected, or was accepted elsewhere.
            Err(error) if is_passing(&error) => {}
            Err(error) => return Err(error),
        }
    }
}

/// Returns true if the host has no free descriptor (accept(2)).
fn is_short(error: &io::Error) -> bool {
    let short = [Errno::MFILE, Errno::NFILE, Errno::NOMEM, Errno::NOBUFS];
    short.iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

fn is_passing(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, Interrupted, WouldBlock};
    matches!(error.kind(), ConnectionAborted | Interrupted | WouldBlock)
}

/// Answers a request; the stream is readable or closed.
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
