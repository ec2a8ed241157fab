//! Events in random orders, against what must always hold.

use std::time::Duration;

use proptest::prelude::*;

use super::{
    tests::{POLICY, at},
    *,
};

fn any_event() -> impl Strategy<Value = Event> {
    let gone = prop_oneof![
        Just(Gone::Exited(0)),
        Just(Gone::Exited(1)),
        Just(Gone::Unknown),
        any::<bool>().prop_map(|oom| Gone::Signalled { signal: 9, oom }),
    ];
    let command = prop_oneof![
        proptest::option::of(1u64..100)
            .prop_map(|t| Command::Stop { timeout: t.map(Duration::from_secs) }),
        Just(Command::Terminate),
        Just(Command::Reboot),
        Just(Command::Reset),
        Just(Command::Pause),
        Just(Command::Resume),
        Just(Command::Suspend),
    ];
    prop_oneof![
        Just(Event::Prepared),
        any::<(bool, bool)>().prop_map(|(paused, ready)| Event::Launched { paused, ready }),
        Just(Event::Ready),
        Just(Event::NotReady("late".into())),
        Just(Event::StartFailed("x".into())),
        Just(Event::Signalled),
        Just(Event::HostDown),
        Just(Event::Saved),
        Just(Event::NotSaved("no".into())),
        command.prop_map(Event::Asked),
        Just(Event::GuestShutdown),
        Just(Event::GuestReboot),
        Just(Event::GuestReset),
        Just(Event::GuestPanicked),
        Just(Event::Held),
        Just(Event::NoSpace),
        Just(Event::Room),
        Just(Event::Continued),
        gone.prop_map(Event::QemuGone),
        Just(Event::Tick),
    ]
}

/// A QEMU that may or may not be there, beside the machine.
fn drive(events: &[(u64, Event)]) -> (Life, Vec<Action>, Duration) {
    let (mut life, mut done, mut now) = (Life::default(), vec![], at(0));
    for (pause, event) in events {
        now += at(*pause);
        let (next, actions) = life.step(event.clone(), now, &POLICY);
        life = next;
        done.extend(actions);
    }
    (life, done, now)
}

proptest! {
    #[test]
    fn at_most_one_end_is_recorded_and_one_exit_given(
        events in prop::collection::vec((0u64..40, any_event()), 0..60)
    ) {
        let (life, done, _) = drive(&events);
        let exits = done.iter().filter(|a| matches!(a, Action::Exit(_))).count();
        let records = done.iter().filter(|a| matches!(a, Action::Record(_))).count();
        prop_assert!(exits <= 1 && records == exits);
        prop_assert_eq!(exits == 1, life.state == State::Ended);
    }

    #[test]
    fn after_a_stop_the_deadlines_alone_lead_to_kill_or_to_the_end(
        events in prop::collection::vec((0u64..40, any_event()), 0..40)
    ) {
        let (life, _, mut now) = drive(&events);
        let (mut life, mut done) = life.step(Event::Signalled, now, &POLICY);
        for _ in 0..200 {
            let Some(deadline) = life.deadline() else { break };
            now = now.max(deadline);
            let (next, actions) = life.step(Event::Tick, now, &POLICY);
            life = next;
            done.extend(actions);
        }
        // Also where QEMU never ends: it may wait for storage for ever.
        prop_assert_eq!(life.state, State::Ended);
    }

    #[test]
    fn nothing_is_launched_after_a_stop(
        before in prop::collection::vec((0u64..40, any_event()), 0..40),
        after in prop::collection::vec((0u64..40, any_event()), 0..40)
    ) {
        let (mut life, _, mut now) = drive(&before);
        life = life.step(Event::Signalled, now, &POLICY).0;
        for (pause, event) in &after {
            // Only an operator's own word brings a VM back, and only once it has ended.
            now += at(*pause);
            let (next, actions) = life.step(event.clone(), now, &POLICY);
            life = next;
            prop_assert!(!actions.contains(&Action::Launch));
        }
    }

    #[test]
    fn a_tick_before_the_deadline_changes_nothing(
        events in prop::collection::vec((0u64..40, any_event()), 0..40)
    ) {
        let (life, _, now) = drive(&events);
        if life.deadline().is_none_or(|d| now < d) {
            let (next, actions) = life.clone().step(Event::Tick, now, &POLICY);
            prop_assert_eq!((next, actions), (life, vec![]));
        }
    }

    #[test]
    fn what_is_accepted_is_acted_upon(
        events in prop::collection::vec((0u64..40, any_event()), 0..40)
    ) {
        let (life, _, now) = drive(&events);
        for command in [Command::Reboot, Command::Reset] {
            if accepts(&life.state, command).is_ok() {
                let (_, actions) = life.clone().step(Event::Asked(command), now, &POLICY);
                prop_assert!(!actions.is_empty(), "{command:?} was taken in {life:?} and nothing done");
            } else if !matches!(life.state, State::Ended) {
                let (_, actions) = life.clone().step(Event::Asked(command), now, &POLICY);
                prop_assert!(actions.is_empty(), "{command:?} was refused in {life:?} and done");
            }
        }
    }

    #[test]
    fn the_service_manager_is_told_at_most_once_that_it_is_up_and_never_of_one_that_goes(
        events in prop::collection::vec((0u64..40, any_event()), 0..60)
    ) {
        let (life, done, _) = drive(&events);
        let told = done.iter().filter(|a| **a == Action::NotifyReady).count();
        prop_assert!(told <= 1);
        if told == 0 {
            prop_assert!(life.readiness != Readiness::Met);
        }
        // Each search is begun and ended in turn.
        let begun = done.iter().filter(|a| matches!(a, Action::AwaitReady(_))).count();
        let ended = done.iter().filter(|a| **a == Action::StopAwaiting).count();
        let found = usize::from(life.readiness == Readiness::Met && begun > ended);
        let up = matches!(life.state, State::Running | State::Paused(_));
        let goes_on = matches!(life.readiness, Readiness::Awaited { .. }) && up;
        prop_assert_eq!(begun, ended + found + usize::from(goes_on));
    }
}
