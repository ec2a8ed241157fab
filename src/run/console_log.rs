//! The console's log, written beside the loop: a bounded amount of output waits for the storage, and
//! what exceeds it is counted.

use std::{
    collections::VecDeque,
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use futures_util::future::BoxFuture;
use tokio::sync::oneshot;
use tracing::{debug, warn};

use super::lane::{Lane, Refused};
use crate::host::log_file::LogFile;

/// How many bytes of output wait for the storage.
pub(super) const MOST_WAITING: usize = 256 << 10;

/// What was said before; an error if the storage takes nothing more.
pub(super) type Scrollback = oneshot::Receiver<Vec<u8>>;

/// The log of a console.
#[derive(Debug)]
pub(super) struct ConsoleLog {
    lane: Lane,
    /// Held by the lane alone, for as long as the storage takes.
    file: Arc<Mutex<File>>,
    waiting: Arc<Mutex<Queue>>,
    /// How many bytes were lost since the supervisor began.
    lost: Arc<AtomicU64>,
}

#[derive(Debug)]
struct File {
    log: LogFile,
    has_failed: bool,
}

/// The batches that wait, oldest first. The lane has a job for each.
#[derive(Debug, Default)]
struct Queue {
    batches: VecDeque<Waiting>,
    /// Somebody reads behind the newest batch, so nothing is added to it.
    is_sealed: bool,
}

/// A batch that is to be written, in its order.
#[derive(Debug, Default)]
struct Waiting {
    bytes: Vec<u8>,
    /// At these offsets of `bytes` a second begins, or a machine.
    marks: Vec<Mark>,
    /// How many bytes behind `bytes` were lost.
    lost: u64,
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
        self.marks.is_empty() && self.lost == 0
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
    pub(super) fn new(path: PathBuf) -> Self {
        let file = File { log: LogFile::new(path), has_failed: false };
        Self {
            lane: Lane::new("console-log"),
            file: Arc::new(Mutex::new(file)),
            waiting: Arc::default(),
            lost: Arc::default(),
        }
    }

    /// Queues `bytes`, which came at `second`; what there is no room for is lost, and counted.
    pub(super) fn append(&self, bytes: &[u8], second: i64) {
        self.queue(|waiting, room| {
            // Behind a gap nothing is taken before the gap is written.
            let room = if waiting.lost > 0 { 0 } else { room };
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
    pub(super) fn boots(&self, second: i64) {
        self.queue(|waiting, _| {
            if waiting.marks.len() < MOST_MARKS {
                waiting.mark(second, true);
            }
            0
        });
    }

    /// Adds to the newest batch, or begins one. `add` gets the batch and how many bytes it may take, and returns how many were lost.
    fn queue(&self, add: impl FnOnce(&mut Waiting, usize) -> u64) {
        let mut queue = lock(&self.waiting);
        let bytes: usize = queue.batches.iter().map(|batch| batch.bytes.len()).sum();
        let newest = if queue.is_sealed { None } else { queue.batches.pop_back() };
        let begins = newest.is_none();
        let mut batch = newest.unwrap_or_default();
        let lost = add(&mut batch, MOST_WAITING.saturating_sub(bytes));
        if lost > 0 && self.lost.fetch_add(lost, Ordering::Relaxed) == 0 {
            warn!("storage is slower than the console: output is not logged");
        }
        if batch.is_empty() {
            return;
        }
        if begins {
            let (file, waiting) = (self.file.clone(), self.waiting.clone());
            let queued = self.lane.run(move || {
                // Its lock is not held while the storage is waited for.
                let batch = lock(&waiting).batches.pop_front();
                lock(&file).write(batch.unwrap_or_default());
            });
            if let Err(refused) = queued {
                self.lost.fetch_add(batch.bytes.len() as u64, Ordering::Relaxed);
                warn!("cannot write the console log: {refused}");
                return;
            }
        }
        queue.is_sealed = false;
        queue.batches.push_back(batch);
    }

    /// The last `most` bytes of everything that was queued until now, and nothing of what is queued from now on.
    pub(super) fn tail(&self, most: u64) -> Scrollback {
        let (said, scrollback) = oneshot::channel();
        lock(&self.waiting).is_sealed = true;
        let file = self.file.clone();
        // Where the queue is full, `said` is dropped: that says so.
        let _ = self.lane.run(move || drop(said.send(lock(&file).log.tail(most))));
        scrollback
    }

    /// Waits until everything is written that waits now.
    pub(super) fn flush(&self) -> BoxFuture<'static, Result<(), Refused>> {
        self.lane.flush()
    }

    /// What an operator should know.
    pub(super) fn note(&self) -> Option<String> {
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

impl File {
    fn write(&mut self, waiting: Waiting) {
        let Waiting { bytes, marks, lost } = waiting;
        let result = self.try_write(&bytes, &marks, lost);
        match result {
            Ok(()) => self.has_failed = false,
            Err(error) if !self.has_failed => {
                self.has_failed = true;
                warn!("cannot write the console log: {error}");
            }
            Err(_) => {}
        }
    }

    fn try_write(&mut self, bytes: &[u8], marks: &[Mark], lost: u64) -> std::io::Result<()> {
        let mut failed = Ok(());
        let mut second = 0;
        for (nth, mark) in marks.iter().enumerate() {
            let end = marks.get(nth + 1).map_or(bytes.len(), |next| next.at);
            second = mark.second;
            if mark.boots {
                failed = failed.and(self.log.boots(second));
            }
            // A half of the log takes only what is smaller than it.
            for piece in bytes[mark.at..end].chunks(4096) {
                failed = failed.and(self.log.append(piece, second));
            }
        }
        if lost > 0 {
            warn!("{lost} bytes of console output were not logged: the storage did not keep up");
            let notice = format!("\r\n[qvm: {lost} bytes were not logged]\r\n");
            failed = failed.and(self.log.append(notice.as_bytes(), second));
        }
        failed
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn tail_has_nothing_that_comes_later() {
        let dir = tempfile::tempdir().unwrap();
        let log = ConsoleLog::new(dir.path().join("console.log"));
        let (go, hangs) = mpsc::channel::<()>();
        log.lane.run(move || hangs.recv().unwrap()).unwrap();
        let mut tails = vec![];
        for text in ["one ", "two ", "three "] {
            log.append(text.as_bytes(), 1);
            tails.push(log.tail(99));
        }
        log.append(b"four", 1);
        go.send(()).unwrap();
        for (tail, said) in tails.into_iter().zip(["one ", "one two ", "one two three "]) {
            assert_eq!(String::from_utf8(tail.await.unwrap()).unwrap(), said);
        }
        assert_eq!(log.tail(99).await.unwrap(), b"one two three four");
    }

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
        let waits: usize = lock(&log.waiting).batches.iter().map(|one| one.bytes.len()).sum();
        assert!(waits <= MOST_WAITING);
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
    async fn a_boot_is_marked_where_it_came() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console.log");
        let log = ConsoleLog::new(path.clone());
        log.append(b"one\n", 1);
        log.boots(2);
        log.append(b"two\n", 2);
        log.append(b"three\n", 3);
        log.flush().await.unwrap();
        let times = std::fs::read_to_string(crate::plan::layout::times_of_log(&path)).unwrap();
        let lines: Vec<&str> = times.lines().skip(1).collect();
        assert_eq!(lines, ["0 1", "4 2 boot", "8 3"]);
    }
}
