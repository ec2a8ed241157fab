//! Descriptors of the host's network. A supervisor whose unit has a network namespace of its own (`PrivateNetwork=`, systemd.exec(5))
//! borrows them of `qvm lend`, which is in the host's: a descriptor works on the namespace that it was opened in
//! (network_namespaces(7)). What may be done with it the kernel asks of whoever uses it as well (netlink(7), tuntap.rst).

use std::{
    fs::File,
    io::{self, Read, Write},
    mem::MaybeUninit,
    os::{
        fd::{AsFd, FromRawFd, IntoRawFd, OwnedFd},
        unix::net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    net::{
        AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
        SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socket_with,
        sockopt::socket_peercred,
    },
};

use rtnetlink::{Handle, sys::TokioSocket};

use crate::value::IfName;

/// What makes taps, Documentation/networking/tuntap.rst.
pub const TUN: &str = "/dev/net/tun";
/// What a Linux network namespace has from the start.
const LOOPBACK: &str = "lo";
/// How long the other side may take: it is started when it is asked the first time.
const ANSWER: Duration = Duration::from_secs(5);
/// How long nobody may ask until it ends.
const IDLE: Timespec = Timespec { tv_sec: 30, tv_nsec: 0 };

/// Whose descriptors they are.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Network {
    /// This process is in the host's network.
    #[default]
    Own,
    /// Who listens at this socket is.
    Lent(PathBuf),
}

/// What there is to be had, as it is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Route = b'r' as isize,
    Tun = b't' as isize,
}

impl Network {
    /// A netlink socket of the host's interfaces (rtnetlink(7)), close-on-exec.
    ///
    /// # Errors
    /// No descriptor is left, or nobody lends one.
    pub fn route(&self) -> io::Result<OwnedFd> {
        self.open(Kind::Route)
    }

    /// [`TUN`], close-on-exec.
    ///
    /// # Errors
    /// It cannot be opened, or nobody lends it.
    pub fn tun(&self) -> io::Result<OwnedFd> {
        self.open(Kind::Tun)
    }

    /// A connection for requests: what drives it, and what they are made by. Needs a runtime.
    ///
    /// # Errors
    /// As of [`Network::route`].
    pub fn connect(&self) -> io::Result<(impl Future<Output = ()> + Send + use<>, Handle)> {
        let (mut connection, handle, _) = rtnetlink::new_connection()?;
        if *self != Self::Own {
            let route = self.route()?;
            // SAFETY: the descriptor is ours alone, and given away here. A runtime took the one that it replaces a moment ago.
            *connection.socket_mut() = unsafe { TokioSocket::from_raw_fd(route.into_raw_fd()) };
        }
        Ok((connection, handle))
    }

    /// The kernel's number of an interface, if there is one of that name (netdevice(7)).
    pub fn index(&self, name: &IfName) -> Option<u32> {
        let route = self.route().ok()?;
        rustix::net::netdevice::name_to_index(route, name.as_str()).ok()
    }

    fn open(&self, kind: Kind) -> io::Result<OwnedFd> {
        match self {
            Self::Own => opened(kind),
            Self::Lent(socket) => borrowed(socket, kind),
        }
    }

    /// Whether this process is in a network namespace with nothing in it, and so is whatever it starts. `proc` is /proc.
    pub fn is_empty(&self, proc: &Path) -> bool {
        *self != Self::Own
            && std::fs::read_to_string(proc.join("self/net/dev")).is_ok_and(|text| {
                // Two lines of headings (proc(5)).
                let names = text.lines().skip(2).filter_map(|line| line.split_once(':'));
                names.into_iter().all(|(name, _)| name.trim() == LOOPBACK)
            })
    }
}

fn opened(kind: Kind) -> io::Result<OwnedFd> {
    match kind {
        Kind::Route => {
            // NETLINK_ROUTE is protocol 0, which is what none is.
            let flags = SocketFlags::CLOEXEC;
            Ok(socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None)?)
        }
        Kind::Tun => Ok(File::options().read(true).write(true).open(TUN)?.into()),
    }
}

