//! The rungs of the way down: asking the guest, QMP `quit`, and what comes when QEMU has gone.

use std::time::Duration;

use super::{
    Action, By, Cause, End, Hold, Ladder, OnPanic, Outcome, PRESS_EVERY, Phase, Policy, QUIT_GRACE,
    Rung, State,
};

/// The first rung.
pub(super) fn ask(
    by: By,
    timeout: Duration,
    now: Duration,
    before: Vec<Action>,
) -> (State, Vec<Action>) {
    ladder(ended(Cause::Stopped(by)), timeout, now, before, true)
}

/// The same ladder, with a failure at its end.
pub(super) fn not_ready(
    why: String,
    now: Duration,
    policy: &Policy,
    before: Vec<Action>,
) -> (State, Vec<Action>) {
    ladder(ended(Cause::NotReady(why)), policy.shutdown_timeout, now, before, true)
}

/// The same ladder, with a new QEMU at its end.
pub(super) fn reboot(now: Duration, policy: &Policy, before: Vec<Action>) -> (State, Vec<Action>) {
    ladder(Outcome::Relaunch, policy.shutdown_timeout, now, before, false)
}

pub(super) fn ladder(
    then: Outcome,
    timeout: Duration,
    now: Duration,
    mut actions: Vec<Action>,
    goes_down: bool,
) -> (State, Vec<Action>) {
    if goes_down {
        actions.push(Action::NotifyStopping(timeout + QUIT_GRACE));
    }
    actions.push(Action::Announce(Rung::Asked(timeout)));
    actions.push(Action::PressPowerButton);
    actions.push(Action::AgentShutdown);
    let ladder = Ladder { deadline: now + timeout, press_at: now + PRESS_EVERY, then };
    (State::Stopping(ladder), actions)
}

/// A stop that comes while a shutdown is under way: a reboot or a failure becomes a stop, and a given timeout counts from now.
pub(super) fn stop_instead(
    ladder: Ladder,
    by: By,
    timeout: Option<Duration>,
    now: Duration,
) -> (State, Vec<Action>) {
    let deadline = timeout.map_or(ladder.deadline, |t| now + t);
    let left = deadline.saturating_sub(now);
    let actions = match ladder.then {
        Outcome::Relaunch => vec![Action::NotifyStopping(left + QUIT_GRACE)],
        Outcome::End(_) => vec![],
    };
    let then = instead_of_relaunch(ladder.then, Cause::Stopped(by));
    (State::Stopping(Ladder { deadline, then, ..ladder }), actions)
}

pub(super) fn panicked(now: Duration, policy: &Policy) -> (State, Vec<Action>) {
    match policy.on_panic {
        OnPanic::Pause => (State::Paused(Hold::Panic), vec![]),
        OnPanic::Stop => quit(ended(Cause::PanicStopped), false, now, vec![]),
        OnPanic::Restart => quit(ended(Cause::Panicked), false, now, vec![]),
    }
}

pub(super) fn guest_done(then: Outcome, now: Duration) -> (State, Vec<Action>) {
    quit(then, false, now, vec![Action::Announce(Rung::GuestDone)])
}

pub(super) fn quit(
    then: Outcome,
    hurried: bool,
    now: Duration,
    mut actions: Vec<Action>,
) -> (State, Vec<Action>) {
    actions.push(Action::Quit);
    (State::Quitting { kill_at: now + QUIT_GRACE, hurried, then }, actions)
}

pub(super) fn finish(then: Outcome) -> (State, Vec<Action>) {
    match then {
        Outcome::End(End { cause }) => end(cause),
        Outcome::Relaunch => (State::Starting(Phase::ReadingVmFile), vec![Action::ReadVmFile]),
    }
}

pub(super) fn end(cause: Cause) -> (State, Vec<Action>) {
    let end = End { cause };
    let exit = end.exit();
    (State::Ended, vec![Action::Record(end), Action::Exit(exit)])
}

pub(super) fn ended(cause: Cause) -> Outcome {
    Outcome::End(End { cause })
}

pub(super) fn instead_of_relaunch(then: Outcome, cause: Cause) -> Outcome {
    match then {
        // Whoever stops a guest that was about to be called a failure gets what was asked for.
        Outcome::Relaunch | Outcome::End(End { cause: Cause::NotReady(_) }) => ended(cause),
        end @ Outcome::End(_) => end,
    }
}
