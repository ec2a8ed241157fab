//! The way to a QEMU: one that an earlier supervisor left, a saved state, or a preparation from the beginning.

use crate::supervisor::{
    limits::START_STEP,
    outcome::{Fault, NotBegun, Outcome},
};
use std::{path::Path, time::Duration};

use tracing::{info, warn};

use super::{
    adopt,
    launch::{self, Qemu},
    prepare,
};
use crate::{
    control::types::End,
    life::{self, Gone, State},
    spec::{self, Vm},
    store::{identity::Identity, layout::VmPaths, saved_header::Saved},
    sys::{file, pidfd},
    value::{VmName, chain},
};
use crate::{
    store::{
        record,
        running::{self, Found, PreviousQemu},
        saved_state,
    },
    supervisor::{Supervisor, file_reading, input::Fact, running::resources},
};

/// How long a killed QEMU process may take to be gone; one that waits for storage is not, and keeps its record.
const KILLED_WITHIN: Duration = Duration::from_secs(5);

/// Kills the QEMU process of a launch that was given up, and waits until it is gone.
pub(crate) async fn end_launched(paths: &VmPaths) {
    let found = running::find(paths);
    if let Err(unknown) = &found {
        warn!("a QEMU process may be left: {}", chain(unknown));
    }
    if let Ok(PreviousQemu::Running(process, _)) = found {
        let _ = process.signal(pidfd::Signal::KILL);
        if tokio::time::timeout(KILLED_WITHIN, process.wait()).await.is_err() {
            warn!("QEMU (pid {}) was killed and does not end; its record stays", process.pid());
        }
    }
}

/// What an earlier supervisor left, and what was saved.
#[derive(Debug)]
pub(crate) struct PreviousRun {
    ends: Vec<End>,
    found: Found,
    /// The VM file that QEMU was started from, and its text.
    booted: Option<(Vm, String)>,
    /// The VM file at the last reload.
    reloaded: Option<Vm>,
    identity: Option<Identity>,
    saved: SavedState,
}

/// A saved state and its VM file, which may not be valid any more; or why the state cannot be used.
type SavedState = Result<Option<(Saved, Option<Vm>)>, saved_state::Error>;

impl PreviousRun {
    /// Blocks for as long as the storage does.
    fn look(paths: &VmPaths, name: &VmName, file: &Path) -> Self {
        let found = running::find(paths);
        let saved = match saved_state::open(&paths.saved()) {
            Ok(None) => Ok(None),
            Ok(Some((head, _))) => {
                let mut user_data = |path: &Path| std::fs::read(path);
                let vm = spec::read(name, file, &head.vm_file, &mut user_data).ok();
                Ok(Some((head, vm)))
            }
            Err(error) => Err(error),
        };
        Self {
            ends: record::ends(paths),
            booted: crate::store::vm_file_copies::booted(paths, name, file),
            reloaded: crate::store::vm_file_copies::reloaded(paths, name, file),
            identity: file_reading::identity(paths),
            found,
            saved,
        }
    }
}

impl Supervisor {
    /// Begins to read, beside the loop, what an earlier supervisor left.
    pub(crate) fn begin(&mut self) {
        let (paths, name, file) = (self.paths.clone(), self.vm.name.clone(), self.vm.file.clone());
        let looked = self.lanes.launch.ask(move || PreviousRun::look(&paths, &name, &file));
        let facts = self.facts.clone();
        self.tasks.spawn(async move {
            let fact = match looked.await {
                Ok(before) => Fact::PreviousRun(Box::new(before)),
                Err(refused) => Fact::Prepared(Box::new(Err(NotBegun::refused(refused)))),
            };
            let _ = facts.send(fact).await;
        });
    }

    /// Takes over a QEMU of an earlier supervisor, or begins to prepare.
    pub(crate) fn on_previous_run(&mut self, before: PreviousRun) {
        let PreviousRun { ends, found, booted, reloaded, identity, saved } = before;
        self.ends = ends;
        (self.files.identity, self.files.is_read) = (identity, true);
        if self.cancel.is_set() {
            return self.feed(life::Event::StartFailed("cancelled".into()));
        }
        match found {
            Err(unknown) => {
                let hint = unknown.hint().replace("NAME", self.vm.name.as_str());
                self.not_begun(NotBegun::new(&unknown, Some(hint), true));
            }
            Ok(PreviousQemu::None) if self.winding_up => self.left = Some(Outcome::Exit(0)),
            Ok(PreviousQemu::None) => self.set_out(saved),
            Ok(found @ (PreviousQemu::Exited | PreviousQemu::NeverExecuted)) => {
                self.begin_after(&found, saved);
            }
            Ok(PreviousQemu::Running(process, record)) => {
                (self.life.state, self.adopting) = (State::Launching, Some(process.pid()));
                if let Some((vm, text)) = booted {
                    self.booted = Some(vm.clone());
                    self.runs(vm);
                    self.text = text;
                }
                if let Some(vm) = reloaded {
                    self.take_live(vm);
                }
                self.take_over_memory();
                let paths = self.paths.clone();
                self.start_task(async move { adopt::adopt(process, *record, &paths).await });
            }
        }
    }

