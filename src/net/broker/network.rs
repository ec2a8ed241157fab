//! Descriptors of the host's network: opened by this process, or requested from the network broker.

use std::{
    fs::File,
    io,
    mem::MaybeUninit,
    os::{
        fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd},
        unix::fs::MetadataExt,
    },
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use crate::sys::tasks;
use nix::libc;
use rtnetlink::{Handle, sys::TokioSocket};
use rustix::{
    io::Errno,
    net::{
        AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketFlags,
        SocketType, recvmsg, socket_with,
    },
};
use tokio::{
    io::{AsyncWriteExt, Interest},
    net::UnixStream,
    sync::Mutex,
    task::JoinHandle,
    time::{sleep, timeout},
};

/// The device that creates taps, Documentation/networking/tuntap.rst.
pub const TUN: &str = "/dev/net/tun";
/// The interface that every network namespace has.
const LOOPBACK: &str = "lo";
/// This process's network namespace (namespaces(7)).
const OWN: &str = "/proc/self/ns/net";
/// The timeout of a request; includes the start of the broker at the first request.
pub(super) const ANSWER: Duration = Duration::from_secs(5);
/// The retry interval if the broker's queue is full, which has no notification.
const QUEUE: Duration = Duration::from_millis(50);

/// The source of descriptors: this process or the broker. Clones share one connection for requests.
#[derive(Debug, Clone, Default)]
pub struct Network {
    /// The socket of the broker in the host's network; `None` if this process is in the host's
    /// network.
    lender: Option<PathBuf>,
    kept: Arc<Mutex<Option<Connection>>>,
}

/// A connection for requests. Its driver is idle between requests and ends with the last handle.
#[derive(Debug)]
struct Connection {
    handle: Handle,
    driver: JoinHandle<()>,
    /// The network namespace of the connection.
    namespace: Option<u64>,
}

/// The requestable descriptors, with their request bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Route = b'r' as isize,
    Tun = b't' as isize,
}

impl Network {
    /// Uses the broker at this socket.
    pub fn lent(socket: PathBuf) -> Self {
        Self { lender: Some(socket), kept: Arc::default() }
    }

    /// Returns a netlink socket for the host's interfaces (rtnetlink(7)), close-on-exec. Requires a
    /// runtime and does not block it.
    ///
    /// # Errors
    /// No free descriptor, or the broker does not respond.
    pub async fn route(&self) -> io::Result<OwnedFd> {
        self.open(Kind::Route).await
    }

    /// Returns [`TUN`], close-on-exec. Requires a runtime and does not block it.
    ///
    /// # Errors
    /// The device cannot be opened, or the broker does not respond.
    pub async fn tun(&self) -> io::Result<OwnedFd> {
        self.open(Kind::Tun).await
    }

    /// Returns a handle for requests. The connection is reused until it ends. Requires a runtime
    /// and does not block it.
    ///
    /// # Errors
    /// As for [`Network::route`].
    pub async fn connect(&self) -> io::Result<Handle> {
        self.connected(|connection| connection.handle.clone()).await
    }

    async fn connected<T>(&self, of: impl FnOnce(&Connection) -> T) -> io::Result<T> {
        // Concurrent callers wait for this connection.
        let mut kept = self.kept.lock().await;
        if let Some(connection) = kept.as_ref().filter(|kept| !kept.driver.is_finished()) {
            return Ok(of(connection));
        }
        let (mut connection, handle, _) = rtnetlink::new_connection()?;
        let mut namespace = None;
        if self.lender.is_some() {
            let route = self.route().await?;
            namespace = namespace_of(&route).ok();
            // SAFETY: this function owns the descriptor and passes it on. The replaced one was just
            // passed to a runtime.
            *connection.socket_mut() = unsafe { TokioSocket::from_raw_fd(route.into_raw_fd()) };
        }
        let driver = tasks::drive(connection);
        Ok(of(kept.insert(Connection { handle, driver, namespace })))
    }

    async fn open(&self, kind: Kind) -> io::Result<OwnedFd> {
        match &self.lender {
            None => opened(kind),
            Some(socket) => borrowed(socket, kind).await,
        }
    }

    /// Returns true if this process, and so its children, are in an empty network namespace other
    /// than the host's. `proc` is /proc.
    pub async fn is_empty(&self, proc: &Path) -> bool {
        if self.lender.is_none() || !has_only_loopback(proc) {
            return false;
        }
        let hosts = self.connected(|connection| connection.namespace).await;
        let own = File::open(OWN).and_then(|own| own.metadata()).map(|own| own.ino());
        matches!((hosts, own), (Ok(Some(hosts)), Ok(own)) if hosts != own)
    }
}

