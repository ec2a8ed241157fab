//! What a QEMU that runs tells: that it came up, its events, its silence, its end.

use crate::supervisor::{
    limits::QMP_LIMIT,
    outcome::{Fault, NotBegun, Outcome},
};
use std::time::Duration;

use tracing::{debug, error, info, warn};

use super::{
    Supervisor,
    file_reading::AfterReading,
    input::{Fact, Trouble},
    running::{disk_space::Room, qmp_watchdog::Monitor, resources::Given},
    start::launch::{self, Qemu},
};
use crate::store::{
    reservation,
    running::{Found, PreviousQemu},
};
use crate::{
    life::{self, Gone, State},
    sys::{memory, pidfd::Exit},
    value::chain,
};

/// How long a kernel may take to say what its OOM killer did.
const OOM_LIMIT: Duration = Duration::from_secs(2);
/// How long a re-execution waits until everything is written.
const WRITTEN_LIMIT: Duration = Duration::from_secs(5);
/// How long the end waits for that.
const LEAVE_LIMIT: Duration = Duration::from_secs(3);

impl Supervisor {
    pub(crate) fn launched(&mut self, mut qemu: Qemu, given: Given) {
        (self.starting, self.adopting) = (None, None);
        self.generation += 1;
        let generation = self.generation;
        if !qemu.adopted {
            self.console.boots();
        }
        if let Some(serial) = qemu.serial.take() {
            self.console.attach(serial);
        }
        if let Some(events) = qemu.events.take() {
            self.listen(events);
        }
        self.memory_actual = None;
        (self.room, self.monitor) = (Room::default(), Monitor::default());
        // Asked once: from then on QEMU tells every change.
        let (client, facts) = (qemu.client.clone(), self.facts.clone());
        self.tasks.spawn(async move {
            if let Ok(qmp::Balloon::Actual(bytes)) = client.query_balloon(QMP_LIMIT).await {
                let _ = facts.send(Fact::Memory(generation, bytes)).await;
            }
        });
        let restored = self.restoring.take().is_some();
        let found = qemu.found;
        let how = match (qemu.adopted, restored) {
            (true, _) => "taken over",
            (false, true) => "goes on from the saved state",
            (false, false) => "started",
        };
        self.notes.clone_from(&qemu.record.notes);
        info!(
            "QEMU {} {how}, pid {}, {}",
            qemu.record.qemu_version, qemu.record.pid, qemu.record.accel
        );
        let door = qemu.door.take();
        let tap_notes = std::mem::take(&mut qemu.tap_notes);
        let seen_ready = (qemu.adopted || restored) && qemu.record.ready;
        let qemu_adopted = qemu.adopted;
        if let (Some(watching), Some(binary)) = (self.watching.clone(), qemu.record.binary.clone())
        {
            // That there is a newer one is then seen by the next reading of the VM file.
            let _ = self.lanes.files.run(move || drop(watching.also(&binary)));
        }
        self.qemu = Some(qemu);
        self.recall();
        self.keep_taps(tap_notes);
        if qemu_adopted {
            self.recall_freeze();
            self.settle(vec![], vec![]);
            self.keep_screen();
            let served = self.serve_screen_again();
            self.tasks.spawn(served);
        } else {
            self.serve_screen(door);
        }
        self.remember_ready();
        // One that an earlier supervisor may have bound is freed, if it is not to be any more.
        self.pinned = qemu_adopted;
        self.given(given);
        self.await_qemus_end();
        self.enrol();
        if restored {
            self.set_guests_clock();
        }
        let paused = found == launch::Guest::Paused;
        self.feed(life::Event::Launched { paused, ready: seen_ready });
        if paused {
            self.ask_why_held();
        }
        match found {
            launch::Guest::ShutDown => self.feed(life::Event::GuestShutdown),
            launch::Guest::Panicked => self.feed(life::Event::GuestPanicked),
            launch::Guest::Running | launch::Guest::Paused if self.winding_up => {
                self.feed(life::Event::Signalled);
            }
            launch::Guest::Running | launch::Guest::Paused => {}
        }
        self.compare();
        self.read_files(AfterReading::Compare);
        // What preparing took: from here on little happens, for months.
        memory::trim();
    }

    /// Waits for QEMU's end, and finds out what ended it.
    fn await_qemus_end(&mut self) {
        let Some(process) = self.qemu.as_ref().map(|qemu| qemu.process.clone()) else { return };
        let (facts, generation) = (self.facts.clone(), self.generation);
        let was_oom_killed = self.was_oom_killed();
        self.tasks.spawn(async move {
            let exit = process.wait().await;
            let looked = tokio::task::spawn_blocking(move || was_oom_killed(exit));
            let oom = tokio::time::timeout(OOM_LIMIT, looked).await;
            let oom = oom.is_ok_and(|looked| looked.unwrap_or(false));
            let _ = facts.send(Fact::Gone(generation, exit, oom)).await;
        });
    }

