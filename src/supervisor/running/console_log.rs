//! The console's log, written beside the loop: a bounded amount of output waits for the storage, and
//! what exceeds it is counted.

use std::{
    iter::Peekable,
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    vec::IntoIter,
};

use futures_util::future::BoxFuture;
use tokio::sync::oneshot;
use tracing::{debug, warn};

use crate::sys::lane::{Lane, Refused};
use crate::sys::log::file::LogFile;

/// How many bytes of output wait for the storage.
pub(crate) const MOST_WAITING: usize = 256 << 10;

/// What was said before; an error if the storage takes nothing more.
pub(crate) type Scrollback = oneshot::Receiver<Vec<u8>>;

/// The log of a console.
#[derive(Debug)]
pub(crate) struct ConsoleLog {
    lane: Lane,
    /// Held by the lane alone, for as long as the storage takes.
    file: Arc<Mutex<File>>,
    waiting: Arc<Mutex<Waiting>>,
    /// How many bytes were lost since the supervisor began.
    lost: Arc<AtomicU64>,
}

#[derive(Debug)]
struct File {
    log: LogFile,
    has_failed: bool,
}

/// What is to be written, in its order.
#[derive(Debug, Default)]
struct Waiting {
    bytes: Vec<u8>,
    /// At these offsets of `bytes` a second begins, or a machine.
    marks: Vec<Mark>,
    /// Viewers that want what was said before an offset of `bytes`, in the order of the offsets.
    scrollbacks: Vec<ScrollbackRequest>,
    /// How many bytes behind `bytes` were lost.
    lost: u64,
}

/// A viewer that wants the end of the log as it is before an offset of the bytes that wait.
#[derive(Debug)]
struct ScrollbackRequest {
    at: usize,
    /// The size of the answer at most, in bytes.
    most: u64,
    to: oneshot::Sender<Vec<u8>>,
}

#[derive(Debug, Clone, Copy)]
struct Mark {
    at: usize,
    second: i64,
    boots: bool,
}

fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing that holds the lock can panic half-way through a change.
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Waiting {
    fn is_empty(&self) -> bool {
        self.marks.is_empty() && self.scrollbacks.is_empty() && self.lost == 0
    }

    fn mark(&mut self, second: i64, boots: bool) {
        let same = |mark: &Mark| mark.second == second && !boots;
        if !self.marks.last().is_some_and(same) {
            self.marks.push(Mark { at: self.bytes.len(), second, boots });
        }
    }
}

impl Drop for ConsoleLog {
    /// Closing a file may wait for its storage as well (close(2)), so the lane does it.
    fn drop(&mut self) {
        let file = self.file.clone();
        if let Err(refused) = self.lane.run(move || lock(&file).log.close()) {
            debug!("the console's log is closed with the process: {refused}");
            std::mem::forget(self.file.clone());
        }
    }
}

impl ConsoleLog {
    /// Creates the log at `path`; nothing is touched yet.
    pub(crate) fn new(path: PathBuf) -> Self {
        let file = File { log: LogFile::new(path), has_failed: false };
        Self {
            lane: Lane::new("console-log"),
            file: Arc::new(Mutex::new(file)),
            waiting: Arc::default(),
            lost: Arc::default(),
        }
    }

    /// Queues `bytes`, which came at `second`; what there is no room for is lost, and counted.
    pub(crate) fn append(&self, bytes: &[u8], second: i64) {
        self.queue(|waiting| {
            // Behind a gap nothing is taken before the gap is written.
            let room = if waiting.lost > 0 { 0 } else { MOST_WAITING - waiting.bytes.len() };
            let taken = room.min(bytes.len());
            if taken > 0 {
                waiting.mark(second, false);
                waiting.bytes.extend_from_slice(&bytes[..taken]);
            }
            let lost = (bytes.len() - taken) as u64;
            waiting.lost += lost;
            lost
        });
    }

    /// Takes down that a machine begins here.
    pub(crate) fn boots(&self, second: i64) {
        self.queue(|waiting| {
            if waiting.marks.len() < MOST_MARKS {
                waiting.mark(second, true);
            }
            0
        });
    }

    fn queue(&self, add: impl FnOnce(&mut Waiting) -> u64) {
        let mut waiting = lock(&self.waiting);
        let begins = waiting.is_empty();
        let lost = add(&mut waiting);
        if lost > 0 && self.lost.fetch_add(lost, Ordering::Relaxed) == 0 {
            warn!("storage is slower than the console: output is not logged");
        }
        if begins && !waiting.is_empty() {
            let (file, queue) = (self.file.clone(), self.waiting.clone());
            let queued = self.lane.run(move || {
                // Its lock is not held while the storage is waited for.
                let waiting = std::mem::take(&mut *lock(&queue));
                lock(&file).write(waiting);
            });
            if let Err(refused) = queued {
                self.lost.fetch_add(waiting.bytes.len() as u64, Ordering::Relaxed);
                *waiting = Waiting::default();
                warn!("cannot write the console log: {refused}");
            }
        }
    }

