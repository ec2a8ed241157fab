//! Finding out whether the guest is ready, and telling that it is.

use crate::supervisor::limits::{AGENT_LIMIT, QMP_LIMIT, STOP_SLACK};
use std::{net::SocketAddr, time::Duration};

use tokio::{net::TcpStream, task::AbortHandle, time::timeout};
use tracing::{debug, info, warn};

use crate::supervisor::{Supervisor, input::Fact};
use crate::{
    control::types,
    guest::readiness::{CloudInit, cloud_init, taken},
    life::{self, Policy, Readiness, State},
    spec::{self, Reach, Ready, Vm},
    value::{base64, chain},
};

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(500);
/// How long one connection may take.
const CONNECT_LIMIT: Duration = Duration::from_secs(3);
/// Between two questions to QEMU whether the guest took a connection.
const ASK: Duration = Duration::from_millis(100);
/// How long `cloud-init status` may take, which is Python on a machine that boots.
const STATUS_LIMIT: Duration = Duration::from_secs(30);

/// A search that ends when it is dropped.
#[derive(Debug)]
pub(crate) struct Awaiting(AbortHandle);

impl Drop for Awaiting {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// What the life machine must know of the VM file.
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

impl Supervisor {
    /// Begins to look whether the guest is ready; the life machine says when to end.
    pub(crate) fn await_ready(&mut self, limit: Duration) {
        let status = format!("running, not ready yet: waiting for {}", self.vm.ready);
        info!("{status}, for at most {} s", limit.as_secs());
        self.notifier.status(&status);
        self.notifier.extend_timeout(limit + STOP_SLACK);
        let sync = self.next_sync();
        let Some(qemu) = &self.qemu else { return };
        let look = Look {
            agent: qemu.agent.clone(),
            client: qemu.client.clone(),
            sync,
            wanted: self.vm.ready,
            reach: match self.vm.ready {
                Ready::Tcp(port) => self.vm.reach(port).map(|reach| (reach, port)),
                Ready::Running | Ready::Agent | Ready::CloudInit => None,
            },
        };
        let (facts, generation) = (self.facts.clone(), self.generation);
        let task = self.tasks.spawn(async move {
            let found = look.until_ready().await;
            let _ = facts.send(Fact::Ready(generation, found)).await;
        });
        self.awaiting = Some(Awaiting(task));
    }

    pub(crate) fn found(&mut self, found: Result<Option<String>, String>) {
        match found {
            Ok(note) => {
                self.notes.extend(note);
                self.feed(life::Event::Ready);
            }
            Err(why) => self.feed(life::Event::NotReady(why)),
        }
    }

    pub(crate) fn give_up_ready(&mut self, why: &str) {
        // Where it is a failure, the end tells.
        if self.vm.ready_failure == spec::ReadyFailure::Continue {
            warn!("the guest is not ready: {why}");
        }
        self.remember_ready();
    }

    /// Tells the service manager and whoever watches that the VM is up.
    pub(crate) fn be_ready(&mut self) {
        self.awaiting = None;
        self.remember_ready();
        let word = self.told_state().word();
        match &self.life.readiness {
            Readiness::Missed(why) => self.notifier.ready(&format!("{word}, not ready: {why}")),
            _ => self.notifier.ready(word),
        }
        let ready = self.told_ready();
        if self.vm.ready != Ready::Running {
            info!("the VM is up, and ready: {}", ready.map_or("no", types::Ready::word));
        }
        self.publish("QVM_READY", serde_json::json!({ "ready": ready }));
    }

    /// For the next supervisor: a guest that was ready is so for good.
    pub(crate) fn remember_ready(&mut self) {
        let missed = match &self.life.readiness {
            Readiness::Before | Readiness::Awaited { .. } => return,
            Readiness::Met => None,
            Readiness::Missed(why) => Some(why.clone()),
        };
        let Some(qemu) = &mut self.qemu else { return };
        if !qemu.record.ready {
            (qemu.record.ready, qemu.record.missed) = (true, missed);
            drop(self.records.write(&qemu.record));
        }
    }

    /// Whether the guest is ready, where there is one.
    pub(crate) fn told_ready(&self) -> Option<types::Ready> {
        if !matches!(self.life.state, State::Running | State::Paused(_)) {
            return None;
        }
        match &self.life.readiness {
            Readiness::Before => None,
            Readiness::Awaited { .. } => Some(types::Ready::Waiting),
            Readiness::Met | Readiness::Missed(_) => {
                // As an earlier supervisor may have found it.
                let missed = self.qemu.as_ref().is_some_and(|qemu| qemu.record.missed.is_some());
                Some(if missed { types::Ready::No } else { types::Ready::Yes })
            }
        }
    }
}

/// What looks.
struct Look {
    agent: qmp::agent::Agent,
    client: qmp::Client,
    /// The number of the next agent call; a search has ten thousand to itself and then goes on into others', long after those.
    sync: u32,
    wanted: Ready,
    reach: Option<(Reach, u16)>,
}

impl Look {
    /// Looks again and again. What is to be noted, or why it is for nothing.
    async fn until_ready(mut self) -> Result<Option<String>, String> {
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

    async fn cloud_init(&mut self) -> Result<Option<Option<String>>, String> {
        // A guest without an agent yet: that costs less to find out than a command.
        if !self.agent_answers().await {
            return Ok(None);
        }
        let sync = self.next_sync();
        let argv = ["cloud-init".to_owned(), "status".to_owned()];
        let done = match self.agent.exec(&argv, sync, STATUS_LIMIT).await {
            Ok(done) => done,
            Err(error @ qmp::Error::Refused { .. }) => {
                return Err(format!("the guest agent cannot ask cloud-init: {}", chain(&error)));
            }
            // The guest may reboot meanwhile.
            Err(error) => {
                debug!("cloud-init could not be asked: {error}");
                return Ok(None);
            }
        };
        // The agent counts the questions about a command as well.
        self.sync = self.sync.wrapping_add(200);
        let out = base64(&done.out).unwrap_or_default();
        match cloud_init(&String::from_utf8_lossy(&out), done.exit_code) {
            CloudInit::Going => Ok(None),
            CloudInit::Done => Ok(Some(None)),
            CloudInit::Degraded => {
                let note = "cloud-init is done, but not all went well: see `cloud-init status --long` in the guest";
                Ok(Some(Some(note.into())))
            }
            CloudInit::Failed(why) => Err(why),
        }
    }

    async fn connects(&self, reach: Reach, port: u16) -> bool {
        let (address, forwarded) = match reach {
            Reach::Direct(address) => (address, None),
            Reach::Forwarded(address) => (SocketAddr::V4(address), Some(address.port())),
        };
        // Held until it is known who took it.
        let Ok(Ok(_connection)) = timeout(CONNECT_LIMIT, TcpStream::connect(address)).await else {
            return false;
        };
        let Some(host) = forwarded else { return true };
        let asked = timeout(CONNECT_LIMIT, async {
            loop {
                match self.client.user_network(QMP_LIMIT).await {
                    Ok(table) if taken(&table, host, port) => return,
                    Ok(_) => tokio::time::sleep(ASK).await,
                    Err(_) => std::future::pending().await,
                }
            }
        });
        asked.await.is_ok()
    }
}
