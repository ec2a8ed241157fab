//! Admission of starts: by memory, and by turns on a host under pressure; on real QEMU, with
//! /proc/meminfo and /proc/pressure from files of the test, in a mount namespace of each `qvm`.

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Duration,
};

use qvm::value::ErrorCode;

use crate::lab::{LONG, Lab, guest, notes_of, required, runs, signal, until, until_within};

const SIGINT: i32 = 2;
const SIGKILL: i32 = 9;
/// The memory of a VM of 64 MiB: 64 and 0.25 and 48 MiB.
const ONE: u64 = (64 << 10) + 256 + (48 << 10);

/// A host with fake memory and pressure.
struct Host {
    lab: Lab,
    dir: PathBuf,
    image: PathBuf,
    children: Vec<Child>,
}

impl Host {
    /// Memory for this number of VMs, long after the boot, and no pressure; `None` if the host is
    /// impossible and not required.
    fn new(room: u64, settings: &str) -> Option<Self> {
        let image = guest("boot.qcow2")?;
        let lab = Lab::new();
        let dir = lab.path().join("host");
        fs::create_dir_all(dir.join("pressure")).unwrap();
        let host = Self { lab, dir, image, children: vec![] };
        host.memory(room * ONE);
        host.pressure(0.0);
        host.settings(&format!("reserveMem = 0\n{settings}\n"));
        if host.command(&["--version"]).output().unwrap().status.success() {
            return Some(host);
        }
        assert!(!required("netns"), "no mount namespace can be made");
        println!("skipped: no mount namespace");
        None
    }

    fn memory(&self, kib: u64) {
        self.tell("meminfo", &format!("MemTotal: {kib} kB\nHugetlb: 0 kB\n"));
    }

    /// Another VM that is being started for the next ten seconds: its supervisor is this process.
    fn another_starts(&self) {
        fs::create_dir_all(self.lab.runtime("another", "")).unwrap();
        fs::create_dir_all(self.lab.runtime(".memory", "")).unwrap();
        let pid = std::process::id();
        let reservation = serde_json::json!({
            "memBytes": 16 << 20, "pid": pid,
            "startTime": qvm::sys::pidfd::start_time(pid).unwrap(),
            "bootId": qvm::sys::pidfd::boot_id().unwrap(), "goes": true,
        });
        fs::write(self.lab.runtime(".memory", "another"), reservation.to_string()).unwrap();
    }

    fn pressure(&self, percent: f64) {
        for what in ["cpu", "io", "memory"] {
            let line = format!("avg10={percent} avg60=0.00 avg300=0.00 total=0\n");
            self.tell(&format!("pressure/{what}"), &format!("some {line}full {line}"));
        }
    }

    /// In place, because the file itself is mounted.
    fn tell(&self, file: &str, text: &str) {
        fs::write(self.dir.join(file), text).unwrap();
    }

    fn settings(&self, text: &str) {
        let file = self.lab.file("x").parent().unwrap().with_file_name("qvm.toml");
        fs::write(file, text).unwrap();
    }

    fn vm(&self, name: &str) {
        self.lab.vm(name, &self.image, "shutdownTimeoutSec = 1\n");
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let own = self.lab.command(arguments);
        let mut command = Command::new("unshare");
        if !nix::unistd::geteuid().is_root() {
            command.args(["--user", "--map-root-user"]);
        }
        let mounts = "d=$1; shift; for f in meminfo pressure; do mount --bind \"$d/$f\" \
                      /proc/$f || exit 99; done; exec \"$@\"";
        command.args(["--mount", "sh", "-c", mounts, "sh"]).arg(&self.dir);
        command.arg(own.get_program()).args(own.get_args());
        for (key, value) in own.get_envs() {
            match value {
                Some(value) => command.env(key, value),
                None => command.env_remove(key),
            };
        }
        command.stdin(Stdio::null());
        command
    }

    /// Runs `qvm run NAME` in parallel.
    fn run(&mut self, name: &str) -> usize {
        let log = fs::File::create(self.lab.log_path(name)).unwrap();
        self.children.push(self.command(&["run", name]).stderr(log).spawn().unwrap());
        self.children.len() - 1
    }

