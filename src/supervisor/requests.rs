//! Answers the requests of the control socket.

use futures_util::future::BoxFuture;
use tokio::{
    sync::oneshot,
    time::{Duration, Instant},
};

use super::{
    Supervisor,
    file_reading::AfterReading,
    limits::{AGENT_LIMIT, WRITE_LIMIT},
    refusal::{Reply, agent_refusal},
    running::{Components, event::ThawReason, screen, statistics::statistics},
};
use crate::{
    control::types::{self, Command, Refusal, Request, Status},
    life,
    value::{ErrorCode, keyboard::Chord},
};

/// The commands that the agent accepts while file systems are frozen (qga/main.c,
/// `ga_freeze_allowlist`), except thawing.
const WHILE_FROZEN: [&str; 5] =
    ["guest-ping", "guest-info", "guest-sync", "guest-sync-delimited", "guest-fsfreeze-status"];

impl Supervisor {
    /// Answers a request, now or after its effect.
    pub(crate) fn answer(&mut self, request: Request) {
        match request {
            Request::Command(command, reply) => self.command(command, reply),
            Request::Status(reply) => self.answer_status(reply),
            Request::RecentEvents(reply) => drop(reply.send(self.ctx.recent_events())),
            Request::Statistics(reply) => self.statistics(reply),
            Request::Guest(reply) => self.ask_guest(reply),
            Request::Screenshot(reply) => self.screenshot(reply),
            Request::Press(chords, reply) => self.press(chords, reply),
            Request::Exec { argv, limit, reply } => self.exec(argv, limit, reply),
            Request::Agent { command, arguments, limit, reply } => {
                self.agent(command, arguments, limit, reply);
            }
            Request::Freeze { thaw_after, reply } => self.freeze(thaw_after, reply),
            Request::Thaw(reply) => match &mut self.vm {
                Some(vm) => {
                    let Components { qemu, freeze, .. } = vm.components();
                    freeze.thaw(ThawReason::Asked, Some(reply), qemu);
                }
                None => drop(reply.send(Err(Refusal::NotNow("starting")))),
            },
            Request::Console { read_only, scrollback, reply } => {
                let view = self.console.view(read_only, scrollback);
                let refused = |error: std::io::Error| {
                    let why = format!("cannot open a viewer: {error}");
                    Refusal::Failed(ErrorCode::of_io(&error), why)
                };
                let _ = reply.send(view.map_err(refused));
            }
        }
    }

    fn command(&mut self, command: Command, reply: Reply) {
        let asked = match command {
            Command::PowerOff { timeout_sec } => {
                life::Command::Stop { timeout: timeout_sec.map(|s| Duration::from_secs(s.into())) }
            }
            Command::Terminate => life::Command::Terminate,
            Command::Reboot => life::Command::Reboot,
            Command::Reset => life::Command::Reset,
            Command::Pause => life::Command::Pause,
            Command::Resume => life::Command::Resume,
            Command::Suspend => life::Command::Suspend,
            Command::Reload => {
                return self.read_files(AfterReading::Reload(Some(reply)));
            }
            Command::SetMemory { bytes } => {
                let most = self.config.vm().mem.bytes();
                return match &mut self.vm {
                    Some(vm) => {
                        let Components { qemu, memory, .. } = vm.components();
                        memory.set_target(bytes, most, reply, qemu);
                    }
                    None => drop(reply.send(Err(Refusal::NotNow("starting")))),
                };
            }
        };
        if let Err(state) = life::accepts(self.life.state(), asked) {
            return drop(reply.send(Err(Refusal::NotNow(state))));
        }
        let reply = match self.record_pause(asked) {
            Some(written) => self.reply_once_written(reply, written),
            None => reply,
        };
        self.request_effect(asked, reply);
    }

