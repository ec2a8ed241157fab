//! The tasks of a supervisor: owned, and aborted with their owner.

use tokio::task::{AbortHandle, JoinSet};

/// Tasks that end when this is dropped.
#[derive(Debug, Default)]
pub(crate) struct Tasks(JoinSet<()>);

impl Tasks {
    /// Starts a task. The handle may abort it earlier.
    pub(crate) fn spawn(&mut self, work: impl Future<Output = ()> + Send + 'static) -> AbortHandle {
        // What has ended is forgotten.
        while self.0.try_join_next().is_some() {}
        self.0.spawn(work)
    }
}
