//! The stop ladder: power button and agent, QMP `quit`, and what follows the exit of QEMU.

use std::time::Duration;

use super::{
    action::{Action, Rung},
    end::{Cause, End},
    intention::{AfterQemu, Intention},
    limits::{PRESS_EVERY, QUIT_GRACE},
    policy::{OnPanic, Policy},
    requester::Requester,
    state::{PauseReason, Phase, State, StopLadder},
};

/// The first rung.
pub(super) fn ask(
    by: Requester,
    timeout: Duration,
    now: Duration,
    before: Vec<Action>,
) -> (State, Vec<Action>) {
    ladder(ended(Cause::Stopped(by)), timeout, now, before, true)
}

/// The ladder of a guest that did not become ready: the run fails.
pub(super) fn not_ready(
    why: String,
    now: Duration,
    policy: &Policy,
    before: Vec<Action>,
) -> (State, Vec<Action>) {
    ladder(ended(Cause::NotReady(why)), policy.shutdown_timeout, now, before, true)
}

/// The ladder of a reboot: a new QEMU process is launched.
pub(super) fn reboot(now: Duration, policy: &Policy, before: Vec<Action>) -> (State, Vec<Action>) {
    ladder(AfterQemu::Relaunch, policy.shutdown_timeout, now, before, false)
}

/// Continues a shutdown that an earlier supervisor began. Where QEMU was being ended, a guest that
/// is held is not resumed: its state may be saved.
pub(super) fn resume(
    intention: Intention,
    now: Duration,
    before: Vec<Action>,
) -> (State, Vec<Action>) {
    let goes_down = intention.ends_run();
    match intention.deadline {
        Some(deadline) => {
            ladder(intention.then, deadline.saturating_sub(now), now, before, goes_down)
        }
        None => quit(intention.then, false, now, vec![]),
    }
}

pub(super) fn ladder(
    then: AfterQemu,
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
    let ladder = StopLadder { deadline: now + timeout, press_at: now + PRESS_EVERY, then };
    (State::Stopping(ladder), actions)
}

/// A stop during a shutdown: a reboot or a failure becomes a stop. A given timeout counts from now.
pub(super) fn stop_instead(
    ladder: StopLadder,
    by: Requester,
    timeout: Option<Duration>,
    now: Duration,
) -> (State, Vec<Action>) {
    let deadline = timeout.map_or(ladder.deadline, |t| now + t);
    let left = deadline.saturating_sub(now);
    let actions = match ladder.then {
        AfterQemu::Relaunch => vec![Action::NotifyStopping(left + QUIT_GRACE)],
        AfterQemu::End(_) => vec![],
    };
    let then = instead_of_relaunch(ladder.then, Cause::Stopped(by));
    (State::Stopping(StopLadder { deadline, then, ..ladder }), actions)
}

pub(super) fn panicked(now: Duration, policy: &Policy) -> (State, Vec<Action>) {
    match policy.on_panic {
        OnPanic::Pause => (State::Paused(PauseReason::Panic), vec![]),
        OnPanic::Stop => quit(ended(Cause::PanicStopped), false, now, vec![]),
        OnPanic::Restart => quit(ended(Cause::Panicked), false, now, vec![]),
    }
}

pub(super) fn guest_done(then: AfterQemu, now: Duration) -> (State, Vec<Action>) {
    quit(then, false, now, vec![Action::Announce(Rung::GuestDone)])
}

pub(super) fn quit(
    then: AfterQemu,
    hurried: bool,
    now: Duration,
    mut actions: Vec<Action>,
) -> (State, Vec<Action>) {
    actions.push(Action::Quit);
    (State::Quitting { kill_at: now + QUIT_GRACE, hurried, then }, actions)
}

pub(super) fn finish(then: AfterQemu) -> (State, Vec<Action>) {
    match then {
        AfterQemu::End(End { cause }) => end(cause),
        AfterQemu::Relaunch => (State::Starting(Phase::ReadingVmFile), vec![Action::ReadVmFile]),
    }
}

pub(super) fn end(cause: Cause) -> (State, Vec<Action>) {
    let end = End { cause };
    let exit = end.exit();
    (State::Ended, vec![Action::Record(end), Action::Exit(exit)])
}

pub(super) fn ended(cause: Cause) -> AfterQemu {
    AfterQemu::End(End { cause })
}

pub(super) fn instead_of_relaunch(then: AfterQemu, cause: Cause) -> AfterQemu {
    match then {
        // A stop that was requested is no failure.
        AfterQemu::Relaunch | AfterQemu::End(End { cause: Cause::NotReady(_) }) => ended(cause),
        end @ AfterQemu::End(_) => end,
    }
}
