//! Faults of the host, on real QEMU: their reports, and that no data is lost.

use std::{
    fs,
    os::unix::{fs::PermissionsExt, net::UnixDatagram},
    path::{Path, PathBuf},
    process::Output,
};

use crate::lab::{Lab, guest, mounts::Mounts, notes_of, runs, signal, until};

const SIGKILL: i32 = 9;
const SIGTERM: i32 = 15;
const SIGCONT: i32 = 18;
const SIGSTOP: i32 = 19;
const MIB: u64 = 1 << 20;
/// The size of each write of the guest.
const PIECE: u64 = 8 * MIB;

/// A VM of the tiny guest with a disk `data` of 64 MiB on a file system of the same size, which is
/// full except for 4 MiB.
fn tight(format: &str, more: &str) -> Option<(Lab, PathBuf, usize)> {
    let image = guest("tiny.qcow2")?;
    let mut lab = Lab::new();
    let small = lab.path().join("small");
    let mounts = lab.mounts()?;
    mounts.tmpfs(&small, "size=64m");
    let data = small.join(format!("data.{format}"));
    mounts.sh(&format!("qemu-img create -q -f {format} '{}' 64M", data.display()));
    let place = format!("path = \"{}\"\nformat = \"{format}\"\n", data.display());
    let table = if more.contains("[disk.data]") { "" } else { "[disk.data]\n" };
    lab.vm("web", &image, &format!("mem = \"128M\"\n{more}{table}{place}"));
    let one = lab.run("web");
    lab.says("web", "QVM-TINY READY", 1);
    lab.wait_state("web", "running");
    fill(&lab, &small);
    Some((lab, small, one))
}

fn mounts(lab: &Lab) -> &Mounts {
    lab.mounts.as_ref().unwrap()
}

fn fill(lab: &Lab, small: &Path) {
    mounts(lab).fill(small, PIECE / 2);
}

/// The content of the guest's `nth` write.
fn line(nth: u64) -> String {
    format!("piece-{nth}")
}

/// Makes the guest write a block, and print a message after its sync.
fn writes(lab: &Lab, nth: u64) {
    let (text, seek) = (line(nth), nth * PIECE / 65536);
    let command = format!(
        "sh yes {text} | dd of=/dev/vdb bs=64k count=128 seek={seek} iflag=fullblock conv=fsync \
         2>/dev/null && echo WRI\"\"TTEN {text}\n"
    );
    lab.types("web", command.as_bytes());
}

fn has_written(lab: &Lab, nth: u64) {
    lab.says("web", &format!("WRITTEN {}", line(nth)), 1);
}

/// Checks that every byte was written.
fn is_whole(bytes: &[u8], nth: u64) {
    let at = usize::try_from(nth * PIECE).unwrap();
    let piece = &bytes[at..at + usize::try_from(PIECE).unwrap()];
    let text = format!("{}\n", line(nth)).into_bytes();
    assert!(piece.chunks(text.len()).all(|chunk| text.starts_with(chunk)), "bytes are lost");
}

fn data(lab: &Lab, small: &Path) -> Vec<u8> {
    fs::read(mounts(lab).seen(&small.join("data.raw"))).unwrap()
}

/// Waits until the status has this note, with this part in its text.
fn has_note(lab: &Lab, note: &str, part: &str) {
    until(&format!("{note}: {part}"), || {
        let status = lab.status("web");
        notes_of(&status).iter().any(|other| other == note)
            && status["notes"].to_string().contains(part)
    });
}

/// Waits until the status has the note about the full disk.
fn is_full(lab: &Lab, part: &str) {
    has_note(lab, "no-space disk.data", part);
}