/// Returns [`TUN`] of this process's own network, close-on-exec.
///
/// # Errors
/// The device cannot be opened.
pub fn tun() -> io::Result<OwnedFd> {
    Ok(File::options().read(true).write(true).open(TUN)?.into())
}

pub(super) fn opened(kind: Kind) -> io::Result<OwnedFd> {
    match kind {
        Kind::Route => {
            // The default protocol 0 is NETLINK_ROUTE.
            let flags = SocketFlags::CLOEXEC;
            Ok(socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None)?)
        }
        Kind::Tun => tun(),
    }
}

/// Returns the network namespace of a socket by its inode number on nsfs (ioctl_ns(2), socket(7)).
/// Requires CAP_NET_ADMIN in it.
fn namespace_of(socket: &OwnedFd) -> io::Result<u64> {
    // SAFETY: the request has no argument and returns a new descriptor.
    let fd = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGSKNS as _) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and not used elsewhere.
    let namespace = unsafe { OwnedFd::from_raw_fd(fd) };
    Ok(File::from(namespace).metadata()?.ino())
}

fn has_only_loopback(proc: &Path) -> bool {
    std::fs::read_to_string(proc.join("self/net/dev")).is_ok_and(|text| {
        // The first two lines are headings (proc(5)).
        let names = text.lines().skip(2).filter_map(|line| line.split_once(':'));
        names.into_iter().all(|(name, _)| name.trim() == LOOPBACK)
    })
}

async fn borrowed(socket: &Path, kind: Kind) -> io::Result<OwnedFd> {
    let late = || {
        let text = format!("no answer within {} s", ANSWER.as_secs());
        io::Error::new(io::ErrorKind::TimedOut, text)
    };
    let answer = timeout(ANSWER, ask(socket, kind)).await.unwrap_or_else(|_| Err(late()));
    answer.map_err(|error| {
        let text = format!(
            "the network broker does not respond at `{}` (see `systemctl status qvm-network.socket \
             qvm-network.service`): {error}",
            socket.display()
        );
        io::Error::new(error.kind(), text)
    })?
}

/// Sends a request byte. The outer error is a failed request, the inner one the answer.
async fn ask(socket: &Path, kind: Kind) -> io::Result<io::Result<OwnedFd>> {
    let mut stream = loop {
        match UnixStream::connect(socket).await {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => sleep(QUEUE).await,
            connected => break connected?,
        }
    };
    stream.write_all(&[kind as u8]).await?;
    stream.async_io(Interest::READABLE, || answer_of(&stream)).await
}

