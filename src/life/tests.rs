//! The arrows of the drawing, one by one.

use std::time::Duration;

use super::*;

pub(super) const POLICY: Policy = Policy {
    shutdown_timeout: Duration::from_secs(60),
    on_panic: OnPanic::Restart,
    ready: Ready::Within(Duration::from_secs(30)),
    ready_failure: ReadyFailure::Fail,
};

pub(super) fn at(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// One step of a supervisor that runs its VM.
pub(super) fn step(
    state: State,
    event: Event,
    now: Duration,
    policy: &Policy,
) -> (State, Vec<Action>) {
    super::step::step(state, event, now, policy, Mode::Run)
}

/// Feeds events at their times from `state`; the last state and all actions.
pub(super) fn feed(mut state: State, events: &[(u64, Event)]) -> (State, Vec<Action>) {
    let mut done = vec![];
    for (time, event) in events {
        let (next, actions) = step(state, event.clone(), at(*time), &POLICY);
        state = next;
        done.extend(actions);
    }
    (state, done)
}

fn exit_of(actions: &[Action]) -> Option<u8> {
    actions.iter().find_map(|a| match a {
        Action::Exit(Exit::Code(code)) => Some(*code),
        Action::Exit(Exit::NotStarted(failure)) => Some(failure.fault.exit_code()),
        _ => None,
    })
}

fn reason_of(actions: &[Action]) -> Option<&'static str> {
    actions.iter().find_map(|a| if let Action::Record(end) = a { Some(end.reason()) } else { None })
}

const STOP: Event = Event::Requested(Command::Stop { timeout: None });
const TERMINATE: Event = Event::Requested(Command::Terminate);
pub(super) const GONE: Event = Event::QemuExited(QemuExit::Code(0));

#[test]
fn full_disk_pauses_until_space_frees() {
    let pause = Event::Requested(Command::Pause);
    for before in [State::Running, State::Paused(PauseReason::Operator)] {
        let (state, actions) = feed(before, &[(0, Event::DiskSpaceExhausted)]);
        assert_eq!((&state, &actions[..]), (&State::Paused(PauseReason::DiskFull), &[][..]));
        let (state, actions) = feed(state, &[(1, Event::VcpusStopped), (2, Event::DiskSpaceFreed)]);
        assert_eq!(
            (&state, &actions[..]),
            (&State::Paused(PauseReason::DiskFull), &[Action::Resume][..])
        );
        assert_eq!(feed(state.clone(), &[(3, Event::VcpusResumed)]).0, State::Running);
        // An operator's pause stays, even if the vCPUs were just resumed.
        let held = [
            (3, pause.clone()),
            (4, Event::VcpusResumed),
            (5, Event::VcpusStopped),
            (6, Event::DiskSpaceFreed),
        ];
        let (state, actions) = feed(state, &held);
        assert_eq!(
            (&state, &actions[..]),
            (&State::Paused(PauseReason::Operator), &[Action::Pause][..])
        );
    }
}

#[test]
fn stop_resumes_after_full_disk() {
    let (state, actions) = feed(State::Paused(PauseReason::DiskFull), &[(0, Event::StopSignaled)]);
    assert_eq!(actions[0], Action::Resume);
    let (state, actions) = feed(
        state,
        &[(1, Event::VcpusStopped), (1, Event::DiskSpaceExhausted), (2, Event::DiskSpaceFreed)],
    );
    assert_eq!(actions, [Action::Resume]);
    let State::Stopping(ladder) = &state else { panic!("{state:?}") };
    assert_eq!(ladder.deadline, at(60));
    let (state, actions) = feed(state, &[(60, Event::DeadlinePassed), (61, GONE)]);
    assert_eq!((state, reason_of(&actions)), (State::Ended, Some("forced-off")));
    // The saved state is not marked as paused by an operator.
    let (state, _) = feed(State::Paused(PauseReason::DiskFull), &[(0, Event::HostShutdownStarted)]);
    assert!(matches!(state, State::Suspending(Saving { held: false, .. })), "{state:?}");
}

#[test]
fn clean_stop_uses_button_and_agent() {
    let (state, actions) = feed(State::Running, &[(0, Event::StopSignaled)]);
    assert!(matches!(state, State::Stopping(_)));
    assert_eq!(
        actions,
        [
            Action::NotifyStopping(at(70)),
            Action::Announce(Rung::Asked(at(60))),
            Action::PressPowerButton,
            Action::AgentShutdown
        ]
    );
    let (state, actions) = feed(state, &[(3, Event::GuestShutdown), (4, GONE)]);
    assert_eq!(state, State::Ended);
    assert!(actions.contains(&Action::Quit) && !actions.contains(&Action::Kill));
    assert_eq!((reason_of(&actions), exit_of(&actions)), (Some("stopped"), Some(0)));
}

