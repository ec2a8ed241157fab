//! Fifty VMs that idle: what it costs to ask them, and what their supervisors cost.

use std::{fs, thread, time::Duration};

use crate::{
    figure::{Figure, Outcome, Sample},
    libvirt::Libvirt,
    place::{Place, Running, places, timed},
};

const COUNT: usize = 50;
const ASKED: usize = 21;
/// A supervisor returns memory that requests have used after 5 s.
const SETTLED: Duration = Duration::from_secs(8);
const IDLE: Duration = Duration::from_secs(20);

/// The results of one program.
#[derive(Debug)]
struct Results {
    list: Sample,
    status: Sample,
    /// The mean over all supervisors, in bytes.
    memory: u64,
    wake_ups: u64,
}

pub(crate) fn measure() -> Outcome<Vec<Figure>> {
    let places = places()?;
    let results = places.iter().map(with_all_running).collect::<Outcome<Vec<_>>>()?;
    let [now, before @ ..] = &results[..] else { return Err("no place".into()) };
    let before = before.first();
    let mut list = within("`qvm list` with 50 running", ("10 ms", 10), &now.list)
        .before(before.map(|results| &results.list));
    let mut status = within("`qvm status --json` of 50", ("15 ms", 15), &now.status)
        .before(before.map(|results| &results.status));
    let megabytes = |bytes: u64| format!("{:.2} MB", bytes as f64 / 1e6);
    let memory = Figure {
        before: before.map(|results| megabytes(results.memory)).unwrap_or_default(),
        ..Figure::alone(
            "a supervisor's memory (PSS, 50 running)",
            "0.8 MB",
            megabytes(now.memory),
            now.memory <= 800_000,
        )
    };
    let idle = Figure {
        before: before.map(|results| results.wake_ups.to_string()).unwrap_or_default(),
        ..Figure::alone(
            "idle supervisor: wake-ups of 50 in 20 s",
            "no wake-up but the watchdog's",
            now.wake_ups.to_string(),
            now.wake_ups == 0,
        )
    };
    if let Some(libvirt) = Libvirt::new(&places[0], COUNT)? {
        for nr in 0..COUNT {
            libvirt.start(nr)?;
        }
        thread::sleep(Duration::from_secs(2));
        list.libvirt = Some(libvirt.asked(&["list", "--all"], ASKED)?);
        status.libvirt = Some(libvirt.asked(&["domstats"], ASKED)?);
    }
    Ok(vec![list, status, memory, idle])
}

/// Starts all VMs, measures, and ends them.
fn with_all_running(place: &Place) -> Outcome<Results> {
    let names: Vec<String> = (0..COUNT).map(|nr| format!("vm{nr:02}")).collect();
    let mut running = Vec::new();
    // A few at a time, so that none waits for the others longer than it may.
    for some in names.chunks(4) {
        let mut starting = Vec::new();
        for name in some {
            place.vm(name, "boot.qcow2", "")?;
            starting.push(place.start(name)?);
        }
        for start in starting {
            running.push(start.ready()?.0);
        }
    }
    // Every guest has booted, and halts its CPU.
    for name in &names {
        let console = place.paths(name)?.console_log();
        while fs::read(&console).unwrap_or_default().is_empty() {
            thread::sleep(Duration::from_millis(50));
        }
    }
    thread::sleep(Duration::from_secs(2));
    let list = asked(place, &["list"])?;
    let status = asked(place, &["status", "--json"])?;
    thread::sleep(SETTLED);
    let mut pss: Vec<u64> = Vec::new();
    for vm in &running {
        pss.push(proportional_set_size(vm.supervisor.pid())?);
    }
    let memory = pss.iter().sum::<u64>() / pss.len() as u64;
    let wake_ups = wake_ups(&running)?;
    let all: Vec<&str> = ["kill"].into_iter().chain(names.iter().map(String::as_str)).collect();
    timed(&mut place.qvm(&all))?;
    Ok(Results { list, status, memory, wake_ups })
}

fn within(what: &'static str, (bound, most): (&'static str, u64), sample: &Sample) -> Figure {
    let met = sample.median() <= Duration::from_millis(most);
    Figure::alone(what, bound, sample.to_string(), met)
}

fn asked(place: &Place, words: &[&str]) -> Outcome<Sample> {
    let mut sample = Sample::default();
    for _ in 0..ASKED {
        sample.push(timed(&mut place.qvm(words))?);
    }
    Ok(sample)
}

/// In bytes. What is shared counts for each process by its part.
fn proportional_set_size(pid: u32) -> Outcome<u64> {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let line = rollup.lines().find(|line| line.starts_with("Pss:")).ok_or("no Pss")?;
    Ok(line.split_whitespace().nth(1).ok_or("no Pss")?.parse::<u64>()? << 10)
}

/// How often the supervisors were woken while nothing happened.
fn wake_ups(running: &[Running]) -> Outcome<u64> {
    let count = || {
        let mut all = 0;
        for vm in running {
            all += switches(vm.supervisor.pid())?;
        }
        Outcome::Ok(all)
    };
    let before = count()?;
    thread::sleep(IDLE);
    Ok(count()? - before)
}

/// How often any thread of the process gave up its CPU: once for each time it was woken.
fn switches(pid: u32) -> Outcome<u64> {
    let mut all = 0;
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let status = fs::read_to_string(task?.path().join("status"))?;
        let line = status.lines().find(|line| line.starts_with("voluntary_ctxt_switches:"));
        all +=
            line.and_then(|l| l.split_whitespace().nth(1)).ok_or("no switches")?.parse::<u64>()?;
    }
    Ok(all)
}
