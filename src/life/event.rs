//! What can happen to a VM.

use std::time::Duration;

use super::Gone;

/// Something that happened, from whatever side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The disks and the seed are ready.
    Prepared,
    /// QEMU answers on its monitor and the guest runs; or, after an adoption, does what it did.
    Launched {
        /// The guest's vCPUs are held.
        paused: bool,
        /// An earlier supervisor has seen it ready.
        ready: bool,
    },
    /// The guest is what `ready` wants.
    Ready,
    /// The guest will never be what `ready` wants, or was not in time; why.
    NotReady(String),
    /// Preparation or launch failed; nothing of QEMU is left.
    StartFailed(String),
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
