//! Killed at every step: before each system call that changes anything, the supervisor alone or with all that it has started.
//!
//! `make test` does this at some instants of some phases; `make test-faults` at all of them, and prints a table. `QVM_PHASE` is the one
//! phase to walk, `QVM_POINT` the one call to be killed before, `QVM_SEED` what the times of the other kills are drawn from.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

#[path = "../lab/mod.rs"]
mod lab;
mod order;
mod phase;
mod scene;
mod trace;

use std::{
    collections::VecDeque,
    fs,
    os::unix::fs::PermissionsExt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Mutex,
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use phase::{PHASES, Phase, When};
use trace::{Call, Cut};

/// How many places at once: a point mostly waits, for QEMU to start and to end.
const AT_ONCE: usize = 3;
/// How often each phase is killed at a time that is drawn.
const DRAWN: u32 = 4;

/// What became of a phase.
struct Row {
    phase: &'static str,
    /// How many calls there are to be killed before.
    calls: usize,
    /// How often it was killed.
    points: usize,
    failures: Vec<String>,
    took: Duration,
}

fn why(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned())).unwrap_or_default()
}

/// Walks a phase: kills it at `points` of what it does when nobody does.
fn walk(phase: &Phase, at_once: usize, points: impl FnOnce(&[Call], Duration) -> Vec<When>) -> Row {
    let begun = Instant::now();
    let before = phase.prepare();
    let whole = phase.run(before.as_ref(), None);
    let calls = &whole.calls[..whole.counted];
    let points = points(calls, whole.took);
    let points =
        points.into_iter().flat_map(|when| [(Cut::Program, when), (Cut::Everything, when)]);
    let points: VecDeque<(Cut, When)> = points.collect();
    let failures = order::wrong(&whole.calls);
    let (count, points, failures) = (points.len(), Mutex::new(points), Mutex::new(failures));
    thread::scope(|scope| {
        for _ in 0..at_once {
            scope.spawn(|| {
                loop {
                    let Some((cut, when)) = points.lock().unwrap().pop_front() else { return };
                    let run = || phase.run(before.as_ref(), Some((cut, when)));
                    if let Err(panic) = catch_unwind(AssertUnwindSafe(run)) {
                        let at = match when {
                            When::Before(nth) => calls.get(nth - 1).map(ToString::to_string),
                            When::After(_) => None,
                        };
                        let at = at.unwrap_or_default();
                        let failure = format!("{cut:?} {when:?} {at}: {}", why(&*panic));
                        failures.lock().unwrap().push(failure);
                    }
                }
            });
        }
    });
    let failures = failures.into_inner().unwrap();
    Row { phase: phase.name, calls: calls.len(), points: count, failures, took: begun.elapsed() }
}

/// Every call but those amid a row of the same ones on the same file, as when much is written.
fn all(calls: &[Call]) -> Vec<When> {
    let amid = |at: usize| {
        at > 0 && at + 1 < calls.len() && calls[at - 1] == calls[at] && calls[at] == calls[at + 1]
    };
    (0..calls.len()).filter(|at| !amid(*at)).map(|at| When::Before(at + 1)).collect()
}

fn tell(rows: &[Row]) {
    println!("\n{:28} {:>6} {:>7} {:>9} {:>8}", "phase", "calls", "killed", "failures", "seconds");
    for Row { phase, calls, points, failures, took } in rows {
        let (failed, seconds) = (failures.len(), took.as_secs());
        println!("{phase:28} {calls:>6} {points:>7} {failed:>9} {seconds:>8}");
    }
    let sum = |of: fn(&Row) -> usize| rows.iter().map(of).sum::<usize>();
    let failed = sum(|row| row.failures.len());
    println!("{:28} {:>6} {:>7} {failed:>9}", "all", sum(|row| row.calls), sum(|row| row.points));
    for row in rows {
        for failure in &row.failures {
            println!("{}: {failure}", row.phase);
        }
    }
    assert_eq!(failed, 0, "instants at which something was lost or left");
}

