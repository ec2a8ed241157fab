//! What a QEMU that runs tells: that it came up, its events, its silence, its end.

use std::time::Duration;

use tracing::{debug, info, warn};

use super::{
    fact::{Fact, Fault, NotBegun, Trouble},
    launch::{self, Qemu},
    monitor::Monitor,
    previous::{self, PreviousQemu},
    record::Record,
    reservation,
    room::Room,
    supervise::{Left, QMP_LIMIT, Supervisor},
};
use crate::{
    host::{memory, pidfd::Exit},
    life::{self, Gone, State},
    value::chain,
};

impl Supervisor {
    pub(super) fn launched(&mut self, mut qemu: Qemu) {
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
        let (process, facts) = (qemu.process.clone(), self.facts.clone());
        tokio::spawn(async move {
            let exit = process.wait().await;
            let _ = facts.send(Fact::Gone(generation, exit)).await;
        });
        self.memory_actual = None;
        (self.room, self.monitor) = (Room::default(), Monitor::default());
        // Asked once: from then on QEMU tells every change.
        let (client, facts) = (qemu.client.clone(), self.facts.clone());
        tokio::spawn(async move {
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
        if let (Some(watching), Some(binary)) = (&mut self.watching, &qemu.record.binary) {
            // That there is a newer one is then seen by the next reading of the VM file.
            let _ = watching.also(binary);
        }
        self.qemu = Some(qemu);
        self.recall();
        self.keep_taps(tap_notes);
        if qemu_adopted {
            self.recall_freeze();
            self.settle(vec![], vec![]);
            self.keep_screen();
            self.serve_screen_again();
        } else {
            self.serve_screen(door);
        }
        self.remember_ready();
        // One that an earlier supervisor may have bound is freed, if it is not to be any more.
        self.pinned = qemu_adopted;
        self.give_resources();
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
        self.reread();
        // What preparing took: from here on little happens, for months.
        memory::trim();
    }

    pub(super) fn start_failed(&mut self, not: NotBegun) {
        self.starting = None;
        if self.adopting.is_some() && self.went_meanwhile() {
            return;
        }
        // A launch that was canceled says nothing about the saved state.
        if !self.cancel.is_set() && not.fault == Fault::Vm && self.not_restored(&not.why) {
            return;
        }
        // An adopted QEMU that does not answer may still hold its guest: its record stays.
        match previous::find(&self.paths) {
            Ok(PreviousQemu::Running(..)) => {}
            Ok(_) => Record::remove(&self.paths),
            Err(unknown) => warn!("the run record stays: {}", chain(&unknown)),
        }
        self.not_begun(not);
    }

    /// SIGINT: of a terminal it is a stop; a unit gets it from `machinectl reboot`.
    pub(super) fn interrupted(&mut self) {
        let reboot = life::Command::Reboot;
        match self.under_systemd && life::accepts(&self.life.state, reboot).is_ok() {
            true => self.feed(life::Event::Asked(reboot)),
            false => self.feed(life::Event::Signalled),
        }
    }

    /// SIGUSR2: the program's file, perhaps a newer one, takes over in this process.
    pub(super) fn reexec(&mut self) {
        if matches!(self.life.state, State::Running | State::Paused(_)) {
            // Nobody could answer what is pending.
            self.effects.reexec = !self.effects.is_empty();
            self.left = (!self.effects.reexec).then_some(Left::Reexec);
        } else {
            warn!("not replaced now: the VM is {:?}", self.told_state());
        }
    }

    /// Tidies up behind the end; a re-execution leaves everything as it is.
    pub(super) fn leave(&mut self) {
        if self.left == Some(Left::Reexec) {
            return;
        }
        // What an adopted QEMU has that is not given up is told by its record.
        reservation::remove(&self.paths);
        if let Some(cgroup) = self.cgroup.take() {
            let _ = cgroup.remove();
        }
        let _ = std::fs::remove_file(self.paths.control_socket());
    }

    /// Passes on the events of a monitor's connection, and behind them the replies that were read after them.
    pub(super) fn listen(&mut self, mut events: qmp::Events) {
        let (facts, generation) = (self.facts.clone(), self.generation);
        let mut replies = self.effects.queue();
        tokio::spawn(async move {
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

    pub(super) fn heard(&mut self, event: &qmp::Event) {
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
    pub(super) fn reconnected(&mut self, session: qmp::Session, found: &str) {
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
    }

    /// What the host makes difficult now, as a word.
    pub(super) fn trouble(&self) -> Option<&'static str> {
        match (self.monitor.is_silent(), self.room.is_wanted()) {
            (true, _) => Some("monitor-silent"),
            (false, true) => Some("no-space"),
            (false, false) => None,
        }
    }

    /// What the host makes difficult.
    pub(super) fn meet(&mut self, trouble: Trouble) {
        match trouble {
            Trouble::NoSpace { turn, nodes } => self.no_space(turn, &nodes),
            Trouble::Room => self.has_room(),
            Trouble::Silent => self.monitor_is_silent(),
            Trouble::Answered(well) => self.monitor_answered(well),
        }
    }

    /// The monitor's connection ended. Mostly QEMU is on its way out; if it lives, the socket still listens.
    pub(super) fn reconnect(&mut self) {
        let Some(qemu) = &self.qemu else { return };
        let (process, facts, generation) =
            (qemu.process.clone(), self.facts.clone(), self.generation);
        let socket = self.paths.qmp_socket();
        tokio::spawn(async move {
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

    pub(super) fn gone(&mut self, exit: Exit) {
        let gone = match exit {
            Exit::Code(code) => Gone::Exited(code),
            Exit::Signal(signal) => Gone::Signalled { signal, oom: self.was_oom_killed(signal) },
            Exit::Unknown => Gone::Unknown,
        };
        (self.qemu, self.frozen, self.taps) = (None, None, None);
        (self.room, self.monitor) = (Room::default(), Monitor::default());
        self.applying = None;
        self.live_notes.clear();
        if let Some(watching) = &mut self.watching {
            watching.end();
        }
        // From here on nothing may speak of this QEMU any more.
        self.generation += 1;
        Record::remove(&self.paths);
        self.feed(life::Event::QemuGone(gone));
    }
}
