//! The running start: one phase at a time in a task, and the results of its phases.
//!
//! The life machine decides which phase comes next. Dropping a [`Start`] cancels its phase.

pub(crate) mod admission;
pub mod adopt;
mod failure;
pub(crate) mod forwards;
#[allow(unsafe_code)]
pub mod isolate;
pub mod launch;
mod leftover;
pub mod memory_budget;
mod message;
pub mod prepare;
mod prepare_error;
pub(crate) mod previous_run;
mod report;
pub mod start_turns;
#[cfg(test)]
mod tests;

use std::{path::PathBuf, sync::Arc};

use tokio::sync::mpsc;
use tracing::warn;

pub(crate) use self::report::Report;
use self::{
    admission::Admission,
    failure::{refused, start_failure},
    launch::LaunchedQemu,
    leftover::{find_leftover, kill_launched},
    message::Message,
    prepare::Prepared,
    previous_run::{BootedVm, PreviousRun, SavedVm},
};
use crate::{
    life::{Boot, Leftover, StartEvent, StartFailure},
    spec::Vm,
    store::{layout::VmPaths, record::Record},
    supervisor::{context::Context, running::resources, settings::Settings},
    sys::{
        file,
        lane::{Lane, OnLane, Refused},
        pidfd::Process,
        progress::Cancel,
    },
    value::{Note, NoteCode, chain},
};

/// How many messages of a phase wait for the loop.
const MESSAGES: usize = 64;

/// What a start has of its supervisor.
#[derive(Debug, Clone)]
pub(crate) struct Resources {
    settings: Settings,
    /// Starting and adopting QEMU.
    launch: Lane,
    /// What is written to the run directory.
    run: Lane,
    /// What is written to the state directory.
    state: Lane,
    is_under_systemd: bool,
}

impl Resources {
    pub(crate) fn new(ctx: &Context) -> Self {
        let lanes = ctx.lanes();
        Self {
            settings: ctx.settings().clone(),
            launch: lanes.launch.clone(),
            run: lanes.run.clone(),
            state: lanes.state.clone(),
            is_under_systemd: ctx.is_under_systemd(),
        }
    }

    fn paths(&self) -> VmPaths {
        self.settings.paths()
    }
}

/// The running start. Dropping it cancels its phase.
#[derive(Debug)]
pub(crate) struct Start {
    resources: Resources,
    sender: mpsc::Sender<Message>,
    messages: mpsc::Receiver<Message>,
    /// Ends the thread that prepares.
    cancel: Cancel,
    /// The phase that runs on a lane.
    task: Option<OnLane>,
    previous: Previous,
    prepared: Option<Prepared>,
    /// How QEMU was launched; `None` before that.
    boot: Option<Boot>,
    /// The notes about the start so far.
    notes: Vec<Note>,
    /// A QEMU process of the VM is running, or it cannot be determined whether one is.
    may_leave_qemu: bool,
}

/// What an earlier supervisor left, as far as later phases need it.
#[derive(Debug, Default)]
struct Previous {
    qemu: Option<(Arc<Process>, Box<Record>)>,
    booted: BootedVm,
    saved: Option<SavedVm>,
    /// The process that is being adopted.
    adopting: Option<u32>,
}

impl Drop for Start {
    fn drop(&mut self) {
        self.cancel.set();
    }
}

impl Start {
    /// Creates a start without a phase.
    pub(crate) fn new(resources: Resources) -> Self {
        let (sender, messages) = mpsc::channel(MESSAGES);
        Self {
            resources,
            sender,
            messages,
            cancel: Cancel::default(),
            task: None,
            previous: Previous::default(),
            prepared: None,
            boot: None,
            notes: vec![],
            may_leave_qemu: false,
        }
    }

    /// The next report. Cancel safe.
    pub(crate) async fn next(&mut self) -> Report {
        let message = match self.messages.recv().await {
            Some(message) => message,
            // This start holds a sender itself.
            None => std::future::pending().await,
        };
        self.on_message(message)
    }

