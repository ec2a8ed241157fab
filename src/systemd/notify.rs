//! Notifications to the service manager: readiness, status, timeouts and watchdog (sd_notify(3)).

use std::{
    ffi::{OsStr, OsString},
    io,
    os::{
        linux::net::SocketAddrExt,
        unix::{
            ffi::OsStrExt,
            net::{SocketAddr, UnixDatagram},
        },
    },
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
        mpsc::{Sender, channel},
    },
    time::Duration,
};

use sd_notify::NotifyState;
use tokio::sync::oneshot;

/// How long the end of the supervisor waits for unsent notifications; nothing else waits for them.
const PATIENCE: Duration = Duration::from_secs(2);
/// The maximum number of unsent notifications. Further ones are dropped: they are watchdog signals
/// and outdated states.
const MOST: usize = 64;
/// The stack size of the sending thread, in bytes.
const STACK: usize = 64 << 10;

/// Whether a process with this ID and environment was started by a systemd unit: `SYSTEMD_EXEC_PID`
/// is its ID (systemd 248, systemd.exec(5)), or `NOTIFY_SOCKET` is set. `INVOCATION_ID` proves
/// nothing: every program in a desktop session inherits it from `user@.service`.
pub fn under_systemd(env: impl Fn(&str) -> Option<OsString>, pid: u32) -> bool {
    number(env("SYSTEMD_EXEC_PID")) == Some(u64::from(pid))
        || env("NOTIFY_SOCKET").is_some_and(|v| !v.is_empty())
}

/// Sends notifications to the service manager, if there is one. Failures are logged and do not stop
/// the VM. A thread sends them in order, so that a busy service manager with a full socket queue
/// does not delay the supervisor.
#[derive(Debug, Default, Clone)]
pub struct Notifier {
    outgoing: Option<Arc<Outgoing>>,
    watchdog: Option<Duration>,
}

#[derive(Debug)]
struct Outgoing {
    /// `None` after the end.
    messages: Mutex<Option<Sender<String>>>,
    /// The number of unsent notifications.
    waiting: Arc<AtomicUsize>,
    /// Closed when the last one is sent; `None` if the end is awaited already.
    sent: Mutex<Option<oneshot::Receiver<()>>>,
}

impl Outgoing {
    fn begin(socket: UnixDatagram, address: SocketAddr) -> io::Result<Self> {
        let (messages, to_send) = channel::<String>();
        let (sending, sent) = oneshot::channel();
        let waiting = Arc::new(AtomicUsize::new(0));
        let left = waiting.clone();
        std::thread::Builder::new().name("notify".into()).stack_size(STACK).spawn(move || {
            let _until_the_end: oneshot::Sender<()> = sending;
            for message in to_send {
                if let Err(e) = socket.send_to_addr(message.as_bytes(), &address) {
                    tracing::warn!("cannot send `{}` to systemd: {e}", message.trim_end());
                }
                left.fetch_sub(1, Ordering::Relaxed);
            }
        })?;
        let (messages, sent) = (Mutex::new(Some(messages)), Mutex::new(Some(sent)));
        Ok(Self { messages, waiting, sent })
    }

    fn send(&self, message: String) {
        if self.waiting.fetch_add(1, Ordering::Relaxed) >= MOST {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            tracing::debug!(
                "dropped `{}`: systemd does not read its notifications",
                message.trim_end()
            );
            return;
        }
        let messages = self.messages.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = messages.as_ref().map(|messages| messages.send(message));
    }
}

impl Notifier {
    /// Reads `NOTIFY_SOCKET`, `WATCHDOG_USEC` and `WATCHDOG_PID` of this process. The environment
    /// is not changed.
    pub fn new(env: impl Fn(&str) -> Option<OsString>, pid: u32) -> Self {
        let outgoing = env("NOTIFY_SOCKET").filter(|v| !v.is_empty()).and_then(|path| {
            open(&path)
                .and_then(|(socket, address)| Outgoing::begin(socket, address))
                .inspect_err(|e| tracing::warn!("cannot use NOTIFY_SOCKET={}: {e}", path.display()))
                .ok()
                .map(Arc::new)
        });
        // sd_watchdog_enabled(3): the watchdog is for this process if the variable is its PID or
        // unset.
        let ours = env("WATCHDOG_PID").is_none_or(|v| number(Some(v)) == Some(u64::from(pid)));
        let watchdog = number(env("WATCHDOG_USEC"))
            .filter(|usec| ours && *usec > 0 && outgoing.is_some())
            .map(Duration::from_micros);
        Self { outgoing, watchdog }
    }

