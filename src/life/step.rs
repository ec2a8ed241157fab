//! The transitions: one function a state, each naming every event.

use std::time::Duration;

use super::{
    Action, By, Cause, Command, End, Event, Gone, Hold, Ladder, OnPanic, Outcome, Policy, Rung,
    State,
};

/// How often the power button is pressed: a press gets lost while a Linux guest boots and nobody has opened
/// the button's device yet; further presses change nothing once a shutdown is under way.
pub const PRESS_EVERY: Duration = Duration::from_secs(5);

/// How long QEMU may take to flush its disks and go after `quit`, before SIGKILL.
pub const QUIT_GRACE: Duration = Duration::from_secs(10);

/// How long giving up a start may take before the run ends without waiting for it.
pub const START_CANCEL_GRACE: Duration = Duration::from_secs(5);

/// What the VM does after `event`, and what has to be done.
pub(super) fn step(
    state: State,
    event: Event,
    now: Duration,
    policy: &Policy,
) -> (State, Vec<Action>) {
    match state {
        State::Preparing => starting(State::Preparing, event, now),
        State::Launching => starting(State::Launching, event, now),
        State::Cancelling { until, by } => cancelling(until, by, event, now),
        State::Running => running(event, now, policy),
        State::Paused(hold) => paused(hold, event, now, policy),
        State::Stopping(ladder) => stopping(ladder, event, now),
        State::Quitting { kill_at, hurried, then } => quitting(kill_at, hurried, then, event, now),
        State::Killing { then } => killing(then, event),
        State::Ended => (State::Ended, vec![]),
    }
}

fn starting(state: State, event: Event, now: Duration) -> (State, Vec<Action>) {
    let cancel =
        |by| (State::Cancelling { until: now + START_CANCEL_GRACE, by }, vec![Action::CancelStart]);
    match event {
        Event::Prepared if state == State::Preparing => (State::Launching, vec![Action::Launch]),
        Event::Launched { paused: false, .. } => (State::Running, vec![]),
        Event::Launched { paused: true, .. } => (State::Paused(Hold::Wanted), vec![]),
        Event::StartFailed(why) => end(Cause::StartFailed(why)),
        Event::Signalled => cancel(By::Signal),
        Event::Asked(Command::Stop { .. } | Command::Terminate) => cancel(By::Operator),
        Event::Prepared
        | Event::Ready
        | Event::NotReady(_)
        | Event::Asked(Command::Reboot | Command::Reset | Command::Pause | Command::Resume)
        | Event::GuestShutdown
        | Event::GuestReboot
        | Event::GuestReset
        | Event::GuestPanicked
        | Event::Held
        | Event::Continued
        | Event::QemuGone(_)
        | Event::Tick => (state, vec![]),
    }
}

fn cancelling(until: Duration, by: By, event: Event, now: Duration) -> (State, Vec<Action>) {
    let stay = (State::Cancelling { until, by }, vec![]);
    match event {
        Event::Prepared | Event::StartFailed(_) | Event::QemuGone(_) => {
            end(Cause::StartCancelled(by))
        }
        Event::Launched { .. } => {
            quit(Outcome::End(End { cause: Cause::StartCancelled(by) }), true, now, vec![])
        }
        Event::Tick if now >= until => end(Cause::StartCancelled(by)),
        Event::Tick
        | Event::Ready
        | Event::NotReady(_)
        | Event::Signalled
        | Event::Asked(_)
        | Event::GuestShutdown
        | Event::GuestReboot
        | Event::GuestReset
        | Event::GuestPanicked
        | Event::Held
        | Event::Continued => stay,
    }
}

fn running(event: Event, now: Duration, policy: &Policy) -> (State, Vec<Action>) {
    match event {
        Event::Signalled => ask(By::Signal, policy.shutdown_timeout, now, vec![]),
        Event::Asked(Command::Stop { timeout }) => {
            ask(By::Operator, timeout.unwrap_or(policy.shutdown_timeout), now, vec![])
        }
        Event::Asked(Command::Reboot) => reboot(now, policy, vec![]),
        Event::Asked(Command::Terminate) => {
            quit(ended(Cause::Killed), true, now, vec![Action::Announce(Rung::Hurried)])
        }
        Event::Asked(Command::Reset) => (State::Running, vec![Action::Reset]),
        Event::Asked(Command::Pause) => (State::Running, vec![Action::Hold]),
        Event::Asked(Command::Resume) => (State::Running, vec![]),
        Event::GuestShutdown => guest_done(ended(Cause::GuestShutdown), now),
        Event::GuestReboot => quit(Outcome::Relaunch, false, now, vec![]),
        Event::GuestPanicked => panicked(now, policy),
        Event::Held => (State::Paused(Hold::Wanted), vec![]),
        Event::NotReady(why) => not_ready(why, now, policy, vec![]),
        Event::QemuGone(gone) => end(Cause::QemuDied(gone)),
        Event::Prepared
        | Event::Ready
        | Event::Launched { .. }
        | Event::StartFailed(_)
        | Event::GuestReset
        | Event::Continued
        | Event::Tick => (State::Running, vec![]),
    }
}

