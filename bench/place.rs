//! Three directories with VMs in them, and the `qvm` that was built for the bench.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use qvm::{
    control::types::Status,
    host::pidfd::{Process, Signal},
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// How long anything may take before the bench gives up.
const LONG: Duration = Duration::from_secs(120);

/// A guest image; the bench cannot do without.
pub(crate) fn guest(name: &str) -> Option<PathBuf> {
    let dir = std::env::var_os("QVM_GUESTS")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("target/guests"), PathBuf::from);
    Some(dir.join(name)).filter(|image| image.exists())
}

/// The place; what runs in it ends with it.
pub(crate) struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    pub(crate) fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("qvm").tempdir_in("/tmp").unwrap();
        fs::create_dir_all(dir.path().join("c/vms")).unwrap();
        Self { dir }
    }

    pub(crate) fn path(&self, below: &str) -> PathBuf {
        self.dir.path().join(below)
    }

    /// Writes the VM file of a guest of 64 MiB.
    pub(crate) fn vm(&self, name: &str, image: &Path, more: &str) {
        let text = format!(
            "accel = \"tcg\"\nmem = \"64M\"\n{more}\n[image]\npath = \"{}\"\n",
            image.display()
        );
        fs::write(self.path(&format!("c/vms/{name}.toml")), text).unwrap();
    }

    pub(crate) fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_qvm"));
        command.args(words).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        for (key, dir) in [("CONFIG", "c"), ("STATE", "s"), ("RUNTIME", "r")] {
            command.env(format!("QVM_{key}_DIR"), self.path(dir));
        }
        command.env_remove("NOTIFY_SOCKET");
        command
    }

    /// Runs `qvm` to its end, which has to be a good one, and gives the time that it took.
    pub(crate) fn timed(&self, words: &[&str]) -> Duration {
        timed(&mut self.command(words))
    }

    /// Everything that `qvm status --json` knows.
    pub(crate) fn status(&self) -> Vec<Status> {
        let output = self.command(&["status", "--json"]).stdout(Stdio::piped()).output().unwrap();
        serde_json::from_slice(&output.stdout).unwrap()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        for status in self.status() {
            for pid in [status.supervisor_pid, status.pid].into_iter().flatten() {
                if let Ok(process) = Process::open(pid) {
                    let _ = process.signal(Signal::KILL);
                }
            }
        }
    }
}

/// The time that a program took from before it was started until it was reaped.
pub(crate) fn timed(command: &mut Command) -> Duration {
    let begun = Instant::now();
    let status = command.status().unwrap();
    let took = begun.elapsed();
    assert!(status.success(), "{command:?}: {status}");
    took
}

/// Waits for the end of a process, ours or not, and gives the time.
pub(crate) fn ended(pid: u32) -> impl FnOnce() -> Instant {
    let pid = rustix::process::Pid::from_raw(pid.cast_signed()).unwrap();
    let fd = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).unwrap();
    move || {
        let limit = Timespec { tv_sec: LONG.as_secs().cast_signed(), tv_nsec: 0 };
        let ready = poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&limit)).unwrap();
        assert_eq!(ready, 1, "{pid:?} does not end");
        Instant::now()
    }
}

/// A supervisor in the foreground, started as a unit is. It has ended, or ends, with the place.
pub(crate) struct Started {
    pub(crate) child: Child,
    /// From before its start until it said that it is ready.
    pub(crate) took: Duration,
}

impl Place {
    /// `qvm run` until READY=1.
    pub(crate) fn run(&self, name: &str) -> Started {
        let path = self.path("notify");
        let _ = fs::remove_file(&path);
        let socket = std::os::unix::net::UnixDatagram::bind(&path).unwrap();
        socket.set_read_timeout(Some(LONG)).unwrap();
        let mut command = self.command(&["run", name]);
        command.env("NOTIFY_SOCKET", &path);
        let begun = Instant::now();
        let mut started = Started { child: command.spawn().unwrap(), took: Duration::ZERO };
        let mut buffer = [0; 4096];
        loop {
            let count = socket.recv(&mut buffer).unwrap();
            if buffer[..count].starts_with(b"READY=1") {
                started.took = begun.elapsed();
                return started;
            }
        }
    }
}
