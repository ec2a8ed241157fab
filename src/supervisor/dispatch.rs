//! What the loop learns, and what each fact leads to.

use crate::supervisor::limits::START_STEP;
use tracing::{debug, info};

use super::{Supervisor, file_reading::AfterReading, input::Fact, running::freeze::Why};
use crate::{life, sys::signal::Signal};

impl Supervisor {
    /// Turns a fact into what the life machine understands.
    pub(crate) fn learn(&mut self, fact: Fact) {
        match fact {
            Fact::Signal(Signal::Stop) => self.told_to_stop(),
            Fact::Stopped { host_down: true } => self.feed(life::Event::HostDown),
            Fact::Stopped { host_down: false } => self.feed(life::Event::Signalled),
            Fact::Signal(Signal::Interrupt) => self.interrupted(),
            Fact::Signal(Signal::Reload) => self.reload(None),
            Fact::FileChanged => self.read_files(AfterReading::Compare),
            Fact::FilesRead(seen) => self.on_files_read(seen),
            Fact::FilesLate => self.on_files_late(),
            Fact::StatusDue => self.answer_statuses(),
            Fact::Reloaded(asker) => self.reloaded(asker),
            Fact::PreviousRun(before) => {
                self.on_previous_run(*before);
                self.answer_early_requests();
            }
            Fact::StartAborted(found) => self.on_start_aborted(&found),
            Fact::Written(done) => self.written_all(done),
            Fact::Given(generation, given) if generation == self.generation => self.given(given),
            Fact::Screen(generation, opened) if generation == self.generation => {
                self.screen_opened(opened);
            }
            Fact::Signal(Signal::Reexec) => self.reexec(),
            Fact::Request(request) => match &mut self.early_requests {
                Some(waiting) => waiting.push(request),
                None => self.answer(request),
            },
            Fact::Progress(text) => {
                self.notifier.status(&text);
                self.notifier.extend_timeout(START_STEP);
                info!("{text}");
            }
            Fact::Admission(step) => self.admission(step),
            Fact::Prepared(result) => {
                match *result {
                    Ok(mut prepared) => {
                        prepared.notes.extend(self.unusable.take());
                        self.notes.clone_from(&prepared.notes);
                        self.files.identity = Some(prepared.identity.clone());
                        self.files.is_read = true;
                        self.prepared = Some(prepared);
                        self.feed(life::Event::Prepared);
                    }
                    Err(not) => self.not_begun(not),
                }
                self.answer_early_requests();
            }
            Fact::Launched(result) => match *result {
                Ok((qemu, given)) => self.launched(qemu, given),
                Err((not, found)) => self.start_failed(not, &found),
            },
            Fact::Gone(generation, exit, oom) if generation == self.generation => {
                self.gone(exit, oom);
            }
            Fact::Qmp(generation, event) if generation == self.generation => self.heard(&event),
            Fact::MonitorClosed(generation) if generation == self.generation => self.reconnect(),
            Fact::MonitorBack(generation, session, found) if generation == self.generation => {
                self.reconnected(session, &found);
            }
            Fact::Executed(generation, number, what, done) if generation == self.generation => {
                self.on_executed(number, what, done);
            }
            Fact::MemorySet(generation, bytes, done, reply) if generation == self.generation => {
                self.on_memory_set(bytes, done, reply);
            }
            Fact::Ready(generation, found) if generation == self.generation => self.found(found),
            Fact::Memory(generation, bytes) if generation == self.generation => {
                self.memory_actual = Some(bytes);
            }
            Fact::NotPinned(generation, why) if generation == self.generation => {
                self.not_pinned(&why);
            }
            Fact::Saved(generation, done) if generation == self.generation => self.saved(done),
            Fact::Applied(generation, results) if generation == self.generation => {
                self.applied(results);
            }
            Fact::LetGo(generation, gone, held) if generation == self.generation => {
                self.let_go(&gone, &held);
            }
            Fact::Installed(generation, version) if generation == self.generation => {
                self.installed = Some(version);
                self.compare();
            }
            Fact::Froze(generation, after, done, reply) if generation == self.generation => {
                self.froze(after, done, reply);
            }
            Fact::ThawDue(generation) if generation == self.generation => {
                self.thaw(Why::Deadline, None);
            }
            Fact::Thawed(generation, why, done, reply) if generation == self.generation => {
                self.thawed(why, done, reply);
            }
            Fact::Taps(generation, told) if generation == self.generation => self.hear_taps(told),
            Fact::HostSlept(slept) => self.host_slept(slept),
            Fact::UnknownOperators(names) => self.operators.unknown = names,
            Fact::Trouble(generation, what) if generation == self.generation => self.meet(what),
            Fact::Froze(..)
            | Fact::MemorySet(..)
            | Fact::Executed(..)
            | Fact::Given(..)
            | Fact::Screen(..)
            | Fact::Trouble(..)
            | Fact::ThawDue(_)
            | Fact::Thawed(..)
            | Fact::Memory(..)
            | Fact::Applied(..)
            | Fact::LetGo(..)
            | Fact::Installed(..)
            | Fact::Saved(..)
            | Fact::NotPinned(..)
            | Fact::Ready(..)
            | Fact::Taps(..)
            | Fact::Gone(..)
            | Fact::Qmp(..)
            | Fact::MonitorClosed(_)
            | Fact::MonitorBack(..) => {
                debug!("late word of an earlier QEMU");
            }
        }
    }

    /// Answers the requests that came too early: the first answer must not call a running guest starting.
    fn answer_early_requests(&mut self) {
        for request in self.early_requests.take().unwrap_or_default() {
            self.answer(request);
        }
    }
}
