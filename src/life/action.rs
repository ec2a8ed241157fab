//! What the machine asks its driver to do.

use std::time::Duration;

use super::{Boot, End, StartFailure};

/// Something to be done. None of these answers; what comes of it comes back as an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Find out what an earlier supervisor left: a QEMU process, a saved state.
    FindPrevious,
    /// Read the VM file again.
    ReadVmFile,
    /// Configure the VM by this file from now on.
    UseVmFile(VmFile),
    /// Ask for memory and for a turn, and reserve the memory.
    Admit,
    /// Reserve the memory without asking: the VM ran before, and a reboot must not become an outage.
    RenewReservation,
    /// Prepare image, disks and seed.
    Prepare,
    /// Start QEMU.
    Launch(Boot),
    /// Connect to the QEMU process that was found.
    Adopt,
    /// Cancel the current phase. A QEMU process that it launched is killed; one that it was
    /// adopting keeps running.
    CancelStart,
    /// Rename the saved state, so that no start restores it; why it cannot be restored.
    QuarantineSavedState(String),
    /// Remove the run record of a QEMU process that has exited.
    RemoveRecord,
    /// Find out whether the guest is ready, beginning anew; the service manager shall wait so long.
    AwaitReady(Duration),
    /// Do not look any more.
    StopAwaiting,
    /// Take note that the guest is not ready, and will not be waited for; why.
    GiveUpReady(String),
    /// Tell the service manager that the VM is up.
    NotifyReady,
    /// Tell the service manager that the VM goes down, and that this may take so long.
    NotifyStopping(Duration),
    /// Log and publish a rung of the stop ladder.
    Announce(Rung),
    /// QMP `system_powerdown`.
    PressPowerButton,
    /// The guest agent's `guest-shutdown`, where one answers.
    AgentShutdown,
    /// Hold the vCPUs and save the guest's state.
    Save,
    /// Give that up, and leave nothing of it; the vCPUs stay held.
    CancelSave,
    /// QMP `quit`, or SIGTERM where the monitor does not answer.
    Quit,
    /// SIGKILL.
    Kill,
    /// QMP `system_reset`.
    Reset,
    /// QMP `stop`.
    Hold,
    /// QMP `cont`.
    Continue,
    /// Write the end down.
    Record(End),
    /// End the supervisor.
    Exit(Exit),
}

/// Which VM file configures the VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VmFile {
    /// The VM file as it was read last.
    Current,
    /// The VM file that the saved state was saved with.
    Saved,
    /// The VM file that the QEMU process to adopt was started from.
    Booted,
}

/// How the supervisor ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Exit {
    /// With this exit code; the end is recorded and logged.
    Code(u8),
    /// The guest did not come up.
    NotStarted(StartFailure),
}

/// The rungs of the stop ladder, for the log and for whoever watches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rung {
    /// The power button was pressed, and an agent asked; the guest has so long.
    Asked(Duration),
    /// The button was pressed again; so much time is left.
    AskedAgain(Duration),
    /// The guest's state is being saved, which may take so long.
    Saving(Duration),
    /// It could not be saved, and the guest goes on.
    NotSaved,
    /// It is saved.
    Saved,
    /// The guest is done; QEMU flushes its disks and goes.
    GuestDone,
    /// Time is up: QEMU is told to quit.
    TimeUp,
    /// Somebody wants it faster: QEMU is told to quit.
    Hurried,
    /// QEMU did not quit: SIGKILL.
    Killed,
}

impl Rung {
    /// A word for programs.
    pub fn word(self) -> &'static str {
        match self {
            Self::Asked(_) => "asked",
            Self::AskedAgain(_) => "asked-again",
            Self::Saving(_) => "saving",
            Self::NotSaved => "not-saved",
            Self::Saved => "saved",
            Self::GuestDone => "guest-done",
            Self::TimeUp => "time-up",
            Self::Hurried => "hurried",
            Self::Killed => "killed",
        }
    }
}

/// A sentence for people.
impl std::fmt::Display for Rung {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Asked(left) => write!(f, "guest asked to shut down, it has {} s", seconds(left)),
            Self::AskedAgain(left) => {
                write!(f, "guest asked again to shut down, {} s left", seconds(left))
            }
            Self::Saving(left) => {
                write!(f, "saving the guest's state, it has {} s", seconds(left))
            }
            Self::NotSaved => f.write_str("the state could not be saved: the guest goes on"),
            Self::Saved => f.write_str("the guest's state is saved, QEMU quits"),
            Self::GuestDone => f.write_str("guest has shut down, QEMU quits"),
            Self::TimeUp => f.write_str("time is up: forcing the guest off (QMP quit)"),
            Self::Hurried => f.write_str("forcing the guest off (QMP quit)"),
            Self::Killed => f.write_str("QEMU does not quit: SIGKILL"),
        }
    }
}

/// Whole seconds, rounded: a timer is always a little late.
fn seconds(left: &Duration) -> u64 {
    left.saturating_add(Duration::from_millis(500)).as_secs()
}
