//! The outputs of the machine.

use std::time::Duration;

use super::{
    end::{End, Exit},
    state::Boot,
};

/// Something that the driver has to do. Results come back as events.
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
    /// Reserve the memory without asking: the VM ran before, and a reboot must not become an
    /// outage.
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
    /// Probe whether the guest is ready, for at most this time, which is reported to the service
    /// manager.
    AwaitReady(Duration),
    /// Stop probing whether the guest is ready.
    StopAwaiting,
    /// Record that the guest is not ready, and is not waited for any longer; why.
    GiveUpReady(String),
    /// Report READY=1 to the service manager.
    NotifyReady,
    /// Report STOPPING=1 to the service manager, and that stopping may take this time.
    NotifyStopping(Duration),
    /// Log and publish a rung of the stop ladder.
    Announce(Rung),
    /// QMP `system_powerdown`.
    PressPowerButton,
    /// `guest-shutdown` of the guest agent, if one answers.
    AgentShutdown,
    /// Stop the vCPUs and save the guest's state.
    Save,
    /// Cancel the save, and remove what was written; the vCPUs stay stopped.
    CancelSave,
    /// QMP `quit`, or SIGTERM where the monitor does not answer.
    Quit,
    /// SIGKILL.
    Kill,
    /// QMP `system_reset`.
    Reset,
    /// QMP `stop`.
    Pause,
    /// QMP `cont`.
    Resume,
    /// Record the end of a run.
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

/// A rung of the stop ladder, for the log and for events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rung {
    /// The power button was pressed, and the guest agent called; the guest has this time.
    Asked(Duration),
    /// The power button was pressed again; this time is left.
    AskedAgain(Duration),
    /// The guest's state is being saved, for at most this time.
    Saving(Duration),
    /// The guest's state cannot be saved, and the guest keeps running.
    NotSaved,
    /// The guest's state is saved.
    Saved,
    /// The guest has shut down; QEMU flushes its disks and exits.
    GuestDone,
    /// The deadline has passed: QMP `quit`.
    TimeUp,
    /// The VM is forced off: QMP `quit`.
    Hurried,
    /// QEMU has not exited: SIGKILL.
    Killed,
}

impl Rung {
    /// The name of the rung in events.
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

/// For the log.
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
            Self::NotSaved => f.write_str("cannot save the state: the guest keeps running"),
            Self::Saved => f.write_str("the guest's state is saved, QEMU quits"),
            Self::GuestDone => f.write_str("guest has shut down, QEMU quits"),
            Self::TimeUp => f.write_str("time is up: forcing the guest off (QMP quit)"),
            Self::Hurried => f.write_str("forcing the guest off (QMP quit)"),
            Self::Killed => f.write_str("QEMU does not quit: SIGKILL"),
        }
    }
}

/// Whole seconds, rounded: timers fire late.
fn seconds(left: &Duration) -> u64 {
    left.saturating_add(Duration::from_millis(500)).as_secs()
}
