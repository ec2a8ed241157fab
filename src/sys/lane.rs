//! Runs blocking work outside the event loop: the jobs of a lane run one after the other.
//!
//! Each storage that can hang independently has its own lane: a hung state directory does not delay
//! the run record. A lane has a thread only while it has jobs, so an idle supervisor has none.

use std::{
    collections::VecDeque,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use futures_util::future::{AbortHandle, BoxFuture, abortable};
use tokio::{runtime::Handle, sync::oneshot};

use super::storage_reader::StorageReader;
use crate::value::ErrorCode;

/// The maximum number of queued jobs; further jobs are refused.
const MOST_JOBS: usize = 256;
/// The stack size of a lane's thread, in bytes. Starting QEMU needs the most.
const STACK: usize = 1 << 20;

type Job = Box<dyn FnOnce() + Send>;

/// A lane; clones share it.
#[derive(Clone)]
pub(crate) struct Lane {
    name: &'static str,
    jobs: Arc<Mutex<Jobs>>,
}

/// The lanes of a supervisor.
#[derive(Debug)]
pub(crate) struct Lanes {
    /// Starts and adopts QEMU, and creates its sockets.
    pub(crate) launch: Lane,
    /// Writes to the run directory.
    pub(crate) run: Lane,
    /// Writes to the state directory.
    pub(crate) state: Lane,
    /// Reads the VM file and related files.
    pub(crate) files: Lane,
    /// Applies changes to the running machine.
    pub(crate) apply: Lane,
    /// Accesses cgroups and /proc.
    pub(crate) host: Lane,
    /// Probes whether storage responds; no lane waits for these reads.
    pub(crate) probes: StorageReader,
}

impl Lanes {
    pub(crate) fn new() -> Self {
        Self {
            launch: Lane::new("launch"),
            run: Lane::new("run-dir"),
            state: Lane::new("state-dir"),
            files: Lane::new("files"),
            apply: Lane::new("apply"),
            host: Lane::new("host"),
            probes: StorageReader::default(),
        }
    }

    fn all(&self) -> [&Lane; 6] {
        [&self.launch, &self.run, &self.state, &self.files, &self.apply, &self.host]
    }

    /// Returns true if any lane has a thread.
    pub(crate) fn is_busy(&self) -> bool {
        self.all().iter().any(|lane| lane.busy_for().is_some())
    }

    /// Waits at most `limit` until all lanes are idle; returns `false` on timeout.
    pub(crate) fn settle(&self, limit: Duration) -> impl Future<Output = bool> + Send + use<> {
        Self::flushed(&self.all(), limit)
    }

    /// Waits at most `limit` until all pending writes are done; returns `false` on timeout.
    pub(crate) fn flush(&self, limit: Duration) -> impl Future<Output = bool> + Send + use<> {
        Self::flushed(&[&self.run, &self.state], limit)
    }

    fn flushed(lanes: &[&Lane], limit: Duration) -> impl Future<Output = bool> + Send + use<> {
        let all: Vec<_> = lanes.iter().map(|lane| lane.flush()).collect();
        let all = futures_util::future::join_all(all);
        async move {
            let done = tokio::time::timeout(limit, all).await;
            done.is_ok_and(|done| done.iter().all(Result::is_ok))
        }
    }
}

#[derive(Default)]
struct Jobs {
    waiting: VecDeque<Job>,
    /// When the current job started; `None` if no thread runs.
    since: Option<Instant>,
}

/// Why a job was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refused {
    /// The queue is full.
    #[error("the storage does not respond, and {MOST_JOBS} operations are waiting for it")]
    Full,
    /// No thread can be started.
    #[error("cannot start a thread")]
    NoThread,
    /// The job panicked, or was aborted.
    #[error("the operation was aborted")]
    GivenUp,
}

impl Refused {
    /// The code of the refusal.
    pub(crate) fn code(self) -> ErrorCode {
        match self {
            Self::Full => ErrorCode::StorageSilent,
            Self::NoThread => ErrorCode::OutOfResources,
            Self::GivenUp => ErrorCode::Canceled,
        }
    }
}

impl std::fmt::Debug for Lane {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lane").field("name", &self.name).finish_non_exhaustive()
    }
}

/// A future on a lane. Dropping this aborts the future: it is dropped on the lane at its next await
/// point.
#[derive(Debug)]
pub(crate) struct OnLane(AbortHandle);

impl Drop for OnLane {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Lane {
    /// Creates an empty lane; `name` names its thread, at most 15 bytes.
    pub(crate) fn new(name: &'static str) -> Self {
        Self { name, jobs: Arc::default() }
    }

