//! Applies a changed VM file to the running machine, one change after the other, in a task.

use std::{collections::VecDeque, mem};

use tracing::{info, warn};

use super::{
    event::{Applied, ChangeOutcome, Devices, LiveUpdateEvent, VmEvent},
    hotplug::{self, Machine},
    memory::Memory,
    qemu::Qemu,
    taps::Taps,
};
use crate::{
    control::types::Refusal,
    machine::{device, diff::LiveChange},
    supervisor::{
        config::Config,
        context::Context,
        limits::{QMP_LIMIT, WRITE_LIMIT},
        refusal::{Reply, qmp_refusal},
    },
    sys::{lane::OnLane, progress::Cancel},
    value::{Explain, Note, NoteCode, chain},
};

/// The changes of a running machine, and the clients that wait for them.
#[derive(Debug, Default)]
pub(crate) struct LiveUpdate {
    work: Option<Work>,
    /// The changes that could not be applied.
    notes: Vec<Note>,
    /// The clients whose reload has not ended, in order.
    reloading: VecDeque<Option<Reply>>,
    /// The clients that wait for the release of devices, by the number of the query.
    settling: Vec<(u64, Vec<Reply>)>,
    /// The number of the last query.
    asked: u64,
}

/// The running changes.
#[derive(Debug)]
struct Work {
    /// Aborts the running change when dropped.
    _lane: OnLane,
    cancel: Cancel,
    clients: Vec<Reply>,
    /// The clients of later requests: the file may have changed again.
    again: Vec<Reply>,
}

impl Drop for Work {
    fn drop(&mut self) {
        self.cancel.set();
    }
}

/// The remaining work after all changes were tried.
#[derive(Debug)]
pub(crate) struct AfterUpdate {
    /// The clients of later requests, for which the VM file is read again.
    pub(crate) again: Vec<Reply>,
    /// The clients of these changes.
    clients: Vec<Reply>,
    /// The devices whose release was requested.
    asked: Vec<LiveChange>,
}

fn answer(clients: Vec<Reply>, answer: &Result<(), Refusal>) {
    clients.into_iter().for_each(|client| drop(client.send(answer.clone())));
}

impl LiveUpdate {
    /// Whether changes are running.
    pub(crate) fn is_active(&self) -> bool {
        self.work.is_some()
    }

    /// Adds a client that waits for its reload.
    pub(crate) fn on_reload(&mut self, client: Option<Reply>) {
        self.reloading.push_back(client);
    }

    /// Ends the earliest reload. Returns its client.
    pub(crate) fn on_reloaded(&mut self) -> Option<Reply> {
        self.reloading.pop_front().flatten()
    }

    /// Answers the waiting clients after the exit of QEMU.
    pub(crate) fn close(&mut self) {
        // The next start uses the reloaded VM file.
        answer(mem::take(&mut self.reloading).into_iter().flatten().collect(), &Ok(()));
        let stopping = Err(Refusal::NotNow("stopping"));
        let settling = mem::take(&mut self.settling).into_iter().flat_map(|(_, clients)| clients);
        answer(settling.collect(), &stopping);
        if let Some(mut work) = self.work.take() {
            answer(mem::take(&mut work.clients), &stopping);
            answer(mem::take(&mut work.again), &stopping);
        }
    }

    /// Starts the changes. The client is answered once all were tried, or refused.
    pub(crate) fn apply(
        &mut self,
        client: Option<Reply>,
        config: &Config,
        taps: &Taps,
        qemu: &Qemu,
        ctx: &Context,
    ) {
        if let Some(work) = &mut self.work {
            work.again.extend(client);
            return;
        }
        let changes = config.live_changes();
        let clients: Vec<Reply> = client.into_iter().collect();
        if changes.is_empty() {
            self.notes.clear();
            return answer(clients, &Ok(()));
        }
        let cancel = Cancel::default();
        let record = qemu.record();
        let machine = Machine {
            settings: ctx.settings().clone(),
            client: qemu.client(),
            vm: config.written().clone(),
            cancel: cancel.clone(),
            uid: record.isolation.as_ref().and_then(|isolation| isolation.uid),
            shut_off: record.has_private_network(),
        };
        let (unattended, reports) = (taps.unattended(), qemu.sender());
        let work = ctx.lanes().apply.drive(async move {
            unattended.await;
            let mut done: Applied = vec![];
            for change in changes {
                let result = machine.apply(&change).await.map_err(|error| {
                    let text =
                        format!("`{}` could not be applied: {}", change.key(), chain(&error));
                    Note::new(NoteCode::NotApplied, text).key(change.key()).hint(error.hint())
                });
                done.push((change, result));
            }
            let _ = reports.send(VmEvent::LiveUpdate(LiveUpdateEvent::Applied(done))).await;
        });
        match work {
            Ok(lane) => {
                self.work = Some(Work { _lane: lane, cancel, clients, again: vec![] });
            }
            Err(refused) => {
                answer(clients, &Err(Refusal::Failed(refused.code(), refused.to_string())))
            }
        }
    }