    fn exit_code(&mut self, child: usize) -> Option<i32> {
        let mut status = None;
        until("the supervisor's end", || {
            status = self.children[child].try_wait().unwrap();
            status.is_some()
        });
        status.unwrap().code()
    }

    fn waits(&self, name: &str, what: &str) {
        until(&format!("{name} waits for {what}"), || {
            let status = self.lab.status(name);
            let told = status["notes"].to_string();
            status["state"] == "starting" && notes_of(&status) == ["waiting"] && told.contains(what)
        });
    }

    fn started_at(&self, name: &str) -> Option<jiff::Timestamp> {
        let record = fs::read(self.lab.runtime(name, "record.json")).ok()?;
        let record: serde_json::Value = serde_json::from_slice(&record).ok()?;
        record["startedAt"].as_str()?.parse().ok()
    }

    fn reserved(&self) -> Vec<String> {
        let dir = self.lab.runtime(".memory", "");
        let entries = fs::read_dir(dir).unwrap();
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn insufficient_memory_is_refused() {
    let Some(host) = Host::new(2, "") else { return };
    for name in ["a", "b", "c"] {
        host.vm(name);
    }
    for name in ["a", "b"] {
        let output = host.command(&["start", name]).output().unwrap();
        assert!(output.status.success(), "{}", text(&output.stderr));
    }
    assert_eq!(host.reserved(), ["a", "b"]);
    // The unit's log has the same text as the verb.
    for verb in ["run", "start"] {
        let output = host.command(&[verb, "c"]).output().unwrap();
        let refusal = host.lab.refusal(&output).without_log();
        refusal.is(ErrorCode::NoMemory, 69).golden("start", "no-memory");
    }
    assert_eq!(host.command(&["restart", "c"]).output().unwrap().status.code(), Some(69));
    let status = host.lab.status("c");
    assert_eq!(
        (&status["state"], &status["lastStop"]["reason"]),
        (&"failed".into(), &"start-failed".into())
    );
    // Nothing was created for it, and no memory is reserved.
    assert!(!host.lab.state("c", "root.qcow2").exists());
    assert_eq!(host.reserved(), ["a", "b"]);
    host.lab.ok(&["stop", "a"]);
    assert_eq!(host.reserved(), ["b"]);
    assert!(host.command(&["start", "c"]).status().unwrap().success());
    // A VM that is larger than the host gets no hint to wait for others.
    host.lab.vm("huge", &host.image, "mem = \"4G\"\n");
    let output = host.command(&["start", "huge"]).output().unwrap();
    let refusal = host.lab.refusal(&output).without_log();
    refusal.is(ErrorCode::NoMemory, 69).golden("start", "no-memory-at-all");
    // The settings of another host, and unreadable ones.
    host.settings("admission = \"of\"\n");
    let output = host.command(&["start", "huge"]).output().unwrap();
    assert_eq!(output.status.code(), Some(78));
    host.settings("admission = \"off\"\n");
    host.vm("d");
    assert!(host.command(&["start", "d"]).status().unwrap().success());
}

/// flock(2) accepts any descriptor, so the group, which may read the directories, could block
/// starts and stops.
#[test]
fn readers_cannot_open_locks() {
    let Some(mut host) = Host::new(9, "") else { return };
    let runtime = host.lab.runtime("", "");
    // As created by an earlier version.
    let made_wide = runtime.join(".admission.lock");
    fs::create_dir_all(&runtime).unwrap();
    fs::write(&made_wide, "").unwrap();
    fs::set_permissions(&made_wide, fs::Permissions::from_mode(0o640)).unwrap();
    host.vm("a");
    host.another_starts();
    host.pressure(90.0);
    host.run("a");
    host.waits("a", "its turn");
    host.pressure(0.0);
    host.lab.wait_state("a", "running");
    let mut locks = vec![];
    for dir in [runtime.clone(), runtime.join("a"), host.lab.state("a", "").join("../..")] {
        for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
            let name = entry.file_name().into_string().unwrap();
            if name.ends_with("lock") {
                assert_eq!(entry.metadata().unwrap().mode() & 0o7777, 0o600, "{name}");
                locks.push(name);
            }
        }
    }
    locks.sort();
    let mut expected = vec![".admission.lock", ".turn.lock", "lock", "qemu.lock"];
    if nix::unistd::geteuid().is_root() {
        expected.push("uids.lock");
    }
    assert_eq!(locks, expected);
}

#[test]
fn waiting_start_is_woken_and_cancelable() {
    let Some(mut host) = Host::new(1, "admission = \"wait\"") else { return };
    for name in ["a", "b", "c", "d"] {
        host.vm(name);
    }
    assert!(host.command(&["start", "a"]).status().unwrap().success());
    let by_hand = host.command(&["start", "b"]).stdout(Stdio::piped()).spawn().unwrap();
    let (c, d) = (host.run("c"), host.run("d"));
    for name in ["b", "c", "d"] {
        host.waits(name, "memory: it may take 112.2 MiB, and 0 MiB are left");
    }
    assert_eq!(host.reserved(), ["a"]);
    // Each kind of cancellation takes effect immediately.
    host.lab.ok(&["stop", "c"]);
    assert_eq!(host.exit_code(c), Some(0), "{}", host.lab.log("c"));
    signal(host.children[d].id().cast_signed(), SIGINT);
    assert_eq!(host.exit_code(d), Some(0), "{}", host.lab.log("d"));
    // The end of a guest wakes waiting starts long before their next check.
    host.lab.ok(&["kill", "a"]);
    let output = by_hand.wait_with_output().unwrap();
    assert_eq!(
        text(&output.stdout),
        "b: waits for memory: it may take 112.2 MiB, and 0 MiB are left: \
         of 112.2 MiB the host keeps 0 MiB, and 1 VM may take \
         112.2 MiB\nb: running\n"
    );
    // A change of the settings wakes them too.
    let d = host.run("d");
    host.waits("d", "memory");
    host.settings("admission = \"refuse\"\n");
    assert_eq!(host.exit_code(d), Some(69));
    host.settings("reserveMem = 0\nadmission = \"wait\"\n");
    host.run("d");
    host.waits("d", "memory");
    host.settings("admission = \"off\"\n");
    host.lab.wait_state("d", "running");
}

#[test]
fn parallel_starts_do_not_exceed_memory() {
    let Some(mut host) = Host::new(2, "") else { return };
    let names = ["a", "b", "c", "d", "e", "f"];
    for name in names {
        host.vm(name);
    }
    let children = names.map(|name| host.run(name));
    let (mut up, mut refused) = (0, 0);
    for (name, child) in names.into_iter().zip(children) {
        until("it runs, or was refused", || {
            let code = host.children[child].try_wait().unwrap().map(|status| status.code());
            match code {
                Some(code) => assert_eq!(code, Some(69), "{}", host.lab.log(name)),
                None if host.lab.status(name)["state"] != "running" => return false,
                None => {}
            }
            *(if code.is_some() { &mut refused } else { &mut up }) += 1;
            true
        });
    }
    assert_eq!((up, refused), (2, 4));
}

#[test]
fn adoption_needs_no_admission() {
    let Some(mut host) = Host::new(1, "") else { return };
    host.vm("a");
    host.vm("b");
    let a = host.run("a");
    host.lab.wait_state("a", "running");
    let qemu = host.lab.qemu_pid("a");
    signal(host.children[a].id().cast_signed(), SIGKILL);
    assert_eq!(host.exit_code(a), None);
    // Without a supervisor, QEMU still has its memory, also with a run record of an earlier
    // version.
    for forgets in [false, true] {
        if forgets {
            fs::remove_file(host.lab.runtime(".memory", "a")).unwrap();
        }
        let b = host.run("b");
        assert_eq!(host.exit_code(b), Some(69));
    }
    host.memory(1000);
    host.settings("admission = \"refuse\"\nreserveMem = \"1G\"\n");
    host.run("a");
    until("it is taken over", || host.lab.log("a").contains("taken over"));
    assert_eq!(host.lab.qemu_pid("a"), qemu);
    assert_eq!(host.reserved(), ["a"]);
    // A saved state is not lost if there is no memory to restore it.
    host.lab.ok(&["suspend", "a"]);
    assert_eq!(host.reserved(), Vec::<String>::new());
    let again = host.run("a");
    assert_eq!(host.exit_code(again), Some(69), "{}", host.lab.log("a"));
    assert!(host.lab.state("a", "saved.state").exists());
    // A supervisor that is killed with its QEMU reserves nothing.
    host.memory(ONE);
    host.settings("reserveMem = 0\n");
    let again = host.run("a");
    host.lab.wait_state("a", "running");
    let qemu = host.lab.qemu_pid("a");
    signal(host.children[again].id().cast_signed(), SIGKILL);
    assert_eq!(host.exit_code(again), None);
    signal(qemu, SIGKILL);
    until("QEMU is gone", || !runs(qemu));
    assert_eq!(host.reserved(), ["a"]);
    host.run("b");
    host.lab.wait_state("b", "running");
}

#[test]
fn guest_reboot_needs_no_admission() {
    let Some(mut host) = Host::new(1, "") else { return };
    host.vm("a");
    // More memory than available, after the next reboot.
    let file = host.lab.file("a");
    let now = fs::read_to_string(&file).unwrap();
    let later = now.replace("64M", "80M");
    assert_ne!(now, later);
    host.run("a");
    host.lab.wait_state("a", "running");
    fs::write(&file, later).unwrap();
    host.lab.says("a", "BOOT-GUEST-READY", 1);
    host.lab.ok(&["reboot", "a"]);
    until("the guest has more", || host.lab.status("a")["memBytes"] == 80 << 20);
    host.lab.wait_state("a", "running");
    let log = host.lab.log("a");
    assert!(
        log.contains("launching the guest again although the host has not enough memory left"),
        "{log}"
    );
}

#[test]
fn manual_start_ignores_pressure() {
    let Some(host) = Host::new(9, "") else { return };
    host.vm("a");
    host.pressure(99.0);
    let output = host.command(&["start", "a"]).output().unwrap();
    assert_eq!(text(&output.stdout), "a: running\n");
}

#[test]
fn pressure_delays_parallel_starts() {
    let Some(mut host) = Host::new(9, "") else { return };
    let names = ["a", "b"];
    for name in names {
        host.vm(name);
    }
    host.another_starts();
    host.pressure(90.0);
    for name in names {
        host.run(name);
    }
    for name in names {
        host.waits(name, "its turn");
    }
    host.pressure(0.0);
    for name in names {
        host.lab.wait_state(name, "running");
    }
    for name in names {
        let log = host.lab.log(name);
        assert!(log.contains("waits for its turn: "), "{log}");
    }
}

#[test]
fn kernel_without_psi_delays_no_start() {
    let Some(mut host) = Host::new(9, "") else { return };
    fs::remove_dir_all(host.dir.join("pressure")).unwrap();
    fs::create_dir(host.dir.join("pressure")).unwrap();
    host.another_starts();
    for name in ["a", "b", "c"] {
        host.vm(name);
        host.run(name);
    }
    for name in ["a", "b", "c"] {
        host.lab.wait_state(name, "running");
        assert!(!host.lab.log(name).contains("waits"), "{}", host.lab.log(name));
    }
}

#[test]
#[ignore = "make test-faults"]
fn lasting_pressure_prevents_no_start() {
    let Some(mut host) = Host::new(9, "") else { return };
    let names = ["a", "b", "c", "d", "e"];
    host.another_starts();
    host.pressure(90.0);
    for name in names {
        host.vm(name);
        host.run(name);
    }
    for name in names {
        until_within(LONG, "it runs", || host.lab.status(name)["state"] == "running");
    }
    let mut at = names.map(|name| host.started_at(name).unwrap());
    at.sort();
    for pair in at.windows(2) {
        let apart = Duration::try_from(pair[1].duration_since(pair[0])).unwrap();
        // A turn is 5 s, and the next one begins 2 s later.
        assert!(apart >= Duration::from_secs(4), "{apart:?}");
    }
    println!("5 starts under pressure: {:?}", at[4].duration_since(at[0]));
}
