//! Killed at every step: before each system call that changes anything, the supervisor alone or with all that it has started.
//!
//! `make test` does this at some instants, spread evenly; `make test-faults` at all of them, and prints a table.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

#[path = "../lab/mod.rs"]
mod lab;
mod phase;
mod scene;
mod trace;

use std::{
    collections::VecDeque,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Mutex,
    thread,
    time::Instant,
};

use phase::{PHASES, Phase};
use trace::Cut;

/// How many places at once: a point mostly waits, for QEMU to start and to end.
const AT_ONCE: usize = 3;

/// What became of a phase.
struct Row {
    phase: &'static str,
    /// How many calls there are to be killed before.
    calls: usize,
    points: usize,
    failures: Vec<String>,
}

fn why(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned())).unwrap_or_default()
}

/// Walks a phase: kills it before each of `pick`'s calls, of as many as it makes when nobody does.
fn walk(phase: &Phase, pick: &(dyn Fn(usize) -> Vec<usize> + Sync)) -> Row {
    let before = phase.prepare();
    let whole = phase.run(before.as_ref(), None);
    let mut points = VecDeque::new();
    for nth in pick(whole.counted) {
        points.extend([(Cut::Program, nth), (Cut::Everything, nth)]);
    }
    let (count, points, failures) = (points.len(), Mutex::new(points), Mutex::new(vec![]));
    thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                loop {
                    let Some((cut, nth)) = points.lock().unwrap().pop_front() else { return };
                    let run = || phase.run(before.as_ref(), Some((cut, nth)));
                    if let Err(panic) = catch_unwind(AssertUnwindSafe(run)) {
                        let at = whole.calls.get(nth - 1).map(ToString::to_string);
                        let at = at.unwrap_or_default();
                        let failure = format!("{cut:?} {nth} {at}: {}", why(&*panic));
                        failures.lock().unwrap().push(failure);
                    }
                }
            });
        }
    });
    let failures = failures.into_inner().unwrap();
    Row { phase: phase.name, calls: whole.counted, points: count, failures }
}

fn tell(rows: &[Row]) {
    println!("\n{:32} {:>6} {:>7} {:>9}", "phase", "calls", "killed", "failures");
    for row in rows {
        println!("{:32} {:>6} {:>7} {:>9}", row.phase, row.calls, row.points, row.failures.len());
    }
    for row in rows {
        for failure in &row.failures {
            println!("{}: {failure}", row.phase);
        }
    }
    let failed: usize = rows.iter().map(|row| row.failures.len()).sum();
    assert_eq!(failed, 0, "points at which something was lost or left");
}

fn possible() -> bool {
    lab::guest(scene::GUEST).is_some()
}

#[test]
#[ignore = "make test-faults"]
fn nothing_is_lost_wherever_it_is_killed() {
    if !possible() {
        return;
    }
    let only = std::env::var("QVM_PHASE").ok();
    let wanted = PHASES.iter().filter(|phase| only.as_ref().is_none_or(|only| phase.name == only));
    let rows: Vec<Row> = wanted
        .map(|phase| {
            let begun = Instant::now();
            let row = walk(phase, &|calls| {
                let number = |key: &str| std::env::var(key).ok().map(|nr| nr.parse().unwrap());
                match (number("QVM_POINT"), number("QVM_STEP")) {
                    (Some(point), _) => vec![point],
                    (None, step) => (1..=calls).step_by(step.unwrap_or(1)).collect(),
                }
            });
            println!("{}: {} points in {:?}", row.phase, row.points, begun.elapsed());
            row
        })
        .collect();
    tell(&rows);
}