    /// Waits until everything is sent, for at most 2 s; later notifications are dropped.
    pub async fn finish(&self) {
        let Some(outgoing) = &self.outgoing else { return };
        *outgoing.messages.lock().unwrap_or_else(PoisonError::into_inner) = None;
        let sent = outgoing.sent.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(sent) = sent
            && tokio::time::timeout(PATIENCE, sent).await.is_err()
        {
            tracing::warn!("systemd does not read its notifications; continuing without it");
        }
    }

    /// The interval of [`watchdog`](Self::watchdog) calls: half of the unit's limit
    /// (sd_watchdog_enabled(3)).
    pub fn watchdog_interval(&self) -> Option<Duration> {
        self.watchdog.map(|limit| limit / 2)
    }

    /// Reports that the guest runs.
    pub fn ready(&self, status: &str) {
        self.send(&[NotifyState::Ready, NotifyState::Status(&line(status))]);
    }

    /// Sets the text of `systemctl status`.
    pub fn status(&self, status: &str) {
        self.send(&[NotifyState::Status(&line(status))]);
    }

    /// Reports that the guest is being stopped.
    pub fn stopping(&self, status: &str) {
        self.send(&[NotifyState::Stopping, NotifyState::Status(&line(status))]);
    }

    /// Extends the timeout of the current start or stop, from now.
    pub fn extend_timeout(&self, by: Duration) {
        // Not NotifyState::ExtendTimeoutUsec: its u32 overflows at 71 minutes.
        self.send(&[NotifyState::Custom(&format!("EXTEND_TIMEOUT_USEC={}", by.as_micros()))]);
    }

    /// Reports to the watchdog.
    pub fn watchdog(&self) {
        self.send(&[NotifyState::Watchdog]);
    }

    /// Sends one datagram. Not with `sd_notify::notify`, which reads the environment and treats the
    /// `@` of an abstract socket as a file name.
    fn send(&self, states: &[NotifyState<'_>]) {
        if let Some(outgoing) = &self.outgoing {
            outgoing.send(states.iter().map(|state| format!("{state}\n")).collect());
        }
    }
}

fn open(path: &OsStr) -> io::Result<(UnixDatagram, SocketAddr)> {
    // systemd writes the leading NUL of an abstract socket as `@`.
    let address = match path.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        [b'/', ..] => SocketAddr::from_pathname(path)?,
        _ => {
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "neither a path nor an abstract socket",
            ));
        }
    };
    Ok((UnixDatagram::unbound()?, address))
}

fn number(value: Option<OsString>) -> Option<u64> {
    value?.to_str()?.parse().ok()
}

