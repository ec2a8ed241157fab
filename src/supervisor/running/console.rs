//! The serial console: guest output goes to a bounded log and all viewers, their keystrokes go to
//! the guest.
//!
//! A relaunch replaces QEMU's socket; viewers and the log remain. A viewer or a log that is too
//! slow loses output and gets a notice with the number of bytes; it never blocks the guest.

use std::{
    collections::VecDeque,
    os::fd::OwnedFd,
    os::unix::net::UnixStream as StdStream,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use super::console_log::{ConsoleLog, Scrollback};
use crate::{sys::tasks::Tasks, value::Note};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::mpsc,
};

/// The capacity of a viewer's queue, in chunks of output.
const VIEWER_QUEUE: usize = 64;
/// The capacity of the queue to the guest, in chunks of keystrokes.
const INPUT_QUEUE: usize = 64;
/// The maximum of earlier output for a viewer, in bytes.
const MOST_SCROLLBACK: u64 = 256 << 10;
/// How long a viewer waits for earlier output.
const SCROLLBACK_LIMIT: Duration = Duration::from_secs(1);
/// The size of the newest output in memory, for the report of an end, in bytes.
const TAIL_BYTES: usize = 4096;

/// The console of one VM, for the lifetime of its supervisor.
#[derive(Debug, Clone)]
pub struct Console {
    shared: Arc<Mutex<Shared>>,
}

#[derive(Debug)]
struct Shared {
    log: ConsoleLog,
    now: fn() -> jiff::Timestamp,
    tasks: Tasks,
    tail: VecDeque<u8>,
    viewers: Vec<Viewer>,
    /// The number of the next viewer.
    number: u64,
    to_guest: Option<mpsc::Sender<Vec<u8>>>,
}

#[derive(Debug)]
struct Viewer {
    number: u64,
    chunks: mpsc::Sender<Arc<[u8]>>,
    lost: usize,
}

impl Console {
    /// Creates a console without a guest that logs to `path`, with times of `now`.
    pub fn new(path: PathBuf, now: fn() -> jiff::Timestamp) -> Self {
        let shared = Shared {
            log: ConsoleLog::new(path),
            now,
            tasks: Tasks::default(),
            tail: VecDeque::new(),
            viewers: vec![],
            number: 0,
            to_guest: None,
        };
        Self { shared: Arc::new(Mutex::new(shared)) }
    }

    fn shared(&self) -> MutexGuard<'_, Shared> {
        // No code can panic between two parts of a change under this lock.
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Connects the console to a QEMU.
    pub fn attach(&self, serial: UnixStream) {
        let (from_guest, to_guest) = serial.into_split();
        let (input, keys) = mpsc::channel(INPUT_QUEUE);
        let mut shared = self.shared();
        shared.to_guest = Some(input);
        shared.tasks.spawn(type_into(to_guest, keys));
        shared.tasks.spawn(self.clone().listen(from_guest));
    }

    async fn listen(self, mut from_guest: OwnedReadHalf) {
        let mut buffer = vec![0; 4096];
        while let Ok(count @ 1..) = from_guest.read(&mut buffer).await {
            self.shared().heard(&buffer[..count]);
        }
    }

    /// Marks the start of a machine in the log.
    pub fn boots(&self) {
        let shared = self.shared();
        let second = (shared.now)().as_second();
        shared.log.boots(second);
    }

    /// Waits until the log is written, at most for `limit`; `false` after a timeout.
    pub(crate) fn flush(&self, limit: Duration) -> impl Future<Output = bool> + Send + use<> {
        let written = self.shared().log.flush();
        async move { tokio::time::timeout(limit, written).await.is_ok() }
    }

    /// Returns the notes about the log.
    pub(crate) fn note(&self) -> Option<Note> {
        self.shared().log.note()
    }

    /// Adds a viewer. Returns its end of a socket, which carries up to `scrollback` bytes of
    /// earlier output, the new output and, unless `read_only`, keystrokes.
    ///
    /// # Errors
    /// No socket can be created.
    pub fn view(&self, read_only: bool, scrollback: u64) -> std::io::Result<OwnedFd> {
        let (near, far) = StdStream::pair()?;
        near.set_nonblocking(true)?;
        let (from_viewer, to_viewer) = UnixStream::from_std(near)?.into_split();
        let (chunks, output) = mpsc::channel(VIEWER_QUEUE);
        // Added before the request of the scrollback: no output is lost or repeated.
        let mut shared = self.shared();
        let history = (scrollback > 0).then(|| shared.log.tail(scrollback.min(MOST_SCROLLBACK)));
        shared.number += 1;
        let number = shared.number;
        shared.viewers.push(Viewer { number, chunks, lost: 0 });
        shared.tasks.spawn(show(to_viewer, history, output));
        let console = self.clone();
        shared.tasks.spawn(async move {
            let from_viewer = console.clone().read_keys(from_viewer, read_only).await;
            // Without output, a closed viewer is not detected otherwise. A viewer without further
            // input continues to read.
            if hung_up(from_viewer.as_ref()) {
                console.shared().viewers.retain(|viewer| viewer.number != number);
            }
        });
        Ok(far.into())
    }

