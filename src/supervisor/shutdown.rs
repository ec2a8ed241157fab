//! Ends the supervisor: after a signal, a re-execution, or the end of the VM.

use std::time::Duration;

use tracing::{error, warn};

use super::{Supervisor, input::Input, limits::STOP_SLACK, outcome::Outcome, start::Start};
use crate::{
    life::{self, Leftover},
    spec::HostShutdown,
    store::reservation,
    systemd::service,
    value::chain,
};

/// How long a re-execution waits for pending writes.
const WRITTEN_LIMIT: Duration = Duration::from_secs(5);
/// How long the end waits for pending writes.
const LEAVE_LIMIT: Duration = Duration::from_secs(3);

impl Supervisor {
    /// Handles SIGTERM. If a shutdown of the host saves the guest's state, systemd is asked whether
    /// the host shuts down.
    pub(crate) fn on_stop_signal(&mut self) {
        let saves = self.config.vm().host_shutdown == HostShutdown::Suspend;
        if !(saves && self.ctx.is_under_systemd() && self.life.mode() == life::Mode::Run) {
            return self.feed(life::Event::StopSignaled);
        }
        let scope = self.ctx.settings().scope;
        self.ctx.notifier().extend_timeout(service::HOST_DOWN_LIMIT + STOP_SLACK);
        self.tasks.report(async move {
            let host_down = service::host_goes_down(scope).await.unwrap_or_else(|error| {
                let why = chain(&error);
                warn!(
                    "the guest is shut down, not saved: unknown whether the host goes down: {why}"
                );
                false
            });
            Input::StopSignal { host_down }
        });
    }

    /// Handles SIGINT: a stop from a terminal, or `machinectl reboot` for a unit.
    pub(crate) fn on_interrupt(&mut self) {
        let reboot = life::Command::Reboot;
        let reboots = self.ctx.is_under_systemd();
        let event = if reboots && life::accepts(self.life.state(), reboot).is_ok() {
            life::Event::Requested(reboot)
        } else {
            life::Event::StopSignaled
        };
        self.feed(event);
    }

    /// Handles SIGUSR2: executes the program file again, after the pending writes.
    pub(crate) fn reexec(&mut self) {
        // The reply to the last pending request calls this again.
        if !self.may_be_replaced() || !self.effects.request_reexec() {
            return;
        }
        let written = self.ctx.lanes().settle(WRITTEN_LIMIT);
        let logged = self.console.flush(WRITTEN_LIMIT);
        self.tasks.report(async move { Input::Written(written.await && logged.await) });
    }

    fn may_be_replaced(&self) -> bool {
        let may = self.life.state().is_up();
        if !may {
            warn!("not replaced now: the VM is {:?}", self.public_state());
        }
        may
    }

    /// Handles the end of the pending writes. A thread that waits for storage would block
    /// execve(2).
    pub(crate) fn on_written(&mut self, done: bool) {
        if done && (self.ctx.lanes().is_busy() || !self.effects.is_empty()) {
            // A request or a change began meanwhile.
            self.reexec();
        } else if !done {
            let seconds = WRITTEN_LIMIT.as_secs();
            warn!("not replaced now: storage or changes of the machine took over {seconds} s");
        } else if self.may_be_replaced() {
            self.history.set_outcome(Outcome::Reexec);
        }
    }

    /// What remains of the QEMU process if the run ends now.
    pub(crate) fn leftover(&self) -> Leftover {
        let start_leaves = self.start.as_ref().is_some_and(Start::may_leave_qemu);
        if self.vm.is_some() || start_leaves { Leftover::MayRun } else { Leftover::None }
    }

    /// Cleans up after the end of the VM. Writes that exceed their time limit are abandoned.
    pub(crate) async fn leave(&mut self) {
        // A QEMU process that has not exited still uses its memory, even if it was not adopted.
        let leftover = self.leftover();
        let (paths, cgroup) = (self.ctx.paths().clone(), self.host_share.take_cgroup());
        let lanes = self.ctx.lanes();
        let tidied = lanes.run.run(move || {
            if leftover == Leftover::None {
                reservation::remove(&paths);
            }
            if let Some(cgroup) = cgroup {
                let _ = cgroup.remove();
            }
        });
        let written = (lanes.flush(LEAVE_LIMIT), self.console.flush(LEAVE_LIMIT));
        let (done, logged) = futures_util::future::join(written.0, written.1).await;
        if tidied.is_err() || !done || !logged {
            error!("storage does not respond: not all state was written at exit");
        }
        let socket = self.ctx.paths().control_socket();
        let removed = self.ctx.lanes().run.ask(move || std::fs::remove_file(socket));
        let _ = tokio::time::timeout(LEAVE_LIMIT, removed).await;
        self.ctx.notifier().finish().await;
        self.registration.unregister().await;
    }
}