/// Numbers that look random, from a seed (xorshift64).
fn drawn(mut seed: u64) -> impl FnMut() -> u64 {
    move || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    }
}

fn number<T: std::str::FromStr>(key: &str) -> Option<T> {
    std::env::var(key).ok()?.parse().ok()
}

fn possible(phase: &Phase) -> bool {
    lab::guest(scene::GUEST).is_some() && phase.is_possible()
}

#[test]
#[ignore = "make test-faults"]
fn nothing_is_lost_wherever_it_is_killed() {
    let only = std::env::var("QVM_PHASE").ok();
    let wanted = PHASES.iter().filter(|phase| only.as_ref().is_none_or(|only| phase.name == only));
    let seed: u64 = number("QVM_SEED").unwrap_or_else(|| {
        SystemTime::now().duration_since(UNIX_EPOCH).unwrap().subsec_nanos().into()
    });
    println!("QVM_SEED={seed}");
    let mut next = drawn(seed | 1 << 40);
    let mut rows = vec![];
    for phase in wanted.filter(|phase| possible(phase)) {
        let row = walk(phase, AT_ONCE, |calls, took| {
            if let Some(nth) = number("QVM_POINT") {
                return vec![When::Before(nth)];
            }
            let mut points = all(calls);
            let times = (0..DRAWN).map(|_| took.mul_f64((next() % 1000) as f64 / 1000.0));
            points.extend(times.map(When::After));
            points
        });
        println!("{}: killed {} times in {:?}", row.phase, row.points, row.took);
        rows.push(row);
    }
    tell(&rows);
}

#[test]
fn nothing_is_lost_at_some_instants() {
    // The first start makes all that there is; the others are those with the narrowest ways.
    let some = [("first start", 4), ("start", 2), ("suspend", 2), ("rm --disks", 2)];
    let rows = thread::scope(|scope| {
        let walks = some.map(|(name, count)| {
            let phase = PHASES.iter().find(|phase| phase.name == name).unwrap();
            let points = move |calls: &[Call], _| {
                let points = all(calls);
                let step = points.len().div_ceil(count);
                points.into_iter().skip(step / 2).step_by(step).collect()
            };
            possible(phase).then(|| scope.spawn(move || walk(phase, 1, points)))
        });
        let rows = walks.into_iter().flatten().map(|walk| walk.join().unwrap());
        rows.collect::<Vec<Row>>()
    });
    tell(&rows);
}

#[test]
fn a_helper_ends_with_the_supervisor_that_waits_for_it() {
    let Some(image) = lab::guest(scene::GUEST) else { return };
    let mut lab = lab::Lab::new();
    // A qemu-img that never comes to its end, beside QEMU as qvm looks for it.
    let path = std::env::var_os("PATH").unwrap();
    let real = std::env::split_paths(&path).map(|dir| dir.join("qemu-system-x86_64"));
    let (qemu, helper) = (lab.path().join("qemu-system-x86_64"), lab.path().join("qemu-img"));
    std::os::unix::fs::symlink(real.into_iter().find(|path| path.exists()).unwrap(), &qemu)
        .unwrap();
    let told = lab.path().join("pid");
    let script = format!(
        "#!/bin/sh\necho $$ >{0}.new && mv {0}.new {0} && exec sleep 600\n",
        told.display()
    );
    fs::write(&helper, script).unwrap();
    fs::set_permissions(&helper, fs::Permissions::from_mode(0o755)).unwrap();
    lab.qemu = Some(qemu.into());
    lab.vm("web", &image, "diskSizeG = 1\n");
    let one = lab.run("web");
    lab::until("the disk is being grown", || told.exists());
    let pid = fs::read_to_string(&told).unwrap().trim().parse().unwrap();
    assert!(lab::runs(pid));
    lab.supervisor(one).kill().unwrap();
    lab.exit_code(one);
    lab::until("the helper has ended", || !lab::runs(pid));
}
