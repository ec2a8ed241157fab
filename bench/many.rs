//! Fifty VMs that idle: what it costs to ask them, and what their supervisors cost.

use std::{fs, thread, time::Duration};

use crate::{
    figure::{Figure, Outcome, Sample},
    libvirt::Libvirt,
    place::{Place, Running, timed},
};

const COUNT: usize = 50;
const ASKED: usize = 21;
const IDLE: Duration = Duration::from_secs(20);

pub(crate) fn measure() -> Outcome<Vec<Figure>> {
    let place = Place::new()?;
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
    let mut list = asked(&place, "`qvm list` with 50 running", "15 ms", &["list"], 15)?;
    let words = ["status", "--json"];
    let mut status = asked(&place, "`qvm status --json` of 50", "60 ms", &words, 60)?;
    let mut pss: Vec<u64> = Vec::new();
    for vm in &running {
        pss.push(proportional_set_size(vm.supervisor.pid())?);
    }
    let mean = pss.iter().sum::<u64>() / pss.len() as u64;
    let memory = Figure::alone(
        "a supervisor's memory (PSS), mean of 50",
        "1 MB",
        format!("{:.2} MB", mean as f64 / 1e6),
        mean <= 1_000_000,
    );
    let idle = wake_ups(&running)?;
    let all: Vec<&str> = ["kill"].into_iter().chain(names.iter().map(String::as_str)).collect();
    timed(&mut place.qvm(&all))?;
    drop(running);
    if let Some(libvirt) = Libvirt::new(&place, COUNT)? {
        for nr in 0..COUNT {
            libvirt.start(nr)?;
        }
        thread::sleep(Duration::from_secs(2));
        list.libvirt = Some(Libvirt::asked(&["list", "--all"], ASKED)?);
        status.libvirt = Some(Libvirt::asked(&["domstats"], ASKED)?);
    }
    Ok(vec![list, status, memory, idle])
}

fn asked(
    place: &Place,
    what: &'static str,
    bound: &'static str,
    words: &[&str],
    most: u64,
) -> Outcome<Figure> {
    let mut sample = Sample::default();
    for _ in 0..ASKED {
        sample.push(timed(&mut place.qvm(words))?);
    }
    let met = sample.median() <= Duration::from_millis(most);
    Ok(Figure::alone(what, bound, sample.to_string(), met))
}

/// In bytes. What is shared counts for each process by its part.
fn proportional_set_size(pid: u32) -> Outcome<u64> {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let line = rollup.lines().find(|line| line.starts_with("Pss:")).ok_or("no Pss")?;
    Ok(line.split_whitespace().nth(1).ok_or("no Pss")?.parse::<u64>()? << 10)
}

/// How often the supervisors were woken while nothing happened.
fn wake_ups(running: &[Running]) -> Outcome<Figure> {
    let count = || {
        let mut all = 0;
        for vm in running {
            all += switches(vm.supervisor.pid())?;
        }
        Outcome::Ok(all)
    };
    let before = count()?;
    thread::sleep(IDLE);
    let woken = count()? - before;
    Ok(Figure::alone(
        "wake-ups of 50 idle supervisors in 20 s",
        "0 without a watchdog",
        woken.to_string(),
        woken == 0,
    ))
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