    /// The last `most` bytes of what came until now, and nothing that comes later.
    pub(crate) fn tail(&self, most: u64) -> Scrollback {
        let (to, scrollback) = oneshot::channel();
        self.queue(|waiting| {
            // A sender that is dropped reports that the storage does not keep up.
            if waiting.scrollbacks.len() < MOST_SCROLLBACKS {
                let at = waiting.bytes.len();
                waiting.scrollbacks.push(ScrollbackRequest { at, most, to });
            }
            0
        });
        scrollback
    }

    /// Waits until everything is written that waits now.
    pub(crate) fn flush(&self) -> BoxFuture<'static, Result<(), Refused>> {
        self.lane.flush()
    }

    /// What an operator should know.
    pub(crate) fn note(&self) -> Option<String> {
        let lost = self.lost.load(Ordering::Relaxed);
        (lost > 0).then(|| {
            format!(
                "{lost} bytes of console output are not in the log: the storage did not keep up"
            )
        })
    }
}

/// How many marks wait for the storage: one a second, and one a boot.
const MOST_MARKS: usize = 4096;
/// How many viewers wait for the storage.
const MOST_SCROLLBACKS: usize = 64;

impl File {
    fn write(&mut self, waiting: Waiting) {
        let result = self.try_write(waiting);
        match result {
            Ok(()) => self.has_failed = false,
            Err(error) if !self.has_failed => {
                self.has_failed = true;
                warn!("cannot write the console log: {error}");
            }
            Err(_) => {}
        }
    }

    fn try_write(&mut self, waiting: Waiting) -> std::io::Result<()> {
        let Waiting { bytes, marks, scrollbacks, lost } = waiting;
        let mut requests = scrollbacks.into_iter().peekable();
        let mut failed = Ok(());
        let mut second = 0;
        for (nth, mark) in marks.iter().enumerate() {
            let end = marks.get(nth + 1).map_or(bytes.len(), |next| next.at);
            second = mark.second;
            let mut from = mark.at;
            self.answer(&mut requests, from);
            if mark.boots {
                failed = failed.and(self.log.mark_boot(second));
            }
            while from < end {
                let to = requests.peek().map_or(end, |request| request.at.min(end));
                // A half of the log takes only what is smaller than it.
                for piece in bytes[from..to].chunks(4096) {
                    failed = failed.and(self.log.append(piece, second));
                }
                from = to;
                self.answer(&mut requests, from);
            }
        }
        self.answer(&mut requests, bytes.len());
        if lost > 0 {
            warn!("{lost} bytes of console output were not logged: the storage did not keep up");
            let notice = format!("\r\n[qvm: {lost} bytes were not logged]\r\n");
            failed = failed.and(self.log.append(notice.as_bytes(), second));
        }
        failed
    }

    /// Answers the requests for what came before the offset `at`, which is written by now.
    fn answer(&mut self, requests: &mut Peekable<IntoIter<ScrollbackRequest>>, at: usize) {
        while let Some(request) = requests.next_if(|request| request.at <= at) {
            let _ = request.to.send(self.log.tail(request.most));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn hung_storage_loses_output_and_counts_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console.log");
        let log = ConsoleLog::new(path.clone());
        let (go, hangs) = mpsc::channel::<()>();
        log.lane.run(move || hangs.recv().unwrap()).unwrap();
        let line = [b'.'; 1000];
        for second in 0..1000 {
            log.append(&line, second);
        }
        assert!(lock(&log.waiting).bytes.len() <= MOST_WAITING);
        let lost = 1_000_000 - MOST_WAITING;
        assert!(log.note().unwrap().contains(&lost.to_string()));
        let tail = log.tail(1000);
        go.send(()).unwrap();
        log.flush().await.unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text.matches('.').count(), MOST_WAITING);
        assert!(text.contains(&format!("[qvm: {lost} bytes were not logged]")));
        log.append(b"the end", 1002);
        log.flush().await.unwrap();
        assert!(std::fs::read_to_string(&path).unwrap().ends_with("the end"));
        assert!(!tail.await.unwrap().is_empty());
    }

    #[tokio::test]
    async fn a_tail_has_nothing_that_came_later() {
        let dir = tempfile::tempdir().unwrap();
        let log = ConsoleLog::new(dir.path().join("console.log"));
        let (go, hangs) = mpsc::channel::<()>();
        log.lane.run(move || hangs.recv().unwrap()).unwrap();
        let before = log.tail(9);
        log.append(b"one two", 1);
        let between = log.tail(3);
        log.append(b" three", 1);
        log.append(b" four", 2);
        let behind = log.tail(100);
        go.send(()).unwrap();
        assert_eq!(before.await.unwrap(), b"");
        assert_eq!(between.await.unwrap(), b"two");
        assert_eq!(behind.await.unwrap(), b"one two three four");
    }

    #[tokio::test]
    async fn a_boot_is_marked_where_it_came() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console.log");
        let log = ConsoleLog::new(path.clone());
        log.append(b"one\n", 1);
        log.boots(2);
        log.append(b"two\n", 2);
        log.append(b"three\n", 3);
        log.flush().await.unwrap();
        let times = std::fs::read_to_string(crate::sys::log::times_of_log(&path)).unwrap();
        let lines: Vec<&str> = times.lines().skip(1).collect();
        assert_eq!(lines, ["0 1", "4 2 boot", "8 3"]);
    }
}
