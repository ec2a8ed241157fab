//! Load: many VMs on one host, many clients of one VM, many starts of one VM, and a long run. `make
//! test-faults` runs the tests of several minutes, and prints their figures.

use std::{
    collections::BTreeMap,
    fs,
    io::{Read, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use crate::lab::{LONG, Lab, guest, runs, signal, until, until_within};
use qvm::control::{client::Client, types::Command};

const SIGHUP: i32 = 1;

/// Every file below a directory, and its size.
fn files(dir: &Path) -> BTreeMap<PathBuf, u64> {
    let mut all = BTreeMap::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        // Sockets and locks are temporary.
        let Ok(meta) = entry.path().symlink_metadata() else { continue };
        match meta.is_dir() {
            true => all.extend(files(&entry.path())),
            false => drop(all.insert(entry.path(), meta.len())),
        }
    }
    all
}

fn descriptors(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count()
}

/// A line in kB of /proc/PID/FILE, in bytes.
fn kib(pid: u32, file: &str, key: &str) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(key)).unwrap();
    line.split_whitespace().next().unwrap().parse::<u64>().unwrap() << 10
}

/// The processes of this lab.
fn processes(lab: &Lab) -> Vec<u32> {
    let dir = lab.path().to_str().unwrap().to_owned();
    let all = fs::read_dir("/proc").unwrap().flatten();
    all.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid: &u32| {
            let environ = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            String::from_utf8_lossy(&environ).contains(&dir)
        })
        .collect()
}

fn small(lab: &Lab, name: &str, image: &Path) {
    lab.vm(name, image, "mem = \"16M\"\nshutdownTimeoutSec = 20\n");
}

/// Starts and ends a VM `count` times, and returns the leftovers of each run.
fn lives(count: usize) {
    let Some(image) = guest("boot.qcow2") else { return };
    let lab = Lab::new();
    small(&lab, "web", &image);
    let life = |nr: usize| {
        lab.ok(&["start", "web"]);
        lab.ok(&["kill", "web"]);
        until("its supervisor has gone", || processes(&lab).is_empty());
        assert!(!lab.runtime("web", "record.json").exists(), "after life {nr}");
    };
    // The eleventh end replaces the first.
    (0..11).for_each(life);
    let (before, begun) = (files(lab.path()), Instant::now());
    (11..count).for_each(life);
    let after = files(lab.path());
    let names = |files: &BTreeMap<PathBuf, u64>| files.keys().cloned().collect::<Vec<_>>();
    let log = lab.state("web", "supervisor.log");
    let older = lab.state("web", "supervisor.log.1");
    let logs = [&log, &older].map(|log| after.get(log).copied().unwrap_or(0));
    assert!(logs.iter().all(|size| *size < 2 << 20), "{logs:?}");
    let mut left = names(&after);
    left.retain(|file| *file != older);
    assert_eq!(names(&before), left);
    for (file, size) in &after {
        let grown = size.saturating_sub(before.get(file).copied().unwrap_or(0));
        let is_log =
            file.starts_with(lab.state("web", "")) && file.to_str().unwrap().contains(".log");
        assert!(grown < 4096 || is_log, "{}: {grown} bytes more", file.display());
    }
    let each = begun.elapsed() / u32::try_from(count - 11).unwrap();
    println!("{count} lives of one VM: {each:?} each, {} files, logs {logs:?}", after.len());
}

#[test]
fn few_runs_leave_nothing() {
    lives(20);
}

#[test]
#[ignore = "make test-faults"]
fn thousand_runs_leave_nothing() {
    lives(1000);
}

/// A varlink call as bytes.
fn call(method: &str, more: bool) -> Vec<u8> {
    let text = serde_json::json!({ "method": method, "parameters": {}, "more": more }).to_string();
    [text.as_bytes(), b"\0"].concat()
}