    pub(crate) fn start_failed(&mut self, not: NotBegun, found: &Found) {
        self.starting = None;
        if self.adopting.is_some() && self.went_meanwhile(found) {
            return;
        }
        match found {
            Ok(PreviousQemu::None | PreviousQemu::Exited | PreviousQemu::NeverExecuted) => {}
            // A QEMU process that is running may hold its guest: its record and a saved state stay. The exit code of a fault of the
            // VM would have the unit's ExecStopPost= end that guest.
            Ok(PreviousQemu::Running(..)) => {
                return self.not_begun(NotBegun { fault: Fault::Host, ..not });
            }
            Err(unknown) => {
                warn!("the run record stays: {}", chain(unknown));
                return self.not_begun(NotBegun { fault: Fault::Host, ..not });
            }
        }
        // A launch that was canceled says nothing about the saved state.
        if !self.cancel.is_set() && not.fault == Fault::Vm && self.not_restored(&not.why) {
            return;
        }
        self.records.remove();
        self.not_begun(not);
    }

    /// SIGINT: of a terminal it is a stop; a unit gets it from `machinectl reboot`.
    pub(crate) fn interrupted(&mut self) {
        let reboot = life::Command::Reboot;
        match self.under_systemd && life::accepts(&self.life.state, reboot).is_ok() {
            true => self.feed(life::Event::Asked(reboot)),
            false => self.feed(life::Event::Signalled),
        }
    }

    /// SIGUSR2: the program's file, perhaps a newer one, takes over in this process, once everything is written that it reads.
    pub(crate) fn reexec(&mut self) {
        if !self.may_be_replaced() {
            return;
        }
        // Nobody could answer what is pending: the last answer calls this again.
        self.effects.reexec = !self.effects.is_empty();
        if self.effects.reexec {
            return;
        }
        let (written, logged) =
            (self.lanes.settle(WRITTEN_LIMIT), self.console.flush(WRITTEN_LIMIT));
        let facts = self.facts.clone();
        self.tasks.spawn(async move {
            let done = written.await && logged.await;
            let _ = facts.send(Fact::Written(done)).await;
        });
    }

    fn may_be_replaced(&self) -> bool {
        let may = matches!(self.life.state, State::Running | State::Paused(_));
        if !may {
            warn!("not replaced now: the VM is {:?}", self.told_state());
        }
        may
    }

    /// Everything is written; or the storage does not answer. A thread that waits for storage would hold up execve(2).
    pub(crate) fn written_all(&mut self, done: bool) {
        if done && (self.lanes.is_busy() || !self.effects.is_empty()) {
            // Something came in between.
            self.reexec();
        } else if !done {
            let seconds = WRITTEN_LIMIT.as_secs();
            warn!("not replaced now: storage or changes of the machine took over {seconds} s");
        } else if self.may_be_replaced() {
            self.left = Some(Outcome::Reexec);
        }
    }

    /// Tidies up behind the end. What the storage does not take in time is not waited for.
    pub(crate) async fn leave(&mut self) {
        // A QEMU that has not ended has its memory still; what an adopted one has that is not given up is told by its record.
        let stays = self.qemu.is_some();
        let (paths, cgroup) = (self.paths.clone(), self.cgroup.take());
        let tidied = self.lanes.run.run(move || {
            if !stays {
                reservation::remove(&paths);
            }
            if let Some(cgroup) = cgroup {
                let _ = cgroup.remove();
            }
        });
        let written = (self.lanes.flush(LEAVE_LIMIT), self.console.flush(LEAVE_LIMIT));
        let (done, logged) = futures_util::future::join(written.0, written.1).await;
        if tidied.is_err() || !done || !logged {
            error!("storage does not respond: not all state was written at exit");
        }
        let socket = self.paths.control_socket();
        let removed = self.lanes.run.ask(move || std::fs::remove_file(socket));
        let _ = tokio::time::timeout(LEAVE_LIMIT, removed).await;
        self.notifier.finish().await;
    }

    /// Passes on the events of a monitor's connection, and behind them the replies that were read after them.
    pub(crate) fn listen(&mut self, mut events: qmp::Events) {
        let (facts, generation) = (self.facts.clone(), self.generation);
        let mut replies = self.effects.queue();
        self.tasks.spawn(async move {
            loop {
                // An event that was read before a reply is in its queue before the reply is in the other one.
                let fact = tokio::select! {
                    biased;
                    event = events.next() => match event {
                        Some(event) => Fact::Qmp(generation, event),
                        None => break,
                    },
                    Some(reply) = replies.recv() => reply,
                };
                if facts.send(fact).await.is_err() {
                    return;
                }
            }
            replies.close();
            while let Some(reply) = replies.recv().await {
                let _ = facts.send(reply).await;
            }
            let _ = facts.send(Fact::MonitorClosed(generation)).await;
        });
    }

