//! Tasks that are aborted with their owner.

use tokio::{
    sync::mpsc,
    task::{AbortHandle, JoinHandle, JoinSet},
};

/// Tasks that are aborted when this is dropped.
#[derive(Debug, Default)]
pub(crate) struct Tasks(JoinSet<()>);

impl Tasks {
    /// Starts a task. The handle may abort it earlier.
    pub(crate) fn spawn(&mut self, work: impl Future<Output = ()> + Send + 'static) -> AbortHandle {
        // Forget ended tasks.
        while self.0.try_join_next().is_some() {}
        self.0.spawn(work)
    }
}

/// Starts the driver of a connection. It ends with the last handle of the connection.
pub(crate) fn drive(connection: impl Future<Output = ()> + Send + 'static) -> JoinHandle<()> {
    tokio::spawn(connection)
}

/// Tasks that send events of type `E` to one bounded queue. A task waits while the queue is full.
#[derive(Debug)]
pub(crate) struct Reporters<E> {
    tasks: Tasks,
    events: mpsc::Sender<E>,
}

impl<E: Send + 'static> Reporters<E> {
    /// Creates the queue for `capacity` events. Events are lost if the receiver is dropped.
    pub(crate) fn new(capacity: usize) -> (Self, mpsc::Receiver<E>) {
        let (events, queue) = mpsc::channel(capacity);
        (Self { tasks: Tasks::default(), events }, queue)
    }

    /// Starts a task that sends no event, or uses [`Self::sender`].
    pub(crate) fn spawn(&mut self, work: impl Future<Output = ()> + Send + 'static) -> AbortHandle {
        self.tasks.spawn(work)
    }

    /// Starts a task and sends its return value as event.
    pub(crate) fn report(&mut self, work: impl Future<Output = E> + Send + 'static) -> AbortHandle {
        let events = self.events.clone();
        self.tasks.spawn(async move {
            let event = work.await;
            let _ = events.send(event).await;
        })
    }

    /// Returns the sender of the queue, for a task that sends several events.
    pub(crate) fn sender(&self) -> mpsc::Sender<E> {
        self.events.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn report_arrives() {
        let (mut reporters, mut queue) = Reporters::new(1);
        reporters.report(async { 7 });
        assert_eq!(queue.recv().await, Some(7));
    }

    #[tokio::test]
    async fn dropped_owner_aborts_its_tasks() {
        let (mut reporters, mut queue) = Reporters::<u8>::new(1);
        let events = reporters.sender();
        reporters.spawn(async move {
            std::future::pending::<()>().await;
            let _ = events.send(1).await;
        });
        drop(reporters);
        // The task owned the last sender.
        assert_eq!(queue.recv().await, None);
    }

    #[tokio::test]
    async fn handle_aborts_one_task() {
        let (mut reporters, mut queue) = Reporters::new(2);
        reporters.report(async { std::future::pending().await }).abort();
        reporters.report(async { 2 });
        assert_eq!(queue.recv().await, Some(2));
    }
}