    /// Ends with the input of the viewer.
    async fn read_keys(self, mut from_viewer: OwnedReadHalf, read_only: bool) -> OwnedReadHalf {
        let mut buffer = vec![0; 1024];
        while let Ok(count @ 1..) = from_viewer.read(&mut buffer).await {
            let to_guest = self.shared().to_guest.clone();
            if let (false, Some(to_guest)) = (read_only, to_guest) {
                // A guest that does not read blocks only this viewer's input.
                let _ = to_guest.send(buffer[..count].to_vec()).await;
            }
        }
        from_viewer
    }

    /// Returns the last `count` lines without control characters, for the report of an end.
    pub fn last_lines(&self, count: usize) -> Vec<String> {
        let bytes: Vec<u8> = self.shared().tail.iter().copied().collect();
        let text = String::from_utf8_lossy(&bytes);
        let clean = |line: &str| line.chars().filter(|c| !c.is_control()).collect::<String>();
        let lines: Vec<String> =
            text.lines().map(clean).filter(|line| !line.trim().is_empty()).collect();
        lines[lines.len().saturating_sub(count)..].to_vec()
    }
}

impl Shared {
    fn heard(&mut self, bytes: &[u8]) {
        self.log.append(bytes, (self.now)().as_second());
        self.tail.extend(bytes);
        let excess = self.tail.len().saturating_sub(TAIL_BYTES);
        self.tail.drain(..excess);
        let chunk: Arc<[u8]> = bytes.into();
        self.viewers.retain_mut(|viewer| viewer.offer(&chunk));
    }
}

impl Viewer {
    /// Queues a chunk; `false` if the viewer has closed.
    fn offer(&mut self, chunk: &Arc<[u8]>) -> bool {
        if self.lost > 0 {
            let notice = format!("\r\n[qvm: {} bytes were skipped]\r\n", self.lost);
            match self.chunks.try_send(notice.into_bytes().into()) {
                Ok(()) => self.lost = 0,
                Err(mpsc::error::TrySendError::Full(_)) => self.lost += chunk.len(),
                Err(mpsc::error::TrySendError::Closed(_)) => return false,
            }
            if self.lost > 0 {
                return true;
            }
        }
        match self.chunks.try_send(chunk.clone()) {
            Ok(()) => true,
            Err(mpsc::error::TrySendError::Full(_)) => {
                self.lost += chunk.len();
                true
            }
            Err(mpsc::error::TrySendError::Closed(_)) => false,
        }
    }
}

async fn type_into(mut to_guest: OwnedWriteHalf, mut keys: mpsc::Receiver<Vec<u8>>) {
    while let Some(bytes) = keys.recv().await {
        if to_guest.write_all(&bytes).await.is_err() {
            break;
        }
    }
}

/// Whether the other end is closed in both directions (poll(2), POLLHUP).
fn hung_up(viewer: &UnixStream) -> bool {
    let mut looked = [PollFd::new(viewer, PollFlags::empty())];
    let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut looked, Some(&at_once)).is_ok() && looked[0].revents().contains(PollFlags::HUP)
}