/// The number of recent events of this kind.
fn events(lab: &Lab, name: &str) -> usize {
    lab.ok(&["events", "web"]).matches(name).count()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Kills the supervisor; QEMU keeps running.
fn crashes(lab: &mut Lab, supervisor: usize) {
    signal(lab.supervisor(supervisor).id().cast_signed(), SIGKILL);
    assert_eq!(lab.exit_code(supervisor), None);
}

#[test]
fn full_disk_pauses_guest_until_space() {
    let Some((mut lab, small, one)) = tight("raw", "") else { return };
    writes(&lab, 0);
    lab.wait_state("web", "paused");
    let why = format!("no space left on `{0}` for disk `data` (`{0}/data.raw`)", small.display());
    is_full(&lab, "16 MiB");
    assert!(lab.log("web").contains(&format!("the guest is paused: {why}")), "{}", lab.log("web"));
    assert_eq!(events(&lab, "QVM_NO_SPACE"), 1);
    assert_eq!(lab.status("web")["trouble"], "no-space");
    assert!(lab.ok(&["list"]).contains("no-space"));
    mounts(&lab).make_room(&small);
    has_written(&lab, 0);
    lab.wait_state("web", "running");
    assert_eq!((events(&lab, "QVM_ROOM"), lab.notes("web").len()), (1, 0));
    assert!(lab.status("web")["trouble"].is_null());
    is_whole(&data(&lab, &small), 0);
    signal(lab.supervisor(one).id().cast_signed(), SIGTERM);
    assert_eq!(lab.exit_code(one), Some(0));
    assert_eq!(lab.last_reason("web"), "stopped");
}

#[test]
#[ignore = "make test-faults"]
fn full_disk_with_concurrent_requests() {
    let Some((mut lab, small, one)) = tight("raw", "") else { return };
    // A resume before there is space: the note is repeated.
    writes(&lab, 0);
    is_full(&lab, "");
    lab.ok(&["resume", "web"]);
    until("it is reported again", || events(&lab, "QVM_NO_SPACE") == 2);
    is_full(&lab, "");
    // The supervisor crashes meanwhile: the next one knows the cause, and waits too.
    crashes(&mut lab, one);
    let two = lab.run("web");
    lab.wait_state("web", "paused");
    is_full(&lab, "16 MiB");
    mounts(&lab).make_room(&small);
    has_written(&lab, 0);

    // An operator's pause: space alone does not resume the guest, not even with a later supervisor.
    fill(&lab, &small);
    writes(&lab, 1);
    is_full(&lab, "");
    lab.ok(&["pause", "web"]);
    is_full(&lab, "`qvm resume`");
    mounts(&lab).make_room(&small);
    crashes(&mut lab, two);
    let three = lab.run("web");
    lab.wait_state("web", "paused");
    is_full(&lab, "`qvm resume`");
    assert_eq!(events(&lab, "QVM_ROOM"), 0);
    lab.ok(&["resume", "web"]);
    has_written(&lab, 1);
    assert_eq!(lab.notes("web"), [""; 0]);

    // The guest is suspended: the state contains the waiting write, which waits again after the
    // next start.
    fill(&lab, &small);
    writes(&lab, 2);
    is_full(&lab, "");
    lab.ok(&["suspend", "web"]);
    assert_eq!(lab.exit_code(three), Some(0));
    let four = lab.run("web");
    is_full(&lab, "16 MiB");
    assert!(lab.log("web").contains("continues from the saved state"), "{}", lab.log("web"));
    mounts(&lab).make_room(&small);
    has_written(&lab, 2);

    // A stop: the guest cannot shut down before its write completes, and then does.
    fill(&lab, &small);
    writes(&lab, 3);
    is_full(&lab, "");
    signal(lab.supervisor(four).id().cast_signed(), SIGTERM);
    lab.wait_state("web", "stopping");
    is_full(&lab, "");
    mounts(&lab).make_room(&small);
    assert_eq!(lab.exit_code(four), Some(0));
    assert_eq!(lab.last_reason("web"), "stopped");
    let bytes = data(&lab, &small);
    (0..4).for_each(|nth| is_whole(&bytes, nth));
}

/// QEMU's NVMe device cannot pause a guest at a failed write (it has no `werror`): the guest gets
/// the error.
#[test]
#[ignore = "make test-faults"]
fn nvme_guest_gets_write_error() {
    let Some((mut lab, _small, one)) = tight("raw", "[disk.data]\nbus = \"nvme\"\n") else {
        return;
    };
    let fails = "sh yes | dd of=/dev/nvme0n1 bs=64k count=128 iflag=fullblock conv=fsync; \
                 [ $? != 0 ] && echo RE\"\"FUSED\n";
    lab.types("web", fails.as_bytes());
    lab.says("web", "REFUSED", 1);
    assert_eq!(
        (lab.status("web")["state"].as_str(), events(&lab, "QVM_NO_SPACE")),
        (Some("running"), 0)
    );
    signal(lab.supervisor(one).id().cast_signed(), SIGTERM);
    assert_eq!(lab.exit_code(one), Some(0));
}

#[test]
#[ignore = "make test-faults"]
fn stop_with_full_disk_is_bounded() {
    let Some((mut lab, small, one)) = tight("qcow2", "shutdownTimeoutSec = 3\n") else { return };
    writes(&lab, 0);
    is_full(&lab, "");
    let output = lab.qvm(&["stop", "web"]);
    assert!(output.status.success(), "{}", said(&output));
    assert_eq!(lab.exit_code(one), Some(0));
    assert_eq!(lab.last_reason("web"), "forced-off");
    let image = small.join("data.qcow2");
    let checked = mounts(&lab).command("qemu-img").arg("check").arg(&image).output().unwrap();
    // Allocated but unused clusters are no damage: exit code 3 means only those.
    assert!(matches!(checked.status.code(), Some(0 | 3)), "{checked:?}");
    mounts(&lab).make_room(&small);
    let again = lab.run("web");
    lab.says("web", "QVM-TINY READY", 2);
    writes(&lab, 0);
    has_written(&lab, 0);
    signal(lab.supervisor(again).id().cast_signed(), SIGTERM);
    assert_eq!(lab.exit_code(again), Some(0));
}

#[test]
fn start_without_disk_space_leaves_nothing() {
    let Some(image) = guest("tiny.qcow2") else { return };
    let mut lab = Lab::new();
    lab.vm("web", &image, "");
    let state = lab.path().join("s");
    let Some(mounts) = lab.mounts() else { return };
    mounts.tmpfs(&state, "size=4m");
    let output = lab.qvm(&["run", "web"]);
    assert_eq!(output.status.code(), Some(75), "{}", said(&output));
    let sums = format!("are free on the file system of `{}", state.display());
    assert!(said(&output).contains(&sums), "{}", said(&output));
    assert!(said(&output).contains("hint: free disk space"), "{}", said(&output));
    assert_eq!(left_overs(&lab.state("web", "")), [""; 0]);
    assert!(!lab.state("web", "root.qcow2").exists());
}

/// A VM with a guest image, with separate file systems for its state and its runtime directory.
fn with_small_places(image: &str, runtime: &str) -> Option<Lab> {
    let image = guest(image)?;
    let mut lab = Lab::new();
    lab.vm("web", &image, "");
    let places = (lab.path().join("s"), lab.path().join("r"));
    let mounts = lab.mounts()?;
    mounts.tmpfs(&places.0, "size=8m");
    mounts.tmpfs(&places.1, runtime);
    Some(lab)
}

/// The files in a directory that begin with `.qvm-`.
fn left_overs(dir: &Path) -> Vec<String> {
    let names = fs::read_dir(dir).into_iter().flatten().flatten();
    let names = names.map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.filter(|name| name.starts_with(".qvm-")).collect()
}

#[test]
fn full_runtime_directory_prevents_starts_only() {
    let Some(mut lab) = with_small_places("boot.qcow2", "size=256k") else { return };
    let runtime = lab.path().join("r");
    mounts(&lab).fill(&runtime, 0);
    let output = lab.qvm(&["run", "web"]);
    assert_eq!(output.status.code(), Some(75), "{}", said(&output));
    assert!(said(&output).contains("No space left on device"), "{}", said(&output));
    assert!(said(&output).contains("hint: free space on the file system of"), "{}", said(&output));
    mounts(&lab).make_room(&runtime);

    let one = lab.run("web");
    lab.says("web", "BOOT-GUEST-READY", 1);
    let qemu = lab.qemu_pid("web");
    mounts(&lab).fill(&runtime, 0);
    // The record is lost: a later supervisor would regard this as a pause of QEMU.
    lab.ok(&["pause", "web"]);
    lab.wait_state("web", "paused");
    let lost = "the last change is lost if the supervisor restarts: cannot write";
    assert!(lab.log("web").contains(lost), "{}", lab.log("web"));
    lab.ok(&["resume", "web"]);
    lab.wait_state("web", "running");
    assert_eq!(left_overs(&lab.runtime("web", "")), [""; 0]);
    // Another supervisor adopts QEMU nevertheless.
    crashes(&mut lab, one);
    let two = lab.run("web");
    until("it is taken over", || lab.log("web").contains("taken over"));
    lab.wait_state("web", "running");
    assert_eq!(lab.qemu_pid("web"), qemu);
    lab.ok(&["stop", "web"]);
    assert_eq!(lab.exit_code(two), Some(0));
    assert_eq!(lab.last_reason("web"), "stopped");
}

#[test]
fn guest_survives_full_state_directory() {
    let Some(mut lab) = with_small_places("boot-flood.qcow2", "size=1m") else { return };
    let state = lab.path().join("s");
    let one = lab.run("web");
    lab.says("web", "FLOOD", 1);
    mounts(&lab).fill(&state, 0);
    let lost = "cannot write the console log: No space left on device";
    until("the console's log is full", || lab.log("web").contains(lost));
    assert_eq!(lab.status("web")["state"], "running");
    lab.ok(&["stop", "web"]);
    assert_eq!(lab.exit_code(one), Some(0));
    let lost = "cannot record how the VM ended: cannot";
    assert!(lab.log("web").contains(lost), "{}", lab.log("web"));
    assert_eq!(left_overs(&lab.state("web", "")), [""; 0]);
    mounts(&lab).make_room(&state);

    // Read-only, like after a file system error: new files cannot be opened for writing.
    let two = lab.run("web");
    lab.wait_state("web", "running");
    let read_only =
        format!("mount --bind '{0}' '{0}' && mount -o remount,bind,ro '{0}'", state.display());
    lab.mounts.as_mut().unwrap().sh(&read_only);
    lab.ok(&["kill", "web"]);
    assert_eq!(lab.exit_code(two), Some(0));
    let lost = "cannot record how the VM ended: cannot create a temporary file";
    assert!(lab.log("web").contains(lost), "{}", lab.log("web"));
    let output = lab.qvm(&["run", "web"]);
    assert_eq!(output.status.code(), Some(75), "{}", said(&output));
    assert!(said(&output).contains("Read-only file system (os error 30)"), "{}", said(&output));
    assert!(said(&output).contains("must be on a writable file system"));
    lab.mounts.as_mut().unwrap().sh(&format!("umount '{}'", state.display()));
    let three = lab.run("web");
    lab.wait_state("web", "running");
    lab.ok(&["kill", "web"]);
    assert_eq!((lab.exit_code(three), lab.last_reason("web").as_str()), (Some(0), "killed"));
}

/// The notifications of a service manager.
struct Manager {
    socket: UnixDatagram,
    path: PathBuf,
}

impl Manager {
    fn new(lab: &Lab) -> Self {
        let path = lab.path().join("notify");
        Self { socket: UnixDatagram::bind(&path).unwrap(), path }
    }

    /// Waits for this notification, and checks that the other one is not sent meanwhile.
    fn hears(&self, text: &str, never: Option<&str>) {
        self.socket.set_read_timeout(Some(crate::lab::LONG)).unwrap();
        loop {
            let mut buffer = [0; 4096];
            let count = self.socket.recv(&mut buffer).unwrap();
            let told = String::from_utf8_lossy(&buffer[..count]).into_owned();
            assert!(never.is_none_or(|never| !told.contains(never)), "{told}");
            if told.contains(text) {
                return;
            }
        }
    }
}

#[test]
#[ignore = "make test-faults"]
fn hung_qemu_is_reported_and_adopted_later() {
    let Some(image) = guest("boot.qcow2") else { return };
    let mut lab = Lab::new();
    lab.vm("web", &image, "");
    let manager = Manager::new(&lab);
    let path = manager.path.clone();
    let one = lab.run_with("web", |command| {
        command.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "1000000");
    });
    lab.says("web", "BOOT-GUEST-READY", 1);
    let qemu = lab.qemu_pid("web");
    manager.hears("WATCHDOG=1", None);
    signal(qemu, SIGSTOP);
    manager.hears("STATUS=QEMU's monitor does not answer", None);
    has_note(&lab, "monitor-silent", "");
    assert_eq!(lab.status("web")["trouble"], "monitor-silent");
    assert_eq!(
        (lab.status("web")["state"].as_str(), events(&lab, "QVM_MONITOR_SILENT")),
        (Some("running"), 1)
    );
    signal(qemu, SIGCONT);
    // The watchdog was not notified meanwhile.
    manager.hears("STATUS=running", None);
    manager.hears("WATCHDOG=1", None);
    assert_eq!((lab.notes("web").len(), events(&lab, "QVM_MONITOR_ANSWERS")), (0, 1));

    // The hang is so long that systemd kills the supervisor (WatchdogSec=), repeatedly.
    signal(qemu, SIGSTOP);
    crashes(&mut lab, one);
    let output = lab.qvm(&["run", "web"]);
    assert_eq!(output.status.code(), Some(75), "{}", said(&output));
    let silent = format!(
        "QEMU (pid {qemu}) of an earlier supervisor is alive, but its monitor does not answer"
    );
    assert!(said(&output).contains(&silent), "{}", said(&output));
    assert!(said(&output).contains(&format!("hint: inspect it with `ps -fp {qemu}`")));
    let patient = lab.run("web");
    lab.wait_state("web", "starting");
    signal(qemu, SIGCONT);
    lab.wait_state("web", "running");
    assert_eq!(lab.qemu_pid("web"), qemu);
    assert_eq!(lab.console("web").matches("BOOT-GUEST-READY").count(), 1, "the guest is another");
    lab.ok(&["stop", "web"]);
    assert_eq!((lab.exit_code(patient), lab.last_reason("web").as_str()), (Some(0), "stopped"));
}

