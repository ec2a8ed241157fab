//! The console's log, written on a lane: a bounded amount of output waits for the storage, and lost
//! output is counted.

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

use crate::sys::log::file::LogFile;
use crate::{
    sys::lane::{Lane, Refused},
    value::{Note, NoteCode},
};

/// The maximum of output that waits for the storage, in bytes.
pub(crate) const MOST_WAITING: usize = 256 << 10;

/// Earlier output, or an error if the storage accepts no more writes.
pub(crate) type Scrollback = oneshot::Receiver<Vec<u8>>;

#[derive(Debug)]
pub(crate) struct ConsoleLog {
    lane: Lane,
    /// Locked only by the lane, possibly for long.
    file: Arc<Mutex<File>>,
    waiting: Arc<Mutex<Waiting>>,
    /// The number of bytes lost since the start of the supervisor.
    lost: Arc<AtomicU64>,
}

#[derive(Debug)]
struct File {
    log: LogFile,
    has_failed: bool,
}

/// The data to be written, in order.
#[derive(Debug, Default)]
struct Waiting {
    bytes: Vec<u8>,
    /// The offsets in `bytes` at which a second or a machine begins.
    marks: Vec<Mark>,
    /// Requests for the output before an offset in `bytes`, ordered by offset.
    scrollbacks: Vec<ScrollbackRequest>,
    /// The number of bytes lost after `bytes`.
    lost: u64,
}

/// A request for the end of the log before an offset.
#[derive(Debug)]
struct ScrollbackRequest {
    at: usize,
    /// The maximum size of the answer, in bytes.
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
    // No code can panic between two parts of a change under this lock.
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
    /// Closes the file on the lane, because close(2) may block.
    fn drop(&mut self) {
        let file = self.file.clone();
        if let Err(refused) = self.lane.run(move || lock(&file).log.close()) {
            debug!("the console's log is closed with the process: {refused}");
            std::mem::forget(self.file.clone());
        }
    }
}

impl ConsoleLog {
    /// Creates the log at `path` without opening the file.
    pub(crate) fn new(path: PathBuf) -> Self {
        let file = File { log: LogFile::new(path), has_failed: false };
        Self {
            lane: Lane::new("console-log"),
            file: Arc::new(Mutex::new(file)),
            waiting: Arc::default(),
            lost: Arc::default(),
        }
    }

    /// Queues `bytes` of the time `second`; bytes beyond the capacity are lost and counted.
    pub(crate) fn append(&self, bytes: &[u8], second: i64) {
        self.queue(|waiting| {
            // After a loss, nothing is queued before the notice is written.
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

    /// Marks the start of a machine.
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
                // The queue is not locked during the write.
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

    /// Returns the last `most` bytes of the output until now.
    pub(crate) fn tail(&self, most: u64) -> Scrollback {
        let (to, scrollback) = oneshot::channel();
        self.queue(|waiting| {
            // A dropped sender reports that the storage is too slow.
            if waiting.scrollbacks.len() < MOST_SCROLLBACKS {
                let at = waiting.bytes.len();
                waiting.scrollbacks.push(ScrollbackRequest { at, most, to });
            }
            0
        });
        scrollback
    }

    /// Waits until the queued output is written.
    pub(crate) fn flush(&self) -> BoxFuture<'static, Result<(), Refused>> {
        self.lane.flush()
    }

    /// Returns the notes for the status.
    pub(crate) fn note(&self) -> Option<Note> {
        let lost = self.lost.load(Ordering::Relaxed);
        (lost > 0).then(|| {
            let text = format!(
                "{lost} bytes of console output are not in the log: the storage did not keep up"
            );
            Note::new(NoteCode::ConsoleOutputLost, text)
        })
    }
}

/// The maximum of queued marks: one for each second, and one for each boot.
const MOST_MARKS: usize = 4096;
/// The maximum of queued requests of viewers.
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
                // A file of the log accepts only smaller chunks.
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

    /// Answers the requests for the output before the offset `at`, which is written.
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
        assert!(log.note().unwrap().text.contains(&lost.to_string()));
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
    async fn tail_excludes_later_output() {
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
    async fn boot_is_marked_at_its_position() {
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
