//! Inputs of the loop, except the events of a running VM and of a start, and the tasks that send
//! them.

use std::time::Duration;

use tokio::sync::mpsc;

use super::file_reading::FileEvent;
use crate::{
    control::types::Request,
    sys::{
        file_watch::Changes,
        signal::{Signal, Signals},
        suspend_watch::SuspendWatch,
    },
    value::Operator,
};

/// An input of the loop.
#[derive(Debug)]
pub(crate) enum Input {
    Signal(Signal),
    /// Whether the host is shutting down, checked after SIGTERM.
    StopSignal {
        host_down: bool,
    },
    /// A request of the control socket.
    Request(Request),
    /// The VM file or a file beside it has changed.
    FileChanged,
    Files(FileEvent),
    /// The host was suspended for this time.
    HostSlept(Duration),
    /// Operators that the host does not know.
    UnknownOperators(Vec<Operator>),
    /// Unused memory is to be returned to the kernel.
    Settled,
    /// Whether the files for a re-executed supervisor are written; `false` if the storage does not
    /// answer.
    Written(bool),
}

impl From<FileEvent> for Input {
    fn from(event: FileEvent) -> Self {
        Self::Files(event)
    }
}

/// Sends signals to the loop.
pub(crate) async fn forward_signals(mut signals: Signals, inputs: mpsc::Sender<Input>) {
    loop {
        let signal = signals.next().await;
        if inputs.send(Input::Signal(signal)).await.is_err() {
            return;
        }
    }
}

/// Sends the requests of the control socket to the loop.
pub(crate) async fn forward_requests(
    mut requests: mpsc::Receiver<Request>,
    inputs: mpsc::Sender<Input>,
) {
    while let Some(request) = requests.recv().await {
        if inputs.send(Input::Request(request)).await.is_err() {
            return;
        }
    }
}

/// Reports that the host was suspended.
pub(crate) async fn forward_sleeps(mut sleeps: SuspendWatch, inputs: mpsc::Sender<Input>) {
    while let Some(slept) = sleeps.next().await {
        if inputs.send(Input::HostSlept(slept)).await.is_err() {
            return;
        }
    }
}

/// Reports changes of the VM file.
pub(crate) async fn forward_changes(mut changes: Changes, inputs: mpsc::Sender<Input>) {
    while changes.next().await.is_some() {
        if inputs.send(Input::FileChanged).await.is_err() {
            return;
        }
    }
}

/// Sleeps until the deadline, if there is one.
pub(crate) async fn sleep_until(deadline: Option<tokio::time::Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

/// Waits for the next beat of the service manager's watchdog, if there is one.
pub(crate) async fn next_beat(beat: &mut Option<tokio::time::Interval>) {
    match beat {
        Some(beat) => drop(beat.tick().await),
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;

    #[tokio::test]
    async fn requests_arrive_in_their_order() {
        let (requests, asked) = mpsc::channel(4);
        let (sender, mut inputs) = mpsc::channel(4);
        let forwarding = tokio::spawn(forward_requests(asked, sender));
        requests.send(Request::Status(oneshot::channel().0)).await.unwrap();
        requests.send(Request::RecentEvents(oneshot::channel().0)).await.unwrap();
        drop(requests);
        assert!(matches!(inputs.recv().await, Some(Input::Request(Request::Status(_)))));
        assert!(matches!(inputs.recv().await, Some(Input::Request(Request::RecentEvents(_)))));
        forwarding.await.unwrap();
    }

    #[tokio::test]
    async fn forwarding_ends_with_the_loop() {
        let (requests, asked) = mpsc::channel(4);
        let (sender, inputs) = mpsc::channel(4);
        let forwarding = tokio::spawn(forward_requests(asked, sender));
        drop(inputs);
        let (reply, answer) = oneshot::channel();
        requests.send(Request::Status(reply)).await.unwrap();
        forwarding.await.unwrap();
        // The client gets a reply.
        assert!(answer.await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn missing_deadline_never_passes() {
        let hour = Duration::from_secs(3600);
        assert!(tokio::time::timeout(hour, sleep_until(None)).await.is_err());
        assert!(tokio::time::timeout(hour, next_beat(&mut None)).await.is_err());
        let begun = tokio::time::Instant::now();
        sleep_until(Some(begun + hour)).await;
        assert_eq!(begun.elapsed(), hour);
    }
}
