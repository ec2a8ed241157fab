//! The inputs of the machine.

use std::time::Duration;

use super::{
    end::{QemuExit, StartFailure},
    intention::{AfterQemu, Intention},
};

/// Something that happened to the VM, its start or its supervisor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A start made progress, or failed.
    Start(StartEvent),
    /// The guest is ready, as `ready` of the VM file defines it.
    GuestReady,
    /// The guest can never become ready; why.
    GuestNotReady(String),
    /// SIGTERM or SIGINT. A repeated signal forces the VM off.
    StopSignaled,
    /// SIGTERM because the host shuts down, and the VM file wants the guest's state saved then.
    HostShutdownStarted,
    /// The guest's state is completely saved.
    StateSaved,
    /// The guest's state cannot be saved; why.
    SaveFailed(String),
    /// A control client sent a command.
    Requested(Command),
    /// QMP SHUTDOWN: the guest has powered itself off.
    GuestShutdown,
    /// QMP SHUTDOWN with `guest-reset` or `host-qmp-system-reset`: the guest reboots, or is reset
    /// by `qvm reboot --force`, and QEMU waits for the supervisor.
    GuestReboot,
    /// QMP RESET: the guest was reset within the same QEMU.
    GuestReset,
    /// QMP GUEST_PANICKED.
    GuestPanicked,
    /// QMP STOP.
    VcpusStopped,
    /// QMP BLOCK_IO_ERROR: the host's file system is full, and QEMU has stopped the vCPUs until the
    /// write can be retried. Not sent while an operator has paused the VM.
    DiskSpaceExhausted,
    /// The host's file system has free space again.
    DiskSpaceFreed,
    /// QMP RESUME.
    VcpusResumed,
    /// The QEMU process has exited.
    QemuExited(QemuExit),
    /// The deadline of the machine has passed (see [`super::Life::deadline`]).
    DeadlinePassed,
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
        /// How an earlier supervisor was ending the QEMU process; `None` if it was not.
        intention: Option<Intention>,
    },
    /// A shutdown that an earlier supervisor began is continued. The machine derives this event
    /// from the adoption.
    ShutdownResumed(Intention),
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
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PreviousQemu {
    /// None: the VM was never started, ended with a record of its end, or the host has rebooted.
    None,
    /// The earlier supervisor died before QEMU was executed.
    NeverExecuted,
    /// It has exited since, and no end is recorded.
    Exited {
        /// What was to follow, if the earlier supervisor was ending it.
        intended: Option<AfterQemu>,
    },
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

/// A command of a control client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// Shut the guest down by the stop ladder.
    Stop {
        /// Instead of `shutdownTimeoutSec` of the VM file.
        timeout: Option<Duration>,
    },
    /// Force the VM off.
    Terminate,
    /// Shut the guest down, and launch it again.
    Reboot,
    /// Press the reset button.
    Reset,
    /// Stop the vCPUs.
    Pause,
    /// Let the vCPUs continue.
    Resume,
    /// Save the guest's state and end; the next start restores it.
    Suspend,
}
