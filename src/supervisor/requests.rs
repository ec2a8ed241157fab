//! Answering what is asked over the control socket, and saying what the VM is doing.

use crate::supervisor::{
    limits::{AGENT_LIMIT, FOREVER, QMP_LIMIT, WRITE_LIMIT},
    refusal::{agent_refusal, qmp_refusal},
};

use serde_json::json;
use tokio::sync::oneshot;

use super::{Supervisor, effects::Reply, input::Fact, running::freeze::Why};
use crate::{
    control::types::{self, Command, Refusal, Request, Status},
    life::{self, State},
    machine::user_network,
    spec::Link,
};

/// What the agent does while file systems are frozen (qga/main.c, `ga_freeze_allowlist`), but for thawing.
const WHILE_FROZEN: [&str; 5] =
    ["guest-ping", "guest-info", "guest-sync", "guest-sync-delimited", "guest-fsfreeze-status"];

/// How many events are kept for who asks later.
const RECENT: usize = 64;
/// Events that tell of no turn of the VM's life.
const CHATTY: [&str; 4] =
    ["BALLOON_CHANGE", "RTC_CHANGE", "NIC_RX_FILTER_CHANGED", "VSERPORT_CHANGE"];

impl Supervisor {
    pub(crate) fn answer(&mut self, request: Request) {
        match request {
            Request::Command(command, reply) => self.command(command, reply),
            Request::Status(reply) => self.answer_status(reply),
            Request::RecentEvents(reply) => {
                drop(reply.send(self.recent.iter().cloned().collect()));
            }
            Request::Statistics(reply) => self.statistics(reply),
            Request::Guest(reply) => self.ask_guest(reply),
            Request::Screenshot(reply) => self.screenshot(reply),
            Request::Press(chords, reply) => self.press(chords, reply),
            Request::Exec { argv, limit, reply } => self.exec(argv, limit, reply),
            Request::Agent { command, arguments, limit, reply } => {
                self.agent(command, arguments, limit, reply);
            }
            Request::Freeze { thaw_after, reply } => self.freeze(thaw_after, reply),
            Request::Thaw(reply) => self.thaw(Why::Asked, Some(reply)),
            Request::Console { read_only, scrollback, reply } => {
                let view = self.console.view(read_only, scrollback);
                let _ = reply
                    .send(view.map_err(|e| Refusal::Failed(format!("cannot open a viewer: {e}"))));
            }
        }
    }

    fn command(&mut self, command: Command, reply: oneshot::Sender<Result<(), Refusal>>) {
        let asked = match command {
            Command::PowerOff { timeout_sec } => life::Command::Stop {
                timeout: timeout_sec.map(|s| std::time::Duration::from_secs(s.into())),
            },
            Command::Terminate => life::Command::Terminate,
            Command::Reboot => life::Command::Reboot,
            Command::Reset => life::Command::Reset,
            Command::Pause => life::Command::Pause,
            Command::Resume => life::Command::Resume,
            Command::Suspend => life::Command::Suspend,
            Command::Reload => {
                self.reload(Some(reply));
                return;
            }
            Command::SetMemory { bytes } => {
                self.set_memory(bytes, reply);
                return;
            }
        };
        if let Err(state) = life::accepts(&self.life.state, asked) {
            return drop(reply.send(Err(Refusal::NotNow(state))));
        }
        let reply = match self.wishes(asked) {
            Some(written) => self.reply_once_written(reply, written),
            None => reply,
        };
        self.request_effect(asked, reply);
    }

    /// Delays a good answer until the record is written, within a bound: a later supervisor knows then
    /// what the answer promises.
    fn reply_once_written(
        &mut self,
        reply: Reply,
        written: impl Future<Output = Result<(), String>> + Send + 'static,
    ) -> Reply {
        let (sender, answer) = oneshot::channel::<Result<(), Refusal>>();
        self.tasks.spawn(async move {
            let Ok(answer) = answer.await else { return };
            if answer.is_ok() {
                let _ = tokio::time::timeout(WRITE_LIMIT, written).await;
            }
            let _ = reply.send(answer);
        });
        sender
    }

