//! The lifecycle of one VM as a state machine without clocks, tasks or processes.
//!
//! [`Life::step`] takes an event and the time, changes the state and returns the actions that
//! follow. The driver (`supervisor`) executes the actions and reports events; every rule about
//! starts, adoptions, stops, reboots, panics and deadlines is here. A test holds the drawing and
//! the table to the machine.
//!
//! ```text
//!   FindingPrevious ──PreviousFound──▶ Admitting ◀── Failed: a restore ──┐
//!     │      ▲                            │          becomes a cold boot │
//!     │      │ Failed: QEMU               │ Admitted                     │
//!     │      │ has exited                 ▼                              │
//!     │      │            ┌─────────▶ Preparing ──Prepared──▶ Launching ─┘
//!     │ PreviousFound     │ VmFileRead                          │
//!     ▼      │            │                                     │ Launched
//!   Adopting ┘       ReadingVmFile ◀── QemuExited:              │
//!     │                                a relaunch               │
//!     │ Launched                                                │
//!     └────────────────────────────────┬────────────────────────┘
//!                                      ▼
//!        ┌──────SaveFailed───────▶ Running ◀──VcpusStopped, VcpusResumed──▶ Paused
//!        │                             │                                      │
//!   Suspending ◀────────Suspend────────┼──────────────────────────────────────┤
//!        │                             │ StopSignaled, Stop,                  │
//!        │ StateSaved                  ▼ Reboot, GuestNotReady                │
//!        │                         Stopping ◀─────────────────────────────────┘
//!        │                             │ GuestShutdown, DeadlinePassed
//!        ▼                             │
//!      Quitting ◀──────────────────────┘
//!        │ DeadlinePassed, Terminate
//!        ▼
//!      Killing
//!
//!   before Launched:       StopSignaled, Stop, Terminate ──▶ Canceling ──▶ Ended
//!                          (a QEMU process of an earlier supervisor is adopted first, and its
//!                          guest stopped like any other)
//!   with a QEMU process:   QemuExited ──▶ Ended, or ReadingVmFile for a relaunch
//! ```
//!
//! The states that can follow each state:
//!
//! ```text
//!    Admitting        Canceling Ended Preparing
//!    Adopting         Canceling Ended FindingPrevious Paused Quitting Running Stopping
//!    Canceling        Ended Quitting Stopping Suspending
//!    Ended
//!    FindingPrevious  Admitting Adopting Canceling Ended
//!    Killing          Ended ReadingVmFile
//!    Launching        Admitting Canceling Ended Paused Quitting Running
//!    Paused           Ended Quitting Running Stopping Suspending
//!    Preparing        Canceling Ended Launching
//!    Quitting         Ended Killing ReadingVmFile
//!    ReadingVmFile    Canceling Ended Preparing
//!    Running          Ended Paused Quitting Stopping Suspending
//!    Stopping         Ended Quitting ReadingVmFile
//!    Suspending       Ended Paused Quitting Running Stopping
//! ```
//!
//! The machine is total: each state names every event, and a pair that means nothing changes
//! nothing. Besides the state, [`Life`] has the readiness of the guest, which is reported once a
//! run to the service manager: a guest may be paused, or reboot into a new QEMU process, before it
//! is ready.

mod accepts;
mod action;
#[cfg(test)]
mod adoption_tests;
#[cfg(test)]
mod drawing;
mod end;
mod event;
mod intention;
mod limits;
mod machine;
mod mode;
mod policy;
#[cfg(test)]
mod random_orders;
mod requester;
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
pub use self::action::{Action, Rung, VmFile};
pub use self::end::{Cause, End, Exit, Explanation, Fault, QemuExit, StartFailure};
pub use self::event::{Command, Event, Guest, Leftover, PreviousQemu, SavedState, StartEvent};
pub use self::intention::{AfterQemu, Intention};
pub use self::limits::{ADOPTION_GRACE, KILL_GRACE, PRESS_EVERY, QUIT_GRACE, START_CANCEL_GRACE};
pub use self::machine::{Life, Readiness};
pub use self::mode::Mode;
pub use self::policy::{OnPanic, Policy, Ready, ReadyFailure};
pub use self::requester::Requester;
pub use self::state::{Boot, PauseReason, Phase, Saving, State, StopLadder, StopRequest};
