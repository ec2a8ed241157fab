//! VMs that run: start, kill, exit, list, status, memory, wake-ups, many stops at once.

use std::{
    fs,
    process::Command,
    time::{Duration, Instant},
};

use super::{
    place::{Place, ended, guest, timed},
    raw::Raw,
    table::{Row, median, shown},
};

/// How long an idle supervisor is looked at.
const IDLE: Duration = Duration::from_secs(20);

/// One VM: started, killed, gone.
pub(crate) fn one(runs: usize) -> Vec<Row> {
    let Some(image) = guest("boot.qcow2") else { panic!("no guests: `make guests`") };
    let place = Place::new();
    place.vm("web", &image, "");
    // The disk is made, and QEMU's version known.
    let mut first = place.run("web");
    place.timed(&["kill", "web"]);
    first.child.wait().unwrap();
    let (mut starts, mut raw_starts, mut kills, mut quits, mut exits) =
        (vec![], vec![], vec![], vec![], vec![]);
    for _ in 0..runs {
        let raw = Raw::start(&place, "web");
        raw_starts.push(raw.took);
        quits.push(raw.quit());
        let mut started = place.run("web");
        starts.push(started.took);
        let qemu = place.status()[0].pid.unwrap();
        let (qemu, supervisor) = (ended(qemu), ended(started.child.id()));
        let begun = Instant::now();
        let mut kill = place.command(&["kill", "web"]).spawn().unwrap();
        let gone = qemu();
        kills.push(gone - begun);
        exits.push(supervisor() - gone);
        started.child.wait().unwrap();
        kill.wait().unwrap();
    }
    let more = median(&kills).saturating_sub(median(&quits));
    let kill = Row {
        what: "`qvm kill`, exec → QEMU gone, over QMP `quit`",
        qvm: shown(median(&kills)),
        beside: format!("`quit` {}", shown(median(&quits))),
        libvirt: None,
        figure: format!("+ {}", shown(more)),
        bound: "+ 15 ms",
        holds: more <= Duration::from_millis(15),
    };
    let libvirt = libvirt(runs);
    vec![
        Row::ratio(
            "`qvm run` of a prepared VM, exec → ready",
            &starts,
            ("exec → `cont`", &raw_starts),
            ("1.25 ×", 1.25),
        )
        .libvirt(libvirt.map(|(start, _)| start)),
        kill.libvirt(libvirt.map(|(_, destroy)| destroy)),
        Row::at_most("QEMU gone → `qvm run` exited", &exits, ("10 ms", Duration::from_millis(10))),
    ]
}

/// `virsh start` and `virsh destroy` of a like VM, where libvirt is installed and answers.
fn libvirt(runs: usize) -> Option<(Duration, Duration)> {
    let virsh = |words: &[&str]| {
        let mut command = Command::new("virsh");
        command.args(words).stdout(std::process::Stdio::null());
        command
    };
    if !virsh(&["list"]).status().is_ok_and(|status| status.success()) {
        return None;
    }
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("vm.xml");
    let xml = "<domain type='qemu'><name>qvm-bench</name><memory unit='MiB'>64</memory><vcpu>1</vcpu>\
        <os><type machine='q35'>hvm</type></os></domain>";
    fs::write(&file, xml).unwrap();
    timed(&mut virsh(&["define", file.to_str().unwrap()]));
    let (mut starts, mut destroys) = (vec![], vec![]);
    for _ in 0..runs {
        starts.push(timed(&mut virsh(&["start", "qvm-bench"])));
        destroys.push(timed(&mut virsh(&["destroy", "qvm-bench"])));
    }
    timed(&mut virsh(&["undefine", "qvm-bench"]));
    Some((median(&starts), median(&destroys)))
}

/// Many VMs at once.
pub(crate) fn many(runs: usize, count: usize) -> Vec<Row> {
    let Some(image) = guest("boot.qcow2") else { panic!("no guests: `make guests`") };
    let place = Place::new();
    let mut names: Vec<String> = (1..=count).map(|nr| format!("vm{nr}")).collect();
    for name in &names {
        place.vm(name, &image, "");
    }
    let all = |verb: &'static str, names: &[String]| {
        let words: Vec<&str> =
            std::iter::once(verb).chain(names.iter().map(String::as_str)).collect();
        place.timed(&words)
    };
    all("start", &names);
    // The guests reach their idle loops.
    std::thread::sleep(Duration::from_secs(5));
    let lists: Vec<Duration> = (0..runs).map(|_| place.timed(&["list"])).collect();
    let statuses: Vec<Duration> = (0..runs).map(|_| place.timed(&["status", "--json"])).collect();
    let supervisors: Vec<u32> =
        place.status().iter().filter_map(|status| status.supervisor_pid).collect();
    assert_eq!(supervisors.len(), count);
    let pss: u64 = supervisors.iter().map(|pid| pss(*pid)).sum::<u64>() / count as u64;
    let before: u64 = supervisors.iter().map(|pid| switches(*pid)).sum();
    std::thread::sleep(IDLE);
    let woken = supervisors.iter().map(|pid| switches(*pid)).sum::<u64>() - before;
    let rest = names.split_off(count.min(20));
    let mut ends = vec![];
    for name in names.iter().take(5) {
        ends.push(place.timed(&["stop", name]));
        all("start", std::slice::from_ref(name));
    }
    std::thread::sleep(Duration::from_secs(1));
    let (slowest, together) = (ends.iter().max().copied().unwrap(), all("stop", &names));
    if !rest.is_empty() {
        all("kill", &rest);
    }
    let sum: Duration = median(&ends) * u32::try_from(names.len()).unwrap();
    vec![
        Row::at_most("`qvm list`, 50 running", &lists, ("15 ms", Duration::from_millis(15))),
        Row::at_most(
            "`qvm status --json`, all of 50",
            &statuses,
            ("60 ms", Duration::from_millis(60)),
        ),
        Row {
            what: "a supervisor's memory (PSS), 50 running",
            qvm: format!("{pss} kB"),
            beside: String::new(),
            libvirt: None,
            figure: format!("{pss} kB"),
            bound: "1000 kB",
            holds: pss <= 1000,
        },
        Row {
            what: "wake-ups of 50 idle supervisors in 20 s",
            qvm: woken.to_string(),
            beside: String::new(),
            libvirt: None,
            figure: woken.to_string(),
            bound: "0",
            holds: woken == 0,
        },
        Row {
            what: "`qvm stop` of 20 guests together",
            qvm: shown(together),
            beside: format!("one {}, one after the other {}", shown(slowest), shown(sum)),
            libvirt: None,
            figure: format!("{:.2} × the sum", together.as_secs_f64() / sum.as_secs_f64()),
            bound: "not the sum",
            holds: together < sum / 2,
        },
    ]
}

/// In kB.
fn pss(pid: u32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// How often it has slept and been woken.
fn switches(pid: u32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
    line.unwrap().trim().parse().unwrap()
}
