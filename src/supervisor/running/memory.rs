//! The guest's balloon: its target and its actual size.

use tracing::debug;

use super::{
    event::{MemoryEvent, VmEvent},
    qemu::Qemu,
};
use crate::{
    control::types::Refusal,
    supervisor::{
        limits::{FOREVER, QMP_LIMIT},
        refusal::{Reply, qmp_refusal},
    },
};

/// The minimum target, in bytes.
const LEAST: u64 = 16 << 20;

#[derive(Debug, Default)]
pub(crate) struct Memory {
    target: Option<u64>,
    actual: Option<u64>,
}

impl Memory {
    /// Returns the target in bytes; `None` if none was set.
    pub(crate) fn target(&self) -> Option<u64> {
        self.target
    }

    /// Stores the effective target, in bytes.
    pub(crate) fn note_target(&mut self, target: Option<u64>) {
        self.target = target;
    }

    /// Returns the guest's memory in bytes, as last reported.
    pub(crate) fn actual(&self) -> Option<u64> {
        self.actual
    }

    /// Queries the guest's memory. QEMU reports later changes as events.
    pub(crate) fn query(&self, qemu: &mut Qemu) {
        let (client, reports) = (qemu.client(), qemu.tasks().sender());
        qemu.tasks().spawn(async move {
            if let Ok(qmp::Balloon::Actual(bytes)) = client.query_balloon(QMP_LIMIT).await {
                let _ = reports.send(VmEvent::Memory(MemoryEvent::Actual(bytes))).await;
            }
        });
    }

    /// Sets the target; `most` is the guest's memory at its start, in bytes.
    pub(crate) fn set_target(&self, bytes: u64, most: u64, reply: Reply, qemu: &mut Qemu) {
        if !(LEAST..=most).contains(&bytes) {
            let why =
                format!("{bytes} bytes are out of range: this VM accepts {LEAST} to {most} bytes");
            return drop(reply.send(Err(Refusal::BadValue(why))));
        }
        let client = qemu.client();
        qemu.report(async move {
            let mut reply = Some(reply);
            let mut set = std::pin::pin!(client.balloon(bytes, FOREVER));
            let done = match tokio::time::timeout(QMP_LIMIT, &mut set).await {
                Ok(done) => done,
                Err(_) => {
                    let late = qmp::Error::Timeout { command: "balloon".into(), limit: QMP_LIMIT };
                    if let Some(reply) = reply.take() {
                        let _ = reply.send(Err(qmp_refusal("set the balloon", &late)));
                    }
                    // A late reply of QEMU still sets the target.
                    set.await
                }
            };
            VmEvent::Memory(MemoryEvent::TargetSet { bytes, done, reply })
        });
    }

    /// Handles a report of QEMU.
    pub(crate) fn handle(&mut self, event: MemoryEvent) {
        match event {
            MemoryEvent::Actual(bytes) => self.actual = Some(bytes),
            MemoryEvent::TargetSet { bytes, done, reply } => {
                match &done {
                    Ok(()) => self.target = Some(bytes),
                    Err(error) => debug!("the balloon's target is not set: {error}"),
                }
                if let Some(reply) = reply {
                    let done = done.map_err(|error| qmp_refusal("set the balloon", &error));
                    let _ = reply.send(done);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use tokio::sync::oneshot;

    use super::*;
    use crate::{
        supervisor::tests::{Answer, FakeQemu, Host},
        value::ErrorCode,
    };

    const GIB: u64 = 1 << 30;

    #[tokio::test]
    async fn target_within_bounds_is_set() {
        let host = Host::new();
        let mut fake = FakeQemu::new(&host).await;
        let mut memory = Memory::default();
        let (reply, answer) = oneshot::channel();
        memory.set_target(GIB / 2, GIB, reply, &mut fake.qemu);
        let VmEvent::Memory(event) = fake.event().await else { panic!() };
        memory.handle(event);
        assert_eq!(answer.await.unwrap(), Ok(()));
        assert_eq!(memory.target(), Some(GIB / 2));
        assert_eq!(fake.peer.commands.arguments("balloon"), json!({ "value": GIB / 2 }));
    }

    #[tokio::test]
    async fn target_out_of_range_is_refused() {
        let host = Host::new();
        let mut fake = FakeQemu::new(&host).await;
        let memory = Memory::default();
        for bytes in [0, LEAST - 1, GIB + 1] {
            let (reply, answer) = oneshot::channel();
            memory.set_target(bytes, GIB, reply, &mut fake.qemu);
            assert!(matches!(answer.await.unwrap(), Err(Refusal::BadValue(_))), "{bytes}");
        }
        assert_eq!(fake.peer.commands.names(), ["qmp_capabilities"]);
    }

    #[tokio::test]
    async fn refused_target_is_not_noted() {
        let host = Host::new();
        let mut fake = FakeQemu::new(&host).await;
        fake.peer.script.on("balloon", Answer::Refuse("no balloon"));
        let mut memory = Memory::default();
        let (reply, answer) = oneshot::channel();
        memory.set_target(GIB, GIB, reply, &mut fake.qemu);
        let VmEvent::Memory(event) = fake.event().await else { panic!() };
        memory.handle(event);
        let refused = answer.await.unwrap().unwrap_err();
        assert_eq!(refused.code(), ErrorCode::QemuRefused);
        assert_eq!(memory.target(), None);
    }

    #[tokio::test]
    async fn late_client_is_answered_before_qemu() {
        let host = Host::new();
        let mut fake = FakeQemu::new(&host).await;
        fake.peer.script.on("balloon", Answer::Silence);
        let (reply, answer) = oneshot::channel();
        tokio::time::pause();
        Memory::default().set_target(GIB, GIB, reply, &mut fake.qemu);
        assert!(matches!(answer.await.unwrap(), Err(Refusal::Unconfirmed(_))));
    }

    #[tokio::test]
    async fn actual_memory_is_queried() {
        let host = Host::new();
        let mut fake = FakeQemu::new(&host).await;
        fake.peer.script.on("query-balloon", Answer::Return(json!({ "actual": GIB })));
        let mut memory = Memory::default();
        memory.query(&mut fake.qemu);
        let VmEvent::Memory(event) = fake.event().await else { panic!() };
        memory.handle(event);
        assert_eq!(memory.actual(), Some(GIB));
        memory.note_target(Some(7));
        assert_eq!(memory.target(), Some(7));
    }
}