#[test]
fn button_is_pressed_until_deadline() {
    let (mut state, _) = feed(State::Running, &[(0, STOP)]);
    let mut presses = 1;
    while let State::Stopping(_) = state {
        let now = state.deadline().unwrap();
        let (next, actions) = step(state, Event::DeadlinePassed, now, &POLICY);
        presses += actions.iter().filter(|a| **a == Action::PressPowerButton).count();
        state = next;
    }
    assert_eq!(presses, 12);
    assert_eq!(state.deadline(), Some(at(60) + QUIT_GRACE));
}

#[test]
fn deadline_quits_and_grace_kills() {
    let (state, actions) =
        feed(State::Running, &[(0, Event::StopSignaled), (60, Event::DeadlinePassed)]);
    assert!(actions.ends_with(&[Action::Announce(Rung::TimeUp), Action::Quit]));
    let (state, actions) = feed(state, &[(69, Event::DeadlinePassed), (70, Event::DeadlinePassed)]);
    assert_eq!(actions, [Action::Announce(Rung::Killed), Action::Kill]);
    let (state, actions) =
        feed(state, &[(71, Event::QemuExited(QemuExit::Signal { signal: 9, oom: false }))]);
    assert_eq!(state, State::Ended);
    assert_eq!((reason_of(&actions), exit_of(&actions)), (Some("forced-off"), Some(0)));
}

#[test]
fn repeated_sigterm_forces_off_then_kills() {
    let (state, actions) =
        feed(State::Running, &[(0, Event::StopSignaled), (1, Event::StopSignaled)]);
    assert!(actions.contains(&Action::Quit));
    let (state, actions) = feed(state, &[(2, Event::StopSignaled)]);
    assert!(actions.contains(&Action::Kill));
    let (_, actions) = feed(state, &[(3, GONE)]);
    assert_eq!((reason_of(&actions), exit_of(&actions)), (Some("forced-off"), Some(0)));
}

#[test]
fn sigterm_after_guest_shutdown_kills_nothing() {
    let (state, actions) =
        feed(State::Running, &[(0, Event::GuestShutdown), (0, Event::StopSignaled)]);
    assert!(!actions.contains(&Action::Kill));
    let (_, actions) = feed(state, &[(1, GONE)]);
    assert_eq!((reason_of(&actions), exit_of(&actions)), (Some("guest-shutdown"), Some(0)));
}

#[test]
fn second_stop_moves_the_deadline() {
    let soon = Event::Requested(Command::Stop { timeout: Some(at(2)) });
    let (state, _) = feed(State::Running, &[(0, STOP), (1, soon)]);
    let State::Stopping(ladder) = state else { panic!("{state:?}") };
    assert_eq!(ladder.deadline, at(3));
}

#[test]
fn terminate_quits_and_second_one_kills() {
    let (state, actions) = feed(State::Running, &[(0, TERMINATE)]);
    assert_eq!(actions, [Action::Announce(Rung::Hurried), Action::Quit]);
    let (state, actions) = feed(state, &[(0, TERMINATE)]);
    assert!(actions.contains(&Action::Kill));
    let (_, actions) = feed(state, &[(0, GONE)]);
    assert_eq!((reason_of(&actions), exit_of(&actions)), (Some("killed"), Some(0)));
}

#[test]
fn powered_off_guest_stays_down() {
    let (state, actions) =
        feed(State::Running, &[(0, Event::GuestShutdown), (0, Event::VcpusStopped), (1, GONE)]);
    assert_eq!(state, State::Ended);
    assert_eq!((reason_of(&actions), exit_of(&actions)), (Some("guest-shutdown"), Some(0)));
}

#[test]
fn reset_keeps_the_qemu_process() {
    assert_eq!(feed(State::Running, &[(0, Event::GuestReset)]), (State::Running, vec![]));
}

#[test]
fn reboot_with_pending_changes_relaunches() {
    let (state, actions) =
        feed(State::Running, &[(0, Event::GuestReboot), (0, Event::VcpusStopped), (1, GONE)]);
    assert_eq!(state, State::Starting(Phase::ReadingVmFile));
    assert_eq!(actions, [Action::Quit, Action::ReadVmFile]);
}