    fn on_message(&mut self, message: Message) -> Report {
        match message {
            Message::Progress(text) => Report::Progress(text),
            Message::Waiting(why) => Report::Waiting(why),
            Message::PreviousRead(read) => {
                let PreviousRun { ends, identity, booted, qemu, saved, event } = *read;
                self.may_leave_qemu =
                    qemu.is_some() || matches!(event, StartEvent::PreviousUnknown(_));
                self.previous = Previous { qemu, booted, saved, adopting: None };
                Report::Previous { ends, identity, event }
            }
            Message::Admitted(Ok(turn)) => {
                self.task = None;
                Report::Admitted(turn)
            }
            Message::Admitted(Err(failure)) => self.on_failed(failure, Leftover::None),
            Message::Prepared(result) => match *result {
                Ok(mut prepared) => {
                    prepared.notes.append(&mut self.notes);
                    let (notes, identity) = (prepared.notes.clone(), prepared.identity.clone());
                    self.prepared = Some(prepared);
                    Report::Prepared { notes, identity }
                }
                Err(failure) => self.on_failed(failure, Leftover::None),
            },
            Message::Launched(launched) => Report::Launched(launched),
            Message::Failed(failure, leftover) => self.on_failed(failure, leftover),
            Message::Aborted(leftover) => {
                self.may_leave_qemu = leftover == Leftover::MayRun;
                Report::Ended(StartEvent::Aborted(leftover))
            }
        }
    }

    fn on_failed(&mut self, failure: StartFailure, leftover: Leftover) -> Report {
        self.task = None;
        self.may_leave_qemu = leftover == Leftover::MayRun;
        Report::Ended(StartEvent::Failed { failure, leftover })
    }

    /// Reads what an earlier supervisor left. `file` is the VM file.
    ///
    /// # Errors
    /// The launch lane is full: returns the event of the failure.
    pub(crate) fn find_previous(&mut self, file: PathBuf) -> Result<(), StartEvent> {
        let (paths, name) = (self.resources.paths(), self.resources.settings.name.clone());
        let sender = self.sender.clone();
        // Unknown until it is read.
        self.may_leave_qemu = true;
        self.drive(Leftover::None, async move {
            let read = PreviousRun::read(&paths, &name, &file);
            let _ = sender.send(Message::PreviousRead(Box::new(read))).await;
        })
    }

    /// Waits for `mem` bytes of memory on the host, and for the VM's turn.
    ///
    /// # Errors
    /// The launch lane is full: returns the event of the failure.
    pub(crate) fn admit(&mut self, mem: u64) -> Result<(), StartEvent> {
        let sender = self.sender.clone();
        let admission = Admission::new(self.resources.settings.clone(), mem, sender.clone());
        self.drive(Leftover::None, async move {
            let done = admission.admitted().await.map_err(|error| error.failure());
            let _ = sender.send(Message::Admitted(done)).await;
        })
    }

    /// Reserves `mem` bytes for a VM that ran until now, and warns where the host has too little.
    pub(crate) fn renew_reservation(&self, mem: u64) {
        let admission = Admission::new(self.resources.settings.clone(), mem, self.sender.clone());
        if let Err(refused) = self.resources.launch.run(move || admission.renew()) {
            warn!("cannot write the memory reservation of the VM: {refused}");
        }
    }

    /// Prepares image, disks and seed on another thread: a download may take hours.
    ///
    /// # Errors
    /// The thread cannot be started: returns the event of the failure.
    pub(crate) fn prepare(&mut self, vm: Vm) -> Result<(), StartEvent> {
        let settings = self.resources.settings.clone();
        let (cancel, sender) = (self.cancel.clone(), self.sender.clone());
        let prepare = move || {
            let say = |text: String| {
                let _ = sender.blocking_send(Message::Progress(text));
            };
            let result = prepare::prepare(&settings, vm, &cancel, &say)
                .map_err(|error| start_failure(&error));
            let _ = sender.blocking_send(Message::Prepared(Box::new(result)));
        };
        let spawned = std::thread::Builder::new().name("prepare".into()).spawn(prepare);
        spawned.map(drop).map_err(|error| {
            let failure = failure::thread(&error);
            StartEvent::Failed { failure, leftover: Leftover::None }
        })
    }

    /// Starts QEMU from what was prepared. `vm` and `text` are the VM file.
    ///
    /// # Errors
    /// The launch lane is full, or nothing was prepared: returns the event of the failure.
    pub(crate) fn launch(&mut self, boot: Boot, vm: Vm, text: String) -> Result<(), StartEvent> {
        let Some(prepared) = self.prepared.take() else {
            return Err(failed(failure::not_prepared(), Leftover::None));
        };
        self.boot = Some(boot);
        self.may_leave_qemu = true;
        let settings = self.resources.settings.clone();
        let work = async move { launch::launch(&settings, prepared, &text, boot).await };
        self.begin_qemu(Leftover::None, vm, work)
    }