    fn set_memory(&mut self, bytes: u64, reply: oneshot::Sender<Result<(), Refusal>>) {
        const LEAST: u64 = 16 << 20;
        let most = self.vm.mem.bytes();
        let Some(qemu) = &self.qemu else {
            let _ = reply.send(Err(Refusal::NotNow("starting")));
            return;
        };
        if !(LEAST..=most).contains(&bytes) {
            let why =
                format!("{bytes} bytes are out of range: this VM takes {LEAST} to {most} bytes");
            let _ = reply.send(Err(Refusal::BadValue(why)));
            return;
        }
        let (client, facts, generation) =
            (qemu.client.clone(), self.facts.clone(), self.generation);
        self.tasks.spawn(async move {
            let mut reply = Some(reply);
            let mut set = std::pin::pin!(client.balloon(bytes, FOREVER));
            let done = match tokio::time::timeout(QMP_LIMIT, &mut set).await {
                Ok(done) => done,
                Err(_) => {
                    let late = qmp::Error::Timeout { command: "balloon".into(), limit: QMP_LIMIT };
                    if let Some(reply) = reply.take() {
                        let _ = reply.send(Err(qmp_refusal("set the balloon", &late)));
                    }
                    // It takes effect once QEMU can, and is to be told then.
                    set.await
                }
            };
            let _ = facts.send(Fact::MemorySet(generation, bytes, done, reply)).await;
        });
    }

    /// QEMU has taken the balloon's target, or not.
    pub(crate) fn on_memory_set(
        &mut self,
        bytes: u64,
        done: Result<(), qmp::Error>,
        reply: Option<Reply>,
    ) {
        if done.is_ok() {
            self.memory_target = Some(bytes);
        }
        if let Some(reply) = reply {
            let _ = reply.send(done.map_err(|error| qmp_refusal("set the balloon", &error)));
        }
    }

    fn exec(
        &mut self,
        argv: Vec<String>,
        limit: std::time::Duration,
        reply: oneshot::Sender<Result<types::Executed, Refusal>>,
    ) {
        let sync = self.next_sync();
        let agent = match self.open_agent() {
            Ok(agent) => agent,
            Err(refusal) => return drop(reply.send(Err(refusal))),
        };
        self.tasks.spawn(async move {
            let done = agent.exec(&argv, sync, limit).await;
            let done = done.map(|done| types::Executed {
                exit_code: done.exit_code,
                out: done.out,
                err: done.err,
            });
            let _ = reply.send(done.map_err(|error| agent_refusal(&error)));
        });
    }

    fn agent(
        &mut self,
        command: String,
        arguments: serde_json::Value,
        limit: std::time::Duration,
        reply: oneshot::Sender<Result<serde_json::Value, Refusal>>,
    ) {
        let sync = self.next_sync();
        let agent = match self.open_agent() {
            Err(Refusal::Frozen { .. }) if WHILE_FROZEN.contains(&command.as_str()) => {
                self.qemu.as_ref().map(|qemu| qemu.agent.clone()).ok_or(Refusal::NotNow("starting"))
            }
            agent => agent,
        };
        let agent = match agent {
            Ok(agent) => agent,
            Err(refusal) => return drop(reply.send(Err(refusal))),
        };
        self.tasks.spawn(async move {
            let told = agent.call(&command, arguments, sync, limit).await;
            let _ = reply.send(told.map_err(|error| agent_refusal(&error)));
        });
    }

    /// The agent, where it does more than what is safe while file systems are frozen.
    fn open_agent(&self) -> Result<qmp::agent::Agent, Refusal> {
        let Some(qemu) = &self.qemu else { return Err(Refusal::NotNow("starting")) };
        match self.frozen_for() {
            Some(left) => Err(Refusal::Frozen { left }),
            None => Ok(qemu.agent.clone()),
        }
    }

    fn ask_guest(&mut self, reply: oneshot::Sender<Result<types::Guest, Refusal>>) {
        let sync = self.next_sync();
        let Some(qemu) = &self.qemu else {
            let _ = reply.send(Err(Refusal::NotNow("starting")));
            return;
        };
        let agent = qemu.agent.clone();
        self.tasks.spawn(async move {
            let told = agent.addresses(sync, AGENT_LIMIT).await;
            let found = |address: qmp::agent::Address| types::Address {
                address: address.address.to_string(),
                interface: Some(address.interface),
                source: "agent".to_owned(),
            };
            let _ = reply.send(Ok(types::Guest {
                // One that does not know this command answers all the same.
                answers: matches!(told, Ok(_) | Err(qmp::Error::Refused { .. })),
                addresses: told.unwrap_or_default().into_iter().map(found).collect(),
            }));
        });
    }