    /// Handles the end of the changes: records the applied ones, notes the failed ones.
    pub(crate) fn on_applied(
        &mut self,
        results: Applied,
        config: &mut Config,
        memory: &mut Memory,
        qemu: &mut Qemu,
    ) -> Option<AfterUpdate> {
        let mut work = self.work.take()?;
        self.notes.clear();
        let mut asked = vec![];
        for (change, result) in results {
            let key = change.key();
            match result {
                Ok(ChangeOutcome::Done) => {
                    info!("{key}: applied");
                    record(&change, config, memory, qemu);
                }
                Ok(ChangeOutcome::Asked) => asked.push(change),
                Err(note) => {
                    warn!("{note}");
                    self.notes.push(note);
                }
            }
        }
        let (clients, again) = (mem::take(&mut work.clients), mem::take(&mut work.again));
        Some(AfterUpdate { again, clients, asked })
    }

    /// Answers the clients after the write of the run record and the query of released devices.
    pub(crate) fn finish(
        &mut self,
        after: AfterUpdate,
        config: &Config,
        qemu: &mut Qemu,
        ctx: &Context,
    ) {
        let AfterUpdate { clients, asked, .. } = after;
        if !asked.is_empty() {
            return self.settle(asked, clients, config, qemu, ctx);
        }
        let written = ctx.lanes().run.flush();
        qemu.tasks().spawn(async move {
            // The changes are in effect even if the storage hangs.
            let _ = tokio::time::timeout(WRITE_LIMIT, written).await;
            answer(clients, &Ok(()));
        });
    }

    /// Queries QEMU's devices. A device released by the guest, even without a supervisor, is
    /// removed from QEMU and from the record. Those of `asked` that are not released are noted.
    pub(crate) fn settle(
        &mut self,
        asked: Vec<LiveChange>,
        clients: Vec<Reply>,
        config: &Config,
        qemu: &mut Qemu,
        ctx: &Context,
    ) {
        self.asked += 1;
        let number = self.asked;
        self.settling.push((number, clients));
        let (known, client) = (config.removals(), qemu.client());
        let written = ctx.lanes().run.flush();
        qemu.report(async move {
            let _ = tokio::time::timeout(WRITE_LIMIT, written).await;
            let done = devices(&client, known, asked).await;
            VmEvent::LiveUpdate(LiveUpdateEvent::Settled { number, done })
        });
    }

    /// Handles the released devices.
    pub(crate) fn on_settled(
        &mut self,
        number: u64,
        done: Result<Devices, Refusal>,
        (config, memory): (&mut Config, &mut Memory),
        qemu: &mut Qemu,
    ) {
        let is_of = |(other, _): &(u64, Vec<Reply>)| *other == number;
        let position = self.settling.iter().position(is_of);
        let clients = position.map(|at| self.settling.swap_remove(at).1).unwrap_or_default();
        let Devices { released, held } = match done {
            Ok(devices) => devices,
            Err(refusal) => return answer(clients, &Err(refusal)),
        };
        let note = |change: &LiveChange| {
            let key = change.key();
            let text = format!(
                "`{key}`: the guest has not released it; it is removed on release or at a reboot"
            );
            Note::new(NoteCode::NotReleased, text).key(key)
        };
        for change in &released {
            info!("{}: released by the guest", change.key());
            record(change, config, memory, qemu);
            self.notes.retain(|note| !note.is_of(NoteCode::NotReleased, &change.key()));
        }
        self.notes.extend(held.iter().map(note));
        answer(clients, &Ok(()));
    }

    /// Returns the notes for the status.
    pub(crate) fn notes(&self) -> &[Note] {
        &self.notes
    }
}

/// Handles a change of the running machine.
fn record(change: &LiveChange, config: &mut Config, memory: &mut Memory, qemu: &mut Qemu) {
    if let LiveChange::SetMemory(size) = change {
        memory.note_target(Some(size.bytes()).filter(|_| *size != config.vm().mem));
    }
    let done = config.record_change(change);
    drop(qemu.change_record(|record| record.applied.extend(done)));
}

