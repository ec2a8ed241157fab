//! Writes the run record in order, outside the event loop.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;
use tracing::warn;

use super::layout::VmPaths;
use super::record::Record;
use crate::sys::lane::Lane;
use crate::value::chain;

/// Writes the newest state of the record. A state that is superseded before it is written is
/// skipped, so that hung storage keeps only one record in memory.
#[derive(Debug)]
pub(crate) struct RecordWriter {
    lane: Lane,
    paths: VmPaths,
    next: Arc<Mutex<Next>>,
}

#[derive(Debug, Default)]
struct Next {
    record: Option<Record>,
    askers: Vec<oneshot::Sender<Result<(), String>>>,
}

fn lock(next: &Mutex<Next>) -> MutexGuard<'_, Next> {
    // No holder of the lock can panic during a change.
    next.lock().unwrap_or_else(PoisonError::into_inner)
}

impl RecordWriter {
    /// Creates the writer for one QEMU process. `lane` runs all writes to the run directory,
    /// including the removal of an earlier process's record.
    pub(crate) fn new(lane: Lane, paths: VmPaths) -> Self {
        Self { lane, paths, next: Arc::default() }
    }

    /// Writes the record. A failure is logged; the result is for callers that must wait for it.
    pub(crate) fn write(
        &self,
        record: &Record,
    ) -> impl Future<Output = Result<(), String>> + Send + use<> {
        let (asker, written) = oneshot::channel();
        let waits = {
            let mut next = lock(&self.next);
            next.askers.retain(|asker| !asker.is_closed());
            next.askers.push(asker);
            next.record.replace(record.clone()).is_some()
        };
        if !waits {
            let (next, paths) = (self.next.clone(), self.paths.clone());
            let job = move || {
                let Next { record, askers } = std::mem::take(&mut *lock(&next));
                let Some(record) = record else { return };
                let done = record.update(&paths).map_err(|error| chain(&error));
                if let Err(error) = &done {
                    warn!(
                        "cannot write the run record; the last change is lost if the supervisor \
                         restarts: {error}"
                    );
                }
                askers.into_iter().for_each(|asker| drop(asker.send(done.clone())));
            };
            if let Err(refused) = self.lane.run(job) {
                let Next { askers, .. } = std::mem::take(&mut *lock(&self.next));
                warn!(
                    "cannot write the run record; the last change is lost if the supervisor \
                     restarts: {refused}"
                );
                let refused = Err(refused.to_string());
                askers.into_iter().for_each(|asker| drop(asker.send(refused.clone())));
            }
        }
        async move { written.await.unwrap_or_else(|_| Err("the operation was aborted".into())) }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    fn record(pid: u32) -> Record {
        let text = include_str!("../../tests/golden/record-0.1.0.json");
        Record { pid, ..serde_json::from_str(text).unwrap() }
    }

    #[tokio::test]
    async fn hung_storage_keeps_one_record_and_the_order() {
        let dir = tempfile::tempdir().unwrap();
        let paths = VmPaths { state: dir.path().to_owned(), runtime: dir.path().to_owned() };
        let lane = Lane::new("test");
        let writer = RecordWriter::new(lane.clone(), paths.clone());
        let (go, hangs) = mpsc::channel::<()>();
        lane.run(move || hangs.recv().unwrap()).unwrap();
        let first = writer.write(&record(1));
        let second = writer.write(&record(2));
        for pid in 3..1000 {
            drop(writer.write(&record(pid)));
        }
        assert!(lock(&writer.next).askers.len() <= 3);
        let of_removed = paths.clone();
        lane.run(move || Record::remove(&of_removed)).unwrap();
        let next_qemu = RecordWriter::new(lane.clone(), paths.clone());
        let of_the_next_qemu = next_qemu.write(&record(1000));
        go.send(()).unwrap();
        assert_eq!((first.await, second.await), (Ok(()), Ok(())));
        of_the_next_qemu.await.unwrap();
        let text = std::fs::read(paths.record()).unwrap();
        assert_eq!(serde_json::from_slice::<Record>(&text).unwrap().pid, 1000);
    }
}