    /// QEMU went while nobody watched; that is an end as well.
    fn begin_after(&mut self, found: &PreviousQemu, saved: SavedState) {
        if matches!(found, PreviousQemu::Exited) {
            self.record_end(&life::End { cause: life::Cause::QemuDied(Gone::Unknown) });
        }
        self.records.remove();
        match self.winding_up {
            true => self.left = Some(Outcome::Exit(0)),
            false => self.set_out(saved),
        }
    }

    /// A QEMU that is gone before it was taken over is as one that was gone before; false where it is not.
    pub(crate) fn went_meanwhile(&mut self, found: &Found) -> bool {
        let gone = matches!(found, Ok(PreviousQemu::Exited | PreviousQemu::NeverExecuted));
        let begins = gone && self.life.state == State::Launching;
        if begins {
            self.adopting = None;
            self.life.state = State::Preparing;
            // As it is written now, not as that one was started.
            self.runs(self.written.clone());
            self.text.clone_from(&self.written_text);
            self.begin();
        }
        begins
    }

    /// Prepares on a thread of its own, behind `first`.
    pub(crate) fn prepare(&mut self, first: impl FnOnce() + Send + 'static) {
        let (settings, vm) = (self.settings.clone(), self.vm.clone());
        let (cancel, facts) = (self.cancel.clone(), self.facts.clone());
        self.notifier.extend_timeout(START_STEP);
        let spawned = std::thread::Builder::new().name("prepare".into()).spawn(move || {
            let say = |text: String| {
                let _ = facts.blocking_send(Fact::Progress(text));
            };
            first();
            let result = prepare::prepare(&settings, vm, &cancel, &say)
                .map_err(|e| NotBegun::new(&e, e.hint(), e.is_the_hosts()));
            let _ = facts.blocking_send(Fact::Prepared(Box::new(result)));
        });
        if let Err(error) = spawned {
            let why = format!("cannot start a thread: {error}");
            self.not_begun(NotBegun { why, fault: Fault::Host });
        }
    }

    /// Runs a launch or an adoption beside the loop.
    pub(crate) fn start_task<F>(&mut self, work: F)
    where
        F: Future<Output = Result<Qemu, launch::Error>> + Send + 'static,
    {
        let facts = self.facts.clone();
        let (settings, vm, by) = (self.settings.clone(), self.vm.clone(), self.under_systemd);
        let paths = self.paths.clone();
        // What is still to be written, or removed, of an earlier QEMU must not come after this one's.
        let earlier = self.lanes.run.flush();
        let work = self.lanes.launch.drive(async move {
            let failed = |not| Err((not, running::find(&paths)));
            let result = match earlier.await {
                Ok(()) => match work.await {
                    Ok(qemu) => {
                        let given = resources::give(&settings, &vm, qemu.record.pid, by);
                        Ok((qemu, given))
                    }
                    Err(e) => failed(NotBegun::new(&e, e.hint(), e.is_the_hosts())),
                },
                // A removal that is still queued would remove the record of the QEMU process that is started now.
                Err(refused) => failed(NotBegun::refused(refused)),
            };
            let _ = facts.send(Fact::Launched(Box::new(result))).await;
        });
        match work {
            Ok(work) => self.starting = Some(work),
            Err(refused) => self.not_begun(NotBegun::refused(refused)),
        }
    }

    /// Goes on from a saved state, if there is one; else prepares as the VM file says.
    fn set_out(&mut self, saved: SavedState) {
        match saved {
            Ok(None) => {}
            Ok(Some((head, Some(vm)))) => {
                info!("going on from the state that was saved at {}", head.at);
                // What counts at once is of the host's side, and as it is written now.
                let written = self.vm.clone();
                self.runs(vm);
                self.take_live(written);
                self.text.clone_from(&head.vm_file);
                self.restoring = Some(head);
            }
            Ok(Some((_, None))) => {
                self.set_aside("its VM file is not valid for this version of qvm");
            }
            Err(error @ saved_state::Error::Content { .. }) => self.set_aside(&chain(&error)),
            // A state that cannot be read now may be read by the next start.
            Err(error @ saved_state::Error::File(_)) => {
                return self.not_begun(NotBegun::new(&error, None, true));
            }
        }
        self.ask_to_start();
    }

    /// A QEMU that does not take the state up is no reason not to start: the guest boots, as after a power cut.
    pub(crate) fn not_restored(&mut self, why: &str) -> bool {
        if self.restoring.take().is_none() {
            return false;
        }
        self.set_aside(why);
        self.runs(self.written.clone());
        self.text.clone_from(&self.written_text);
        self.life.state = life::State::Preparing;
        self.records.remove();
        self.ask_to_start();
        true
    }

    fn set_aside(&mut self, why: &str) {
        let (from, to) = (self.paths.saved(), self.paths.unusable());
        let why = why.lines().next().unwrap_or_default();
        let note = format!(
            "the saved state could not be taken up, and the guest has booted instead: {why}; it is kept as `{}`",
            to.display()
        );
        warn!("{note}");
        let done = self.lanes.state.run(move || {
            if let Err(error) = file::commit(&from, &to) {
                warn!("cannot rename the saved state: {}", chain(&error));
            }
        });
        if let Err(refused) = done {
            warn!("cannot rename the saved state: {refused}");
        }
        self.unusable = Some(note);
    }

    /// A start that failed, by the host or by the VM.
    pub(crate) fn not_begun(&mut self, not: NotBegun) {
        self.fault = not.fault;
        self.feed(life::Event::StartFailed(not.why));
    }
}