    /// Adopts the QEMU process that was found, and reserves its memory.
    ///
    /// # Errors
    /// The launch lane is full, or no process was found: returns the event of the failure.
    pub(crate) fn adopt(&mut self, vm: Vm) -> Result<(), StartEvent> {
        let Some((process, record)) = self.previous.qemu.take() else {
            return Err(failed(failure::not_prepared(), Leftover::MayRun));
        };
        self.previous.adopting = Some(process.pid());
        let (settings, mem) = (self.resources.settings.clone(), vm.mem.bytes());
        if let Err(refused) = self.resources.run.run(move || admission::reserve(&settings, mem)) {
            warn!("cannot write the memory reservation of the VM: {refused}");
        }
        let paths = self.resources.paths();
        let work = async move { adopt::adopt(process, *record, &paths).await };
        self.begin_qemu(Leftover::MayRun, vm, work)
    }

    /// Runs a launch or an adoption beside the loop. `leftover` is what is left where it is
    /// refused.
    fn begin_qemu<F>(&mut self, leftover: Leftover, vm: Vm, work: F) -> Result<(), StartEvent>
    where
        F: Future<Output = Result<LaunchedQemu, launch::Error>> + Send + 'static,
    {
        let Resources { settings, run, is_under_systemd, .. } = self.resources.clone();
        let (paths, sender) = (self.resources.paths(), self.sender.clone());
        // What is still to be written, or removed, of an earlier QEMU process must not come after
        // what is written of this one.
        let earlier = run.flush();
        self.drive(leftover, async move {
            let done = match earlier.await {
                Ok(()) => work.await.map_err(|error| start_failure(&error)),
                // A removal that is still queued would remove the new record.
                Err(error) => Err(refused(error)),
            };
            let message = match done {
                Ok(qemu) => {
                    let given = resources::give(&settings, &vm, qemu.record.pid, is_under_systemd);
                    Message::Launched(Box::new((qemu, given)))
                }
                Err(failure) => Message::Failed(failure, find_leftover(&paths)),
            };
            let _ = sender.send(message).await;
        })
    }

    fn drive(
        &mut self,
        leftover: Leftover,
        work: impl Future<Output = ()> + Send + 'static,
    ) -> Result<(), StartEvent> {
        let driven = self.resources.launch.drive(work);
        let task = driven.map_err(|error: Refused| failed(refused(error), leftover))?;
        self.task = Some(task);
        Ok(())
    }

    /// Cancels the phase. A QEMU process that is being launched is killed; one that is being
    /// adopted keeps running. The report of an abort follows; a phase that does not run on the lane
    /// reports its own end.
    pub(crate) fn cancel(&mut self) {
        self.cancel.set();
        if self.task.take().is_none() {
            return;
        }
        // Dropping a launch kills the QEMU process that it may have spawned, on its lane. The run
        // record stays until QEMU has exited.
        let (paths, sender) = (self.resources.paths(), self.sender.clone());
        let kills = self.boot.is_some();
        let ending = self.resources.launch.drive(async move {
            if kills {
                kill_launched(&paths).await;
            }
            let _ = sender.send(Message::Aborted(find_leftover(&paths))).await;
        });
        // Where it is refused, the life machine ends without the report.
        self.task = ending.ok();
    }

    /// The pid of the QEMU process that is being adopted.
    pub(crate) fn adopting_pid(&self) -> Option<u32> {
        self.previous.adopting
    }

    /// Whether a QEMU process of the VM is left, or may be, where the run ends with this start.
    pub(crate) fn may_leave_qemu(&self) -> bool {
        self.may_leave_qemu
    }

    /// Whether QEMU was launched to restore a saved state.
    pub(crate) fn is_restore(&self) -> bool {
        self.boot == Some(Boot::Restore)
    }

    /// The VM files of the QEMU process that is adopted.
    pub(crate) fn booted(&self) -> &BootedVm {
        &self.previous.booted
    }

    /// Takes the saved state that can be restored.
    pub(crate) fn take_saved(&mut self) -> Option<SavedVm> {
        self.previous.saved.take()
    }

    /// Renames the saved state, so that no start restores it, and notes it.
    pub(crate) fn quarantine_saved_state(&mut self, why: &str) {
        let paths = self.resources.paths();
        let (from, to) = (paths.saved(), paths.unusable());
        let why = why.lines().next().unwrap_or_default();
        let text = format!(
            "the saved state could not be restored, and the guest has booted instead: {why}; \
             the state is kept as `{}`",
            to.display()
        );
        warn!("{text}");
        let renamed = self.resources.state.run(move || {
            if let Err(error) = file::commit(&from, &to) {
                warn!("cannot rename the saved state: {}", chain(&error));
            }
        });
        if let Err(refused) = renamed {
            warn!("cannot rename the saved state: {refused}");
        }
        self.notes.push(Note::new(NoteCode::SavedStateUnusable, text));
    }
}

fn failed(failure: StartFailure, leftover: Leftover) -> StartEvent {
    StartEvent::Failed { failure, leftover }
}
