//! Connects to the first responding address of a host (RFC 8305, "Happy Eyeballs").
//!
//! A network that drops all IPv6 packets must not delay a host that is reachable by IPv4: the next
//! address is tried while earlier attempts are still pending.

use std::{
    io,
    net::{SocketAddr, TcpStream},
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    net::{AddressFamily, SocketFlags, SocketType, connect, socket_with, sockopt},
};

/// The delay before the next address is tried in parallel (RFC 8305, section 8).
const STAGGER: Duration = Duration::from_millis(250);

/// The maximum time between two calls of `goes_on`.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// Connects to one of the addresses within `limit`. `goes_on` is called at least every 100 ms.
///
/// # Errors
/// The error of the last failed address; `TimedOut` with the addresses if none responded;
/// `Interrupted` if `goes_on` returned false.
pub(crate) fn connect_to_any(
    addresses: &[SocketAddr],
    limit: Duration,
    goes_on: impl Fn() -> bool,
) -> io::Result<TcpStream> {
    let deadline = Instant::now() + limit;
    let mut waiting: Vec<OwnedFd> = Vec::new();
    let mut left = interleaved(addresses).into_iter();
    let mut next_at = Instant::now();
    let mut failed = None;
    loop {
        let now = Instant::now();
        // After a failure the next address is tried at once.
        if (now >= next_at || waiting.is_empty())
            && let Some(address) = left.next()
        {
            match begin(address) {
                Ok(socket) => waiting.push(socket),
                Err(error) => failed = Some(error),
            }
            next_at = now + STAGGER;
            continue;
        }
        if waiting.is_empty() {
            let none =
                || io::Error::new(io::ErrorKind::AddrNotAvailable, "the host has no address");
            return Err(failed.unwrap_or_else(none));
        }
        if now >= deadline {
            return Err(io::Error::new(io::ErrorKind::TimedOut, no_answer(addresses, limit)));
        }
        if !goes_on() {
            return Err(io::ErrorKind::Interrupted.into());
        }
        let until = if left.len() > 0 { deadline.min(next_at) } else { deadline };
        match ready(&mut waiting, until.saturating_duration_since(now).min(POLL_INTERVAL))? {
            Some(Ok(stream)) => return Ok(stream),
            Some(Err(error)) => {
                failed = Some(error);
                next_at = now;
            }
            None => {}
        }
    }
}

fn no_answer(addresses: &[SocketAddr], limit: Duration) -> String {
    let tried: Vec<String> = addresses.iter().map(|address| address.ip().to_string()).collect();
    format!("no answer within {} s from {}", limit.as_secs_f32(), tried.join(", "))
}

/// Returns the addresses with alternating families, beginning with that of the first.
fn interleaved(addresses: &[SocketAddr]) -> Vec<SocketAddr> {
    let first = addresses.first().is_some_and(SocketAddr::is_ipv6);
    let (one, other): (Vec<_>, Vec<_>) = addresses.iter().partition(|a| a.is_ipv6() == first);
    let longest = one.len().max(other.len());
    (0..longest).flat_map(|n| [one.get(n), other.get(n)]).flatten().copied().collect()
}

fn begin(address: SocketAddr) -> io::Result<OwnedFd> {
    let family = if address.is_ipv6() { AddressFamily::INET6 } else { AddressFamily::INET };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = socket_with(family, SocketType::STREAM, flags, None)?;
    match connect(&socket, &address) {
        Ok(()) | Err(rustix::io::Errno::INPROGRESS) => Ok(socket),
        Err(error) => Err(error.into()),
    }
}

/// Removes and returns the first socket with a result; `None` on timeout.
fn ready(waiting: &mut Vec<OwnedFd>, time: Duration) -> io::Result<Option<io::Result<TcpStream>>> {
    let mut polled: Vec<PollFd<'_>> =
        waiting.iter().map(|socket| PollFd::new(socket, PollFlags::OUT)).collect();
    let time = Timespec { tv_sec: time.as_secs() as _, tv_nsec: time.subsec_nanos() as _ };
    match poll(&mut polled, Some(&time)) {
        Ok(_) => {}
        Err(rustix::io::Errno::INTR) => return Ok(None),
        Err(error) => return Err(error.into()),
    }
    let Some(at) = polled.iter().position(|one| !one.revents().is_empty()) else { return Ok(None) };
    drop(polled);
    let socket = waiting.remove(at);
    Ok(Some(match sockopt::socket_error(&socket)? {
        Ok(()) => {
            let stream = TcpStream::from(socket);
            stream.set_nonblocking(false).map(|()| stream)
        }
        Err(error) => Err(error.into()),
    }))
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn families_alternate() {
        let all = ["[::1]:1", "[::2]:1", "1.1.1.1:1", "[::3]:1", "2.2.2.2:1"].map(at);
        let expected = ["[::1]:1", "1.1.1.1:1", "[::2]:1", "2.2.2.2:1", "[::3]:1"].map(at);
        assert_eq!(interleaved(&all), expected);
        assert_eq!(interleaved(&[]), []);
    }

    /// A listener with a full queue drops further packets, like a network that drops packets.
    fn dropping_listener() -> (OwnedFd, Vec<TcpStream>, SocketAddr) {
        let socket =
            socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::CLOEXEC, None)
                .unwrap();
        rustix::net::bind(&socket, &at("127.0.0.1:0")).unwrap();
        rustix::net::listen(&socket, 0).unwrap();
        let address: SocketAddr = rustix::net::getsockname(&socket).unwrap().try_into().unwrap();
        let wait = Duration::from_millis(300);
        let full = std::iter::from_fn(|| TcpStream::connect_timeout(&address, wait).ok());
        let full: Vec<TcpStream> = full.take(64).collect();
        assert!(full.len() < 64, "the queue is not full");
        (socket, full, address)
    }

    #[test]
    fn unresponsive_address_does_not_delay() {
        let (_socket, _full, swallowed) = dropping_listener();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let good = listener.local_addr().unwrap();
        // Sequentially, the second would never be tried.
        let long = Duration::from_secs(60);
        let stream = connect_to_any(&[swallowed, good], long, || true).unwrap();
        assert_eq!(stream.peer_addr().unwrap(), good);
    }

    #[test]
    fn unresponsive_addresses_are_named() {
        let (_socket, _full, swallowed) = dropping_listener();
        let error = connect_to_any(&[swallowed], Duration::from_millis(400), || true).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(error.to_string().ends_with("from 127.0.0.1"), "{error}");
        let called_off = connect_to_any(&[swallowed], Duration::from_secs(600), || false);
        assert_eq!(called_off.unwrap_err().kind(), io::ErrorKind::Interrupted);
    }

    #[test]
    fn refused_addresses_are_an_error() {
        let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let long = Duration::from_secs(600);
        let error = connect_to_any(&[closed, closed], long, || true).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        assert!(connect_to_any(&[], long, || true).is_err());
    }
}
