//! What can happen to a VM.

use std::time::Duration;

use super::{Gone, StartFailure};

/// Something that happened, from whatever side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A start made progress, or failed.
    Start(StartEvent),
    /// The guest is what `ready` wants.
    Ready,
    /// The guest will never be what `ready` wants, or was not in time; why.
    NotReady(String),
    /// SIGTERM or SIGINT: stop, or, when that is under way, harder.
    Signalled,
    /// The same signal, where the host goes down and the guest's state is to be saved then.
    HostDown,
    /// The guest's state is saved, whole, and QEMU is not needed any more.
    Saved,
    /// The state cannot be saved; why.
    NotSaved(String),
    /// Somebody asks for something over the control socket.
    Asked(Command),
    /// QMP SHUTDOWN by the guest: it powered itself off, or did as asked.
    GuestShutdown,
    /// QMP SHUTDOWN with `guest-reset` or `host-qmp-system-reset`: the guest reboots or is reset by `qvm reboot --force`, and
    /// QEMU was told to wait for us.
    GuestReboot,
    /// QMP RESET: the guest was reset within the same QEMU.
    GuestReset,
    /// QMP GUEST_PANICKED.
    GuestPanicked,
    /// QMP STOP: the vCPUs are held.
    Held,
    /// QMP BLOCK_IO_ERROR: the host's file system is full, and QEMU holds the vCPUs until the write can be tried again. Not where
    /// an operator wants them held anyway.
    NoSpace,
    /// There is room again.
    Room,
    /// QMP RESUME: the vCPUs go on.
    Continued,
    /// The process is gone.
    QemuGone(Gone),
    /// A deadline of the state has come (see [`super::State::deadline`]).
    Tick,
}

/// A result of a start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StartEvent {
    /// It is known what an earlier supervisor left.
    PreviousFound {
        /// Its QEMU process.
        qemu: PreviousQemu,
        /// The saved state of the guest.
        saved: SavedState,
    },
    /// It cannot be determined whether a QEMU process of the VM is running; why.
    PreviousUnknown(String),
    /// The VM file was read before a relaunch. Where it is not valid, the last valid one counts.
    VmFileRead,
    /// The host has memory for the VM, and it is the VM's turn.
    Admitted,
    /// Image, disks and seed are prepared.
    Prepared,
    /// QEMU answers on its monitor: launched, or adopted.
    Launched {
        /// What the guest does.
        guest: Guest,
        /// An earlier supervisor has seen the guest ready.
        ready: bool,
    },
    /// The current phase failed.
    Failed {
        /// Why.
        failure: StartFailure,
        /// What is left of the QEMU process of that phase.
        leftover: Leftover,
    },
    /// The start was canceled, and nothing of it continues.
    Aborted(Leftover),
}

impl From<StartEvent> for Event {
    fn from(event: StartEvent) -> Self {
        Self::Start(event)
    }
}

/// The QEMU process that an earlier supervisor left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PreviousQemu {
    /// None: the VM was never started, ended with a record of its end, or the host has rebooted.
    None,
    /// The earlier supervisor died before QEMU was executed.
    NeverExecuted,
    /// It has exited since, and no end is recorded.
    Exited,
    /// It is running.
    Running,
}

/// The guest's saved state, as a start finds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SavedState {
    /// There is none.
    None,
    /// It can be restored.
    Usable,
    /// It can never be restored; why.
    Unusable(String),
    /// It cannot be read now: a later start may restore it. Why.
    Unreadable(String),
}

/// What is left of a QEMU process after its launch or adoption has failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leftover {
    /// Proven: no QEMU process of the VM is running.
    None,
    /// A QEMU process is running, or it cannot be determined whether one is.
    MayRun,
}

/// What the guest of a launched or adopted QEMU process does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Guest {
    /// Its vCPUs run.
    Running,
    /// Its vCPUs are stopped.
    Paused,
    /// It has shut down, and QEMU waits for a command.
    ShutDown,
    /// Its kernel panicked.
    Panicked,
}

/// What may be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// The stop ladder.
    Stop {
        /// Instead of the VM's own timeout.
        timeout: Option<Duration>,
    },
    /// Force off at once.
    Terminate,
    /// A clean shutdown and a new start.
    Reboot,
    /// The reset button.
    Reset,
    /// Hold the vCPUs.
    Pause,
    /// Let them go on.
    Resume,
    /// Save the guest's state and end; the next start goes on from it.
    Suspend,
}

/// Who asked for the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum By {
    /// A signal: systemd, the host's shutdown, or a terminal.
    Signal,
    /// The control socket.
    Operator,
}
