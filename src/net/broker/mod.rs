//! Descriptors of the host's network. A supervisor whose unit has a network namespace of its own (`PrivateNetwork=`, systemd.exec(5))
//! borrows them of `qvm network-broker`, which is in the host's: a descriptor works on the namespace that it was opened in
//! (network_namespaces(7)). What may be done with it the kernel asks of whoever uses it as well (netlink(7), tuntap.rst).

pub(crate) mod server;

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

pub use self::server::{lend, listener};

/// What makes taps, Documentation/networking/tuntap.rst.
pub const TUN: &str = "/dev/net/tun";
/// What a Linux network namespace has from the start.
const LOOPBACK: &str = "lo";
/// This process' network namespace (namespaces(7)).
const OWN: &str = "/proc/self/ns/net";
/// How long either side may take: the one that lends is started when it is asked the first time.
const ANSWER: Duration = Duration::from_secs(5);
/// How often it is tried where so many wait that one more cannot: nothing tells when that has changed.
const QUEUE: Duration = Duration::from_millis(50);

/// Where they come from: they are this process' own, or lent. Its clones have one connection for requests between them.
#[derive(Debug, Clone, Default)]
pub struct Network {
    /// Where somebody listens who is in the host's network; none where this process is.
    lender: Option<PathBuf>,
    kept: Arc<Mutex<Option<Connection>>>,
}

/// A connection for requests. What drives it sleeps while nothing is asked, and ends with the last handle.
#[derive(Debug)]
struct Connection {
    handle: Handle,
    driver: JoinHandle<()>,
    /// The network namespace that it works on.
    namespace: Option<u64>,
}

/// What there is to be had, as it is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Route = b'r' as isize,
    Tun = b't' as isize,
}

impl Network {
    /// That of the host, which who listens at this socket is in.
    pub fn lent(socket: PathBuf) -> Self {
        Self { lender: Some(socket), kept: Arc::default() }
    }

    /// A netlink socket of the host's interfaces (rtnetlink(7)), close-on-exec. Needs a runtime, and never blocks it.
    ///
    /// # Errors
    /// No descriptor is left, or nobody lends one.
    pub async fn route(&self) -> io::Result<OwnedFd> {
        self.open(Kind::Route).await
    }

    /// [`TUN`], close-on-exec. Needs a runtime, and never blocks it.
    ///
    /// # Errors
    /// It cannot be opened, or nobody lends it.
    pub async fn tun(&self) -> io::Result<OwnedFd> {
        self.open(Kind::Tun).await
    }

    /// What requests are made by. The connection behind it is kept, and made anew only when it has ended. Needs a runtime, and never
    /// blocks it.
    ///
    /// # Errors
    /// As of [`Network::route`].
    pub async fn connect(&self) -> io::Result<Handle> {
        self.connected(|connection| connection.handle.clone()).await
    }

    async fn connected<T>(&self, of: impl FnOnce(&Connection) -> T) -> io::Result<T> {
        // Whoever else asks meanwhile waits for this one's answer.
        let mut kept = self.kept.lock().await;
        if let Some(connection) = kept.as_ref().filter(|kept| !kept.driver.is_finished()) {
            return Ok(of(connection));
        }
        let (mut connection, handle, _) = rtnetlink::new_connection()?;
        let mut namespace = None;
        if self.lender.is_some() {
            let route = self.route().await?;
            namespace = namespace_of(&route).ok();
            // SAFETY: the descriptor is ours alone, and given away here. A runtime took the one that it replaces a moment ago.
            *connection.socket_mut() = unsafe { TokioSocket::from_raw_fd(route.into_raw_fd()) };
        }
        let driver = tokio::spawn(connection);
        Ok(of(kept.insert(Connection { handle, driver, namespace })))
    }

    async fn open(&self, kind: Kind) -> io::Result<OwnedFd> {
        match &self.lender {
            None => opened(kind),
            Some(socket) => borrowed(socket, kind).await,
        }
    }

    /// Whether this process is in a network namespace other than the host's with nothing in it, and so is whatever it starts. `proc`
    /// is /proc.
    pub async fn is_empty(&self, proc: &Path) -> bool {
        if self.lender.is_none() || !has_only_loopback(proc) {
            return false;
        }
        let hosts = self.connected(|connection| connection.namespace).await;
        let own = File::open(OWN).and_then(|own| own.metadata()).map(|own| own.ino());
        matches!((hosts, own), (Ok(Some(hosts)), Ok(own)) if hosts != own)
    }
}

/// [`TUN`] of this process' own network, close-on-exec.
///
/// # Errors
/// It cannot be opened.
pub fn tun() -> io::Result<OwnedFd> {
    Ok(File::options().read(true).write(true).open(TUN)?.into())
}

fn opened(kind: Kind) -> io::Result<OwnedFd> {
    match kind {
        Kind::Route => {
            // NETLINK_ROUTE is protocol 0, which is what none is.
            let flags = SocketFlags::CLOEXEC;
            Ok(socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None)?)
        }
        Kind::Tun => tun(),
    }
}