/// Fake programs, first in `PATH`, that never end; they end with this.
struct Hanging {
    pids: PathBuf,
    path: String,
}

impl Hanging {
    fn new(lab: &Lab, programs: &[&str]) -> Self {
        let bin = lab.path().join("bin");
        let pids = lab.path().join("hanging");
        fs::create_dir_all(&bin).unwrap();
        for program in programs {
            let script = format!("#!/bin/sh\necho $$ >>'{}'\nexec sleep 600\n", pids.display());
            fs::write(bin.join(program), script).unwrap();
            fs::set_permissions(bin.join(program), fs::Permissions::from_mode(0o755)).unwrap();
        }
        Self { pids, path: format!("{}:{}", bin.display(), std::env::var("PATH").unwrap()) }
    }

    fn begun(&self) -> Vec<i32> {
        let text = fs::read_to_string(&self.pids).unwrap_or_default();
        text.lines().map(|pid| pid.parse().unwrap()).collect()
    }
}

impl Drop for Hanging {
    fn drop(&mut self) {
        for pid in self.begun().into_iter().filter(|pid| runs(*pid)) {
            signal(pid, SIGKILL);
        }
    }
}

#[test]
#[ignore = "make test-faults"]
fn hung_service_manager_delays_nothing() {
    let Some(image) = guest("boot.qcow2") else { return };
    let mut lab = Lab::new();
    lab.vm("web", &image, "hostShutdown = \"suspend\"\n");
    let hanging = Hanging::new(&lab, &["systemctl", "machinectl", "busctl"]);
    // The socket is never read.
    let deaf = Manager::new(&lab);
    let (path, notify) = (hanging.path.clone(), deaf.path.clone());
    let one = lab.run_with("web", |command| {
        command.env("PATH", &path).env("NOTIFY_SOCKET", &notify).env("WATCHDOG_USEC", "20000");
    });
    lab.says("web", "BOOT-GUEST-READY", 1);
    lab.wait_state("web", "running");
    // systemd does not answer whether the host shuts down: the signal counts as a stop.
    signal(lab.supervisor(one).id().cast_signed(), SIGTERM);
    assert_eq!(lab.exit_code(one), Some(0));
    assert_eq!(lab.last_reason("web"), "stopped");
    assert!(!hanging.begun().is_empty());

    // A refused start resets its restart counter.
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    lab.vm("web", &image, &format!("forward = [\"{port}:7\"]\n"));
    let mut command = lab.command(&["run", "web"]);
    let output =
        command.env("PATH", &hanging.path).env("NOTIFY_SOCKET", &deaf.path).output().unwrap();
    assert_eq!(output.status.code(), Some(75), "{}", said(&output));
    let silent = "`systemctl reset-failed qvm@web.service` did not end within 5 s";
    assert!(said(&output).contains(silent), "{}", said(&output));
}