    /// What the state is called outside.
    pub(crate) fn told_state(&self) -> types::State {
        match &self.life.state {
            State::Preparing | State::Launching => types::State::Starting,
            State::Running => types::State::Running,
            State::Paused(_) => types::State::Paused,
            State::Cancelling { .. }
            | State::Suspending(_)
            | State::Stopping(_)
            | State::Quitting { .. }
            | State::Killing { .. } => types::State::Stopping,
            State::Ended if self.ends.first().is_some_and(|e| e.failed) => types::State::Failed,
            State::Ended => types::State::Stopped,
        }
    }

    pub(crate) fn status(&self) -> Status {
        let record = self.qemu.as_ref().map(|q| &q.record);
        let nic = self.vm.nics.first();
        let written_tap = nic.and_then(|n| match &n.link {
            Link::Bridge { tap, .. } => Some(tap.to_string()),
            Link::User { .. } => None,
        });
        let mut notes = [&self.notes[..], &self.resource_notes[..], &self.live_notes[..]].concat();
        if let Some(problem) = &self.written_problem
            && !self.files.orphan
        {
            notes.push(format!("the VM file is not valid any more: {problem}"));
        }
        notes.extend(self.readings.note());
        notes.extend(self.console.note());
        notes.extend(self.room_notes());
        notes.extend(self.monitor_note());
        notes.extend(self.freeze_note());
        notes.extend(self.tap_notes());
        notes.extend(user_network::notes(&self.running));
        notes.extend(self.qemu.as_ref().and_then(|qemu| qemu.unserved.clone()));
        notes.extend(self.operator_notes());
        if let Some(why) = record.and_then(|r| r.missed.as_ref()) {
            notes.push(format!("the guest is not ready (`ready = \"{}\"`): {why}", self.vm.ready));
        }
        Status {
            name: self.settings.name.to_string(),
            state: self.told_state(),
            ready: self.told_ready(),
            trouble: self.trouble().map(str::to_owned),
            pid: record.map(|r| r.pid).or(self.adopting),
            supervisor_pid: Some(std::process::id()),
            since: Some(self.since.to_string()),
            started_at: record.map(|r| r.started_at.clone()),
            vcpu: self.vm.vcpu.into(),
            mem_bytes: self.vm.mem.bytes(),
            mem_actual_bytes: self.memory_actual,
            mem_resident_bytes: None,
            cpu_seconds: None,
            mem_target_bytes: self.memory_target,
            mac: record.and_then(|r| r.mac.clone()).or_else(|| nic?.mac.map(|m| m.to_string())),
            ip: nic.and_then(|n| n.ip).map(|i| i.to_string()),
            tap: record.map_or(written_tap, |r| r.tap.clone()),
            forward: self.vm.forwards(),
            vnc: self.screen_address(),
            operators: self.vm.operators.clone(),
            isolation: record.and_then(|r| r.isolation.clone()),
            cpu_weight: self.vm.cpu_weight.get(),
            cpu_weight_effective: None,
            cpu_share: None,
            accel: record.map(|r| r.accel.clone()),
            qemu_version: record.map(|r| r.qemu_version.clone()),
            machine: record.map(|r| r.machine.clone()),
            console: Some(self.paths.console_log().display().to_string()),
            autostart: self.vm.autostart,
            orphan: self.files.orphan,
            description: self.vm.description.clone(),
            pending: self.pending.clone(),
            notes,
            last_stop: self.ends.first().cloned(),
            ends: self.ends.clone(),
        }
    }

    /// Tells whoever watches; nobody watching is no error.
    pub(crate) fn publish(&mut self, name: &str, data: serde_json::Value) {
        let data = if data.is_null() { json!({}) } else { data };
        let at = Some((self.settings.now)().to_string());
        let event = types::Event { at, event: name.to_owned(), data: Some(data) };
        // What a guest can cause as often as it likes must not push the others out.
        if !CHATTY.contains(&name) {
            self.recent.truncate(RECENT - 1);
            self.recent.push_front(event.clone());
        }
        let _ = self.events.send(event);
    }
}
