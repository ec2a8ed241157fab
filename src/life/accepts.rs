//! What a VM can be asked for while it does what it does.

use super::{Command, Hold, State};

/// Whether a command makes sense now; otherwise what the VM is doing instead.
///
/// # Errors
/// The state, as a word that goes after "the VM is".
pub fn accepts(state: &State, command: Command) -> Result<(), &'static str> {
    match (state, command) {
        (_, Command::Stop { .. } | Command::Terminate) => Ok(()),
        (State::Running | State::Paused(Hold::Wanted | Hold::NoSpace), _)
        | (State::Paused(Hold::Panic), Command::Reset) => Ok(()),
        (
            State::Paused(Hold::Panic),
            Command::Resume | Command::Pause | Command::Reboot | Command::Suspend,
        ) => Err(
            "paused after a panic of its kernel; `qvm reboot --force`, `qvm stop` or `qvm kill` it",
        ),
        (State::Starting(_), _) => Err("starting"),
        (State::Suspending(_), _) => Err("being suspended"),
        (State::Cancelling { .. } | State::Stopping(_), _) => Err("stopping"),
        (State::Quitting { .. } | State::Killing { .. } | State::Ended, _) => Err("stopping"),
    }
}