/// Queries QEMU's devices, and removes the back ends of released ones.
async fn devices(
    client: &qmp::Client,
    known: Vec<LiveChange>,
    asked: Vec<LiveChange>,
) -> Result<Devices, Refusal> {
    let there = client.devices(QMP_LIMIT).await;
    let there = there.map_err(|error| qmp_refusal("list the devices of QEMU", &error))?;
    let is_released = |change: &LiveChange| match change {
        LiveChange::RemoveDisk(name) => !there.contains(&device::disk_id(name)),
        LiveChange::RemoveNic(name) => !there.contains(&device::nic_id(name)),
        _ => false,
    };
    let released: Vec<LiveChange> = known.into_iter().filter(is_released).collect();
    for change in &released {
        hotplug::tidy(client, change).await;
    }
    Ok(Devices { released, held: asked.into_iter().filter(|one| !is_released(one)).collect() })
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use tokio::sync::oneshot::{self, Receiver};

    use super::*;
    use crate::supervisor::{
        config::Examining,
        tests::{Answer, FakeQemu, Host, vm},
    };

    const ONE_NIC: &str = "mem = \"1G\"\n[nic.net]\n";

    type Client = Receiver<Result<(), Refusal>>;

    struct Scene {
        host: Host,
        fake: FakeQemu,
        config: Config,
        memory: Memory,
        taps: Taps,
        update: LiveUpdate,
    }

    /// A machine of the VM file `running`, whose VM file is now `written`.
    async fn scene(running: &str, written: &str) -> Scene {
        let host = Host::new();
        let mut fake = FakeQemu::new(&host).await;
        let mut config = Config::new(vm(running), running.to_owned());
        config.on_read(Ok((vm(written), written.to_owned())), Default::default());
        config.compare(None);
        let wanted = config.wanted_taps(Examining::Active);
        let taps = Taps::keep(wanted, vec![], &mut fake.qemu, &host.ctx);
        let (memory, update) = (Memory::default(), LiveUpdate::default());
        Scene { host, fake, config, memory, taps, update }
    }

    impl Scene {
        fn apply(&mut self) -> Client {
            let (reply, client) = oneshot::channel();
            let (config, taps, qemu) = (&self.config, &self.taps, &self.fake.qemu);
            self.update.apply(Some(reply), config, taps, qemu, &self.host.ctx);
            client
        }

        async fn applied(&mut self) -> Option<AfterUpdate> {
            let VmEvent::LiveUpdate(LiveUpdateEvent::Applied(done)) = self.fake.event().await
            else {
                panic!()
            };
            let Self { config, memory, fake, update, .. } = self;
            update.on_applied(done, config, memory, &mut fake.qemu)
        }

        async fn settled(&mut self) {
            let VmEvent::LiveUpdate(LiveUpdateEvent::Settled { number, done }) =
                self.fake.event().await
            else {
                panic!()
            };
            let Self { config, memory, fake, update, .. } = self;
            update.on_settled(number, done, (config, memory), &mut fake.qemu);
        }
    }

    #[tokio::test]
    async fn unchanged_file_is_answered_at_once() {
        let mut scene = scene(ONE_NIC, ONE_NIC).await;
        let mut client = scene.apply();
        assert_eq!(client.try_recv(), Ok(Ok(())));
        assert!(!scene.update.is_active());
    }

    #[tokio::test]
    async fn memory_and_link_are_applied_and_recorded() {
        let written = "mem = \"512M\"\n[nic.net]\nlink = \"down\"\n";
        let mut scene = scene(ONE_NIC, written).await;
        let client = scene.apply();
        assert!(scene.update.is_active());
        let after = scene.applied().await.unwrap();
        assert!(!scene.update.is_active());
        let Scene { update, config, fake, host, .. } = &mut scene;
        update.finish(after, config, &mut fake.qemu, &host.ctx);
        assert_eq!(client.await.unwrap(), Ok(()));
        assert_eq!(scene.memory.target(), Some(512 << 20));
        assert_eq!(scene.fake.peer.commands.arguments("set_link")["up"], json!(false));
        assert!(scene.fake.qemu.record().applied.contains_key("mem"));
        scene.config.compare(None);
        assert_eq!(scene.config.pending(), []);
        assert!(scene.update.notes().is_empty());
    }

    #[tokio::test]
    async fn refused_change_is_noted_and_stays_pending() {
        let written = ONE_NIC.replace("1G", "512M");
        let mut scene = scene(ONE_NIC, &written).await;
        scene.fake.peer.script.on("balloon", Answer::Refuse("no balloon"));
        let _client = scene.apply();
        scene.applied().await.unwrap();
        let notes = scene.update.notes();
        assert!(notes[0].is_of(NoteCode::NotApplied, "mem"), "{notes:?}");
        scene.config.compare(None);
        assert_eq!(scene.config.pending().len(), 1);
        assert_eq!(scene.memory.target(), None);
    }

    #[tokio::test]
    async fn new_client_causes_another_reading() {
        let mut scene = scene(ONE_NIC, &ONE_NIC.replace("1G", "512M")).await;
        let (_first, _second) = (scene.apply(), scene.apply());
        let after = scene.applied().await.unwrap();
        assert_eq!((after.clients.len(), after.again.len()), (1, 1));
    }

    #[tokio::test]
    async fn released_device_is_forgotten() {
        let running = ONE_NIC.to_owned() + "[nic.lan]\n";
        let mut scene = scene(&running, ONE_NIC).await;
        let device = |name: &str| {
            let name = device::nic_id(&name.parse().unwrap());
            json!({ "name": name, "type": "child<virtio-net-pci>" })
        };
        scene.fake.peer.script.on("qom-list", Answer::Return(json!([device("net")])));
        let (reply, client) = oneshot::channel();
        let lan = LiveChange::RemoveNic("lan".parse().unwrap());
        let net = LiveChange::RemoveNic("net".parse().unwrap());
        let Scene { update, config, fake, host, .. } = &mut scene;
        update.settle(vec![lan, net], vec![reply], config, &mut fake.qemu, &host.ctx);
        scene.settled().await;
        assert_eq!(client.await.unwrap(), Ok(()));
        let nics: Vec<LiveChange> = scene.config.removals();
        assert!(!nics.iter().any(|one| one.key() == "nic.lan"), "{nics:?}");
        let notes = scene.update.notes();
        assert!(notes.len() == 1 && notes[0].is_of(NoteCode::NotReleased, "nic.net"), "{notes:?}");
        // The guest releases that device, too.
        scene.fake.peer.script.on("qom-list", Answer::Return(json!([])));
        let Scene { update, config, fake, host, .. } = &mut scene;
        update.settle(vec![], vec![], config, &mut fake.qemu, &host.ctx);
        scene.settled().await;
        assert!(scene.update.notes().is_empty(), "{:?}", scene.update.notes());
    }

    #[tokio::test]
    async fn qemu_that_lists_no_devices_changes_nothing() {
        let mut scene = scene(ONE_NIC, ONE_NIC).await;
        scene.fake.peer.script.on("qom-list", Answer::Refuse("no"));
        let (reply, client) = oneshot::channel();
        let before = scene.config.removals();
        let Scene { update, config, fake, host, .. } = &mut scene;
        update.settle(vec![], vec![reply], config, &mut fake.qemu, &host.ctx);
        scene.settled().await;
        assert!(matches!(client.await.unwrap(), Err(Refusal::Failed(..))));
        assert_eq!(scene.config.removals(), before);
    }

    #[tokio::test]
    async fn exit_answers_every_client() {
        let mut scene = scene(ONE_NIC, &ONE_NIC.replace("1G", "512M")).await;
        let (applying, again) = (scene.apply(), scene.apply());
        let (reply, reloading) = oneshot::channel();
        scene.update.on_reload(Some(reply));
        scene.update.on_reload(None);
        let (reply, settling) = oneshot::channel();
        let Scene { update, config, fake, host, .. } = &mut scene;
        update.settle(vec![], vec![reply], config, &mut fake.qemu, &host.ctx);
        update.close();
        let stopping = Err(Refusal::NotNow("stopping"));
        for client in [applying, again, settling] {
            assert_eq!(client.await.unwrap(), stopping);
        }
        // The next start uses the VM file.
        assert_eq!(reloading.await.unwrap(), Ok(()));
    }

    #[test]
    fn reloads_end_in_their_order() {
        let mut update = LiveUpdate::default();
        let (reply, _client) = oneshot::channel();
        update.on_reload(None);
        update.on_reload(Some(reply));
        assert!(update.on_reloaded().is_none());
        assert!(update.on_reloaded().is_some());
        assert!(update.on_reloaded().is_none());
    }
}
