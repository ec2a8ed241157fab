//! Reads storage that may hang, such as NFS without its server: a read without a response within
//! [`READ_LIMIT`] is abandoned and delays no other read.
//!
//! A thread that is blocked in the kernel cannot be stopped. It is abandoned and ends with the
//! process.

use std::{
    collections::{BTreeMap, VecDeque},
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    time::Duration,
};

use futures_util::future::BoxFuture;
use tokio::{sync::oneshot, time::Instant};

use crate::value::{ErrorCode, Explain};

/// The timeout of one read. Waiting for a thread does not count.
pub const READ_LIMIT: Duration = Duration::from_secs(2);
/// The number of threads while the storage responds. More would not be faster: the files are small,
/// and the threads share one heap.
const THREADS: usize = 1;
/// The maximum number of abandoned threads; further reads fail.
const MOST_THREADS: usize = 1024;
/// The number of threads is doubled after this time without a finished read.
const STALL: Duration = Duration::from_millis(50);
/// The stack size of a thread, in bytes.
const STACK: usize = 1 << 20;

/// Why a read failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The storage does not respond.
    #[error("cannot read `{}`: no answer within {} s",
        .0.display(), READ_LIMIT.as_secs())]
    NoAnswer(PathBuf),
    /// No thread can be started, or the read panicked.
    #[error("cannot read `{}`: {why}", path.display())]
    NoThread {
        /// The path.
        path: PathBuf,
        /// The cause.
        why: String,
    },
}

impl Explain for Error {
    fn own_code(&self) -> Option<ErrorCode> {
        Some(match self {
            Self::NoAnswer(..) => ErrorCode::StorageSilent,
            Self::NoThread { .. } => ErrorCode::OutOfResources,
        })
    }

    fn own_hint(&self) -> Option<String> {
        match self {
            Self::NoAnswer(path) => Some(format!(
                "check the server or disk of `{}` (/proc/self/mountinfo, `dmesg`)",
                path.display()
            )),
            Self::NoThread { .. } => {
                Some("check the limits on processes and memory (`ulimit -a`)".into())
            }
        }
    }
}

/// The path that is currently being read, for the error message. Clones share it.
#[derive(Debug, Clone)]
pub struct ReadPosition(Arc<ReadPositionState>);

#[derive(Debug)]
struct ReadPositionState {
    path: Mutex<PathBuf>,
    is_started: AtomicBool,
}

impl ReadPosition {
    fn new(path: &Path) -> Self {
        let (path, is_started) = (Mutex::new(path.to_owned()), AtomicBool::new(false));
        Self(Arc::new(ReadPositionState { path, is_started }))
    }

    /// Sets the path that is about to be read.
    pub fn set(&self, path: &Path) {
        path.clone_into(&mut lock(&self.0.path));
    }

    fn path(&self) -> PathBuf {
        lock(&self.0.path).clone()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // No holder of these locks can panic during a change.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Job {
    /// The requested path.
    path: PathBuf,
    place: ReadPosition,
    work: Box<dyn FnOnce() + Send>,
}

#[derive(Default)]
struct Pool {
    waiting: VecDeque<Job>,
    threads: usize,
    /// The paths of abandoned reads that have not ended, each with the path that hangs.
    hung: BTreeMap<PathBuf, PathBuf>,
    /// The time of the last finished read, or when threads were last added.
    progress: Option<Instant>,
}

/// Reads on separate threads. Clones share the threads and the list of hung storage: a path whose
/// read has not ended is not read again, so a repeated operation adds no threads.
#[derive(Clone, Default)]
pub struct StorageReader(Arc<Mutex<Pool>>);

impl std::fmt::Debug for StorageReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StorageReader").finish_non_exhaustive()
    }
}