#[test]
#[ignore = "make test-faults"]
fn start_is_refused_without_manager_reply() {
    let mut lab = Lab::new();
    let hanging = Hanging::new(&lab, &["systemctl"]);
    let etc = lab.path().join("etc");
    let Some(mounts) = lab.mounts() else { return };
    mounts.sh(&format!(
        "cp -a /etc '{0}' && mount --bind '{0}' /etc && mkdir -p /etc/qvm/vms",
        etc.display()
    ));
    mounts.sh("echo 'mem = \"64M\"' >/etc/qvm/vms/web.toml");
    mounts.sh("mount -t tmpfs tmpfs /run && mkdir -p /run/systemd/system && \
               mount -t tmpfs tmpfs /var/lib");
    let mut command = mounts.command(env!("CARGO_BIN_EXE_qvm"));
    let output = command.args(["start", "web"]).env("PATH", &hanging.path).output().unwrap();
    assert_eq!(output.status.code(), Some(75), "{}", said(&output));
    assert!(
        said(&output).contains("did not end within 5 s: systemd does not answer"),
        "{}",
        said(&output)
    );
}

/// The resident memory of a process, in bytes.
fn resident(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
}

#[test]
#[ignore = "make test-faults"]
fn flooding_guest_is_stopped_in_time() {
    let Some(image) = guest("tiny.qcow2") else { return };
    let mut lab = Lab::new();
    lab.vm("web", &image, "mem = \"256M\"\nshutdownTimeoutSec = 60\n");
    let one = lab.run("web");
    lab.says("web", "QVM-TINY READY", 1);
    let agent = "/dev/virtio-ports/org.qemu.guest_agent.0";
    let floods = [
        "killall qemu-ga".to_owned(),
        // The beginning of an answer without an end, for every client of the channel.
        format!("(while :; do (printf '\\377'; cat /dev/zero) >{agent}; done) 2>/dev/null &"),
        "(while :; do hwclock -w; done) >/dev/null 2>&1 &".to_owned(),
        "(while :; do echo flood; done) >/dev/console &".to_owned(),
    ];
    for flood in &floods {
        lab.types("web", format!("sh {flood}\n").as_bytes());
    }
    lab.says("web", "flood", 1000);
    let exec = lab.qvm(&["exec", "--timeout", "5", "web", "--", "true"]);
    assert!(!exec.status.success());
    assert!(said(&exec).contains("qemu-guest-agent has to run in the guest"), "{}", said(&exec));
    for _ in 0..3 {
        assert_eq!(lab.status("web")["state"], "running");
        assert!(!lab.qvm(&["ip", "web"]).status.success());
    }
    // The maximum length of an agent's answer is 48 MiB.
    let most = resident(lab.supervisor(one).id());
    assert!(most < 128 * MIB, "{most} bytes");
    assert!(lab.log("web").len() < 64 << 10, "{} bytes of log", lab.log("web").len());
    assert_eq!(events(&lab, "RTC_CHANGE"), 0);
    lab.ok(&["stop", "web"]);
    assert_eq!(lab.exit_code(one), Some(0));
}