    /// Records whether an operator paused the vCPUs. Returns the pending write; `None` without a
    /// change.
    fn record_pause(
        &mut self,
        command: life::Command,
    ) -> Option<BoxFuture<'static, Result<(), String>>> {
        let paused = match command {
            life::Command::Pause => true,
            life::Command::Resume | life::Command::Reset => false,
            _ => return None,
        };
        self.vm.as_mut()?.set_paused_by_operator(paused)
    }

    /// Delays a positive reply until the record is written, within a bound, so that the next
    /// supervisor knows the confirmed state.
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

    /// Steps the life machine for a request, which is answered after its effect; a request to the
    /// guest is answered once it is sent.
    fn request_effect(&mut self, command: life::Command, reply: Reply) {
        let limit = self.config.vm().shutdown_timeout.duration();
        let sent = self.effects.add(command, self.life.state(), limit, reply);
        self.feed(life::Event::Requested(command));
        self.effects.on_stepped();
        if let Some(reply) = sent {
            let _ = reply.send(Ok(()));
        }
        self.answer_effects();
    }

    /// Executes a QMP command whose reply is handled after the preceding events.
    pub(crate) fn command_qemu<F, W>(&mut self, what: &'static str, command: F)
    where
        F: FnOnce(qmp::Client) -> W,
        W: Future<Output = Result<(), qmp::Error>> + Send + 'static,
    {
        if let Some(vm) = &mut self.vm {
            vm.qemu().execute(self.effects.next_number(), what, command);
        }
    }

    /// Answers the decided requests.
    pub(crate) fn answer_effects(&mut self) {
        let (state, leftover) = (self.life.state(), self.leftover());
        self.effects.answer(state, leftover, self.history.last_end());
        self.continue_reexec();
    }

    /// Answers the requests after their deadline.
    pub(crate) fn on_effects_overdue(&mut self) {
        self.effects.answer_overdue(Instant::now());
        self.continue_reexec();
    }

    fn continue_reexec(&mut self) {
        if self.effects.take_reexec() {
            self.reexec();
        }
    }

    /// Notifies the watchdog of the service manager while QEMU answers.
    pub(crate) fn on_watchdog_beat(&mut self) {
        match &mut self.vm {
            Some(vm) => {
                let Components { qemu, qmp_watchdog, .. } = vm.components();
                qmp_watchdog.ask(qemu, &self.ctx);
            }
            None => self.ctx.notifier().watchdog(),
        }
    }

    /// Answers with the status after the running reading of the VM file, within a bound.
    fn answer_status(&mut self, reply: oneshot::Sender<Status>) {
        if self.files.wants_status(reply, &mut self.tasks) {
            self.answer_statuses();
        }
    }

    /// Answers the waiting status requests.
    pub(crate) fn answer_statuses(&mut self) {
        let clients = self.files.take_statuses();
        if clients.is_empty() {
            return;
        }
        if let Some(vm) = &mut self.vm {
            let Components { qemu, qmp_watchdog, .. } = vm.components();
            qmp_watchdog.ask_if_stale(qemu, &self.ctx);
        }
        let status = self.status();
        for client in clients {
            let _ = client.send(status.clone());
        }
    }

    /// Answers a client from QEMU in a task that continues if QEMU exits meanwhile.
    fn ask_qemu<T, W>(&mut self, reply: Reply<T>, ask: impl FnOnce(qmp::Client) -> W)
    where
        T: Send + 'static,
        W: Future<Output = Result<T, Refusal>> + Send + 'static,
    {
        let Some(vm) = &mut self.vm else {
            return drop(reply.send(Err(Refusal::NotNow("starting"))));
        };
        let answer = ask(vm.qemu().client());
        self.tasks.spawn(async move { drop(reply.send(answer.await)) });
    }

    fn statistics(&mut self, reply: Reply<types::Statistics>) {
        let (disks, taps) = (self.config.disks(), self.config.nic_taps());
        self.ask_qemu(reply, |client| statistics(client, disks, taps));
    }

    fn screenshot(&mut self, reply: Reply<std::os::fd::OwnedFd>) {
        if self.vm.is_some() && self.config.vm().display.is_none() {
            let why = "the VM has no screen; add `[display]` to the VM file";
            return drop(reply.send(Err(Refusal::Failed(ErrorCode::NoScreen, why.to_owned()))));
        }
        self.ask_qemu(reply, screen::screenshot);
    }

    fn press(&mut self, chords: Vec<Chord>, reply: Reply) {
        self.ask_qemu(reply, |client| screen::press(client, chords));
    }

    /// Returns the agent and a number for a call, unless the agent refuses the command because file
    /// systems are frozen.
    fn agent_for(
        &mut self,
        while_frozen: WhileFrozen,
    ) -> Result<(qmp::agent::Agent, u32), Refusal> {
        let Some(vm) = &mut self.vm else { return Err(Refusal::NotNow("starting")) };
        match vm.components().freeze.left(&self.ctx) {
            Some(left) if while_frozen == WhileFrozen::Refuse => Err(Refusal::Frozen { left }),
            _ => Ok((vm.qemu().agent(), vm.qemu().next_sync())),
        }
    }

    fn exec(&mut self, argv: Vec<String>, limit: Duration, reply: Reply<types::Executed>) {
        let (agent, sync) = match self.agent_for(WhileFrozen::Refuse) {
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
        limit: Duration,
        reply: Reply<serde_json::Value>,
    ) {
        let while_frozen = if WHILE_FROZEN.contains(&command.as_str()) {
            WhileFrozen::Call
        } else {
            WhileFrozen::Refuse
        };
        let (agent, sync) = match self.agent_for(while_frozen) {
            Ok(agent) => agent,
            Err(refusal) => return drop(reply.send(Err(refusal))),
        };
        self.tasks.spawn(async move {
            let answer = agent.call(&command, arguments, sync, limit).await;
            let _ = reply.send(answer.map_err(|error| agent_refusal(&error)));
        });
    }

    fn ask_guest(&mut self, reply: Reply<types::Guest>) {
        let (agent, sync) = match self.agent_for(WhileFrozen::Call) {
            Ok(agent) => agent,
            Err(refusal) => return drop(reply.send(Err(refusal))),
        };
        self.tasks.spawn(async move {
            let answer = agent.addresses(sync, AGENT_LIMIT).await;
            let found = |address: qmp::agent::Address| types::Address {
                address: address.address.to_string(),
                interface: Some(address.interface),
                source: "agent".to_owned(),
            };
            let _ = reply.send(Ok(types::Guest {
                // An agent without this command still answers.
                answers: matches!(answer, Ok(_) | Err(qmp::Error::Refused { .. })),
                addresses: answer.unwrap_or_default().into_iter().map(found).collect(),
            }));
        });
    }

    fn freeze(&mut self, thaw_after: Duration, reply: Reply<u64>) {
        let state = self.public_state();
        let refused = if self.public_readiness() == Some(types::Ready::Waiting) {
            Some(Refusal::Failed(ErrorCode::NotReady, "the guest is not ready yet".into()))
        } else {
            (state != types::State::Running).then(|| Refusal::NotNow(state.word()))
        };
        match &mut self.vm {
            Some(vm) => {
                let Components { qemu, freeze, .. } = vm.components();
                freeze.freeze(thaw_after, refused, reply, qemu, &self.ctx);
            }
            None => {
                let refused = refused.unwrap_or(Refusal::NotNow("starting"));
                let _ = reply.send(Err(refused));
            }
        }
    }
}

/// Whether the agent accepts a call while file systems are frozen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum WhileFrozen {
    Call,
    Refuse,
}