    pub(crate) fn heard(&mut self, event: &qmp::Event) {
        use qmp::{Kind, ShutdownReason as Reason};
        debug!("QMP event {}", event.name);
        self.publish(&event.name, event.data.clone());
        match event.kind() {
            // The reset button, too, where a reset is to bring a new QEMU.
            Kind::Shutdown { reason: Reason::GuestReset | Reason::HostQmpSystemReset, .. } => {
                self.feed(life::Event::GuestReboot);
            }
            Kind::Shutdown { guest: true, .. } => self.feed(life::Event::GuestShutdown),
            Kind::Reset { reason, .. } => {
                if reason == Reason::HostQmpSystemReset {
                    self.effects.was_reset();
                }
                self.forget_freeze();
                self.console.boots();
                self.feed(life::Event::GuestReset);
            }
            Kind::GuestPanicked { .. } => self.feed(life::Event::GuestPanicked),
            Kind::Stop => {
                self.feed(life::Event::Held);
                self.ask_why_held();
            }
            Kind::Resume => {
                self.goes_on();
                self.feed(life::Event::Continued);
            }
            Kind::BalloonChange { actual } => self.memory_actual = Some(actual),
            Kind::DeviceDeleted { .. } if self.applying.is_none() => self.settle(vec![], vec![]),
            _ => {}
        }
    }

    /// The monitor answers again, over another connection.
    pub(crate) fn reconnected(&mut self, session: qmp::Session, found: &str) {
        let Some(qemu) = &mut self.qemu else { return };
        info!("QEMU's monitor answers again");
        qemu.client = session.client;
        if let Some(serving) = &qemu.serving {
            serving.by(qemu.client.clone());
        }
        self.listen(session.events);
        // Events between the two connections were lost. Those of the new one come behind.
        self.feed(match found {
            "running" => life::Event::Continued,
            "shutdown" => life::Event::GuestShutdown,
            "guest-panicked" => life::Event::GuestPanicked,
            _ => life::Event::Held,
        });
        self.ask_why_held();
        if found == "running" {
            self.goes_on();
        }
        self.resynchronize();
    }

    /// Asks for what events that were lost with a connection told beside the run state.
    fn resynchronize(&mut self) {
        let Some(qemu) = &self.qemu else { return };
        let client = qemu.client.clone();
        let (facts, generation) = (self.facts.clone(), self.generation);
        self.tasks.spawn(async move {
            if let Ok(qmp::Balloon::Actual(bytes)) = client.query_balloon(QMP_LIMIT).await {
                let _ = facts.send(Fact::Memory(generation, bytes)).await;
            }
        });
        if self.applying.is_none() {
            self.settle(vec![], vec![]);
        }
    }

    /// What the host makes difficult now, as a word.
    pub(crate) fn trouble(&self) -> Option<&'static str> {
        match (self.monitor.is_silent(), self.room.is_wanted()) {
            (true, _) => Some("monitor-silent"),
            (false, true) => Some("no-space"),
            (false, false) => None,
        }
    }

    /// What the host makes difficult.
    pub(crate) fn meet(&mut self, trouble: Trouble) {
        match trouble {
            Trouble::NoSpace { turn, places } => self.no_space(turn, places),
            Trouble::Room => self.has_room(),
            Trouble::Silent => self.monitor_is_silent(),
            Trouble::Answered(well) => self.monitor_answered(well),
        }
    }

    /// The monitor's connection ended. Mostly QEMU is on its way out; if it lives, the socket still listens.
    pub(crate) fn reconnect(&mut self) {
        let Some(qemu) = &self.qemu else { return };
        let (process, facts, generation) =
            (qemu.process.clone(), self.facts.clone(), self.generation);
        let socket = self.paths.qmp_socket();
        self.tasks.spawn(async move {
            loop {
                tokio::time::sleep(Duration::from_secs(1)).await;
                if !process.is_alive() {
                    return;
                }
                let connected = async {
                    let session = qmp::connect(&socket, QMP_LIMIT).await?;
                    let found = session.client.query_status(QMP_LIMIT).await?;
                    Ok::<_, qmp::Error>((session, found))
                };
                match connected.await {
                    Ok((session, found)) => {
                        let _ = facts.send(Fact::MonitorBack(generation, session, found)).await;
                        return;
                    }
                    Err(error) => warn!("QEMU lives but its monitor does not answer: {error}"),
                }
            }
        });
    }

    pub(crate) fn gone(&mut self, exit: Exit, oom: bool) {
        let gone = match exit {
            Exit::Code(code) => Gone::Exited(code),
            Exit::Signal(signal) => Gone::Signalled { signal, oom },
            Exit::Unknown => Gone::Unknown,
        };
        (self.qemu, self.frozen, self.taps) = (None, None, None);
        (self.room, self.monitor) = (Room::default(), Monitor::default());
        self.applying = None;
        self.live_notes.clear();
        if let Some(watching) = &self.watching {
            watching.end();
        }
        // From here on nothing may speak of this QEMU any more.
        self.generation += 1;
        self.records.remove();
        self.feed(life::Event::QemuGone(gone));
    }
}