async fn show(
    mut to_viewer: OwnedWriteHalf,
    history: Option<Scrollback>,
    mut output: mpsc::Receiver<Arc<[u8]>>,
) {
    if let Some(history) = history {
        let history = match tokio::time::timeout(SCROLLBACK_LIMIT, history).await {
            Ok(Ok(history)) => history,
            Ok(Err(_)) | Err(_) => {
                b"[qvm: earlier output cannot be read: the storage does not answer]\r\n".to_vec()
            }
        };
        if to_viewer.write_all(&history).await.is_err() {
            return;
        }
    }
    while let Some(chunk) = output.recv().await {
        if to_viewer.write_all(&chunk).await.is_err() {
            break;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    fn console() -> (tempfile::TempDir, Console, StdStream) {
        let dir = tempfile::tempdir().unwrap();
        let console = Console::new(dir.path().join("console.log"), jiff::Timestamp::now);
        let (guest, ours) = StdStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        console.attach(UnixStream::from_std(ours).unwrap());
        (dir, console, guest)
    }

    async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
        tokio::task::spawn_blocking(work).await.unwrap()
    }

    #[tokio::test]
    async fn two_viewers_share_the_console() {
        let (_dir, console, mut guest) = console();
        let mut viewers: Vec<StdStream> =
            (0..2).map(|_| console.view(false, 0).unwrap().into()).collect();
        guest.write_all(b"login: ").unwrap();
        blocking(move || {
            for viewer in &mut viewers {
                let mut seen = [0; 7];
                viewer.read_exact(&mut seen).unwrap();
                assert_eq!(&seen, b"login: ");
                viewer.write_all(b"x").unwrap();
            }
            let mut typed = [0; 2];
            guest.read_exact(&mut typed).unwrap();
            assert_eq!(&typed, b"xx");
        })
        .await;
    }

    #[tokio::test]
    async fn viewer_can_leave_a_silent_guest() {
        let (_dir, console, _guest) = console();
        let stays: StdStream = console.view(false, 0).unwrap().into();
        // A viewer without further input continues to read.
        stays.shutdown(std::net::Shutdown::Write).unwrap();
        for read_only in [true, false] {
            drop(console.view(read_only, 0).unwrap());
        }
        while console.shared().viewers.len() > 1 {
            tokio::task::yield_now().await;
        }
        assert_eq!(console.shared().viewers[0].number, 1);
    }

    #[tokio::test]
    async fn read_only_viewer_cannot_type() {
        let (_dir, console, mut guest) = console();
        let mut silent: StdStream = console.view(true, 0).unwrap().into();
        let mut typist: StdStream = console.view(false, 0).unwrap().into();
        blocking(move || {
            silent.write_all(b"no").unwrap();
            typist.write_all(b"yes").unwrap();
            let mut typed = [0; 3];
            guest.read_exact(&mut typed).unwrap();
            assert_eq!(&typed, b"yes");
        })
        .await;
    }

    #[tokio::test]
    async fn slow_viewer_loses_output_with_a_notice() {
        let (dir, console, mut guest) = console();
        let mut lazy: StdStream = console.view(true, 0).unwrap().into();
        let log = dir.path().join("console.log");
        let written = blocking(move || {
            let line = [b'.'; 4096];
            for _ in 0..600 {
                guest.write_all(&line).unwrap();
            }
            guest.write_all(b"\r\nend").unwrap();
            guest
        })
        .await;
        // 2.5 MiB passed although the viewer did not read.
        while console.last_lines(1) != ["end"] {
            tokio::task::yield_now().await;
        }
        assert!(console.flush(Duration::from_secs(600)).await);
        // The log contains the newest MiB and the number of lost bytes.
        let (older, newer) = (crate::sys::log::older_log(&log), log);
        let logged = older.metadata().map_or(0, |m| m.len()) + newer.metadata().unwrap().len();
        assert!(logged >= 1 << 19 || console.note().is_some(), "{logged} bytes are logged");
        blocking(move || {
            let mut guest = written;
            let mut seen = Vec::new();
            let mut buffer = [0; 65536];
            while !String::from_utf8_lossy(&seen).contains("bytes were skipped") {
                guest.write_all(b"!").unwrap();
                let count = lazy.read(&mut buffer).unwrap();
                seen.extend_from_slice(&buffer[..count]);
            }
        })
        .await;
    }

    #[tokio::test]
    async fn viewer_gets_history_once() {
        let (_dir, console, mut guest) = console();
        guest.write_all(b"one\r\ntwo\r\nthree").unwrap();
        while console.last_lines(9).len() < 3 {
            tokio::task::yield_now().await;
        }
        let mut viewer: StdStream = console.view(true, 12).unwrap().into();
        guest.write_all(b" four").unwrap();
        blocking(move || {
            let mut seen = [0; 15];
            viewer.read_exact(&mut seen).unwrap();
            assert_eq!(&seen, b"two\r\nthree four");
        })
        .await;
    }

    #[tokio::test]
    async fn last_lines_are_clean_and_few() {
        let (_dir, console, mut guest) = console();
        guest.write_all(b"one\r\n\x1b[31mtwo\x1b[0m\r\n\r\nthree").unwrap();
        while console.last_lines(9).len() < 3 {
            tokio::task::yield_now().await;
        }
        assert_eq!(console.last_lines(2), ["[31mtwo[0m", "three"]);
    }
}
