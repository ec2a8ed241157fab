//! Which commands each state accepts.

use super::{
    event::Command,
    state::{PauseReason, State},
};

/// Checks that a command is accepted in this state.
///
/// # Errors
/// What the VM is doing instead, to be put after "the VM is".
pub fn accepts(state: &State, command: Command) -> Result<(), &'static str> {
    match (state, command) {
        (_, Command::Stop { .. } | Command::Terminate) => Ok(()),
        (State::Running | State::Paused(PauseReason::Operator | PauseReason::DiskFull), _)
        | (State::Paused(PauseReason::Panic), Command::Reset) => Ok(()),
        (
            State::Paused(PauseReason::Panic),
            Command::Resume | Command::Pause | Command::Reboot | Command::Suspend,
        ) => Err(
            "paused after a panic of its kernel; `qvm reboot --force`, `qvm stop` or `qvm kill` it",
        ),
        (State::Starting(_), _) => Err("starting"),
        (State::Suspending(_), _) => Err("being suspended"),
        (State::Canceling { .. } | State::Stopping(_), _) => Err("stopping"),
        (State::Quitting { .. } | State::Killing { .. } | State::Ended, _) => Err("stopping"),
    }
}
