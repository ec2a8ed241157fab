//! What the run record keeps of how QEMU is being ended: written before the guest is asked, and
//! before QEMU is told to quit.

use std::time::Duration;

use futures_util::future::{BoxFuture, FutureExt, Shared};

use crate::{life::Intention, store::intention::RecordedIntention, supervisor::context::Context};

/// How long the guest or QEMU is not told, where the run record is not written yet.
const WRITTEN_WITHIN: Duration = Duration::from_secs(1);

/// The intention that was written last.
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
            // A failure is logged. Storage that hangs must not hold up the end of QEMU.
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
