//! Holds the drawing and the table at the top of `life/mod.rs` to the machine, by walking through
//! it.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    sync::LazyLock,
    time::Duration,
};

use super::{
    start_tests::start_events,
    tests::{POLICY, at},
    *,
};

/// Every event, with every kind of content that the machine distinguishes.
fn events() -> Vec<Event> {
    let mut events: Vec<Event> = start_events().into_iter().map(Event::Start).collect();
    events.extend([
        Event::GuestReady,
        Event::GuestNotReady("x".into()),
        Event::StopSignaled,
        Event::HostShutdownStarted,
        Event::StateSaved,
        Event::SaveFailed("x".into()),
        Event::GuestShutdown,
        Event::GuestReboot,
        Event::GuestReset,
        Event::GuestPanicked,
        Event::VcpusStopped,
        Event::DiskSpaceExhausted,
        Event::DiskSpaceFreed,
        Event::VcpusResumed,
        Event::QemuExited(QemuExit::Code(0)),
        Event::QemuExited(QemuExit::Code(1)),
        Event::DeadlinePassed,
    ]);
    events.extend(
        [
            Command::Stop { timeout: None },
            Command::Terminate,
            Command::Reboot,
            Command::Reset,
            Command::Pause,
            Command::Resume,
            Command::Suspend,
        ]
        .map(Event::Requested),
    );
    events
}

/// The name of a variant.
fn name(value: &impl std::fmt::Debug) -> String {
    let text = format!("{value:?}");
    text.split(|c: char| !c.is_alphanumeric()).next().unwrap_or_default().to_owned()
}

fn state_name(state: &State) -> String {
    match state {
        State::Starting(phase) => name(phase),
        state => name(state),
    }
}

/// Which states follow each state that can be reached, in both modes. Two times are enough: before
/// and after every deadline.
fn transitions() -> &'static Transitions {
    static ALL: LazyLock<Transitions> = LazyLock::new(walk);
    &ALL
}

/// The names of the states that follow each state.
type Transitions = BTreeMap<String, BTreeSet<String>>;

fn walk() -> Transitions {
    let mut found = Transitions::new();
    for (mode, on_panic) in [Mode::Run, Mode::ShutDown]
        .into_iter()
        .flat_map(|mode| [OnPanic::Stop, OnPanic::Pause].map(|on_panic| (mode, on_panic)))
    {
        let policy = Policy { on_panic, ..POLICY };
        let mut seen = HashSet::new();
        let mut open = vec![Life::new(mode).0];
        while let Some(life) = open.pop() {
            if !seen.insert(format!("{life:?}")) {
                continue;
            }
            let from = state_name(life.state());
            let next = found.entry(from.clone()).or_default();
            for event in events() {
                for now in [Duration::ZERO, at(100_000)] {
                    let mut life = life.clone();
                    life.step(event.clone(), now, &policy);
                    let to = state_name(life.state());
                    if to != from {
                        next.insert(to);
                    }
                    open.push(life);
                }
            }
        }
    }
    found
}

/// The text blocks of the module's documentation.
fn blocks() -> Vec<String> {
    let docs = include_str!("mod.rs").lines().map_while(|line| line.strip_prefix("//!"));
    let docs: Vec<&str> = docs.collect();
    let text = docs.join("\n");
    text.split("```text\n").skip(1).map(|rest| rest.split("```").next().unwrap().into()).collect()
}

#[test]
fn table_is_the_machine() {
    let lines: Vec<String> = transitions()
        .iter()
        .map(|(from, to)| {
            let to: Vec<&str> = to.iter().map(String::as_str).collect();
            format!("    {from:<16} {}", to.join(" ")).trim_end().to_owned()
        })
        .collect();
    let table = &blocks()[1];
    let written: Vec<&str> = table.lines().filter(|line| !line.trim().is_empty()).collect();
    assert_eq!(written, lines, "write into life/mod.rs:\n{}", lines.join("\n"));
}

#[test]
fn drawing_has_every_state_and_no_other() {
    let drawing = &blocks()[0];
    let words: BTreeSet<&str> = drawing
        .split(|c: char| !c.is_alphanumeric())
        .filter(|word| word.starts_with(char::is_uppercase))
        .collect();
    let states: BTreeSet<String> = transitions().keys().cloned().collect();
    for state in &states {
        assert!(words.contains(state.as_str()), "the drawing lacks {state}");
    }
    let mut known = states;
    for event in events() {
        known.insert(match &event {
            Event::Start(event) => name(event),
            Event::Requested(command) => name(command),
            event => name(event),
        });
    }
    known.insert("QEMU".into());
    for word in words {
        assert!(known.contains(word), "no state, event or command is named {word}");
    }
}