impl StorageReader {
    /// Starts reading `path` with `work`, which may block, and returns its result. `work` runs to
    /// its end even if the future is dropped.
    ///
    /// # Errors
    /// The storage does not respond, or no thread can be started.
    pub fn read<T: Send + 'static>(
        &self,
        path: &Path,
        work: impl FnOnce(&ReadPosition) -> T + Send + 'static,
    ) -> BoxFuture<'static, Result<T, Error>> {
        let (done, result) = oneshot::channel();
        let place = ReadPosition::new(path);
        let at = place.clone();
        let work = Box::new(move || drop(done.send(work(&at))));
        let queued = self.queue(Job { path: path.to_owned(), place: place.clone(), work });
        let (pool, path) = (self.clone(), path.to_owned());
        Box::pin(async move {
            queued?;
            pool.result(path, place, result).await
        })
    }

    fn queue(&self, job: Job) -> Result<(), Error> {
        let mut pool = lock(&self.0);
        if let Some(place) = pool.hung.get(&job.path) {
            return Err(Error::NoAnswer(place.clone()));
        }
        let path = job.path.clone();
        pool.waiting.push_back(job);
        let answering = pool.threads.saturating_sub(pool.hung.len());
        if answering >= THREADS || pool.threads >= MOST_THREADS {
            return Ok(());
        }
        match self.add_thread(&mut pool) {
            // Another thread runs the job.
            Err(_) if answering > 0 => Ok(()),
            Err(error) => {
                pool.waiting.pop_back();
                let why = format!("cannot start a thread: {error}");
                Err(Error::NoThread { path, why })
            }
            Ok(()) => Ok(()),
        }
    }

    fn add_thread(&self, pool: &mut Pool) -> io::Result<()> {
        let reader = self.clone();
        let thread = std::thread::Builder::new().name("storage".into()).stack_size(STACK);
        thread.spawn(move || reader.work())?;
        pool.threads += 1;
        pool.progress = Some(Instant::now());
        Ok(())
    }

    /// Runs jobs until none is queued.
    fn work(&self) {
        loop {
            let job = {
                let mut pool = lock(&self.0);
                let Some(job) = pool.waiting.pop_front() else {
                    pool.threads -= 1;
                    return;
                };
                job
            };
            job.place.0.is_started.store(true, Ordering::Relaxed);
            // The waiting future is notified by dropping the sender; the panic hook reports the
            // panic.
            let _ = catch_unwind(AssertUnwindSafe(job.work));
            let mut pool = lock(&self.0);
            pool.hung.remove(&job.path);
            pool.progress = Some(Instant::now());
        }
    }

    async fn result<T>(
        &self,
        path: PathBuf,
        place: ReadPosition,
        mut result: oneshot::Receiver<T>,
    ) -> Result<T, Error> {
        // Counted in steps, not measured: a process that was stopped in between has not waited for
        // its storage.
        let mut waited = Duration::ZERO;
        while waited < READ_LIMIT {
            match tokio::time::timeout(STALL, &mut result).await {
                Ok(Ok(value)) => return Ok(value),
                Ok(Err(_)) => {
                    return Err(Error::NoThread { path, why: "the read panicked".into() });
                }
                Err(_) => {}
            }
            let cannot_start = !self.relieve();
            if cannot_start || place.0.is_started.load(Ordering::Relaxed) {
                waited += STALL;
            }
        }
        let mut pool = lock(&self.0);
        let hangs = place.path();
        // The read may have just ended.
        if let Ok(value) = result.try_recv() {
            return Ok(value);
        }
        pool.hung.insert(path, hangs.clone());
        Err(Error::NoAnswer(hangs))
    }

    /// Adds threads if reads are queued and none has ended for a while. Returns false if no thread
    /// can be added.
    fn relieve(&self) -> bool {
        let mut pool = lock(&self.0);
        if pool.waiting.is_empty() || pool.progress.is_some_and(|at| at.elapsed() < STALL) {
            return true;
        }
        let wanted = pool.threads.max(1).min(pool.waiting.len());
        let room = MOST_THREADS.saturating_sub(pool.threads);
        let added = (0..wanted.min(room)).take_while(|_| self.add_thread(&mut pool).is_ok());
        added.count() > 0
    }
}

