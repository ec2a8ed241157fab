//! Kills the supervisor, or the supervisor and its child processes, before each system call that
//! changes something outside the process.
//!
//! `make test` does this at some calls of some phases; `make test-faults` at all of them, or at as
//! many as its time allows, and prints a table. `QVM_PHASE` selects one phase, `QVM_POINT` one
//! call, `QVM_SEED` seeds the random times, `QVM_MINUTES` limits the time.

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

use phase::{PHASES, Phase, Run, When};
use scene::Before;
use trace::{Call, Cut};

/// The number of points tested in parallel: a point mostly waits for the start and the end of QEMU.
const AT_ONCE: usize = 3;
/// The time limit without the points in progress: with the first run of each phase, it is within
/// that of `make test-faults` on any machine.
const MINUTES: u64 = 6;
/// The number of kills of each phase at a random time.
const DRAWN: u32 = 4;

/// A phase, prepared for its points.
struct Walk {
    phase: &'static Phase,
    before: Option<Before>,
    /// The result of the run without a kill.
    whole: Run,
    points: Vec<(Cut, When)>,
}

/// The results of the kills.
struct Row {
    phase: &'static str,
    /// The number of calls of the phase.
    calls: usize,
    points: usize,
    /// The number of calls before which it was killed.
    killed: usize,
    failures: Vec<String>,
}

fn why(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned())).unwrap_or_default()
}

impl Walk {
    /// Runs the phase once without a kill, to count its calls.
    fn begin(phase: &'static Phase, points: impl FnOnce(&Run) -> Vec<When>) -> Self {
        println!("{}", phase.name);
        let before = phase.prepare();
        let whole = phase.run(before.as_ref(), None);
        let points = points(&whole);
        let points =
            points.into_iter().flat_map(|when| [(Cut::Program, when), (Cut::Everything, when)]);
        Self { phase, before, points: points.collect(), whole }
    }

    fn row(&self) -> Row {
        let failures = order::wrong(&self.whole.calls);
        let (phase, calls, points) = (self.phase.name, self.whole.counted, self.points.len());
        Row { phase, calls, points, killed: 0, failures }
    }

    /// Returns the problem after a kill at this point.
    fn killed(&self, (cut, when): (Cut, When)) -> Option<String> {
        let run = || self.phase.run(self.before.as_ref(), Some((cut, when)));
        let panic = catch_unwind(AssertUnwindSafe(run)).err()?;
        let at = match when {
            When::Before(nth) => self.whole.calls.get(nth - 1).map(ToString::to_string),
            When::After(_) => None,
        };
        Some(format!("{cut:?} {when:?} {}: {}", at.unwrap_or_default(), why(&*panic)))
    }
}

/// Tests all points of all phases evenly and in parallel, until all are done or the time is up.
fn walk(walks: &[Walk], at_once: usize, until: Instant) -> Vec<Row> {
    let rows = Mutex::new(walks.iter().map(Walk::row).collect::<Vec<_>>());
    let mut points: Vec<(f64, usize, usize)> = vec![];
    for (walk, of) in walks.iter().enumerate() {
        // Multiples of the golden ratio: any number of first points is spread evenly.
        let mut order: Vec<usize> = (0..of.points.len()).collect();
        order.sort_by(|a, b| {
            let place = |at: &usize| (*at as f64 * 0.618_033_988_75).fract();
            place(a).total_cmp(&place(b))
        });
        let count = order.len() as f64;
        points
            .extend(order.into_iter().enumerate().map(|(nth, at)| (nth as f64 / count, walk, at)));
    }
    points.sort_by(|a, b| a.0.total_cmp(&b.0));
    let points = Mutex::new(VecDeque::from(points));
    thread::scope(|scope| {
        for _ in 0..at_once {
            scope.spawn(|| {
                while Instant::now() < until {
                    let Some((_, walk, at)) = points.lock().unwrap().pop_front() else { return };
                    let failure = walks[walk].killed(walks[walk].points[at]);
                    let row = &mut rows.lock().unwrap()[walk];
                    row.killed += 1;
                    row.failures.extend(failure.inspect(|why| println!("{}: {why}", row.phase)));
                }
            });
        }
    });
    rows.into_inner().unwrap()
}