fn paused(hold: Hold, event: Event, now: Duration, policy: &Policy) -> (State, Vec<Action>) {
    // A held guest cannot see the button, so it is let go first; one that panicked will never see it.
    let wake = || vec![Action::Continue];
    match (hold, event) {
        (Hold::Wanted, Event::Signalled) => ask(By::Signal, policy.shutdown_timeout, now, wake()),
        (Hold::Wanted, Event::Asked(Command::Stop { timeout })) => {
            ask(By::Operator, timeout.unwrap_or(policy.shutdown_timeout), now, wake())
        }
        (Hold::Wanted, Event::Asked(Command::Reboot)) => reboot(now, policy, wake()),
        (Hold::Panic, Event::Signalled) => {
            quit(ended(Cause::Stopped(By::Signal)), false, now, vec![])
        }
        (Hold::Panic, Event::Asked(Command::Stop { .. })) => {
            quit(ended(Cause::Stopped(By::Operator)), false, now, vec![])
        }
        (_, Event::Asked(Command::Terminate)) => {
            quit(ended(Cause::Killed), true, now, vec![Action::Announce(Rung::Hurried)])
        }
        (_, Event::Asked(Command::Reset)) => {
            (State::Running, vec![Action::Reset, Action::Continue])
        }
        (Hold::Wanted, Event::Asked(Command::Resume)) => (State::Paused(hold), wake()),
        (Hold::Wanted, Event::Continued) => (State::Running, vec![]),
        (Hold::Wanted, Event::NotReady(why)) => not_ready(why, now, policy, wake()),
        (Hold::Panic, Event::NotReady(why)) => {
            quit(ended(Cause::NotReady(why)), false, now, vec![])
        }
        (_, Event::GuestShutdown) => guest_done(ended(Cause::GuestShutdown), now),
        (_, Event::GuestReboot) => quit(Outcome::Relaunch, false, now, vec![]),
        (Hold::Wanted, Event::GuestPanicked) => panicked(now, policy),
        (_, Event::QemuGone(gone)) => end(Cause::QemuDied(gone)),
        (Hold::Panic, Event::Continued) => (State::Running, vec![]),
        (Hold::Panic, Event::Asked(Command::Resume | Command::Reboot) | Event::GuestPanicked)
        | (
            Hold::Wanted | Hold::Panic,
            Event::Asked(Command::Pause)
            | Event::Prepared
            | Event::Ready
            | Event::Launched { .. }
            | Event::StartFailed(_)
            | Event::GuestReset
            | Event::Held
            | Event::Tick,
        ) => (State::Paused(hold), vec![]),
    }
}

fn stopping(ladder: Ladder, event: Event, now: Duration) -> (State, Vec<Action>) {
    match event {
        Event::Signalled => match ladder.then {
            Outcome::Relaunch | Outcome::End(End { cause: Cause::NotReady(_) }) => {
                stop_instead(ladder, By::Signal, None, now)
            }
            Outcome::End(_) => quit(
                ended(Cause::ForcedOff(By::Signal)),
                true,
                now,
                vec![Action::Announce(Rung::Hurried)],
            ),
        },
        Event::Asked(Command::Stop { timeout }) => stop_instead(ladder, By::Operator, timeout, now),
        Event::Asked(Command::Terminate) => {
            quit(ended(Cause::Killed), true, now, vec![Action::Announce(Rung::Hurried)])
        }
        // Where a stop was asked for, a guest that reboots instead is at rest just as well.
        Event::GuestShutdown | Event::GuestReboot => guest_done(ladder.then, now),
        Event::GuestPanicked => quit(ladder.then, false, now, vec![]),
        Event::QemuGone(Gone::Exited(0) | Gone::Unknown) => finish(ladder.then),
        Event::QemuGone(gone) => end(Cause::QemuDied(gone)),
        Event::Tick if now >= ladder.deadline => {
            let then = match ladder.then {
                Outcome::End(End { cause: Cause::Stopped(by) }) => ended(Cause::ForcedOff(by)),
                other @ (Outcome::End(_) | Outcome::Relaunch) => other,
            };
            quit(then, true, now, vec![Action::Announce(Rung::TimeUp)])
        }
        Event::Tick if now >= ladder.press_at => {
            let left = ladder.deadline - now;
            let ladder = Ladder { press_at: now + PRESS_EVERY, ..ladder };
            let again = vec![Action::Announce(Rung::AskedAgain(left)), Action::PressPowerButton];
            (State::Stopping(ladder), again)
        }
        Event::Asked(Command::Resume) => (State::Stopping(ladder), vec![Action::Continue]),
        Event::Tick
        | Event::Ready
        | Event::NotReady(_)
        | Event::Asked(Command::Reboot | Command::Reset | Command::Pause)
        | Event::Prepared
        | Event::Launched { .. }
        | Event::StartFailed(_)
        | Event::GuestReset
        | Event::Held
        | Event::Continued => (State::Stopping(ladder), vec![]),
    }
}

