//! Handles the reports of the start, and the actions of the life machine that concern it.

use tracing::info;

use super::{
    Supervisor,
    file_reading::AfterReading,
    limits::START_STEP,
    start::{Report, Resources, Start, admission},
};
use crate::{
    life::{self, Boot, Phase, StartEvent, State, VmFile},
    value::{Note, NoteCode},
};

impl Supervisor {
    /// Executes the first actions of the life machine.
    pub(crate) fn begin(&mut self, actions: Vec<life::Action>) {
        let search = self.config.set_operators();
        self.look_up_operators(search);
        for action in actions {
            self.execute(action);
        }
    }

    /// Handles a report of the start.
    pub(crate) fn on_start_report(&mut self, report: Report) {
        match report {
            Report::Progress(text) => {
                self.ctx.notifier().status(&text);
                self.ctx.notifier().extend_timeout(START_STEP);
                info!("{text}");
            }
            Report::Waiting(why) => self.on_waiting(why),
            Report::Previous { ends, identity, event } => {
                self.history.set_ends(ends);
                self.config.set_identity(identity);
                self.feed(event.into());
            }
            Report::Admitted(turn) => {
                self.history.set_notes(vec![]);
                if let Some(turn) = turn {
                    // The start continues before the end of its turn.
                    self.tasks.spawn(async move {
                        tokio::time::sleep(admission::SETTLE).await;
                        drop(turn);
                    });
                }
                self.feed(StartEvent::Admitted.into());
            }
            Report::Prepared { notes, identity } => {
                self.history.set_notes(notes);
                self.config.set_identity(Some(identity));
                self.feed(StartEvent::Prepared.into());
            }
            Report::Launched(launched) => {
                let (qemu, given) = *launched;
                self.on_launched(qemu, given);
            }
            Report::Ended(event) => {
                if matches!(self.life.state(), State::Starting(Phase::Admitting(_))) {
                    self.history.set_notes(vec![]);
                }
                self.feed(event.into());
            }
        }
    }

    fn on_waiting(&mut self, why: String) {
        // A start that is being canceled is not waiting.
        if !matches!(self.life.state(), State::Starting(_)) {
            return;
        }
        self.ctx.notifier().status(&why);
        self.ctx.notifier().extend_timeout(START_STEP);
        if self.history.notes().first().is_none_or(|note| note.text != why) {
            info!("{why}");
            self.history.set_notes(vec![Note::new(NoteCode::Waiting, why)]);
        }
    }

    fn new_start(&mut self) -> &mut Start {
        self.start.insert(Start::new(Resources::new(&self.ctx)))
    }

    /// Returns the start that an action continues.
    fn start(&mut self) -> &mut Start {
        let Self { start, ctx, .. } = self;
        start.get_or_insert_with(|| Start::new(Resources::new(ctx)))
    }

    fn feed_refused(&mut self, begun: Result<(), StartEvent>) {
        if let Err(event) = begun {
            self.feed(event.into());
        }
    }

    pub(crate) fn find_previous(&mut self) {
        let file = self.config.vm().file.clone();
        let begun = self.new_start().find_previous(file);
        self.feed_refused(begun);
    }

    /// Reads the VM file for a relaunch, and watches it again.
    pub(crate) fn read_vm_file(&mut self) {
        self.new_start();
        self.files.watch_again(&self.ctx);
        self.read_files(AfterReading::Relaunch);
    }

    pub(crate) fn use_vm_file(&mut self, which: VmFile) {
        match which {
            VmFile::Current => {
                let (vm, text) = (self.config.written().clone(), self.config.written_text());
                self.set_running(vm, text.to_owned());
                self.config.clear_diff();
            }
            VmFile::Saved => {
                let Some(saved) = self.start().take_saved() else { return };
                info!("restoring the state that was saved at {}", saved.at);
                // Keys that take effect at once concern the host: the current VM file applies.
                let written = self.config.vm().clone();
                self.set_running(saved.vm, saved.text);
                self.apply_live_keys(written);
            }
            VmFile::Booted => {
                let booted = self.start().booted();
                let (file, reloaded) = (booted.file.clone(), booted.reloaded.clone());
                if let Some((vm, text)) = file {
                    self.set_running(vm, text);
                }
                if let Some(vm) = reloaded {
                    self.apply_live_keys(vm);
                }
            }
        }
    }

    pub(crate) fn admit(&mut self) {
        self.ctx.notifier().extend_timeout(START_STEP);
        let mem = self.config.vm().mem.bytes();
        let begun = self.start().admit(mem);
        self.feed_refused(begun);
    }

    pub(crate) fn renew_reservation(&mut self) {
        let mem = self.config.vm().mem.bytes();
        self.start().renew_reservation(mem);
    }

    pub(crate) fn prepare(&mut self) {
        self.ctx.notifier().extend_timeout(START_STEP);
        let vm = self.config.vm().clone();
        let begun = self.start().prepare(vm);
        self.feed_refused(begun);
    }

    pub(crate) fn launch(&mut self, boot: Boot) {
        let (vm, text) = (self.config.vm().clone(), self.config.text().to_owned());
        let begun = self.start().launch(boot, vm, text);
        self.feed_refused(begun);
    }

    pub(crate) fn adopt(&mut self) {
        let vm = self.config.vm().clone();
        let begun = self.start().adopt(vm);
        self.feed_refused(begun);
    }

    pub(crate) fn cancel_start(&mut self) {
        if let Some(start) = &mut self.start {
            start.cancel();
        }
    }

    pub(crate) fn quarantine_saved_state(&mut self, why: &str) {
        self.start().quarantine_saved_state(why);
    }
}