#[test]
fn requested_reboot_shuts_down_and_relaunches() {
    let (state, actions) = feed(
        State::Running,
        &[(0, Event::Requested(Command::Reboot)), (3, Event::GuestShutdown), (4, GONE)],
    );
    assert_eq!(state, State::Starting(Phase::ReadingVmFile));
    assert!(actions.contains(&Action::PressPowerButton) && actions.contains(&Action::ReadVmFile));
    assert!(!actions.iter().any(|a| matches!(a, Action::NotifyStopping(_))));
}

#[test]
fn stop_during_reboot_stays_down() {
    for phase in [
        vec![],
        vec![(1, Event::GuestShutdown)],
        vec![(60, Event::DeadlinePassed), (70, Event::DeadlinePassed)],
    ] {
        for stop in [STOP, Event::StopSignaled, TERMINATE] {
            let mut events = vec![(0, Event::Requested(Command::Reboot))];
            events.extend(phase.clone());
            events.extend([(71, stop), (72, Event::GuestShutdown), (73, GONE)]);
            let (state, actions) = feed(State::Running, &events);
            assert_eq!(state, State::Ended, "{events:?}");
            assert_eq!(exit_of(&actions), Some(0));
        }
    }
}

#[test]
fn panic_follows_the_policy() {
    for (on_panic, code) in
        [(OnPanic::Restart, Some(1)), (OnPanic::Stop, Some(0)), (OnPanic::Pause, None)]
    {
        let policy = Policy { on_panic, ..POLICY };
        let (state, mut actions) = step(State::Running, Event::GuestPanicked, at(0), &policy);
        let (state, more) = step(state, Event::VcpusStopped, at(0), &policy);
        actions.extend(more);
        if code.is_none() {
            assert_eq!(state, State::Paused(PauseReason::Panic));
            assert!(accepts(&state, Command::Resume).is_err());
            continue;
        }
        let (_, more) = step(state, GONE, at(1), &policy);
        actions.extend(more);
        assert_eq!((reason_of(&actions), exit_of(&actions)), (Some("guest-panic"), code));
    }
}

#[test]
fn panicked_guest_is_quit_without_button() {
    let (state, actions) = feed(State::Paused(PauseReason::Panic), &[(0, STOP), (1, GONE)]);
    assert_eq!(state, State::Ended);
    assert!(!actions.contains(&Action::PressPowerButton));
}

#[test]
fn dead_qemu_exits_1_with_reason() {
    for (gone, reason) in [
        (QemuExit::Code(1), "qemu-exited"),
        (QemuExit::Unknown, "qemu-exited"),
        (QemuExit::Signal { signal: 9, oom: false }, "qemu-signal"),
        (QemuExit::Signal { signal: 9, oom: true }, "oom-killed"),
    ] {
        for state in [
            State::Running,
            State::Paused(PauseReason::Operator),
            State::Paused(PauseReason::Panic),
        ] {
            let (state, actions) = feed(state, &[(0, Event::QemuExited(gone))]);
            assert_eq!(state, State::Ended);
            assert_eq!((reason_of(&actions), exit_of(&actions)), (Some(reason), Some(1)));
        }
    }
}

#[test]
fn pause_follows_qmp_events() {
    let pause = Event::Requested(Command::Pause);
    let resume = Event::Requested(Command::Resume);
    assert_eq!(feed(State::Running, &[(0, pause)]), (State::Running, vec![Action::Pause]));
    let (state, _) = feed(State::Running, &[(0, Event::VcpusStopped)]);
    assert_eq!(state, State::Paused(PauseReason::Operator));
    let (state, actions) = feed(state, &[(0, resume), (0, Event::VcpusResumed)]);
    assert_eq!((state, actions), (State::Running, vec![Action::Resume]));
}

#[test]
fn paused_guest_is_resumed_before_stop() {
    let (_, actions) = feed(State::Paused(PauseReason::Operator), &[(0, STOP)]);
    assert_eq!(actions.first(), Some(&Action::Resume));
    assert!(actions.contains(&Action::PressPowerButton));
}

#[test]
fn unkillable_qemu_is_not_awaited() {
    for (then, code) in
        [(AfterQemu::End(End { cause: Cause::Killed }), 70), (AfterQemu::Relaunch, 75)]
    {
        let killing = State::Killing { until: at(10), then };
        assert_eq!(killing.deadline(), Some(at(10)));
        let (state, actions) = feed(killing.clone(), &[(9, Event::DeadlinePassed)]);
        assert_eq!((&state, actions), (&killing, vec![]));
        let (state, actions) = feed(state, &[(10, Event::DeadlinePassed)]);
        assert_eq!(state, State::Ended);
        assert!(actions.contains(&Action::Exit(Exit::Code(code))), "{actions:?}");
    }
}
