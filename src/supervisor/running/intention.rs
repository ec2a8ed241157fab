//! The intended end of QEMU in the run record, written before the guest or QEMU gets a command.

use std::time::Duration;

use futures_util::future::{BoxFuture, FutureExt, Shared};

use crate::{life::Intention, store::intention::RecordedIntention, supervisor::context::Context};

/// How long a command waits for the write of the run record.
const WRITTEN_WITHIN: Duration = Duration::from_secs(1);

/// The last written intention.
#[derive(Debug, Default)]
pub(crate) struct Intentions {
    last: Option<Intention>,
    written: Option<Shared<BoxFuture<'static, ()>>>,
}

impl Intentions {
    /// Writes the intention to the run record, by `write`, if it has changed.
    pub(crate) fn update(
        &mut self,
        intention: Option<Intention>,
        ctx: &Context,
        write: impl FnOnce(Option<RecordedIntention>) -> BoxFuture<'static, Result<(), String>>,
    ) {
        if intention == self.last {
            return;
        }
        let recorded = intention
            .as_ref()
            .map(|intention| RecordedIntention::new(intention, ctx.now(), ctx.elapsed()));
        let written = write(recorded);
        let written = async move {
            // A failure is logged. Blocked storage must not delay the end of QEMU.
            let _ = tokio::time::timeout(WRITTEN_WITHIN, written).await;
        };
        *self = Self { last: intention, written: Some(written.boxed().shared()) };
    }

    /// Waits until the run record contains the intention.
    pub(crate) fn written(&self) -> impl Future<Output = ()> + Send + use<> {
        let written = self.written.clone();
        async move {
            if let Some(written) = written {
                written.await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::{sync::oneshot, time::Instant};

    use super::*;
    use crate::{
        life::{AfterQemu, Cause, End, Requester},
        supervisor::tests::Host,
    };

    fn stop(deadline: Option<Duration>) -> Option<Intention> {
        let end = End { cause: Cause::Stopped(Requester::Operator) };
        Some(Intention { then: AfterQemu::End(end), deadline })
    }

    #[tokio::test]
    async fn intention_is_written_when_it_changes() {
        let host = Host::new();
        let mut intentions = Intentions::default();
        let mut written = vec![];
        let later = stop(Some(Duration::from_secs(9)));
        for intention in [None, stop(None), stop(None), later.clone(), later, None, None] {
            intentions.update(intention, &host.ctx, |recorded| {
                written.push(recorded.map(|recorded| recorded.outcome().is_some()));
                Box::pin(async { Ok(()) })
            });
        }
        assert_eq!(written, [Some(true), Some(true), None]);
        intentions.written().await;
    }

    #[tokio::test]
    async fn guest_is_asked_after_the_record() {
        let host = Host::new();
        let mut intentions = Intentions::default();
        let (write, done) = oneshot::channel::<()>();
        intentions.update(stop(None), &host.ctx, |_| {
            Box::pin(async { done.await.map_err(|error| error.to_string()) })
        });
        // Both the button and the agent wait for the same write.
        let waiting =
            tokio::spawn(futures_util::future::join(intentions.written(), intentions.written()));
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        write.send(()).unwrap();
        waiting.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn hung_storage_delays_a_stop_within_a_bound() {
        let host = Host::new();
        let mut intentions = Intentions::default();
        intentions.update(stop(None), &host.ctx, |_| Box::pin(std::future::pending()));
        let begun = Instant::now();
        intentions.written().await;
        assert_eq!(begun.elapsed(), WRITTEN_WITHIN);
    }
}