/// The network namespace of a socket, by its number on nsfs (ioctl_ns(2), socket(7)). Needs CAP_NET_ADMIN in it.
fn namespace_of(socket: &OwnedFd) -> io::Result<u64> {
    // SAFETY: a request without an argument; what it gives is a new descriptor.
    let fd = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGSKNS as _) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: as said; nobody else knows of it.
    let namespace = unsafe { OwnedFd::from_raw_fd(fd) };
    Ok(File::from(namespace).metadata()?.ino())
}

fn has_only_loopback(proc: &Path) -> bool {
    std::fs::read_to_string(proc.join("self/net/dev")).is_ok_and(|text| {
        // Two lines of headings (proc(5)).
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
            "nobody lends the host's network at `{}` (`systemctl status qvm-network.socket qvm-network.service`): {error}",
            socket.display()
        );
        io::Error::new(error.kind(), text)
    })?
}

/// Asks by one byte. The outer error is that of asking, the inner one is the answer.
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

/// The answer is an errno and, where that is 0, the descriptor.
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

    /// Somebody who lends, in a thread that ends with the test program.
    fn lender(dir: &Path) -> Network {
        let socket = dir.join("network");
        let listener = UnixListener::bind(&socket).unwrap();
        std::thread::spawn(move || lend(&listener, true));
        Network::lent(socket)
    }

    #[tokio::test]
    async fn what_is_borrowed_is_as_ones_own() {
        let dir = tempfile::tempdir().unwrap();
        for network in [Network::default(), lender(dir.path())] {
            let route = network.route().await.unwrap();
            assert!(rustix::net::netdevice::name_to_index(&route, LOOPBACK).is_ok_and(|it| it > 0));
            let flags = rustix::io::fcntl_getfd(&route).unwrap();
            assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
            // The device may be missing, or not be ours to open: both ways say the same.
            let kind = |fd: io::Result<OwnedFd>| fd.map(drop).map_err(|error| error.raw_os_error());
            assert_eq!(kind(network.tun().await), kind(tun()));
        }
    }

    /// How many connections there have been: the driver of each is a task of its own.
    async fn driver(network: &Network) -> tokio::task::Id {
        network.connected(|connection| connection.driver.id()).await.unwrap()
    }

    #[tokio::test]
    async fn a_connection_is_kept_until_it_has_ended() {
        let dir = tempfile::tempdir().unwrap();
        let network = lender(dir.path());
        let first = driver(&network).await;
        // Whoever asks at once, and whichever clone.
        let other = network.clone();
        assert_eq!(tokio::join!(driver(&network), driver(&other)), (first, first));
        network.kept.lock().await.as_ref().unwrap().driver.abort();
        tokio::task::yield_now().await;
        assert!(driver(&network).await != first);
        // Nothing of it is left behind the last one who has it.
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
    async fn who_asks_for_something_else_or_nothing_gets_nothing_and_holds_nobody_up() {
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
        // Each of these would be waited for until its time is up.
        let silent: Vec<_> = (0..200).map(|_| UnixStream::connect(socket).unwrap()).collect();
        for _ in 0..3 {
            network.route().await.unwrap();
        }
        drop(silent);
        network.route().await.unwrap();
    }

    #[tokio::test]
    async fn nobody_there_is_told_with_where_to_look() {
        let error = Network::lent("/nowhere/network".into()).route().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        let text = error.to_string();
        assert!(
            text.contains("`/nowhere/network`") && text.contains("qvm-network.socket"),
            "{text}"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_does_not_answer_blocks_nobody_and_is_given_up() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("network");
        let _hangs = UnixListener::bind(&socket).unwrap();
        let network = Network::lent(socket.clone());
        let late = |error: io::Error| {
            assert_eq!(error.kind(), io::ErrorKind::TimedOut);
            let text = error.to_string();
            let told = ["no answer within 5 s", "systemctl status", "qvm-network.service"];
            assert!(told.iter().all(|part| text.contains(part)), "{text}");
        };
        // Two at once: were the first to block, then the time of the second would only begin behind it.
        let begun = tokio::time::Instant::now();
        let (route, tun) = tokio::join!(network.route(), network.tun());
        late(route.unwrap_err());
        late(tun.unwrap_err());
        assert_eq!(begun.elapsed().as_secs(), ANSWER.as_secs());
        // So many wait that not even connect(2) is done.
        let crowd: Vec<_> = std::iter::from_fn(|| one_more(&socket)).collect();
        assert!(!crowd.is_empty());
        late(network.route().await.unwrap_err());
    }

    /// A connection that waits, unless the queue is full.
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
    async fn a_namespace_is_empty_if_it_has_only_a_loopback_and_is_not_the_hosts() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("self/net")).unwrap();
        assert!(!has_only_loopback(dir.path()), "nothing is known");
        let head = "Inter-|   Receive\n face |bytes\n";
        for (lines, empty) in
            [("    lo: 0\n  eth0: 1 2\n", false), ("", true), ("    lo: 0 0\n", true)]
        {
            std::fs::write(dir.path().join("self/net/dev"), format!("{head}{lines}")).unwrap();
            assert_eq!(has_only_loopback(dir.path()), empty, "{lines}");
        }
        // tests/taps.rs has a supervisor in another one.
        for network in [Network::default(), lender(dir.path())] {
            assert!(!network.is_empty(dir.path()).await);
        }
    }
}