    fn jobs(&self) -> MutexGuard<'_, Jobs> {
        // Nothing that holds the lock can panic half-way through a change.
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues a job.
    ///
    /// # Errors
    /// The queue is full, or no thread can be started.
    pub(crate) fn run(&self, job: impl FnOnce() + Send + 'static) -> Result<(), Refused> {
        let mut jobs = self.jobs();
        if jobs.waiting.len() >= MOST_JOBS {
            return Err(Refused::Full);
        }
        jobs.waiting.push_back(Box::new(job));
        if jobs.since.is_some() {
            return Ok(());
        }
        let lane = self.clone();
        let thread = std::thread::Builder::new().name(self.name.into()).stack_size(STACK);
        if thread.spawn(move || lane.work()).is_err() {
            jobs.waiting.pop_back();
            return Err(Refused::NoThread);
        }
        jobs.since = Some(Instant::now());
        Ok(())
    }

    /// Runs queued jobs until the queue is empty.
    fn work(&self) {
        loop {
            let job = {
                let mut jobs = self.jobs();
                let job = jobs.waiting.pop_front();
                jobs.since = job.is_some().then(Instant::now);
                job
            };
            let Some(job) = job else { return };
            // A panic, which the panic hook reports, must not prevent the next job.
            let _ = catch_unwind(AssertUnwindSafe(job));
        }
    }

    /// Queues a job and returns its result. The job runs even if the returned future is dropped.
    pub(crate) fn ask<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> BoxFuture<'static, Result<T, Refused>> {
        let (done, result) = oneshot::channel();
        let queued = self.run(move || drop(done.send(work())));
        Box::pin(async move {
            queued?;
            result.await.map_err(|_| Refused::GivenUp)
        })
    }

    /// Queues a future that may block between its await points. Its I/O uses the caller's runtime.
    ///
    /// # Errors
    /// The queue is full, or no thread can be started.
    pub(crate) fn drive(
        &self,
        work: impl Future<Output = ()> + Send + 'static,
    ) -> Result<OnLane, Refused> {
        let (work, abort) = abortable(work);
        let runtime = Handle::current();
        self.run(move || {
            let _ = runtime.block_on(work);
        })?;
        Ok(OnLane(abort))
    }

    /// Completes when all currently queued jobs are done.
    pub(crate) fn flush(&self) -> BoxFuture<'static, Result<(), Refused>> {
        // Without a job there is nothing to wait for, and no thread to start.
        if self.jobs().since.is_none() {
            return Box::pin(std::future::ready(Ok(())));
        }
        self.ask(|| ())
    }

    /// Returns the run time of the current job, if any.
    pub(crate) fn busy_for(&self) -> Option<Duration> {
        self.jobs().since.map(|since| since.elapsed())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn jobs_run_in_order() {
        let lane = Lane::new("test");
        let (done, order) = mpsc::channel();
        for number in 0..100 {
            let done = done.clone();
            lane.run(move || done.send(number).unwrap()).unwrap();
        }
        lane.flush().await.unwrap();
        assert!(order.try_iter().eq(0..100));
        assert_eq!(lane.ask(|| 7).await, Ok(7));
    }

    #[tokio::test]
    async fn queue_is_bounded_by_hung_job() {
        let lane = Lane::new("test");
        let (go, wait) = mpsc::channel::<()>();
        lane.run(move || wait.recv().unwrap()).unwrap();
        while lane.run(|| ()).is_ok() {}
        assert_eq!(lane.ask(|| ()).await, Err(Refused::Full));
        assert!(lane.busy_for().is_some());
        go.send(()).unwrap();
        while lane.busy_for().is_some() {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn panicking_job_does_not_end_lane() {
        let lane = Lane::new("test");
        assert_eq!(lane.ask(|| assert_ne!(1, 1)).await, Err(Refused::GivenUp));
        assert_eq!(lane.ask(|| 7).await, Ok(7));
    }

    #[tokio::test]
    async fn future_is_dropped_on_its_lane() {
        struct DropReport(mpsc::Sender<Option<String>>);
        impl Drop for DropReport {
            fn drop(&mut self) {
                let thread = std::thread::current();
                self.0.send(thread.name().map(str::to_owned)).unwrap();
            }
        }
        let lane = Lane::new("test-lane");
        let (sender, reports) = mpsc::channel();
        let report = DropReport(sender);
        let work = async move {
            let _report = report;
            std::future::pending::<()>().await;
        };
        drop(lane.drive(work).unwrap());
        lane.flush().await.unwrap();
        assert_eq!(reports.recv().unwrap().as_deref(), Some("test-lane"));
    }
}
