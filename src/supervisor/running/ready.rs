//! The readiness probes of a guest.

use std::{net::SocketAddr, time::Duration};

use tokio::{net::TcpStream, task::AbortHandle, time::timeout};
use tracing::{debug, info};

use super::{event::VmEvent, qemu::Qemu};
use crate::{
    guest::readiness::{CloudInit, cloud_init, is_accepted},
    life::{self, Policy},
    spec::{self, Reach, Ready, Vm},
    supervisor::{
        context::Context,
        limits::{AGENT_LIMIT, QMP_LIMIT, STOP_SLACK},
    },
    value::{Note, NoteCode, base64, chain},
};

/// The delay after a failed probe.
const PAUSE: Duration = Duration::from_millis(500);
/// The time limit of one connection.
const CONNECT_LIMIT: Duration = Duration::from_secs(3);
/// The interval of queries whether the guest has accepted a connection.
const ASK: Duration = Duration::from_millis(100);
/// The time limit of `cloud-init status`, a Python program on a booting machine.
const STATUS_LIMIT: Duration = Duration::from_secs(30);

/// The keys of the VM file for the life machine.
pub(crate) fn policy(vm: &Vm) -> Policy {
    Policy {
        shutdown_timeout: vm.shutdown_timeout.duration(),
        on_panic: match vm.on_panic {
            spec::OnPanic::Restart => life::OnPanic::Restart,
            spec::OnPanic::Stop => life::OnPanic::Stop,
            spec::OnPanic::Pause => life::OnPanic::Pause,
        },
        ready: match vm.ready {
            Ready::Running => life::Ready::Running,
            Ready::Agent | Ready::Tcp(_) | Ready::CloudInit => {
                life::Ready::Within(vm.ready_timeout.duration())
            }
        },
        ready_failure: match vm.ready_failure {
            spec::ReadyFailure::Continue => life::ReadyFailure::Continue,
            spec::ReadyFailure::Fail => life::ReadyFailure::Fail,
        },
    }
}

/// The readiness probes of a guest.
#[derive(Debug, Default)]
pub(crate) struct ReadinessProbe {
    task: Option<AbortHandle>,
    /// Notes about a ready guest.
    note: Option<Note>,
}

impl Drop for ReadinessProbe {
    fn drop(&mut self) {
        self.stop();
    }
}

impl ReadinessProbe {
    /// Starts the probes, which the life machine ends after `limit` at the latest.
    pub(crate) fn begin(&mut self, limit: Duration, vm: &Vm, qemu: &mut Qemu, ctx: &Context) {
        let status = format!("running, not ready yet: waiting for {}", vm.ready);
        info!("{status}, for at most {} s", limit.as_secs());
        ctx.notifier().status(&status);
        ctx.notifier().extend_timeout(limit + STOP_SLACK);
        let probe = Probe {
            agent: qemu.agent(),
            client: qemu.client(),
            sync: qemu.next_sync(),
            wanted: vm.ready,
            reach: match vm.ready {
                Ready::Tcp(port) => vm.reach(port).map(|reach| (reach, port)),
                Ready::Running | Ready::Agent | Ready::CloudInit => None,
            },
        };
        self.stop();
        self.task = Some(qemu.report(async move { VmEvent::Readiness(probe.until_ready().await) }));
    }

    /// Ends the probes.
    pub(crate) fn stop(&mut self) {
        self.task.take().inspect(AbortHandle::abort);
    }

    /// Handles the result of the probes: a note, or why the guest cannot become ready.
    pub(crate) fn handle(&mut self, found: Result<Option<Note>, String>) -> life::Event {
        match found {
            Ok(note) => {
                self.note = note;
                life::Event::GuestReady
            }
            Err(why) => life::Event::GuestNotReady(why),
        }
    }

    /// Notes about a ready guest.
    pub(crate) fn note(&self) -> Option<Note> {
        self.note.clone()
    }
}

/// Records for the next supervisor that the guest was ready, or not in time. A ready guest remains
/// so.
pub(crate) fn record(readiness: &life::Readiness, qemu: &mut Qemu) {
    let missed = match readiness {
        life::Readiness::Before | life::Readiness::Awaited { .. } => return,
        life::Readiness::Met => None,
        life::Readiness::Missed(why) => Some(why.clone()),
    };
    if !qemu.record().ready {
        drop(qemu.change_record(|record| (record.ready, record.missed) = (true, missed)));
    }
}