fn quitting(
    kill_at: Duration,
    hurried: bool,
    then: Outcome,
    event: Event,
    now: Duration,
) -> (State, Vec<Action>) {
    let kill = |then| (State::Killing { then }, vec![Action::Announce(Rung::Killed), Action::Kill]);
    match event {
        Event::QemuGone(_) => finish(then),
        Event::Tick if now >= kill_at => kill(then),
        Event::Signalled if hurried => {
            kill(instead_of_relaunch(then, Cause::ForcedOff(By::Signal)))
        }
        Event::Asked(Command::Terminate) if hurried => {
            kill(instead_of_relaunch(then, Cause::Killed))
        }
        Event::Signalled => {
            let then = instead_of_relaunch(then, Cause::Stopped(By::Signal));
            (State::Quitting { kill_at, hurried: true, then }, vec![])
        }
        Event::Asked(Command::Terminate) => {
            let then = instead_of_relaunch(then, Cause::Killed);
            (State::Quitting { kill_at, hurried: true, then }, vec![])
        }
        Event::Asked(Command::Stop { .. }) => {
            let then = instead_of_relaunch(then, Cause::Stopped(By::Operator));
            (State::Quitting { kill_at, hurried, then }, vec![])
        }
        Event::Tick
        | Event::Ready
        | Event::NotReady(_)
        | Event::Asked(Command::Reboot | Command::Reset | Command::Pause | Command::Resume)
        | Event::Prepared
        | Event::Launched { .. }
        | Event::StartFailed(_)
        | Event::GuestShutdown
        | Event::GuestReboot
        | Event::GuestReset
        | Event::GuestPanicked
        | Event::Held
        | Event::Continued => (State::Quitting { kill_at, hurried, then }, vec![]),
    }
}

fn killing(then: Outcome, event: Event) -> (State, Vec<Action>) {
    let then = match event {
        Event::QemuGone(_) => return finish(then),
        Event::Signalled => instead_of_relaunch(then, Cause::ForcedOff(By::Signal)),
        Event::Asked(Command::Stop { .. }) => {
            instead_of_relaunch(then, Cause::ForcedOff(By::Operator))
        }
        Event::Asked(Command::Terminate) => instead_of_relaunch(then, Cause::Killed),
        Event::Asked(Command::Reboot | Command::Reset | Command::Pause | Command::Resume)
        | Event::Ready
        | Event::NotReady(_)
        | Event::Prepared
        | Event::Launched { .. }
        | Event::StartFailed(_)
        | Event::GuestShutdown
        | Event::GuestReboot
        | Event::GuestReset
        | Event::GuestPanicked
        | Event::Held
        | Event::Continued
        | Event::Tick => then,
    };
    (State::Killing { then }, vec![])
}

/// The first rung.
fn ask(by: By, timeout: Duration, now: Duration, before: Vec<Action>) -> (State, Vec<Action>) {
    ladder(ended(Cause::Stopped(by)), timeout, now, before, true)
}

/// The same ladder, with a failure at its end.
fn not_ready(
    why: String,
    now: Duration,
    policy: &Policy,
    before: Vec<Action>,
) -> (State, Vec<Action>) {
    ladder(ended(Cause::NotReady(why)), policy.shutdown_timeout, now, before, true)
}

/// The same ladder, with a new QEMU at its end.
fn reboot(now: Duration, policy: &Policy, before: Vec<Action>) -> (State, Vec<Action>) {
    ladder(Outcome::Relaunch, policy.shutdown_timeout, now, before, false)
}

fn ladder(
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
fn stop_instead(
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

fn panicked(now: Duration, policy: &Policy) -> (State, Vec<Action>) {
    match policy.on_panic {
        OnPanic::Pause => (State::Paused(Hold::Panic), vec![]),
        OnPanic::Stop => quit(ended(Cause::PanicStopped), false, now, vec![]),
        OnPanic::Restart => quit(ended(Cause::Panicked), false, now, vec![]),
    }
}

fn guest_done(then: Outcome, now: Duration) -> (State, Vec<Action>) {
    quit(then, false, now, vec![Action::Announce(Rung::GuestDone)])
}

fn quit(
    then: Outcome,
    hurried: bool,
    now: Duration,
    mut actions: Vec<Action>,
) -> (State, Vec<Action>) {
    actions.push(Action::Quit);
    (State::Quitting { kill_at: now + QUIT_GRACE, hurried, then }, actions)
}

fn finish(then: Outcome) -> (State, Vec<Action>) {
    match then {
        Outcome::End(End { cause }) => end(cause),
        Outcome::Relaunch => (State::Launching, vec![Action::Launch]),
    }
}

fn end(cause: Cause) -> (State, Vec<Action>) {
    let end = End { cause };
    let code = end.exit_code();
    (State::Ended, vec![Action::Record(end), Action::Exit(code)])
}

fn ended(cause: Cause) -> Outcome {
    Outcome::End(End { cause })
}

fn instead_of_relaunch(then: Outcome, cause: Cause) -> Outcome {
    match then {
        // Whoever stops a guest that was about to be called a failure gets what was asked for.
        Outcome::Relaunch | Outcome::End(End { cause: Cause::NotReady(_) }) => ended(cause),
        end @ Outcome::End(_) => end,
    }
}
