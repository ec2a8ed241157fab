//! The lifecycle of one VM as a state machine without clocks, tasks or processes.
//!
//! [`Life::step`] takes an event and the time, changes the state and returns the actions that follow.
//! The driver (`supervisor`) executes the actions and reports events; every rule about starts,
//! adoptions, stops, reboots, panics and deadlines is here. A test holds the drawing and the table
//! to the machine.
//!
//! ```text
//!   FindingPrevious ──PreviousFound──▶ Admitting ◀────────────────┐
//!     │      ▲                             │ Admitted             │ Failed: a restore
//!     │      │ Failed: QEMU                ▼                      │ becomes a cold boot
//!     │      │ has exited    ┌───────▶ Preparing ──Prepared──▶ Launching
//!     │      │               │ VmFileRead                         │
//!     │ PreviousFound        │                                    │ Launched
//!     ▼      │          ReadingVmFile ◀──QemuGone: relaunch──┐    │
//!   Adopting ┘                                               │    │
//!     │ Launched                                             │    │
//!     └────────────────────────────────┬─────────────────────┼────┘
//!                                      ▼                     │
//!        ┌─────────────────────▶ Running ◀──Held, Continued──┼──▶ Paused
//!        │ NotSaved                    │                     │      │
//!   Suspending ◀──HostDown, Suspend────┼─────────────────────┼──────┤
//!        │ Saved                       │ Signalled, Stop,    │      │
//!        │                             ▼ Reboot, NotReady    │      │
//!        │                         Stopping ◀────────────────┼──────┘
//!        │                             │ GuestShutdown,      │
//!        ▼                             ▼ deadline            │
//!      Quitting ◀──────────────────────┘ ────────────────────┤
//!        │ deadline, Terminate                               │
//!        ▼                                                   │
//!      Killing ──────────────────────────────────────────────┘
//!
//!   Every state up to Launched ──Signalled, Stop, Terminate──▶ Cancelling ──▶ Ended
//!   (an adoption is completed first: its guest is then stopped like any other)
//!   Every state with a QEMU process ──QemuGone──▶ Ended, or ReadingVmFile for a relaunch
//! ```
//!
//! Which state leads to which, by whatever event:
//!
//! ```text
//!    Admitting        Cancelling Ended Preparing
//!    Adopting         Cancelling Ended FindingPrevious Paused Quitting Running Stopping
//!    Cancelling       Ended Quitting Stopping Suspending
//!    Ended
//!    FindingPrevious  Admitting Adopting Cancelling Ended
//!    Killing          Ended ReadingVmFile
//!    Launching        Admitting Cancelling Ended Paused Quitting Running
//!    Paused           Ended Quitting Running Stopping Suspending
//!    Preparing        Cancelling Ended Launching
//!    Quitting         Ended Killing ReadingVmFile
//!    ReadingVmFile    Cancelling Ended Preparing
//!    Running          Ended Paused Quitting Stopping Suspending
//!    Stopping         Ended Quitting ReadingVmFile
//!    Suspending       Ended Paused Quitting Running Stopping
//! ```
//!
//! The machine is total: each state names every event, and a pair that means nothing changes nothing.
//! Beside the state, [`Life`] knows whether the guest is ready, which is reported once a run to the
//! service manager: a guest may be paused, or reboot into a new QEMU process, before it is ready.

mod accepts;
mod action;
#[cfg(test)]
mod drawing;
mod end;
mod event;
mod machine;
#[cfg(test)]
mod random_orders;
mod start;
#[cfg(test)]
mod start_tests;
mod state;
mod step;
mod stop_ladder;
mod suspend;
#[cfg(test)]
mod tests;

pub use self::accepts::accepts;
pub use self::action::{Action, Exit, Rung, VmFile};
pub use self::end::{Cause, End, Fault, Gone, StartFailure};
pub use self::event::{By, Command, Event, Guest, Leftover, PreviousQemu, SavedState, StartEvent};
pub use self::machine::{Life, Mode, Readiness};
pub use self::state::{Boot, Hold, Ladder, Outcome, Phase, Saving, State, StopRequest};
pub use self::step::{KILL_GRACE, PRESS_EVERY, QUIT_GRACE, START_CANCEL_GRACE};

/// What the machine needs of the VM file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// How long a clean shutdown may take.
    pub shutdown_timeout: std::time::Duration,
    /// What a panic leads to.
    pub on_panic: OnPanic,
    /// What makes it ready.
    pub ready: Ready,
    /// What a guest that does not get ready leads to.
    pub ready_failure: ReadyFailure,
}

/// What makes a VM ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ready {
    /// That its vCPUs run.
    Running,
    /// Something in the guest, which may take so long.
    Within(std::time::Duration),
}

/// What a guest that does not get ready leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReadyFailure {
    /// It counts as up all the same.
    Continue,
    /// It is shut down, and the run fails.
    Fail,
}

/// What a panic of the guest's kernel leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnPanic {
    /// The run fails, so that whoever started it starts it again.
    Restart,
    /// The run ends well.
    Stop,
    /// The guest stays as it is, paused.
    Pause,
}