struct Probe {
    agent: qmp::agent::Agent,
    client: qmp::Client,
    /// The number of the next agent call; 10000 numbers are reserved for the probes.
    sync: u32,
    wanted: Ready,
    reach: Option<(Reach, u16)>,
}

impl Probe {
    /// Repeats the probes. Returns a note, or why the guest cannot become ready.
    async fn until_ready(mut self) -> Result<Option<Note>, String> {
        loop {
            let found = match (self.wanted, self.reach) {
                (Ready::Running, _) => Some(None),
                (Ready::Agent, _) => self.agent_answers().await.then_some(None),
                (Ready::CloudInit, _) => self.cloud_init().await?,
                (Ready::Tcp(_), Some((reach, port))) => {
                    self.connects(reach, port).await.then_some(None)
                }
                (Ready::Tcp(port), None) => {
                    return Err(format!("the host cannot reach port {port} of the guest"));
                }
            };
            if let Some(note) = found {
                return Ok(note);
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    fn next_sync(&mut self) -> u32 {
        self.sync = self.sync.wrapping_add(1);
        self.sync
    }

    async fn agent_answers(&mut self) -> bool {
        let sync = self.next_sync();
        self.agent.ping(sync, AGENT_LIMIT).await.is_ok()
    }

    async fn cloud_init(&mut self) -> Result<Option<Option<Note>>, String> {
        // A probe for the agent costs less than a command.
        if !self.agent_answers().await {
            return Ok(None);
        }
        let sync = self.next_sync();
        let argv = ["cloud-init".to_owned(), "status".to_owned()];
        let done = match self.agent.exec(&argv, sync, STATUS_LIMIT).await {
            Ok(done) => done,
            Err(error @ qmp::Error::Refused { .. }) => {
                return Err(format!("the guest agent cannot run cloud-init: {}", chain(&error)));
            }
            // The guest may reboot meanwhile.
            Err(error) => {
                debug!("cannot get the status of cloud-init: {error}");
                return Ok(None);
            }
        };
        // The calls for the status of a command use numbers, too.
        self.sync = self.sync.wrapping_add(200);
        let out = base64(&done.out).unwrap_or_default();
        match cloud_init(&String::from_utf8_lossy(&out), done.exit_code) {
            CloudInit::Going => Ok(None),
            CloudInit::Done => Ok(Some(None)),
            CloudInit::Degraded => {
                let text = "cloud-init is done, with errors: see `cloud-init status --long` \
                            in the guest";
                Ok(Some(Some(Note::new(NoteCode::CloudInitDegraded, text))))
            }
            CloudInit::Failed(why) => Err(why),
        }
    }

    async fn connects(&self, reach: Reach, port: u16) -> bool {
        let (address, forwarded) = match reach {
            Reach::Direct(address) => (address, None),
            Reach::Forwarded(address) => (SocketAddr::V4(address), Some(address.port())),
        };
        // Open until the peer is known.
        let Ok(Ok(_connection)) = timeout(CONNECT_LIMIT, TcpStream::connect(address)).await else {
            return false;
        };
        let Some(host) = forwarded else { return true };
        let asked = timeout(CONNECT_LIMIT, async {
            loop {
                match self.client.user_network(QMP_LIMIT).await {
                    Ok(table) if is_accepted(&table, host, port) => return,
                    Ok(_) => tokio::time::sleep(ASK).await,
                    Err(_) => std::future::pending().await,
                }
            }
        });
        asked.await.is_ok()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{
        store::record::Record,
        supervisor::tests::{Answer, FakeQemu, Host, record as run_record, vm},
    };

    const LIMIT: Duration = Duration::from_secs(60);

    async fn found(fake: &mut FakeQemu) -> Result<Option<Note>, String> {
        let VmEvent::Readiness(found) = fake.event().await else { panic!() };
        found
    }

    fn exits(fake: &FakeQemu, code: i64, out: &str) {
        use base64::{Engine, prelude::BASE64_STANDARD};
        let data = BASE64_STANDARD.encode(out);
        let exited = json!({ "exited": true, "exitcode": code, "out-data": data });
        fake.peer.script.on("guest-exec", Answer::Return(json!({ "pid": 1 })));
        fake.peer.script.on("guest-exec-status", Answer::Return(exited));
    }

    #[tokio::test]
    async fn agent_that_answers_is_ready() {
        let host = Host::new();
        let mut fake = FakeQemu::new(&host).await;
        let mut probe = ReadinessProbe::default();
        let vm = vm("ready = \"agent\"\n");
        probe.begin(LIMIT, &vm, &mut fake.qemu, &host.ctx);
        let found = found(&mut fake).await;
        assert_eq!(found, Ok(None));
        assert_eq!(probe.handle(found), life::Event::GuestReady);
        assert_eq!(fake.peer.calls.names(), ["guest-ping"]);
        assert_eq!(probe.note(), None);
    }

    #[tokio::test]
    async fn failed_cloud_init_is_never_ready() {
        let host = Host::new();
        let mut fake = FakeQemu::new(&host).await;
        exits(&fake, 1, "status: error\n");
        let vm = vm("ready = \"cloud-init\"\n[cloudInit]\n");
        let mut probe = ReadinessProbe::default();
        probe.begin(LIMIT, &vm, &mut fake.qemu, &host.ctx);
        let found = found(&mut fake).await;
        assert!(found.is_err(), "{found:?}");
        assert!(matches!(probe.handle(found), life::Event::GuestNotReady(_)));
    }

    #[tokio::test]
    async fn degraded_cloud_init_is_noted() {
        let host = Host::new();
        let mut fake = FakeQemu::new(&host).await;
        exits(&fake, 2, "status: done\n");
        let vm = vm("ready = \"cloud-init\"\n[cloudInit]\n");
        let mut probe = ReadinessProbe::default();
        probe.begin(LIMIT, &vm, &mut fake.qemu, &host.ctx);
        let found = found(&mut fake).await;
        assert_eq!(probe.handle(found), life::Event::GuestReady);
        assert_eq!(probe.note().unwrap().code, NoteCode::CloudInitDegraded);
    }

    #[tokio::test]
    async fn unreachable_port_is_never_ready() {
        let host = Host::new();
        let mut fake = FakeQemu::new(&host).await;
        // Not valid in a VM file.
        let vm = Vm { ready: Ready::Tcp(22), ..vm("bridge = \"br0\"\n") };
        let mut probe = ReadinessProbe::default();
        probe.begin(LIMIT, &vm, &mut fake.qemu, &host.ctx);
        assert!(found(&mut fake).await.is_err_and(|why| why.contains("port 22")));
    }

    #[tokio::test]
    async fn stopped_probe_reports_nothing() {
        let host = Host::new();
        let mut fake = FakeQemu::new(&host).await;
        fake.peer.script.on("guest-ping", Answer::Silence);
        let vm = vm("ready = \"agent\"\n");
        let mut probe = ReadinessProbe::default();
        probe.begin(LIMIT, &vm, &mut fake.qemu, &host.ctx);
        fake.peer.calls.until("guest-ping").await;
        let task = probe.task.clone().unwrap();
        probe.stop();
        while !task.is_finished() {
            tokio::task::yield_now().await;
        }
        assert!(fake.events.try_recv().is_err());
    }

    #[tokio::test]
    async fn readiness_is_recorded_once() {
        let host = Host::new();
        let unready = || Record { ready: false, ..run_record() };
        let mut fake = FakeQemu::of(&host, unready()).await;
        record(&life::Readiness::Before, &mut fake.qemu);
        record(&life::Readiness::Awaited { until: LIMIT }, &mut fake.qemu);
        assert!(!fake.qemu.record().ready);
        record(&life::Readiness::Missed("late".into()), &mut fake.qemu);
        assert!(fake.qemu.record().ready);
        assert_eq!(fake.qemu.record().missed.as_deref(), Some("late"));
        // A guest that was not ready in time remains so.
        record(&life::Readiness::Met, &mut fake.qemu);
        assert_eq!(fake.qemu.record().missed.as_deref(), Some("late"));
    }

    #[test]
    fn policy_is_the_vm_files() {
        let text = "onPanic = \"pause\"\nready = \"agent\"\n\
                    readyTimeoutSec = 7\nreadyFailure = \"fail\"\nshutdownTimeoutSec = 9\n";
        let policy = policy(&vm(text));
        assert_eq!(policy.on_panic, life::OnPanic::Pause);
        assert_eq!(policy.ready, life::Ready::Within(Duration::from_secs(7)));
        assert_eq!(policy.ready_failure, life::ReadyFailure::Fail);
        assert_eq!(policy.shutdown_timeout, Duration::from_secs(9));
    }
}
