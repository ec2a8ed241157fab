//! The transitions: one function a state, each naming every event.

use std::time::Duration;

use super::{
    Action, By, Cause, Command, End, Event, Gone, Hold, Ladder, Mode, Outcome, Phase, Policy, Rung,
    State,
    start::{cancelling, starting},
    stop_ladder::{
        ask, end, ended, finish, guest_done, instead_of_relaunch, not_ready, panicked, quit,
        reboot, stop_instead,
    },
    suspend::{save, suspending},
};

/// How often the power button is pressed: a press gets lost while a Linux guest boots and nobody has opened
/// the button's device yet; further presses change nothing once a shutdown is under way.
pub const PRESS_EVERY: Duration = Duration::from_secs(5);

/// How long QEMU may take to flush its disks and go after `quit`, before SIGKILL.
pub const QUIT_GRACE: Duration = Duration::from_secs(10);

/// How long a QEMU that was sent SIGKILL may take to go. Longer takes one that the kernel has waiting for storage, in a state in which no
/// signal ends it.
pub const KILL_GRACE: Duration = Duration::from_secs(10);

/// How long giving up a start may take before the run ends without waiting for it.
pub const START_CANCEL_GRACE: Duration = Duration::from_secs(5);

/// What the VM does after `event`, and what has to be done.
pub(super) fn step(
    state: State,
    event: Event,
    now: Duration,
    policy: &Policy,
    mode: Mode,
) -> (State, Vec<Action>) {
    let event = match (&state, event) {
        (
            State::Starting(Phase::Adopting)
            | State::Running
            | State::Paused(Hold::Wanted | Hold::NoSpace)
            | State::Suspending(_),
            Event::HostDown,
        ) => Event::HostDown,
        // There is nothing to save.
        (_, Event::HostDown) => Event::Signalled,
        (_, event) => event,
    };
    match state {
        State::Starting(phase) => starting(phase, event, now, mode),
        State::Cancelling { phase, until, request } => {
            cancelling(phase, until, request, event, now)
        }
        State::Running => running(event, now, policy),
        State::Paused(hold) => paused(hold, event, now, policy),
        State::Suspending(saving) => suspending(saving, event, now, policy),
        State::Stopping(ladder) => stopping(ladder, event, now),
        State::Quitting { kill_at, hurried, then } => quitting(kill_at, hurried, then, event, now),
        State::Killing { until, then } => killing(until, then, event, now),
        State::Ended => (State::Ended, vec![]),
    }
}

fn running(event: Event, now: Duration, policy: &Policy) -> (State, Vec<Action>) {
    match event {
        Event::Signalled => ask(By::Signal, policy.shutdown_timeout, now, vec![]),
        Event::Asked(Command::Stop { timeout }) => {
            ask(By::Operator, timeout.unwrap_or(policy.shutdown_timeout), now, vec![])
        }
        Event::Asked(Command::Reboot) => reboot(now, policy, vec![]),
        Event::HostDown => save(By::Signal, false, now, policy),
        Event::Asked(Command::Suspend) => save(By::Operator, false, now, policy),
        Event::Asked(Command::Terminate) => {
            quit(ended(Cause::Killed), true, now, vec![Action::Announce(Rung::Hurried)])
        }
        Event::Asked(Command::Reset) => (State::Running, vec![Action::Reset]),
        Event::Asked(Command::Pause) => (State::Running, vec![Action::Hold]),
        // A pause may be under way.
        Event::Asked(Command::Resume) => (State::Running, vec![Action::Continue]),
        Event::GuestShutdown => guest_done(ended(Cause::GuestShutdown), now),
        Event::GuestReboot => quit(Outcome::Relaunch, false, now, vec![]),
        Event::GuestPanicked => panicked(now, policy),
        Event::Held => (State::Paused(Hold::Wanted), vec![]),
        Event::NoSpace => (State::Paused(Hold::NoSpace), vec![]),
        Event::NotReady(why) => not_ready(why, now, policy, vec![]),
        Event::QemuGone(gone) => end(Cause::QemuDied(gone)),
        Event::Start(_)
        | Event::Ready
        | Event::GuestReset
        | Event::Saved
        | Event::NotSaved(_)
        | Event::Room
        | Event::Continued
        | Event::Tick => (State::Running, vec![]),
    }
}

