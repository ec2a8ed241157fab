//! Adoptions: stops that come meanwhile, and shutdowns that an earlier supervisor began.

use super::{
    start_tests::{exit_code, failed, found, stopped},
    tests::{POLICY, at},
    *,
};

/// A machine that has adopted a QEMU process of which an earlier supervisor intended this. `before`
/// happens during the adoption.
fn adopted(
    mode: Mode,
    guest: Guest,
    intention: &Intention,
    before: Option<Event>,
) -> (Life, Vec<Action>) {
    let (mut life, _) = Life::new(mode);
    life.step(found(PreviousQemu::Running).into(), at(0), &POLICY);
    if let Some(event) = before {
        life.step(event, at(1), &POLICY);
    }
    let intention = Some(intention.clone());
    let event = StartEvent::Launched { guest, ready: true, intention };
    let actions = life.step(event.into(), at(5), &POLICY);
    (life, actions)
}

#[test]
fn adopted_qemu_continues_its_shutdown() {
    let asked = |then: AfterQemu| Intention { then, deadline: Some(at(25)) };
    let ladder = |then: AfterQemu| {
        State::Stopping(StopLadder { deadline: at(25), press_at: at(5) + PRESS_EVERY, then })
    };
    // The power button is pressed again; a reboot is not reported as stopping.
    for (then, stops) in [(stopped(), true), (AfterQemu::Relaunch, false)] {
        let (life, actions) = adopted(Mode::Run, Guest::Running, &asked(then.clone()), None);
        assert_eq!(*life.state(), ladder(then));
        assert_eq!(actions[0], Action::NotifyReady);
        assert!(actions.contains(&Action::PressPowerButton));
        assert_eq!(actions.iter().any(|a| matches!(a, Action::NotifyStopping(_))), stops);
    }
    // QEMU was to be ended: a held guest, whose state may be saved, is not resumed.
    let ended = Intention { then: stopped(), deadline: None };
    for guest in [Guest::Running, Guest::Paused, Guest::ShutDown, Guest::Panicked] {
        let (life, actions) = adopted(Mode::Run, guest, &ended, None);
        assert!(matches!(life.state(), State::Quitting { then, .. } if *then == stopped()));
        assert_eq!(actions, [Action::NotifyReady, Action::Quit]);
    }
    // A shutdown of the guest meanwhile was requested.
    for guest in [Guest::ShutDown, Guest::Panicked] {
        let (life, _) = adopted(Mode::Run, guest, &asked(AfterQemu::Relaunch), None);
        let relaunches = |then: &AfterQemu| *then == AfterQemu::Relaunch;
        assert!(matches!(life.state(), State::Quitting { then, .. } if relaunches(then)));
    }
}

#[test]
fn stop_of_an_adopted_shutdown_adds_to_it() {
    let asked = |then: AfterQemu| Intention { then, deadline: Some(at(25)) };
    // A signal does not shorten the guest's time, and ends a reboot.
    for (then, by) in [(stopped(), Requester::Operator), (AfterQemu::Relaunch, Requester::Signal)] {
        for (mode, before) in [(Mode::Run, Some(Event::StopSignaled)), (Mode::ShutDown, None)] {
            let (life, _) = adopted(mode, Guest::Running, &asked(then.clone()), before);
            let then = AfterQemu::End(End { cause: Cause::Stopped(by) });
            let ladder = StopLadder { deadline: at(25), press_at: at(5) + PRESS_EVERY, then };
            assert_eq!(*life.state(), State::Stopping(ladder));
        }
    }
    let kill = Some(Event::Requested(Command::Terminate));
    let (life, actions) = adopted(Mode::Run, Guest::Running, &asked(stopped()), kill);
    let killed = AfterQemu::End(End { cause: Cause::Killed });
    assert!(matches!(life.state(), State::Quitting { then, .. } if *then == killed));
    assert!(actions.contains(&Action::Quit));
}

/// The end is the one that was intended, and nothing is started after it.
#[test]
fn intended_end_of_an_exited_qemu_is_the_end() {
    let event = found(PreviousQemu::Exited { intended: Some(stopped()) });
    for mode in [Mode::Run, Mode::ShutDown] {
        let (mut life, _) = Life::new(mode);
        let actions = life.step(event.clone().into(), at(0), &POLICY);
        let end = End { cause: Cause::Stopped(Requester::Operator) };
        let exit = Action::Exit(Exit::Code(0));
        assert_eq!(actions, [Action::Record(end), Action::RemoveRecord, exit]);
        assert_eq!(*life.state(), State::Ended);
    }
}

#[test]
fn each_state_that_ends_qemu_has_an_intention() {
    let then = stopped();
    let ladder = StopLadder { deadline: at(9), press_at: at(5), then: then.clone() };
    let intends = |deadline| Some(Intention { then: then.clone(), deadline });
    let quitting = State::Quitting { kill_at: at(9), hurried: false, then: then.clone() };
    let killing = State::Killing { until: at(9), then: then.clone() };
    assert_eq!(State::Stopping(ladder).intention(), intends(Some(at(9))));
    assert_eq!(quitting.intention(), intends(None));
    assert_eq!(killing.intention(), intends(None));
    for state in [State::Running, State::Paused(PauseReason::Operator), State::Ended] {
        assert_eq!(state.intention(), None);
    }
}