/// Asks by one byte; the answer is an errno and, where that is 0, the descriptor.
fn borrowed(socket: &Path, kind: Kind) -> io::Result<OwnedFd> {
    let nobody = |error: io::Error| {
        let text = format!(
            "nobody lends the host's network at `{}` (`systemctl status qvm-network.socket`): {error}",
            socket.display()
        );
        io::Error::new(error.kind(), text)
    };
    let mut stream = UnixStream::connect(socket).map_err(nobody)?;
    stream.set_read_timeout(Some(ANSWER))?;
    stream.write_all(&[kind as u8]).map_err(nobody)?;
    let mut errno = [0; size_of::<i32>()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let bytes = &mut [io::IoSliceMut::new(&mut errno)];
    let got = loop {
        match recvmsg(&stream, bytes, &mut ancillary, RecvFlags::CMSG_CLOEXEC) {
            Err(Errno::INTR) => {}
            other => break other.map_err(|error| nobody(error.into()))?.bytes,
        }
    };
    let mut fds = ancillary.drain().flat_map(|message| match message {
        RecvAncillaryMessage::ScmRights(fds) => fds.collect(),
        _ => vec![],
    });
    match (got, i32::from_ne_bytes(errno), fds.next()) {
        (4, 0, Some(fd)) => Ok(fd),
        (4, errno, None) if errno != 0 => Err(io::Error::from_raw_os_error(errno)),
        _ => Err(nobody(io::ErrorKind::UnexpectedEof.into())),
    }
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
    let own = rustix::process::geteuid();
    loop {
        let mut fds = [PollFd::new(listener, PollFlags::IN)];
        match poll(&mut fds, (!stays).then_some(&IDLE)) {
            Ok(0) => return Ok(()),
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let stream = match listener.accept() {
            Ok((stream, _)) => stream,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            // Gone before it was its turn.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
            Err(error) => return Err(error),
        };
        if socket_peercred(&stream).is_ok_and(|peer| peer.uid == own)
            && let Err(error) = answer(&stream)
        {
            tracing::debug!("a caller was not answered: {error}");
        }
    }
}

fn answer(mut stream: &UnixStream) -> io::Result<()> {
    // One that asks for nothing is not waited for: the others would wait as well.
    stream.set_read_timeout(Some(ANSWER))?;
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Somebody who lends, in a thread that ends with the test program.
    fn lender(dir: &Path) -> Network {
        let socket = dir.join("network");
        let listener = UnixListener::bind(&socket).unwrap();
        std::thread::spawn(move || lend(&listener, true));
        Network::Lent(socket)
    }

    #[test]
    fn what_is_borrowed_is_as_ones_own() {
        let dir = tempfile::tempdir().unwrap();
        for network in [Network::Own, lender(dir.path())] {
            let route = network.route().unwrap();
            assert!(rustix::net::netdevice::name_to_index(&route, LOOPBACK).is_ok_and(|it| it > 0));
            let flags = rustix::io::fcntl_getfd(&route).unwrap();
            assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
            // The device may be missing, or not be ours to open: both ways say the same.
            let kind = |fd: io::Result<OwnedFd>| fd.map(drop).map_err(|error| error.raw_os_error());
            assert_eq!(kind(network.tun()), kind(Network::Own.tun()));
        }
    }

    #[test]
    fn who_asks_for_something_else_or_nothing_gets_nothing_and_holds_nobody_up() {
        let dir = tempfile::tempdir().unwrap();
        let network = lender(dir.path());
        let Network::Lent(socket) = &network else { unreachable!() };
        drop(UnixStream::connect(socket).unwrap());
        let mut stream = UnixStream::connect(socket).unwrap();
        stream.write_all(b"x").unwrap();
        let mut errno = [0; 4];
        stream.read_exact(&mut errno).unwrap();
        assert_eq!(i32::from_ne_bytes(errno), Errno::INVAL.raw_os_error());
        network.route().unwrap();
    }

    #[test]
    fn nobody_there_is_told_with_where_to_look() {
        let error = Network::Lent("/nowhere/network".into()).route().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        let text = error.to_string();
        assert!(
            text.contains("`/nowhere/network`") && text.contains("qvm-network.socket"),
            "{text}"
        );
    }

    #[test]
    fn a_namespace_is_empty_if_it_has_only_a_loopback() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("self/net")).unwrap();
        let lent = Network::Lent("x".into());
        assert!(!lent.is_empty(dir.path()), "nothing is known");
        let head = "Inter-|   Receive\n face |bytes\n";
        for (lines, empty) in
            [("", true), ("    lo: 0 0\n", true), ("    lo: 0\n  eth0: 1 2\n", false)]
        {
            std::fs::write(dir.path().join("self/net/dev"), format!("{head}{lines}")).unwrap();
            assert_eq!(lent.is_empty(dir.path()), empty, "{lines}");
            assert!(!Network::Own.is_empty(dir.path()), "the host's, with whatever is in it");
        }
    }
}