/// Reads the paths in sequence with `work` and returns each result: for callers that may block for
/// a bounded time. A hung path delays the others by [`READ_LIMIT`].
pub fn read_each<T: Send + 'static>(
    paths: &[PathBuf],
    work: impl Fn(&Path) -> T + Send + Sync + 'static,
) -> Vec<Result<T, Error>> {
    let work = Arc::new(work);
    let mut all = Vec::new();
    while all.len() < paths.len() {
        let (send, results) = mpsc::channel();
        let (rest, read) = (paths[all.len()..].to_vec(), work.clone());
        let thread = std::thread::Builder::new().name("storage".into()).stack_size(STACK);
        let thread = thread.spawn(move || {
            // After a timeout the results are no longer received.
            rest.iter().try_for_each(|path| send.send(read(path)).map_err(drop))
        });
        let path = paths[all.len()].clone();
        if let Err(error) = thread {
            all.push(Err(Error::NoThread { path, why: format!("cannot start a thread: {error}") }));
            continue;
        }
        while all.len() < paths.len() {
            match results.recv_timeout(READ_LIMIT) {
                Ok(value) => all.push(Ok(value)),
                Err(_) => {
                    all.push(Err(Error::NoAnswer(paths[all.len()].clone())));
                    break;
                }
            }
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(number: usize) -> PathBuf {
        PathBuf::from(format!("/vm/{number}"))
    }

    #[tokio::test]
    async fn hung_read_delays_no_others() {
        let reader = StorageReader::default();
        let (go, wait) = mpsc::channel::<()>();
        let wait = Arc::new(Mutex::new(wait));
        let hang = |number: usize| {
            let wait = wait.clone();
            reader.read(&path(number), move |place| {
                place.set(Path::new("/hung"));
                let _ = lock(&wait).recv();
            })
        };
        let hung = futures_util::future::join_all((0..20).map(hang));
        let reads = (20..60).map(|number| reader.read(&path(number), move |_| number));
        let reads = futures_util::future::join_all(reads);
        let (hung, reads) = tokio::join!(hung, reads);
        assert!(hung.iter().all(|read| *read == Err(Error::NoAnswer("/hung".into()))));
        assert!(reads.into_iter().eq((20..60).map(Ok)));
        // A hung path is not read again.
        let threads = lock(&reader.0).threads;
        let again = reader.read(&path(7), |_| ()).await;
        assert_eq!(again, Err(Error::NoAnswer("/hung".into())));
        assert_eq!(lock(&reader.0).threads, threads);
        drop(go);
        while lock(&reader.0).threads > 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(reader.read(&path(7), |_| 7).await, Ok(7));
    }

    #[test]
    fn each_path_has_its_result() {
        let paths: Vec<PathBuf> = (0..5).map(path).collect();
        let (go, wait) = mpsc::channel::<()>();
        let wait = Mutex::new(wait);
        let read = read_each(&paths, move |path| {
            if path.ends_with("1") || path.ends_with("3") {
                let _ = lock(&wait).recv();
            }
            path.to_owned()
        });
        drop(go);
        let is_hung = |number: usize| number == 1 || number == 3;
        let expected = paths.iter().enumerate().map(|(number, path)| match is_hung(number) {
            true => Err(Error::NoAnswer(path.clone())),
            false => Ok(path.clone()),
        });
        assert!(read.into_iter().eq(expected));
    }

    #[tokio::test]
    async fn panicking_read_is_an_error() {
        let reader = StorageReader::default();
        let read = reader.read(&path(1), |_| assert_ne!(1, 1)).await;
        assert!(matches!(read, Err(Error::NoThread { .. })));
        assert_eq!(reader.read(&path(1), |_| 7).await, Ok(7));
    }
}