/// A stop during an adoption neither abandons nor forces off a running guest.
#[test]
fn stop_while_adopting_stops_the_guest() {
    let stop = Event::Requested(Command::Stop { timeout: Some(at(7)) });
    let adopting = || {
        let (mut life, _) = Life::new(Mode::Run);
        life.step(found(PreviousQemu::Running).into(), at(0), &POLICY);
        life
    };
    let adopted = StartEvent::Launched { guest: Guest::Running, ready: true, intention: None };
    for (event, reason) in [(Event::StopSignaled, "stopped"), (stop, "stopped")] {
        let mut life = adopting();
        assert_eq!(life.step(event, at(1), &POLICY), []);
        let actions = life.step(adopted.clone().into(), at(2), &POLICY);
        assert!(actions.contains(&Action::PressPowerButton) && !actions.contains(&Action::Quit));
        life.step(Event::GuestShutdown, at(3), &POLICY);
        let actions = life.step(Event::QemuExited(QemuExit::Code(0)), at(4), &POLICY);
        let Some(Action::Record(end)) = actions.first() else { panic!("{actions:?}") };
        assert_eq!((end.reason(), exit_code(&actions)), (reason, Some(0)));
    }
    let mut life = adopting();
    life.step(Event::HostShutdownStarted, at(1), &POLICY);
    assert!(life.step(adopted.clone().into(), at(2), &POLICY).contains(&Action::Save));
    // Also where a clean stop was requested before.
    for first in [Event::DeadlinePassed, Event::StopSignaled] {
        let mut life = adopting();
        life.step(first, at(1), &POLICY);
        life.step(Event::Requested(Command::Terminate), at(1), &POLICY);
        assert!(life.step(adopted.clone().into(), at(2), &POLICY).contains(&Action::Quit));
        let actions = life.step(Event::QemuExited(QemuExit::Code(0)), at(4), &POLICY);
        let Some(Action::Record(end)) = actions.first() else { panic!("{actions:?}") };
        assert_eq!((end.reason(), exit_code(&actions)), ("killed", Some(0)));
    }
    // The wait for a QEMU process that does not answer is limited; the unit's stop ends it.
    let mut life = adopting();
    life.step(Event::StopSignaled, at(1), &POLICY);
    let late = at(1) + ADOPTION_GRACE;
    assert_eq!(life.step(Event::DeadlinePassed, late - at(1), &POLICY), []);
    assert_eq!(exit_code(&life.step(Event::DeadlinePassed, late, &POLICY)), Some(0));
    let mut life = adopting();
    life.step(Event::StopSignaled, at(1), &POLICY);
    let actions = life.step(failed(Fault::Host, Leftover::MayRun).into(), at(2), &POLICY);
    assert_eq!(exit_code(&actions), Some(0));
    assert!(!actions.contains(&Action::RemoveRecord));
}

/// A QEMU process that is found after a stop was requested is adopted and stopped.
#[test]
fn stop_while_finding_previous_stops_the_guest() {
    let terminate = Event::Requested(Command::Terminate);
    for (event, grace) in [
        (Event::StopSignaled, ADOPTION_GRACE),
        (Event::HostShutdownStarted, ADOPTION_GRACE),
        (terminate.clone(), START_CANCEL_GRACE),
    ] {
        let (mut life, _) = Life::new(Mode::Run);
        assert_eq!(life.step(event.clone(), at(1), &POLICY), []);
        assert_eq!(life.deadline(), Some(at(1) + grace));
        let adopts = [Action::UseVmFile(VmFile::Booted), Action::Adopt];
        assert_eq!(life.step(found(PreviousQemu::Running).into(), at(2), &POLICY), adopts);
        let adopted = StartEvent::Launched { guest: Guest::Running, ready: true, intention: None };
        let actions = life.step(adopted.into(), at(3), &POLICY);
        let stop = match event {
            Event::HostShutdownStarted => Action::Save,
            Event::StopSignaled => Action::PressPowerButton,
            _ => Action::Quit,
        };
        assert!(actions.contains(&stop), "{event:?}: {actions:?}");
    }
    // Without one the start is canceled.
    for qemu in [PreviousQemu::None, PreviousQemu::NeverExecuted] {
        let (mut life, _) = Life::new(Mode::Run);
        life.step(Event::StopSignaled, at(1), &POLICY);
        let actions = life.step(found(qemu).into(), at(2), &POLICY);
        assert_eq!(exit_code(&actions), Some(0));
    }
    // Storage that hangs does not hold up the end.
    let (mut life, _) = Life::new(Mode::Run);
    life.step(terminate, at(1), &POLICY);
    let late = at(1) + START_CANCEL_GRACE;
    assert_eq!(exit_code(&life.step(Event::DeadlinePassed, late, &POLICY)), Some(0));
}