fn paused(hold: Hold, event: Event, now: Duration, policy: &Policy) -> (State, Vec<Action>) {
    // A held guest cannot see the button, so it is let go first; one that panicked will never see it.
    let wake = || vec![Action::Continue];
    match (hold, event) {
        (Hold::Wanted | Hold::NoSpace, Event::Signalled) => {
            ask(By::Signal, policy.shutdown_timeout, now, wake())
        }
        (Hold::Wanted | Hold::NoSpace, Event::Asked(Command::Stop { timeout })) => {
            ask(By::Operator, timeout.unwrap_or(policy.shutdown_timeout), now, wake())
        }
        (Hold::Wanted | Hold::NoSpace, Event::Asked(Command::Reboot)) => {
            reboot(now, policy, wake())
        }
        // Only what somebody asked for is to be so again afterwards.
        (Hold::Wanted | Hold::NoSpace, Event::HostDown) => {
            save(By::Signal, hold == Hold::Wanted, now, policy)
        }
        (Hold::Wanted | Hold::NoSpace, Event::Asked(Command::Suspend)) => {
            save(By::Operator, hold == Hold::Wanted, now, policy)
        }
        (Hold::Panic, Event::Signalled | Event::HostDown) => {
            quit(ended(Cause::Stopped(By::Signal)), false, now, vec![])
        }
        (Hold::Panic, Event::Asked(Command::Stop { .. })) => {
            quit(ended(Cause::Stopped(By::Operator)), false, now, vec![])
        }
        (_, Event::Asked(Command::Terminate)) => {
            quit(ended(Cause::Killed), true, now, vec![Action::Announce(Rung::Hurried)])
        }
        (_, Event::Asked(Command::Reset)) => {
            (State::Paused(hold), vec![Action::Reset, Action::Continue])
        }
        (Hold::Wanted | Hold::NoSpace, Event::Asked(Command::Resume))
        | (Hold::NoSpace, Event::Room) => (State::Paused(hold), wake()),
        // It may just have been let go, or a resume may be under way.
        (Hold::Wanted | Hold::NoSpace, Event::Asked(Command::Pause)) => {
            (State::Paused(Hold::Wanted), vec![Action::Hold])
        }
        // STOP may come before what it is for.
        (Hold::Wanted, Event::NoSpace) => (State::Paused(Hold::NoSpace), vec![]),
        (_, Event::Continued) => (State::Running, vec![]),
        (Hold::Wanted | Hold::NoSpace, Event::NotReady(why)) => not_ready(why, now, policy, wake()),
        (Hold::Panic, Event::NotReady(why)) => {
            quit(ended(Cause::NotReady(why)), false, now, vec![])
        }
        (_, Event::GuestShutdown) => guest_done(ended(Cause::GuestShutdown), now),
        (_, Event::GuestReboot) => quit(Outcome::Relaunch, false, now, vec![]),
        (Hold::Wanted | Hold::NoSpace, Event::GuestPanicked) => panicked(now, policy),
        (_, Event::QemuGone(gone)) => end(Cause::QemuDied(gone)),
        (
            Hold::Panic,
            Event::Asked(Command::Resume | Command::Pause | Command::Reboot | Command::Suspend)
            | Event::GuestPanicked,
        )
        | (
            Hold::Wanted | Hold::Panic | Hold::NoSpace,
            Event::Start(_)
            | Event::Ready
            | Event::GuestReset
            | Event::Saved
            | Event::NotSaved(_)
            | Event::Held
            | Event::NoSpace
            | Event::Room
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
        Event::Asked(Command::Resume) | Event::Room => {
            (State::Stopping(ladder), vec![Action::Continue])
        }
        Event::Tick
        | Event::Ready
        | Event::NotReady(_)
        | Event::HostDown
        | Event::Saved
        | Event::NotSaved(_)
        | Event::Asked(Command::Reboot | Command::Reset | Command::Pause | Command::Suspend)
        | Event::Start(_)
        | Event::GuestReset
        | Event::Held
        | Event::NoSpace
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
    let kill = |then| {
        let actions = vec![Action::Announce(Rung::Killed), Action::Kill];
        (State::Killing { until: now + KILL_GRACE, then }, actions)
    };
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
        | Event::HostDown
        | Event::Saved
        | Event::NotSaved(_)
        | Event::Asked(
            Command::Reboot | Command::Reset | Command::Pause | Command::Resume | Command::Suspend,
        )
        | Event::Start(_)
        | Event::GuestShutdown
        | Event::GuestReboot
        | Event::GuestReset
        | Event::GuestPanicked
        | Event::Held
        | Event::NoSpace
        | Event::Room
        | Event::Continued => (State::Quitting { kill_at, hurried, then }, vec![]),
    }
}

fn killing(until: Duration, then: Outcome, event: Event, now: Duration) -> (State, Vec<Action>) {
    let then = match event {
        Event::QemuGone(_) => return finish(then),
        Event::Tick if now >= until => {
            let stays_down = matches!(&then, Outcome::End(end) if !end.failed());
            return end(Cause::NotGone { stays_down });
        }
        Event::Signalled => instead_of_relaunch(then, Cause::ForcedOff(By::Signal)),
        Event::Asked(Command::Stop { .. }) => {
            instead_of_relaunch(then, Cause::ForcedOff(By::Operator))
        }
        Event::Asked(Command::Terminate) => instead_of_relaunch(then, Cause::Killed),
        Event::Asked(
            Command::Reboot | Command::Reset | Command::Pause | Command::Resume | Command::Suspend,
        )
        | Event::Ready
        | Event::NotReady(_)
        | Event::HostDown
        | Event::Saved
        | Event::NotSaved(_)
        | Event::Start(_)
        | Event::GuestShutdown
        | Event::GuestReboot
        | Event::GuestReset
        | Event::GuestPanicked
        | Event::Held
        | Event::NoSpace
        | Event::Room
        | Event::Continued
        | Event::Tick => then,
    };
    (State::Killing { until, then }, vec![])
}