/// Removes line breaks: a message is a list of lines, and a guest's text must not add one.
fn line(text: &str) -> String {
    text.replace(|c: char| c.is_control(), " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env<'a>(pairs: &'a [(&str, &str)]) -> impl Fn(&str) -> Option<OsString> + 'a {
        move |name| pairs.iter().find(|(k, _)| *k == name).map(|(_, v)| v.into())
    }

    fn next(socket: &UnixDatagram) -> String {
        socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let mut buffer = [0; 4096];
        let n = socket.recv(&mut buffer).unwrap();
        String::from_utf8(buffer[..n].to_vec()).unwrap()
    }

    #[test]
    fn messages_have_the_systemd_format() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let systemd = UnixDatagram::bind(&path).unwrap();
        let to = Notifier::new(env(&[("NOTIFY_SOCKET", path.to_str().unwrap())]), 1);
        to.ready("running");
        assert_eq!(next(&systemd), "READY=1\nSTATUS=running\n");
        to.status("panicked: a\nREADY=1\u{1b}");
        assert_eq!(next(&systemd), "STATUS=panicked: a READY=1 \n");
        to.stopping("asked to power off");
        assert_eq!(next(&systemd), "STOPPING=1\nSTATUS=asked to power off\n");
        to.extend_timeout(Duration::from_secs(7200));
        assert_eq!(next(&systemd), "EXTEND_TIMEOUT_USEC=7200000000\n");
        to.watchdog();
        assert_eq!(next(&systemd), "WATCHDOG=1\n");
    }

    #[test]
    fn abstract_socket_is_reached() {
        let name = format!("qvm-test-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let systemd = UnixDatagram::bind_addr(&address).unwrap();
        let to = Notifier::new(env(&[("NOTIFY_SOCKET", &format!("@{name}"))]), 1);
        to.ready("running");
        assert_eq!(next(&systemd), "READY=1\nSTATUS=running\n");
    }

    #[test]
    fn unread_notifications_are_queued() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let systemd = UnixDatagram::bind(&path).unwrap();
        // Until the socket's queue is full (net.unix.max_dgram_qlen).
        let other = UnixDatagram::unbound().unwrap();
        other.set_nonblocking(true).unwrap();
        let mut queued = 0;
        while other.send_to(b"other\n", &path).is_ok() {
            queued += 1;
        }
        let to = Notifier::new(env(&[("NOTIFY_SOCKET", path.to_str().unwrap())]), 1);
        let begun = std::time::Instant::now();
        to.ready("running");
        for _ in 0..10_000 {
            to.watchdog();
        }
        assert!(begun.elapsed() < PATIENCE, "it was waited for");
        for _ in 0..queued {
            assert_eq!(next(&systemd), "other\n");
        }
        assert_eq!(next(&systemd), "READY=1\nSTATUS=running\n");
        let kept = to.outgoing.as_ref().unwrap().waiting.clone();
        assert!(kept.load(Ordering::Relaxed) <= MOST);
        // The thread sends the rest while the socket is read.
        let reading = std::thread::spawn(move || while next(&systemd) != "STATUS=last\n" {});
        while kept.load(Ordering::Relaxed) > 0 {
            std::thread::yield_now();
        }
        to.status("last");
        drop(to);
        reading.join().unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn unread_socket_times_out_at_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let _systemd = UnixDatagram::bind(&path).unwrap();
        let to = Notifier::new(env(&[("NOTIFY_SOCKET", path.to_str().unwrap())]), 1);
        for _ in 0..10_000 {
            to.watchdog();
        }
        let waiting = to.outgoing.as_ref().unwrap().waiting.clone();
        to.finish().await;
        assert!(waiting.load(Ordering::Relaxed) > 0);
    }

    #[test]
    fn missing_socket_is_ignored() {
        for socket in [None, Some(""), Some("relative"), Some("vsock:2:1"), Some("/nonexistent/x")]
        {
            let pairs: Vec<_> = socket.map(|s| ("NOTIFY_SOCKET", s)).into_iter().collect();
            let to = Notifier::new(env(&pairs), 1);
            to.ready("running");
            to.watchdog();
        }
        assert_eq!(Notifier::default().watchdog_interval(), None);
    }

    #[test]
    fn watchdog_applies_to_its_pid() {
        let of = |pairs: &[(&str, &str)]| {
            let mut all = vec![("NOTIFY_SOCKET", "@qvm-nobody")];
            all.extend_from_slice(pairs);
            Notifier::new(env(&all), 4711).watchdog_interval()
        };
        assert_eq!(of(&[("WATCHDOG_USEC", "3000000")]), Some(Duration::from_millis(1500)));
        let named = [("WATCHDOG_USEC", "3000000"), ("WATCHDOG_PID", "4711")];
        assert_eq!(of(&named), Some(Duration::from_millis(1500)));
        assert_eq!(of(&[("WATCHDOG_USEC", "3000000"), ("WATCHDOG_PID", "1")]), None);
        assert_eq!(of(&[("WATCHDOG_USEC", "3000000"), ("WATCHDOG_PID", "x")]), None);
        assert_eq!(of(&[("WATCHDOG_USEC", "0")]), None);
        assert_eq!(of(&[("WATCHDOG_USEC", "soon")]), None);
        assert_eq!(of(&[]), None);
    }

    #[test]
    fn desktop_terminal_is_not_a_unit() {
        assert!(!under_systemd(env(&[]), 1));
        assert!(!under_systemd(env(&[("INVOCATION_ID", "8c4d")]), 1));
        assert!(!under_systemd(env(&[("SYSTEMD_EXEC_PID", "2")]), 1));
        assert!(under_systemd(env(&[("SYSTEMD_EXEC_PID", "1")]), 1));
        assert!(under_systemd(env(&[("NOTIFY_SOCKET", "/run/systemd/notify")]), 1));
    }
}
