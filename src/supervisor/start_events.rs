//! What the start under way reports, and the actions of the life machine that concern it.

use tracing::{info, warn};

use super::{
    Supervisor,
    file_reading::AfterReading,
    limits::START_STEP,
    start::{Report, Resources, Start, admission},
};
use crate::life::{Boot, Phase, StartEvent, State, VmFile};

impl Supervisor {
    pub(crate) fn on_start_report(&mut self, report: Report) {
        match report {
            Report::Progress(text) => {
                self.notifier.status(&text);
                self.notifier.extend_timeout(START_STEP);
                info!("{text}");
            }
            Report::Waiting(why) => self.on_waiting(why),
            Report::Previous { ends, identity, event } => {
                self.ends = ends;
                (self.files.identity, self.files.is_read) = (identity, true);
                self.feed(event.into());
            }
            Report::Admitted(turn) => {
                self.notes.clear();
                if let Some(turn) = turn {
                    // The start does not wait for the end of its turn.
                    self.tasks.spawn(async move {
                        tokio::time::sleep(admission::SETTLE).await;
                        drop(turn);
                    });
                }
                self.feed(StartEvent::Admitted.into());
            }
            Report::Prepared { notes, identity } => {
                self.notes = notes;
                (self.files.identity, self.files.is_read) = (Some(identity), true);
                self.feed(StartEvent::Prepared.into());
            }
            Report::Launched(launched) => {
                let (qemu, given) = *launched;
                self.launched(qemu, given);
            }
            Report::Ended(event) => {
                if matches!(self.life.state(), State::Starting(Phase::Admitting(_))) {
                    self.notes.clear();
                }
                self.feed(event.into());
            }
        }
    }

    fn on_waiting(&mut self, why: String) {
        // A start that is being canceled does not wait any more.
        if !matches!(self.life.state(), State::Starting(_)) {
            return;
        }
        self.notifier.status(&why);
        self.notifier.extend_timeout(START_STEP);
        if self.notes.first() != Some(&why) {
            info!("{why}");
            self.notes = vec![why];
        }
    }

    fn new_start(&mut self) -> &mut Start {
        let resources = Resources::new(&self.settings, &self.lanes, self.under_systemd);
        self.start.insert(Start::new(resources))
    }

    /// The start that an action continues.
    fn start(&mut self) -> &mut Start {
        let Self { start, settings, lanes, under_systemd, .. } = self;
        start.get_or_insert_with(|| Start::new(Resources::new(settings, lanes, *under_systemd)))
    }

    fn feed_refused(&mut self, begun: Result<(), StartEvent>) {
        if let Err(event) = begun {
            self.feed(event.into());
        }
    }

    pub(crate) fn find_previous(&mut self) {
        let file = self.vm.file.clone();
        let begun = self.new_start().find_previous(file);
        self.feed_refused(begun);
    }

    /// Reads the VM file for a relaunch; from here on its changes are watched again.
    pub(crate) fn read_vm_file(&mut self) {
        self.new_start();
        if let Some(watching) = &self.watching {
            let watching = watching.clone();
            let _ = self.lanes.files.run(move || {
                if let Err(error) = watching.begin() {
                    warn!("changes of the VM file will be seen only by `qvm reload`: {error}");
                }
            });
        }
        self.read_files(AfterReading::Relaunch);
    }

    pub(crate) fn use_vm_file(&mut self, which: VmFile) {
        match which {
            VmFile::Current => {
                self.set_running(self.written.clone());
                self.text.clone_from(&self.written_text);
                self.pending.changes.clear();
                self.reboot_relaunches = false;
            }
            VmFile::Saved => {
                let Some(saved) = self.start().take_saved() else { return };
                info!("restoring the state that was saved at {}", saved.at);
                // Keys that apply at once are the host's side, and count as they are written now.
                let written = self.vm.clone();
                self.set_running(saved.vm);
                self.apply_live_keys(written);
                self.text = saved.text;
            }
            VmFile::Booted => {
                let booted = self.start().booted();
                let (file, reloaded) = (booted.file.clone(), booted.reloaded.clone());
                if let Some((vm, text)) = file {
                    self.set_running(vm);
                    self.text = text;
                }
                if let Some(vm) = reloaded {
                    self.apply_live_keys(vm);
                }
            }
        }
    }

    pub(crate) fn admit(&mut self) {
        self.notifier.extend_timeout(START_STEP);
        let mem = self.vm.mem.bytes();
        let begun = self.start().admit(mem);
        self.feed_refused(begun);
    }

    pub(crate) fn renew_reservation(&mut self) {
        let mem = self.vm.mem.bytes();
        self.start().renew_reservation(mem);
    }

    pub(crate) fn prepare(&mut self) {
        self.notifier.extend_timeout(START_STEP);
        let vm = self.vm.clone();
        let begun = self.start().prepare(vm);
        self.feed_refused(begun);
    }

    pub(crate) fn launch(&mut self, boot: Boot) {
        let (vm, text) = (self.vm.clone(), self.text.clone());
        let begun = self.start().launch(boot, vm, text);
        self.feed_refused(begun);
    }

    pub(crate) fn adopt(&mut self) {
        let vm = self.vm.clone();
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
