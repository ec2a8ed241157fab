//! The way to a QEMU: one that an earlier supervisor left, a saved state, or a preparation from the beginning.

use std::{path::Path, time::Duration};

use tokio::task::AbortHandle;
use tracing::{info, warn};

use super::{
    adopt,
    fact::{Fact, Fault, NotBegun},
    launch::{self, Qemu},
    prepare,
    previous::{self, PreviousQemu},
    record::Record,
    saved,
    supervise::{Left, START_STEP, Supervisor},
};
use crate::{
    host::{file, pidfd},
    life::{self, Gone, State},
    plan::layout::VmPaths,
    spec,
    value::chain,
};

/// The task of a start; aborted, it does no more.
#[derive(Debug)]
pub(super) enum Starting {
    /// It waits until the VM may start.
    Admission(AbortHandle),
    /// It launches a QEMU process or adopts one. Its end is reported by `Fact::Launched`, also when it is aborted.
    Qemu(AbortHandle),
}

/// How long a killed QEMU process may take to be gone; one that waits for storage is not, and keeps its record.
const KILLED_WITHIN: Duration = Duration::from_secs(5);

/// Kills the QEMU process of a launch that was given up, and waits until it is gone.
async fn end_launched(paths: &VmPaths) {
    let found = previous::find(paths);
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

impl Supervisor {
    /// Takes over a QEMU of an earlier supervisor, or begins to prepare.
    pub(super) fn begin(&mut self) {
        match previous::find(&self.paths) {
            Err(unknown) => {
                let hint = unknown.hint().replace("NAME", self.vm.name.as_str());
                self.not_begun(NotBegun::new(&unknown, Some(hint), true));
            }
            Ok(PreviousQemu::None) if self.winding_up => self.left = Some(Left::Exit(0)),
            Ok(PreviousQemu::None) => self.set_out(),
            Ok(found @ (PreviousQemu::Exited | PreviousQemu::NeverExecuted)) => {
                self.begin_after(&found);
            }
            Ok(PreviousQemu::Running(process, record)) => {
                (self.life.state, self.adopting) = (State::Launching, Some(process.pid()));
                if let Some((vm, text)) = adopt::booted(&self.paths, &self.vm.name, &self.vm.file) {
                    self.runs(vm);
                    self.text = text;
                }
                if let Some(vm) = adopt::reloaded(&self.paths, &self.vm.name, &self.vm.file) {
                    self.take_live(vm);
                }
                self.take_over_memory();
                let paths = self.paths.clone();
                self.start_task(async move { adopt::adopt(process, *record, &paths).await });
            }
        }
    }

    /// QEMU went while nobody watched; that is an end as well.
    fn begin_after(&mut self, found: &PreviousQemu) {
        if matches!(found, PreviousQemu::Exited) {
            self.record_end(&life::End { cause: life::Cause::QemuDied(Gone::Unknown) });
        }
        Record::remove(&self.paths);
        match self.winding_up {
            true => self.left = Some(Left::Exit(0)),
            false => self.set_out(),
        }
    }

    /// A QEMU that is gone before it was taken over is as one that was gone before; false where it is not.
    pub(super) fn went_meanwhile(&mut self) -> bool {
        let Ok(found) = previous::find(&self.paths) else { return false };
        let gone = matches!(found, PreviousQemu::Exited | PreviousQemu::NeverExecuted);
        let begins = gone && self.life.state == State::Launching;
        if begins {
            self.adopting = None;
            self.life.state = State::Preparing;
            // As it is written now, not as that one was started.
            self.runs(self.written.clone());
            self.text.clone_from(&self.written_text);
            self.begin_after(&found);
        }
        begins
    }

    pub(super) fn prepare(&mut self) {
        let (settings, vm) = (self.settings.clone(), self.vm.clone());
        let (cancel, facts) = (self.cancel.clone(), self.facts.clone());
        self.notifier.extend_timeout(START_STEP);
        let spawned = std::thread::Builder::new().name("prepare".into()).spawn(move || {
            let say = |text: String| {
                let _ = facts.blocking_send(Fact::Progress(text));
            };
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
    pub(super) fn start_task<F>(&mut self, work: F)
    where
        F: Future<Output = Result<Qemu, launch::Error>> + Send + 'static,
    {
        let task = tokio::spawn(work);
        self.starting = Some(Starting::Qemu(task.abort_handle()));
        let facts = self.facts.clone();
        let paths = self.adopting.is_none().then(|| self.paths.clone());
        tokio::spawn(async move {
            let result = match task.await {
                Ok(result) => result.map_err(|e| NotBegun::new(&e, e.hint(), e.is_the_hosts())),
                Err(ended) => {
                    // An adopted QEMU goes on, and is found again.
                    if let Some(paths) = paths {
                        end_launched(&paths).await;
                    }
                    let fault = if ended.is_cancelled() { Fault::Vm } else { Fault::Host };
                    Err(NotBegun { why: "canceled".into(), fault })
                }
            };
            let _ = facts.send(Fact::Launched(Box::new(result))).await;
        });
    }

    /// Goes on from a saved state, if there is one; else prepares as the VM file says.
    pub(super) fn set_out(&mut self) {
        match saved::open(&self.paths.saved()) {
            Ok(None) => {}
            Ok(Some((head, _))) => {
                let mut user_data = |path: &Path| std::fs::read(path);
                let (name, file) = (&self.vm.name, &self.vm.file);
                match spec::read(name, file, &head.vm_file, &mut user_data) {
                    Ok(vm) => {
                        info!("going on from the state that was saved at {}", head.at);
                        // What counts at once is of the host's side, and as it is written now.
                        let written = self.vm.clone();
                        self.runs(vm);
                        self.take_live(written);
                        self.text.clone_from(&head.vm_file);
                        self.restoring = Some(head);
                    }
                    Err(_) => self.set_aside("its VM file is not valid for this version of qvm"),
                }
            }
            Err(error @ saved::Error::Content { .. }) => self.set_aside(&chain(&error)),
            // A state that cannot be read now may be read by the next start.
            Err(error @ saved::Error::File(_)) => {
                return self.not_begun(NotBegun::new(&error, None, true));
            }
        }
        self.ask_to_start();
    }

    /// A QEMU that does not take the state up is no reason not to start: the guest boots, as after a power cut.
    pub(super) fn not_restored(&mut self, why: &str) -> bool {
        if self.restoring.take().is_none() {
            return false;
        }
        self.set_aside(why);
        self.runs(self.written.clone());
        self.text.clone_from(&self.written_text);
        self.life.state = life::State::Preparing;
        Record::remove(&self.paths);
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
        if let Err(error) = file::commit(&from, &to) {
            warn!("cannot set it aside: {}", chain(&error));
        }
        self.unusable = Some(note);
    }

    /// A start that failed, by the host or by the VM.
    pub(super) fn not_begun(&mut self, not: NotBegun) {
        self.fault = not.fault;
        self.feed(life::Event::StartFailed(not.why));
    }
}