/// All calls except the middle ones of a sequence of equal calls on the same file, such as writes.
fn all(calls: &[Call]) -> Vec<When> {
    let amid = |at: usize| {
        at > 0 && at + 1 < calls.len() && calls[at - 1] == calls[at] && calls[at] == calls[at + 1]
    };
    (0..calls.len()).filter(|at| !amid(*at)).map(|at| When::Before(at + 1)).collect()
}

fn tell(rows: &[Row]) {
    println!("\n{:28} {:>6} {:>7} {:>7} {:>9}", "phase", "calls", "points", "killed", "failures");
    for Row { phase, calls, points, killed, failures } in rows {
        println!("{phase:28} {calls:>6} {points:>7} {killed:>7} {:>9}", failures.len());
    }
    let sum = |of: fn(&Row) -> usize| rows.iter().map(of).sum::<usize>();
    let (calls, points) = (sum(|row| row.calls), sum(|row| row.points));
    let (killed, failed) = (sum(|row| row.killed), sum(|row| row.failures.len()));
    println!("{:28} {calls:>6} {points:>7} {killed:>7} {failed:>9}", "all");
    for row in rows {
        for failure in &row.failures {
            println!("{}: {failure}", row.phase);
        }
    }
    assert_eq!(failed, 0, "instants at which something was lost or left");
    assert!(rows.iter().all(|row| row.killed > 0), "a phase was not walked at all");
}

/// Pseudorandom numbers from a seed (xorshift64).
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
fn kill_at_every_call_loses_nothing() {
    let only = std::env::var("QVM_PHASE").ok();
    let wanted = PHASES.iter().filter(|phase| only.as_ref().is_none_or(|only| phase.name == only));
    let seed: u64 = number("QVM_SEED").unwrap_or_else(|| {
        SystemTime::now().duration_since(UNIX_EPOCH).unwrap().subsec_nanos().into()
    });
    println!("QVM_SEED={seed}");
    let mut next = drawn(seed | 1 << 40);
    let walks = wanted.filter(|phase| possible(phase)).map(|phase| {
        Walk::begin(phase, |whole| {
            if let Some(nth) = number("QVM_POINT") {
                return vec![When::Before(nth)];
            }
            let mut points = all(whole.counted());
            let times = (0..DRAWN).map(|_| whole.took.mul_f64((next() % 1000) as f64 / 1000.0));
            points.extend(times.map(When::After));
            points
        })
    });
    let walks: Vec<Walk> = walks.collect();
    let minutes = number("QVM_MINUTES").unwrap_or(MINUTES);
    let rows = walk(&walks, AT_ONCE, Instant::now() + Duration::from_secs(60 * minutes));
    if !walks.is_empty() {
        tell(&rows);
    }
}

#[test]
fn kill_at_some_calls_loses_nothing() {
    // The first start creates everything; the other phases have the most critical sequences.
    let some = [
        ("first start", 4),
        ("start", 2),
        ("suspend", 2),
        ("rm --disks", 2),
        ("snapshot create", 1),
        ("snapshot rollback", 2),
        ("snapshot rm", 2),
    ];
    let begin = |(name, count): (&str, usize)| {
        let phase = PHASES.iter().find(|phase| phase.name == name).unwrap();
        possible(phase).then(|| {
            Walk::begin(phase, |whole| {
                let points = all(whole.counted());
                let step = points.len().div_ceil(count);
                points.into_iter().skip(step / 2).step_by(step).collect()
            })
        })
    };
    let walks: Vec<Walk> = thread::scope(|scope| {
        let walks = some.map(|one| scope.spawn(move || begin(one)));
        walks.into_iter().filter_map(|walk| walk.join().unwrap()).collect()
    });
    // All phases, without a time limit.
    let rows = walk(&walks, some.len(), Instant::now() + Duration::from_secs(3600));
    if !walks.is_empty() {
        tell(&rows);
    }
}

#[test]
fn helper_ends_with_its_supervisor() {
    let Some(image) = lab::guest(scene::GUEST) else { return };
    let mut lab = lab::Lab::new();
    // A qemu-img that never exits, beside QEMU, where qvm looks for it.
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