#[test]
fn silent_and_slow_clients_delay_nothing() {
    let Some(image) = guest("boot.qcow2") else { return };
    let mut lab = Lab::new();
    small(&lab, "web", &image);
    let one = lab.run("web");
    lab.says("web", "BOOT-GUEST-READY", 1);
    lab.wait_state("web", "running");
    let socket = lab.runtime("web", "control.sock");
    let pid = lab.supervisor(one).id();
    let fds = descriptors(pid);
    let connect = || UnixStream::connect(&socket).unwrap();
    // Clients that send nothing, that call repeatedly without reading, and that subscribe to events
    // without reading.
    let silent: Vec<UnixStream> = (0..70).map(|_| connect()).collect();
    let status = call("io.qvm.Vm.Status", false);
    let slow: Vec<UnixStream> = (0..70)
        .map(|_| {
            let mut stream = connect();
            stream.set_nonblocking(true).unwrap();
            // Until the supervisor reads no more from it.
            let full = Instant::now();
            while full.elapsed() < LONG {
                if stream.write(&status).is_err() {
                    break;
                }
            }
            stream
        })
        .collect();
    let deaf: Vec<UnixStream> = (0..60)
        .map(|_| {
            let mut stream = connect();
            stream.write_all(&call("io.systemd.MachineInstance.SubscribeEvents", true)).unwrap();
            stream
        })
        .collect();
    for _ in 0..20 {
        lab.ok(&["pause", "web"]);
        lab.ok(&["resume", "web"]);
    }
    let asked = Instant::now();
    let told = lab.status("web");
    let answered = asked.elapsed();
    assert_eq!(told["state"], "running");
    let busy = descriptors(pid);
    // Descriptors of the start, which were open at the first count, are closed by now.
    assert!((fds + 190..fds + 220).contains(&busy), "{fds} descriptors, then {busy}");
    let asked = Instant::now();
    lab.ok(&["stop", "web"]);
    assert_eq!(lab.exit_code(one), Some(0));
    let stopped = asked.elapsed();
    println!("with 200 clients: status in {answered:?}, stop in {stopped:?}");
    for mut stream in silent {
        assert_eq!(stream.read(&mut [0]).unwrap(), 0, "its end is not reported");
    }
    drop((slow, deaf));
}

#[test]
fn disconnected_clients_leave_nothing() {
    let Some(image) = guest("boot.qcow2") else { return };
    let mut lab = Lab::new();
    small(&lab, "web", &image);
    let one = lab.run("web");
    lab.wait_state("web", "running");
    let socket = lab.runtime("web", "control.sock");
    let pid = lab.supervisor(one).id();
    let fds = descriptors(pid);
    for round in 0..1000 {
        let mut stream = UnixStream::connect(&socket).unwrap();
        let call = call("io.qvm.Vm.Status", false);
        let part = [call.len(), call.len() / 2, 0][round % 3];
        stream.write_all(&call[..part]).unwrap();
    }
    until("their descriptors are closed", || descriptors(pid) <= fds);
    assert_eq!(lab.status("web")["state"], "running");
}

#[test]
#[ignore = "make test-faults"]
fn hundred_vms_on_one_host() {
    const COUNT: usize = 100;
    const FEW: usize = 10;
    let Some(image) = guest("boot.qcow2") else { return };
    let lab = Lab::new();
    fs::write(lab.file("x").parent().unwrap().with_file_name("qvm.toml"), "admission = \"off\"\n")
        .unwrap();
    let names: Vec<String> = (0..COUNT).map(|nr| format!("vm{nr:03}")).collect();
    names.iter().for_each(|name| small(&lab, name, &image));
    let all = |verb: &str| -> Vec<String> {
        [verb.to_owned()].into_iter().chain(names.iter().cloned()).collect()
    };
    let timed = |words: &[String]| {
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let begun = Instant::now();
        let said = lab.ok(&words);
        (begun.elapsed(), said)
    };
    let median = |words: &[&str]| {
        let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        let mut took: Vec<Duration> = (0..11).map(|_| timed(&words).0).collect();
        took.sort();
        took[5]
    };
    // One at a time, so that other load does not delay them.
    let begun = Instant::now();
    let mut few = None;
    for (nr, name) in names.iter().enumerate() {
        timed(&["start".to_owned(), name.clone()]);
        if nr + 1 == FEW {
            few = Some((median(&["list"]), median(&["status", "--json"])));
        }
    }
    let (few_list, few_status) = few.unwrap();
    let started = begun.elapsed();
    for name in &names {
        lab.says(name, "BOOT-GUEST-READY", 1);
    }
    let (list, status) = (median(&["list"]), median(&["status", "--json"]));
    let told: Vec<serde_json::Value> =
        serde_json::from_str(&lab.ok(&["status", "--json"])).unwrap();
    assert_eq!(told.len(), COUNT);
    let supervisors: Vec<u32> = told
        .iter()
        .map(|one| {
            assert_eq!(one["state"], "running");
            u32::try_from(one["supervisorPid"].as_u64().unwrap()).unwrap()
        })
        .collect();
    let pss: Vec<u64> = supervisors.iter().map(|pid| kib(*pid, "smaps_rollup", "Pss:")).collect();
    let (mean, most) = (pss.iter().sum::<u64>() / COUNT as u64, *pss.iter().max().unwrap());
    // One more VM besides the others: a start reads the data of all.
    small(&lab, "one-more", &image);
    let (beside, _) = timed(&["start".to_owned(), "one-more".to_owned()]);
    let (stopped, _) = timed(&all("stop"));
    lab.ok(&["kill", "one-more"]);
    until("all have gone", || processes(&lab).is_empty());
    for name in names {
        assert!(!lab.runtime(&name, "record.json").exists());
    }
    assert_eq!(fs::read_dir(lab.runtime(".memory", "")).unwrap().count(), 0);
    println!(
        "{COUNT} VMs: started in {started:?}, one more in {beside:?}; list {list:?}, \
         status --json {status:?}; \
         a supervisor {} kB on average and {} kB at most; all stopped in {stopped:?}",
        mean / 1000,
        most / 1000
    );
    println!("with {FEW} of them: list {few_list:?}, status --json {few_status:?}");
    // Linear in their number, not quadratic; three times that, because of other load.
    let times = u32::try_from(3 * COUNT / FEW).unwrap();
    assert!(list < few_list * times, "{list:?}, with {FEW} {few_list:?}");
    assert!(status < few_status * times, "{status:?}, with {FEW} {few_status:?}");
    // For a debug build; `make bench` checks the release build.
    assert!(mean < 4_000_000, "{mean}");
}