/// The answer is an errno and, if that is 0, the descriptor.
fn answer_of(stream: &UnixStream) -> io::Result<io::Result<OwnedFd>> {
    let mut errno = [0; size_of::<i32>()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let bytes = &mut [io::IoSliceMut::new(&mut errno)];
    let got = loop {
        match recvmsg(stream, bytes, &mut ancillary, RecvFlags::CMSG_CLOEXEC) {
            Err(Errno::INTR) => {}
            other => break other?.bytes,
        }
    };
    let mut fds = ancillary.drain().flat_map(|message| match message {
        RecvAncillaryMessage::ScmRights(fds) => fds.collect(),
        _ => vec![],
    });
    match (got, i32::from_ne_bytes(errno), fds.next()) {
        (4, 0, Some(fd)) => Ok(Ok(fd)),
        (4, errno, None) if errno != 0 => Ok(Err(io::Error::from_raw_os_error(errno))),
        _ => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::{UnixListener, UnixStream};

    use super::*;
    use crate::net::broker::lend;

    /// A broker in a thread that ends with the test program.
    fn lender(dir: &Path) -> Network {
        let socket = dir.join("network");
        let listener = UnixListener::bind(&socket).unwrap();
        std::thread::spawn(move || lend(&listener, true));
        Network::lent(socket)
    }

    #[tokio::test]
    async fn brokered_descriptors_work_like_own() {
        let dir = tempfile::tempdir().unwrap();
        for network in [Network::default(), lender(dir.path())] {
            let route = network.route().await.unwrap();
            assert!(rustix::net::netdevice::name_to_index(&route, LOOPBACK).is_ok_and(|it| it > 0));
            let flags = rustix::io::fcntl_getfd(&route).unwrap();
            assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
            // The device may be missing or not accessible: both ways return the same error.
            let kind = |fd: io::Result<OwnedFd>| fd.map(drop).map_err(|error| error.raw_os_error());
            assert_eq!(kind(network.tun().await), kind(tun()));
        }
    }

    /// Identifies the connection by the task of its driver.
    async fn driver(network: &Network) -> tokio::task::Id {
        network.connected(|connection| connection.driver.id()).await.unwrap()
    }

    #[tokio::test]
    async fn connection_is_reused_until_it_ends() {
        let dir = tempfile::tempdir().unwrap();
        let network = lender(dir.path());
        let first = driver(&network).await;
        // Concurrent callers and clones share it.
        let other = network.clone();
        assert_eq!(tokio::join!(driver(&network), driver(&other)), (first, first));
        network.kept.lock().await.as_ref().unwrap().driver.abort();
        tokio::task::yield_now().await;
        assert!(driver(&network).await != first);
        // The driver ends with the last handle.
        let runtime = tokio::runtime::Handle::current();
        let handle = network.connect().await.unwrap();
        drop((network, other));
        tokio::task::yield_now().await;
        assert_eq!(runtime.metrics().num_alive_tasks(), 1);
        drop(handle);
        while runtime.metrics().num_alive_tasks() > 0 {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn invalid_and_silent_clients_delay_nobody() {
        use std::io::{Read, Write};
        let dir = tempfile::tempdir().unwrap();
        let network = lender(dir.path());
        let socket = network.lender.as_ref().unwrap();
        drop(UnixStream::connect(socket).unwrap());
        let mut stream = UnixStream::connect(socket).unwrap();
        stream.write_all(b"x").unwrap();
        let mut errno = [0; 4];
        stream.read_exact(&mut errno).unwrap();
        assert_eq!(i32::from_ne_bytes(errno), Errno::INVAL.raw_os_error());
        // Each of these clients is silent until its timeout.
        let silent: Vec<_> = (0..200).map(|_| UnixStream::connect(socket).unwrap()).collect();
        for _ in 0..3 {
            network.route().await.unwrap();
        }
        drop(silent);
        network.route().await.unwrap();
    }

    #[tokio::test]
    async fn missing_broker_has_a_hint() {
        let error = Network::lent("/nowhere/network".into()).route().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        let text = error.to_string();
        assert!(
            text.contains("`/nowhere/network`") && text.contains("qvm-network.socket"),
            "{text}"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn hung_broker_times_out_without_blocking() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("network");
        let _hangs = UnixListener::bind(&socket).unwrap();
        let network = Network::lent(socket.clone());
        let late = |error: io::Error| {
            assert_eq!(error.kind(), io::ErrorKind::TimedOut);
            let text = error.to_string();
            let parts = ["no answer within 5 s", "systemctl status", "qvm-network.service"];
            assert!(parts.iter().all(|part| text.contains(part)), "{text}");
        };
        // Two concurrent requests: if the first blocked, the timeout of the second would begin
        // after it.
        let begun = tokio::time::Instant::now();
        let (route, tun) = tokio::join!(network.route(), network.tun());
        late(route.unwrap_err());
        late(tun.unwrap_err());
        assert_eq!(begun.elapsed().as_secs(), ANSWER.as_secs());
        // The queue is so full that connect(2) does not complete.
        let crowd: Vec<_> = std::iter::from_fn(|| one_more(&socket)).collect();
        assert!(!crowd.is_empty());
        late(network.route().await.unwrap_err());
    }

    /// Returns a queued connection, unless the queue is full.
    fn one_more(socket: &Path) -> Option<OwnedFd> {
        use rustix::net::{SocketAddrUnix, connect};
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let fd = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).unwrap();
        match connect(&fd, &SocketAddrUnix::new(socket).unwrap()) {
            Ok(()) => Some(fd),
            Err(error) => {
                assert_eq!(error, Errno::AGAIN);
                None
            }
        }
    }

    #[tokio::test]
    async fn namespace_with_only_loopback_is_empty() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("self/net")).unwrap();
        assert!(!has_only_loopback(dir.path()), "an unreadable file is not empty");
        let head = "Inter-|   Receive\n face |bytes\n";
        for (lines, empty) in
            [("    lo: 0\n  eth0: 1 2\n", false), ("", true), ("    lo: 0 0\n", true)]
        {
            std::fs::write(dir.path().join("self/net/dev"), format!("{head}{lines}")).unwrap();
            assert_eq!(has_only_loopback(dir.path()), empty, "{lines}");
        }
        // tests/it/net/taps.rs has a supervisor in another namespace.
        for network in [Network::default(), lender(dir.path())] {
            assert!(!network.is_empty(dir.path()).await);
        }
    }
}
