//! Floor 2: the life of one VM as a state machine without clocks, tasks or processes.
//!
//! [`step`] takes what is so, what happened and when, and says what is so then and what has to be done. Whoever drives
//! it (`supervisor::supervise`) does the actions and feeds back events; every rule about stopping, rebooting, panics and deadlines is here.
//!
//! ```text
//!                 Prepared          Launched                Pause, STOP
//!   Preparing ──────────▶ Launching ──────────▶ Running ◀───────────────▶ Paused
//!       │                  │  ▲                  │  │ ▲     Resume, RESUME   │
//!       │ Stop, Terminate  │  │ QemuGone         │  │ └─ RESET: goes on      │
//!       ▼                  │  │ (to relaunch)    │  │ Stop, Reboot           │
//!   Cancelling ◀───────────┘  │                  │  ▼                        │
//!       │                     │                  │ Stopping ◀────────────────┘
//!       │ Prepared, Launched, │                  │  │  the button, again at intervals
//!       │ StartFailed, time   │  guest is done,  │  │ guest is done, time up, second SIGTERM
//!       │                     │  Terminate       ▼  ▼
//!       │                     └────────────── Quitting ── QMP `quit`: disks are flushed
//!       │                     │                  │ time up, Terminate, another SIGTERM
//!       │                     │                  ▼
//!       │                     └────────────── Killing ─── SIGKILL
//!       ▼      QemuGone                          │ QemuGone; or time up: QEMU waits for storage
//!     Ended ◀────────────────────────────────────┘
//! ```
//!
//! Running and Paused lead to Suspending as well (HostDown, Suspend): the guest is held, and its state saved. Saved leads on to
//! Quitting; what goes wrong leads back, or to Stopping where the host goes down.
//!
//! QemuGone leads from every state with a QEMU to Ended (or to Launching, where a relaunch was meant). The machine is total:
//! each state names every event, and a pair that means nothing changes nothing.
//!
//! Beside the state, [`Life`] knows whether the guest is ready, which the service manager is told once a run. The two are apart, since
//! a guest may be paused, or reboot into a new QEMU, while it is waited for.

mod accepts;
mod action;
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
pub use self::state::{Boot, Hold, Ladder, Outcome, Phase, Saving, State};
pub use self::step::{KILL_GRACE, PRESS_EVERY, QUIT_GRACE, START_CANCEL_GRACE};

/// What of the VM file the machine must know.
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