/// The resources of a supervisor.
#[derive(Debug)]
struct Weight {
    memory: u64,
    descriptors: usize,
    files: u64,
    threads: usize,
}

fn weight(lab: &Lab, pid: u32) -> Weight {
    Weight {
        memory: kib(pid, "smaps_rollup", "Private_Dirty:"),
        descriptors: descriptors(pid),
        files: files(&lab.state("web", "")).values().sum(),
        threads: fs::read_dir(format!("/proc/{pid}/task")).unwrap().count(),
    }
}

#[test]
#[ignore = "make test-faults"]
fn long_run_uses_bounded_resources() {
    /// Status requests, and one of ten of each of these: statistics, event subscriptions, console
    /// viewers; of a hundred: pauses, resets, reloads of a changed file.
    const ROUNDS: usize = 100;
    const WARM: usize = 20;
    // The guest writes to the console without an end.
    let Some(image) = guest("boot-flood.qcow2") else { return };
    let mut lab = Lab::new();
    small(&lab, "web", &image);
    let one = lab.run("web");
    lab.wait_state("web", "running");
    let pid = lab.supervisor(one).id();
    let (socket, file) = (lab.runtime("web", "control.sock"), lab.file("web"));
    let text = fs::read_to_string(&file).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    // The console log has its full size from then on.
    until_within(3 * LONG, "the log is full", || lab.state("web", "console.log.1").exists());
    let alone = descriptors(pid);
    let begun = Instant::now();
    let (mut warm, mut said) = (None, 0_usize);
    for round in 0..ROUNDS {
        if round == WARM {
            warm = Some(weight(&lab, pid));
        }
        said += runtime.block_on(async {
            let mut client = Client::connect(&socket).await.unwrap();
            let mut said = 0;
            for nr in 0..200 {
                client.status(LONG).await.unwrap();
                said += 1;
                if nr % 10 == 0 {
                    client.statistics(LONG).await.unwrap();
                    let one = Client::connect(&socket).await.unwrap();
                    drop(one.watch().await.unwrap());
                    let one = Client::connect(&socket).await.unwrap();
                    drop(one.console(true, 4096).await.unwrap());
                    said += 3;
                }
                if nr % 100 == 0 {
                    for command in [Command::Pause, Command::Resume, Command::Reset] {
                        client.command(command).await.unwrap();
                        said += 1;
                    }
                }
            }
            said
        });
        fs::write(&file, format!("cpuWeight = {}\n{text}", 100 + round % 7)).unwrap();
        signal(pid.cast_signed(), SIGHUP);
    }
    until("the last file is read", || lab.status("web")["cpuWeight"] == 100 + (ROUNDS - 1) % 7);
    // Closed viewers are detected at the next write to them.
    until("the descriptors of those who left are closed", || descriptors(pid) <= alone + 4);
    let (warm, end) = (warm.unwrap(), weight(&lab, pid));
    println!("{said} calls in {:?}: {warm:?}, then {end:?}", begun.elapsed());
    assert!(end.memory <= warm.memory + (512 << 10), "{warm:?}, then {end:?}");
    assert!(end.descriptors <= alone + 4, "{alone}, then {end:?}");
    assert_eq!(end.threads, warm.threads);
    // Two halves of a log of 512 KiB each, their times, and small files.
    assert!(end.files <= warm.files.max(2 << 20) + (1 << 20), "{warm:?}, then {end:?}");
    assert!(runs(pid.cast_signed()));
    lab.ok(&["kill", "web"]);
    lab.exit_code(one);
}
