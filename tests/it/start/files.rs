//! Files with several writers or an interrupted writer: nothing is lost, and no other program sees
//! an incomplete file. On real QEMU.

use std::{
    ffi::OsStr,
    fs,
    os::unix::{ffi::OsStrExt, fs::PermissionsExt},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Barrier,
        atomic::{AtomicBool, Ordering},
    },
};

use crate::http::Server;
use crate::lab::{Lab, guest, signal, until};
use nix::{
    sys::{
        ptrace,
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::Pid,
};
use qvm::{
    control::{
        client::Client,
        types::{Command as Asked, Status},
    },
    image::{self, Patience, Purpose, Tools, qemu_img::QemuImg},
    spec::{Checksum, Image, Origin},
    sys::progress::{At, Cancel, Progress},
    value::{Digest, ErrorCode},
};
use rustix::fs::inotify;

const SIGKILL: i32 = 9;
const SIGTERM: i32 = 15;
const SIGSTOP: i32 = 19;
const SIGCONT: i32 = 18;

struct Quiet;

impl Progress for Quiet {
    fn at(&mut self, _: &At<'_>) {}
    fn note(&mut self, _: &str) {}
}

/// A server with these bytes as `disk.img`, with a checksum file.
fn server(bytes: Vec<u8>) -> Server {
    let sums = format!("{}  disk.img\n", sha256(&bytes).hex());
    Server::start(move |asked, reply| match asked.path.as_str() {
        "/SHA256SUMS" => reply.well(asked, sums.as_bytes(), "\"s1\""),
        _ => reply.well(asked, &bytes, "\"v1\""),
    })
}

fn sha256(bytes: &[u8]) -> Digest {
    use sha2::Digest as _;
    let hex: String =
        sha2::Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}").parse().unwrap()
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name());
    let mut names: Vec<String> = entries.map(|n| n.into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn eight_starts_share_a_checksum_file() {
    const VMS: usize = 8;
    let bytes: Vec<u8> = (0..100_000_u32).flat_map(u32::to_le_bytes).collect();
    let server = server(bytes.clone());
    let image = Image {
        origin: Origin::Http(server.url("disk.img")),
        checksum: Checksum::Sums(server.url("SHA256SUMS")),
    };
    let tools = Tools {
        qemu_img: QemuImg::new("qemu-img"),
        patience: Patience::default(),
        now: jiff::Timestamp::UNIX_EPOCH,
    };
    for round in 0..40 {
        let dir = tempfile::tempdir().unwrap();
        let together = Barrier::new(VMS);
        std::thread::scope(|scope| {
            let prepare = || {
                together.wait();
                let cancel = Cancel::default();
                image::ensure(&image, dir.path(), Purpose::Base, &tools, &mut Quiet, &cancel)
            };
            let all: Vec<_> = (0..VMS).map(|_| scope.spawn(prepare)).collect();
            for one in all {
                let cached = one.join().unwrap();
                let cached =
                    cached.unwrap_or_else(|e| panic!("{round}: {}", qvm::value::chain(&e)));
                assert_eq!(cached.digest, Some(sha256(&bytes)));
            }
        });
        let left = names(dir.path());
        let sums: Vec<&String> = left.iter().filter(|name| name.starts_with("sums-")).collect();
        assert_eq!((left.len(), sums.len()), (3, 1), "{left:?}");
        let resolved: serde_json::Value =
            serde_json::from_slice(&fs::read(dir.path().join(sums[0])).unwrap()).unwrap();
        assert_eq!(resolved["digest"], sha256(&bytes).to_string());
    }
}

#[test]
fn eight_vms_get_different_addresses() {
    let Some(image) = guest("boot.qcow2") else { return };
    let server = server(fs::read(image).unwrap());
    let lab = Lab::new();
    fs::write(lab.path().join("c/qvm.toml"), "admission = \"off\"\n").unwrap();
    let vms: Vec<String> = (0..8).map(|number| format!("web{number}")).collect();
    for vm in &vms {
        let text = format!(
            "accel = \"tcg\"\nmem = \"64M\"\n[image]\nurl = \"{}\"\nchecksums = \"{}\"\n",
            server.url("disk.img"),
            server.url("SHA256SUMS")
        );
        fs::write(lab.file(vm), text).unwrap();
    }
    let starts = vms.iter().map(|vm| {
        let mut start = lab.command(&["start", vm]);
        start.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        start.spawn().unwrap()
    });
    for start in starts.collect::<Vec<_>>() {
        let output = start.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    for vm in &vms {
        lab.ok(&["kill", vm]);
    }
    let left = names(&lab.path().join("s/images"));
    assert_eq!(left.len(), 3, "{left:?}");
}

/// Runs `qvm`, which is killed instead of one of these system calls; `None` without strace(1).
fn killed_at(lab: &Lab, calls: &str, arguments: &[&str]) -> Option<()> {
    let qvm = lab.command(arguments);
    let mut strace = Command::new("strace");
    strace.args(["-f", "-qq", "-o", "/dev/null", "-e", &format!("trace={calls}")]);
    strace.args(["-e", &format!("inject={calls}:signal=SIGKILL")]);
    strace.arg(qvm.get_program()).args(arguments);
    for (key, value) in qvm.get_envs() {
        match value {
            Some(value) => strace.env(key, value),
            None => strace.env_remove(key),
        };
    }
    match strace.stdin(Stdio::null()).output() {
        Ok(output) => assert!(!output.status.success(), "{output:?}"),
        Err(error) => {
            assert!(!crate::lab::required("strace"), "{error}");
            println!("skipped: no strace");
            return None;
        }
    }
    Some(())
}

/// All names that files got in a directory since the beginning.
struct Watched {
    fd: std::os::fd::OwnedFd,
}

impl Watched {
    fn begin(dir: &Path) -> Self {
        let fd = inotify::init(inotify::CreateFlags::NONBLOCK).unwrap();
        let flags = inotify::WatchFlags::CREATE | inotify::WatchFlags::MOVED_TO;
        inotify::add_watch(&fd, dir, flags).unwrap();
        Self { fd }
    }

    fn seen(&self) -> Vec<PathBuf> {
        let mut buffer = vec![std::mem::MaybeUninit::uninit(); 1 << 16];
        let mut reader = inotify::Reader::new(&self.fd, &mut buffer);
        let mut seen = vec![];
        while let Ok(event) = reader.next() {
            let name = event.file_name().unwrap().to_bytes();
            seen.push(PathBuf::from(OsStr::from_bytes(name)));
        }
        seen
    }
}

#[test]
fn collector_reads_one_metrics_file() {
    let lab = Lab::new();
    let dir = lab.path().join("textfile");
    fs::create_dir(&dir).unwrap();
    let watched = Watched::begin(&dir);
    let output = dir.join("qvm.prom");
    let write = ["metrics", "--output", output.to_str().unwrap()];
    for _ in 0..10 {
        lab.ok(&write);
    }
    let others = || -> Vec<PathBuf> {
        let mut seen = watched.seen();
        assert!(seen.iter().any(|name| name == "qvm.prom") && seen.len() >= 2, "{seen:?}");
        seen.retain(|name| name.extension() == Some("prom".as_ref()) && name != "qvm.prom");
        seen
    };
    assert_eq!(others(), [""; 0].map(PathBuf::from));
    assert_eq!(names(&dir), ["qvm.prom"]);
    assert_eq!(output.metadata().unwrap().permissions().mode() & 0o777, 0o644);

    // Killed before the rename: the temporary file is ignored by the collector, and removed by the
    // next run.
    if killed_at(&lab, "rename,renameat,renameat2", &write).is_none() {
        return;
    }
    let left = names(&dir);
    assert_eq!(left.len(), 2, "{left:?}");
    assert!(left[0].starts_with(".qvm-") && !left[0].ends_with(".prom"), "{left:?}");
    lab.ok(&write);
    assert_eq!(others(), [""; 0].map(PathBuf::from));
    assert_eq!(names(&dir), ["qvm.prom"]);
}

/// Holds the lock of all identities like an earlier version, without a PID in the file.
fn hold_identities(lab: &Lab) -> fs::File {
    let state = lab.path().join("s");
    fs::create_dir_all(&state).unwrap();
    let file = fs::File::create(state.join("uids.lock")).unwrap();
    rustix::fs::flock(&file, rustix::fs::FlockOperation::LockExclusive).unwrap();
    file
}

#[test]
fn held_identity_lock_prevents_no_stop() {
    let Some(image) = guest("boot.qcow2") else { return };
    let mut lab = Lab::new();
    lab.vm("web", &image, "");
    let held = hold_identities(&lab);
    let holder = format!("waiting for process {}", std::process::id());
    for how in ["stop", "SIGTERM"] {
        let one = lab.run("web");
        until("it waits, and names the holder", || lab.log("web").contains(&holder));
        match how {
            "stop" => drop(lab.ok(&["stop", "web"])),
            _ => signal(lab.supervisor(one).id().cast_signed(), SIGTERM),
        }
        assert_eq!(lab.exit_code(one), Some(0), "{how}: {}", lab.log("web"));
        assert_eq!(lab.last_reason("web"), "start-cancelled");
        fs::remove_file(lab.log_path("web")).unwrap();
    }
    assert!(!lab.state("web", "identity.toml").exists());
    drop(held);
    lab.ok(&["start", "web"]);
    lab.ok(&["kill", "web"]);
}

#[test]
fn held_identity_lock_fails_the_start() {
    let Some(image) = guest("boot.qcow2") else { return };
    let mut lab = Lab::new();
    lab.vm("web", &image, "[cloudInit]\n");
    let held = hold_identities(&lab);
    let one = lab.run("web");
    assert_eq!(lab.exit_code(one), Some(75), "{}", lab.log("web"));
    let holder = format!("process {}", std::process::id());
    let refusal = lab.refusal_in(&lab.log("web"), 75).without_log().masked(&holder, "process N");
    refusal.is(ErrorCode::IdentityLocked, 75).golden("start", "identity-locked");
    drop(held);
    // A reseed too.
    lab.ok(&["start", "web"]);
    let held = hold_identities(&lab);
    let refusal = lab.refused(&["reseed", "web"]).without_log().masked(&holder, "process N");
    refusal.is(ErrorCode::IdentityLocked, 75).golden("start", "identity-locked");
    drop(held);
    lab.ok(&["reseed", "web"]);
    lab.ok(&["kill", "web"]);
}

#[test]
fn reseed_and_new_nic_are_both_kept() {
    let Some(image) = guest("boot.qcow2") else { return };
    let lab = Lab::new();
    lab.vm("web", &image, "[cloudInit]\n[nic.first]\n");
    lab.ok(&["start", "web"]);
    let identity = || -> toml::Table {
        fs::read_to_string(lab.state("web", "identity.toml")).unwrap().parse().unwrap()
    };
    let done = AtomicBool::new(false);
    let last = std::thread::scope(|scope| {
        let reseeds = scope.spawn(|| {
            let mut last = String::new();
            while !done.load(Ordering::SeqCst) {
                // `web: instance-id: OLD -> NEW, when …`
                let output = lab.qvm(&["reseed", "web"]);
                let said = String::from_utf8_lossy(&output.stderr).into_owned()
                    + &String::from_utf8_lossy(&output.stdout);
                let (old, new) = said.split_once(" -> ").unwrap_or_else(|| panic!("{said}"));
                let old = old.rsplit(' ').next().unwrap();
                assert!(last.is_empty() || old == last, "a reseed was lost: {said}");
                last = new.split(',').next().unwrap().to_owned();
            }
            last
        });
        let mut text = fs::read_to_string(lab.file("web")).unwrap();
        for nic in ["a", "b", "c"] {
            text += &format!("[nic.{nic}]\n");
            // As an editor does: a reseed must not read half of the file.
            fs::write(lab.path().join("next"), &text).unwrap();
            fs::rename(lab.path().join("next"), lab.file("web")).unwrap();
            lab.ok(&["apply", "web"]);
        }
        done.store(true, Ordering::SeqCst);
        reseeds.join().unwrap()
    });
    let kept = identity();
    assert_eq!(kept["instanceId"].as_str(), Some(&*last));
    let macs: Vec<&String> = kept["macs"].as_table().unwrap().keys().collect();
    assert_eq!(macs, ["a", "b", "c", "first"]);
    lab.ok(&["kill", "web"]);
}

/// A program that answers like QEMU, and otherwise runs `script`.
fn other_qemu(lab: &mut Lab, script: &str) {
    let qemu = lab.path().join("qemu");
    let text = format!(
        "#!/bin/sh\ncase \"$*\" in *-mon*) {script};; esac\n\
         exec \"${{QVM_TEST_QEMU:-qemu-system-x86_64}}\" \"$@\"\n"
    );
    fs::write(&qemu, text).unwrap();
    fs::set_permissions(&qemu, fs::Permissions::from_mode(0o755)).unwrap();
    lab.qemu = Some(qemu.into());
}

#[test]
fn canceled_launch_keeps_record_until_exit() {
    let Some(image) = guest("boot.qcow2") else { return };
    let mut lab = Lab::new();
    // It never answers on its monitor.
    other_qemu(&mut lab, "exec sleep 600");
    lab.vm("web", &image, "");
    let one = lab.run("web");
    let record = lab.runtime("web", "record.json");
    until("QEMU is there", || {
        record.exists() && {
            let comm = fs::read_to_string(format!("/proc/{}/comm", lab.qemu_pid("web")));
            comm.is_ok_and(|comm| comm.trim() == "sleep")
        }
    });
    let qemu = Pid::from_raw(lab.qemu_pid("web"));
    // A traced process stops when it is killed: like one that waits for its storage, it has not
    // exited.
    if let Err(error) = ptrace::seize(qemu, ptrace::Options::PTRACE_O_TRACEEXIT) {
        println!("skipped: no ptrace: {error}");
        return;
    }
    let stop = lab.command(&["stop", "web"]).stdin(Stdio::null()).spawn();
    let event = waitpid(qemu, Some(WaitPidFlag::__WALL)).unwrap();
    assert!(matches!(event, WaitStatus::PtraceEvent(..)), "{event:?}");
    assert!(record.exists(), "QEMU is not gone yet");
    assert_eq!(lab.qemu_pid("web"), qemu.as_raw());
    ptrace::detach(qemu, None).unwrap();
    assert!(stop.unwrap().wait().unwrap().success());
    assert_eq!(lab.exit_code(one), Some(0), "{}", lab.log("web"));
    assert_eq!(lab.last_reason("web"), "start-cancelled");
    assert!(!record.exists() && !crate::lab::runs(qemu.as_raw()));
}

#[test]
fn stop_during_adoption_leaves_silent_qemu() {
    let Some(image) = guest("boot.qcow2") else { return };
    let mut lab = Lab::new();
    lab.vm("web", &image, "");
    let one = lab.run("web");
    lab.says("web", "BOOT-GUEST-READY", 1);
    lab.wait_state("web", "running");
    let qemu = lab.qemu_pid("web");
    signal(qemu, SIGSTOP);
    signal(lab.supervisor(one).id().cast_signed(), SIGKILL);
    lab.exit_code(one);
    let record = fs::read(lab.runtime("web", "record.json")).unwrap();
    let two = lab.run("web");
    until("the new supervisor answers", || !lab.status("web")["supervisorPid"].is_null());
    signal(lab.supervisor(two).id().cast_signed(), SIGTERM);
    lab.exit_code(two);
    assert_eq!(fs::read(lab.runtime("web", "record.json")).unwrap(), record);
    assert!(crate::lab::runs(qemu));
    signal(qemu, SIGCONT);
    let three = lab.run("web");
    lab.wait_state("web", "running");
    assert_eq!(lab.qemu_pid("web"), qemu);
    lab.ok(&["stop", "web"]);
    assert_eq!(lab.exit_code(three), Some(0));
}

/// Calls a supervisor over its control socket.
fn ask(lab: &Lab, command: Asked) -> (Result<(), String>, Option<Status>) {
    let socket = lab.runtime("web", "control.sock");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut client = Client::connect(&socket).await.unwrap();
        let done = client.command(command).await.map_err(|error| error.to_string());
        (done, client.status(crate::lab::LONG).await.ok())
    })
}

#[test]
fn refused_memory_target_is_not_recorded() {
    let Some(image) = guest("boot.qcow2") else { return };
    let mut lab = Lab::new();
    // Without a balloon, QEMU refuses; another device has its name.
    other_qemu(
        &mut lab,
        "for word do shift; case $word in *virtio-balloon-pci*) word=isa-debug-exit;; esac; \
         set -- \"$@\" \"$word\"; done",
    );
    lab.vm("web", &image, "isolation = \"off\"\n");
    lab.ok(&["start", "web"]);
    let (done, status) = ask(&lab, Asked::SetMemory { bytes: 32 << 20 });
    assert!(done.is_err(), "{done:?}");
    assert_eq!(status.unwrap().mem_target_bytes, None);
    lab.ok(&["kill", "web"]);
}
