//! The QEMU process of a running VM: its connections, its run record, and its tasks.

use std::{path::PathBuf, sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use tokio::{sync::mpsc, task::AbortHandle};
use tracing::{error, info, warn};

use super::{
    event::{Executed, VmEvent},
    intention::Intentions,
};
use crate::{
    life::Intention,
    store::{record::Record, record_writer::RecordWriter},
    supervisor::{
        context::Context,
        limits::{AGENT_LIMIT, QMP_LIMIT},
    },
    sys::{
        pidfd::{Exit, Process, Signal},
        tasks::Reporters,
    },
};

/// The capacity of the queue of events; tasks wait while it is full.
const EVENT_QUEUE: usize = 256;
/// The capacity of the queue of replies after events; further replies go to the loop directly.
const REPLY_QUEUE: usize = 64;
/// The time limit of QMP `quit`, followed by SIGTERM.
const QUIT_LIMIT: Duration = Duration::from_secs(3);
/// The interval of attempts to connect to QMP.
const RECONNECT_EVERY: Duration = Duration::from_secs(1);
/// The time limit to determine whether the OOM killer ended QEMU.
const OOM_LIMIT: Duration = Duration::from_secs(2);
/// The distance of the numbers of two calls to the guest agent; a long command uses several.
const SYNC_STEP: u32 = 10_000;

/// The QEMU process. Dropping it aborts the tasks, but does not end the process.
#[derive(Debug)]
pub(crate) struct Qemu {
    process: Arc<Process>,
    client: qmp::Client,
    agent: qmp::agent::Agent,
    record: Record,
    records: RecordWriter,
    tasks: Reporters<VmEvent>,
    /// The queue of the task that reports the events of the QMP connection.
    replies: Option<mpsc::Sender<VmEvent>>,
    /// The number of the last call to the guest agent.
    sync: u32,
    /// Whether QEMU shuts down at a reboot of the guest, for a relaunch.
    reboot_relaunches: bool,
    intentions: Intentions,
}

impl Qemu {
    /// Creates the process and the queue of its events.
    pub(crate) fn new(
        process: Arc<Process>,
        client: qmp::Client,
        agent: qmp::agent::Agent,
        record: Record,
        ctx: &Context,
    ) -> (Self, mpsc::Receiver<VmEvent>) {
        let (tasks, events) = Reporters::new(EVENT_QUEUE);
        let qemu = Self {
            process,
            client,
            agent,
            record,
            records: ctx.record_writer(),
            tasks,
            replies: None,
            sync: std::process::id(),
            reboot_relaunches: false,
            intentions: Intentions::default(),
        };
        (qemu, events)
    }

    /// Returns the current QMP connection.
    pub(crate) fn client(&self) -> qmp::Client {
        self.client.clone()
    }

    pub(crate) fn agent(&self) -> qmp::agent::Agent {
        self.agent.clone()
    }

    /// Returns an unused number for a call to the guest agent; the caller may use `SYNC_STEP`
    /// numbers.
    pub(crate) fn next_sync(&mut self) -> u32 {
        self.sync = self.sync.wrapping_add(SYNC_STEP);
        self.sync
    }

    /// Returns the run record.
    pub(crate) fn record(&self) -> &Record {
        &self.record
    }

    /// Changes the run record and writes it. Returns the pending write.
    pub(crate) fn change_record(
        &mut self,
        change: impl FnOnce(&mut Record),
    ) -> BoxFuture<'static, Result<(), String>> {
        change(&mut self.record);
        Box::pin(self.records.write(&self.record))
    }

    /// Writes the intended end of the process to the run record.
    pub(crate) fn record_intention(&mut self, intention: Option<Intention>, ctx: &Context) {
        let Self { intentions, record, records, .. } = self;
        intentions.update(intention, ctx, |recorded| {
            record.intention = recorded;
            Box::pin(records.write(record))
        });
    }

    /// Waits until the run record contains the intended end of the process.
    pub(crate) fn intention_written(&self) -> impl Future<Output = ()> + Send + 'static + use<> {
        self.intentions.written()
    }

    /// Sets the effect of a guest's reboot. Returns whether it has changed.
    pub(crate) fn set_reboot_relaunches(&mut self, relaunches: bool) -> bool {
        std::mem::replace(&mut self.reboot_relaunches, relaunches) != relaunches
    }

    pub(crate) fn tasks(&mut self) -> &mut Reporters<VmEvent> {
        &mut self.tasks
    }

    /// Returns the sender of events, for work outside these tasks.
    pub(crate) fn sender(&self) -> mpsc::Sender<VmEvent> {
        self.tasks.sender()
    }

    /// Starts a task and reports the event that it returns.
    pub(crate) fn report(
        &mut self,
        work: impl Future<Output = VmEvent> + Send + 'static,
    ) -> AbortHandle {
        self.tasks.report(work)
    }

    /// Reports the events of a QMP connection, and the replies after the preceding events.
    pub(crate) fn listen(&mut self, mut events: qmp::Events) {
        let (replies, mut queue) = mpsc::channel(REPLY_QUEUE);
        self.replies = Some(replies);
        let reports = self.tasks.sender();
        self.tasks.spawn(async move {
            loop {
                // An event is queued before the replies that follow it.
                let report = tokio::select! {
                    biased;
                    event = events.next() => match event {
                        Some(event) => VmEvent::Qmp(event),
                        None => break,
                    },
                    Some(reply) = queue.recv() => reply,
                };
                if reports.send(report).await.is_err() {
                    return;
                }
            }
            queue.close();
            while let Some(reply) = queue.recv().await {
                let _ = reports.send(reply).await;
            }
            let _ = reports.send(VmEvent::QmpClosed).await;
        });
    }

    /// Executes a QMP command whose reply is reported after the preceding events. A failure is
    /// logged.
    pub(crate) fn execute<F, W>(&mut self, number: u64, what: &'static str, command: F)
    where
        F: FnOnce(qmp::Client) -> W,
        W: Future<Output = Result<(), qmp::Error>> + Send + 'static,
    {
        let work = command(self.client.clone());
        let (reports, replies) = (self.tasks.sender(), self.replies.clone());
        self.tasks.spawn(async move {
            let done = work.await;
            log_failure(what, &done);
            let reply = VmEvent::Executed(Executed { number, what, done });
            let unsent = match replies {
                Some(replies) => replies.send(reply).await.err().map(|unsent| unsent.0),
                None => Some(reply),
            };
            if let Some(reply) = unsent {
                let _ = reports.send(reply).await;
            }
        });
    }

    /// Executes a QMP command without waiting for its reply. A failure is logged.
    pub(crate) fn tell<F, W>(&mut self, what: &'static str, command: F)
    where
        F: FnOnce(qmp::Client) -> W,
        W: Future<Output = Result<(), qmp::Error>> + Send + 'static,
    {
        let work = command(self.client.clone());
        self.tasks.spawn(async move { log_failure(what, &work.await) });
    }

    /// Connects to QMP again while the process is alive. Usually QEMU is about to exit.
    pub(crate) fn reconnect(&mut self, socket: PathBuf) {
        let (process, reports) = (self.process.clone(), self.tasks.sender());
        self.tasks.spawn(async move {
            loop {
                tokio::time::sleep(RECONNECT_EVERY).await;
                if !process.is_alive() {
                    return;
                }
                let connected = async {
                    let session = qmp::connect(&socket, QMP_LIMIT).await?;
                    let run_state = session.client.query_status(QMP_LIMIT).await?;
                    Ok::<_, qmp::Error>(VmEvent::QmpReconnected(session, run_state))
                };
                match connected.await {
                    Ok(report) => return drop(reports.send(report).await),
                    Err(error) => warn!("QEMU is alive but does not answer on QMP: {error}"),
                }
            }
        });
    }

    /// Replaces the QMP connection.
    pub(crate) fn use_connection(&mut self, session: qmp::Session) {
        self.client = session.client;
        self.listen(session.events);
    }

    /// Reports the exit of the process; `was_oom_killed` may block.
    pub(crate) fn await_exit(
        &mut self,
        was_oom_killed: impl FnOnce(Exit) -> bool + Send + 'static,
    ) {
        let process = self.process.clone();
        self.tasks.report(async move {
            let exit = process.wait().await;
            let looked = tokio::task::spawn_blocking(move || was_oom_killed(exit));
            let oom = tokio::time::timeout(OOM_LIMIT, looked).await;
            VmEvent::Exited { exit, oom: oom.is_ok_and(|looked| looked.unwrap_or(false)) }
        });
    }

    /// Requests a shutdown from the guest agent, after `first`. Has no effect without an agent.
    pub(crate) fn ask_agent_to_shut_down(
        &mut self,
        first: impl Future<Output = ()> + Send + 'static,
    ) {
        let (sync, agent) = (self.next_sync(), self.agent.clone());
        self.tasks.spawn(async move {
            first.await;
            match agent.shutdown(sync, AGENT_LIMIT).await {
                Ok(()) => info!("the guest agent was asked to shut down as well"),
                Err(why) => tracing::debug!("the guest agent did not accept the shutdown: {why}"),
            }
        });
    }

    /// Sends QMP `quit` after `first`; if QMP does not answer, SIGTERM, which has the same effect.
    pub(crate) fn quit(&mut self, first: impl Future<Output = ()> + Send + 'static) {
        let (client, process) = (self.client.clone(), self.process.clone());
        self.tasks.spawn(async move {
            first.await;
            match client.quit(QUIT_LIMIT).await {
                Ok(()) | Err(qmp::Error::Closed) => {}
                Err(error) => {
                    warn!("QEMU did not accept `quit`, sending SIGTERM: {error}");
                    let _ = process.signal(Signal::TERM);
                }
            }
        });
    }

    /// Sends a signal to the process.
    pub(crate) fn signal(&self, signal: Signal) {
        if let Err(error) = self.process.signal(signal) {
            error!("cannot send a signal to QEMU: {error}");
        }
    }
}

fn log_failure(what: &'static str, done: &Result<(), qmp::Error>) {
    match done {
        Ok(()) | Err(qmp::Error::Closed) => {}
        Err(error) => warn!("cannot {what}: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command};

    use serde_json::json;

    use super::*;
    use crate::supervisor::tests::{Answer, FakeQemu, Host, peer, record};

    /// A child process that the test may signal.
    struct OwnProcess(Child);

    impl Drop for OwnProcess {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    /// A QEMU whose process is `sleep`.
    async fn with_process(host: &Host) -> (FakeQemu, OwnProcess) {
        let child = OwnProcess(Command::new("sleep").arg("1000").spawn().unwrap());
        let peer = peer(host);
        let limit = Duration::from_secs(60);
        let session = qmp::connect(&host.ctx.paths().qmp_socket(), limit).await.unwrap();
        let agent = qmp::agent::Agent::new(host.ctx.paths().agent_socket());
        let process = Arc::new(Process::open(child.0.id()).unwrap());
        let (mut qemu, events) = Qemu::new(process, session.client, agent, record(), &host.ctx);
        qemu.listen(session.events);
        (FakeQemu { qemu, events, peer }, child)
    }

    #[tokio::test]
    async fn reply_comes_behind_earlier_events() {
        let host = Host::new();
        let mut fake = FakeQemu::new(&host).await;
        fake.peer.script.on("stop", Answer::Silence);
        fake.qemu.execute(7, "pause the guest", |q| async move { q.stop(QMP_LIMIT).await });
        fake.peer.commands.until("stop").await;
        fake.peer.send_event("STOP", json!({})).await;
        let first = fake.event().await;
        assert!(matches!(&first, VmEvent::Qmp(event) if event.name == "STOP"), "{first:?}");
        fake.qemu.execute(8, "resume the guest", |q| async move { q.cont(QMP_LIMIT).await });
        let VmEvent::Executed(executed) = fake.event().await else { panic!() };
        assert_eq!((executed.number, executed.what), (8, "resume the guest"));
        assert!(executed.done.is_ok());
    }

    #[tokio::test]
    async fn refused_command_is_reported_with_its_number() {
        let host = Host::new();
        let mut fake = FakeQemu::new(&host).await;
        fake.peer.script.on("cont", Answer::Refuse("no"));
        fake.qemu.execute(3, "resume the guest", |q| async move { q.cont(QMP_LIMIT).await });
        let VmEvent::Executed(executed) = fake.event().await else { panic!() };
        assert_eq!(executed.number, 3);
        assert!(matches!(executed.done, Err(qmp::Error::Refused { .. })));
    }

    #[tokio::test]
    async fn closed_connection_is_reported_behind_its_replies() {
        let host = Host::new();
        let FakeQemu { mut qemu, mut events, peer } = FakeQemu::new(&host).await;
        peer.script.on("stop", Answer::Silence);
        qemu.execute(1, "pause the guest", |q| async move { q.stop(QMP_LIMIT).await });
        peer.commands.until("stop").await;
        drop(peer);
        let mut closed = vec![];
        for _ in 0..2 {
            closed.push(events.recv().await.unwrap());
        }
        let is_reply = |event: &VmEvent| {
            matches!(event, VmEvent::Executed(Executed { done: Err(qmp::Error::Closed), .. }))
        };
        assert!(closed.iter().any(is_reply), "{closed:?}");
        assert!(closed.iter().any(|event| matches!(event, VmEvent::QmpClosed)), "{closed:?}");
    }

    #[tokio::test]
    async fn running_process_is_reconnected() {
        let host = Host::new();
        let FakeQemu { mut qemu, mut events, peer: first } = FakeQemu::new(&host).await;
        // The peer closes the connection.
        drop(first);
        assert!(matches!(events.recv().await, Some(VmEvent::QmpClosed)));
        for socket in [host.ctx.paths().qmp_socket(), host.ctx.paths().agent_socket()] {
            std::fs::remove_file(socket).unwrap();
        }
        let again = peer(&host);
        let status = json!({ "status": "running", "running": true });
        again.script.on("query-status", Answer::Return(status));
        qemu.reconnect(host.ctx.paths().qmp_socket());
        let Some(VmEvent::QmpReconnected(session, run_state)) = events.recv().await else {
            panic!()
        };
        assert_eq!(run_state, "running");
        qemu.use_connection(session);
        again.send_event("STOP", json!({})).await;
        assert!(matches!(events.recv().await, Some(VmEvent::Qmp(_))));
    }

    #[tokio::test]
    async fn exit_is_reported_with_its_cause() {
        let host = Host::new();
        let (mut fake, child) = with_process(&host).await;
        fake.qemu.await_exit(|exit| exit == Exit::Signal(9));
        fake.qemu.signal(Signal::KILL);
        let VmEvent::Exited { exit, oom } = fake.event().await else { panic!() };
        assert_eq!((exit, oom), (Exit::Signal(9), true));
        // A signal for a process that has exited is logged.
        fake.qemu.signal(Signal::KILL);
        drop(child);
    }

    #[tokio::test]
    async fn refused_quit_is_followed_by_sigterm() {
        let host = Host::new();
        let (mut fake, _child) = with_process(&host).await;
        fake.peer.script.on("quit", Answer::Refuse("no"));
        fake.qemu.await_exit(|_| false);
        fake.qemu.quit(std::future::ready(()));
        let VmEvent::Exited { exit, .. } = fake.event().await else { panic!() };
        assert_eq!(exit, Exit::Signal(15));
    }

    #[tokio::test]
    async fn record_is_written_when_it_changes() {
        let host = Host::new();
        let mut fake = FakeQemu::new(&host).await;
        fake.qemu.record().write(host.ctx.paths(), "").unwrap();
        let written = fake.qemu.change_record(|record| record.held = true);
        assert_eq!(written.await, Ok(()));
        assert!(Record::read(host.ctx.paths()).unwrap().unwrap().held);
        host.ctx.remove_record();
        host.ctx.lanes().run.flush().await.unwrap();
        assert!(Record::read(host.ctx.paths()).unwrap().is_none());
    }

    #[tokio::test]
    async fn agent_call_follows_earlier_calls() {
        let host = Host::new();
        let mut fake = FakeQemu::new(&host).await;
        let (first, done) = tokio::sync::oneshot::channel::<()>();
        fake.qemu.ask_agent_to_shut_down(async move { drop(done.await) });
        tokio::task::yield_now().await;
        assert!(fake.peer.calls.names().is_empty());
        drop(first);
        fake.peer.calls.until("guest-shutdown").await;
    }

    #[tokio::test]
    async fn send_does_not_report() {
        let host = Host::new();
        let mut fake = FakeQemu::new(&host).await;
        fake.peer.script.on("system_powerdown", Answer::Refuse("no"));
        fake.qemu.tell("press the power button", |q| async move { q.powerdown(QMP_LIMIT).await });
        fake.peer.commands.until("system_powerdown").await;
        assert!(fake.events.try_recv().is_err());
    }

    #[tokio::test]
    async fn numbers_of_calls_are_far_apart() {
        let host = Host::new();
        let mut fake = FakeQemu::new(&host).await;
        let first = fake.qemu.next_sync();
        assert_eq!(fake.qemu.next_sync(), first.wrapping_add(SYNC_STEP));
        assert!(fake.qemu.set_reboot_relaunches(true));
        assert!(!fake.qemu.set_reboot_relaunches(true));
    }

    #[tokio::test]
    async fn dropped_qemu_reports_nothing_more() {
        let host = Host::new();
        let FakeQemu { mut qemu, mut events, peer } = FakeQemu::new(&host).await;
        peer.script.on("stop", Answer::Silence);
        qemu.execute(1, "pause the guest", |q| async move { q.stop(QMP_LIMIT).await });
        peer.commands.until("stop").await;
        drop(qemu);
        peer.send_event("STOP", json!({})).await;
        assert!(events.recv().await.is_none());
    }
}
