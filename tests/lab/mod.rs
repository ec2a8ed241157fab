//! A lab: three directories, a guest, and the `qvm` of this build. All processes that it started
//! are killed by PID when the test ends, even if it fails.

#![allow(dead_code)] // No test binary uses all of it.

pub(crate) mod hanging;
pub(crate) mod loops;
pub(crate) mod mounts;
pub(crate) mod network;
pub(crate) mod old_qemu;
pub(crate) mod orphaned;
pub(crate) mod patience;
pub(crate) mod refusal;
pub(crate) mod relayed;
pub(crate) mod saved;
pub(crate) mod terminal;
pub(crate) mod timed;

use std::{
    ffi::OsString,
    fs,
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

/// The time limit of any wait; no step is expected to need as long.
pub(crate) const LONG: Duration = Duration::from_secs(120);

/// Debian's `nobody`.
const NOBODY: u32 = 65534;

/// The lab.
pub(crate) struct Lab {
    _temp: tempfile::TempDir,
    dir: PathBuf,
    /// VM files, state, sockets.
    places: [PathBuf; 3],
    /// The `qvm` to run, and its user.
    program: PathBuf,
    user: Option<u32>,
    /// The network namespace of `qvm`, if it is not the machine's.
    pub(crate) network: Option<network::Network>,
    /// The mount namespace of `qvm`, if it is not the machine's.
    pub(crate) mounts: Option<mounts::Mounts>,
    /// The QEMU, if it is not the machine's.
    pub(crate) qemu: Option<OsString>,
    supervisors: Vec<Child>,
    _timed: timed::Timed,
}

/// Whether a test without `what` must fail instead of being skipped.
pub(crate) fn required(what: &str) -> bool {
    std::env::var("QVM_TEST_REQUIRE").is_ok_and(|all| all.split(',').any(|word| word == what))
}

/// Whether tests run in their long form (`make test-long`): on every QEMU, through every boot.
pub(crate) fn long() -> bool {
    std::env::var_os("QVM_TEST_LONG").is_some()
}

/// The directory of the guest images.
pub(crate) fn guests() -> PathBuf {
    std::env::var_os("QVM_GUESTS")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("target/guests"), PathBuf::from)
}

/// Returns the guest image `name`; `None` if the test is skipped.
pub(crate) fn guest(name: &str) -> Option<PathBuf> {
    let image = guests().join(name);
    let qemu = Command::new("qemu-system-x86_64").arg("-version").output().is_ok();
    if image.exists() && qemu {
        return Some(image);
    }
    assert!(!required("guests"), "{} is missing, or QEMU: run `make guests`", image.display());
    println!("skipped: no {} or no QEMU", image.display());
    None
}

impl Lab {
    /// Creates an empty lab. The path is short, because sockets are in it.
    pub(crate) fn new() -> Self {
        Self::below("")
    }

    /// Creates a lab in a directory `name`.
    pub(crate) fn below(name: &str) -> Self {
        interruptible();
        let temp = tempfile::Builder::new().prefix("qvm").tempdir_in("/tmp").unwrap();
        let dir = temp.path().join(name);
        let places = ["c", "s", "r"].map(|place| dir.join(place));
        fs::create_dir_all(places[0].join("vms")).unwrap();
        let program = env!("CARGO_BIN_EXE_qvm").into();
        Self {
            _temp: temp,
            dir,
            places,
            program,
            user: None,
            network: None,
            mounts: None,
            qemu: None,
            supervisors: vec![],
            _timed: timed::Timed::new(),
        }
    }

    /// Creates a lab of an unprivileged user: `nobody` if the test is root, else the user of the
    /// test. It has no options and variables of qvm, only those of the XDG Base Directory
    /// Specification.
    pub(crate) fn of_a_user() -> Self {
        let mut lab = Self::new();
        let dir = lab.dir.clone();
        lab.places = ["config/qvm", "data/qvm", "run/qvm"].map(|place| dir.join(place));
        fs::create_dir_all(lab.places[0].join("vms")).unwrap();
        // The build directory of cargo may not be accessible to other users.
        lab.copy_program();
        let root = nix::unistd::geteuid().is_root();
        lab.user = Some(if root { NOBODY } else { nix::unistd::geteuid().as_raw() });
        for made in ["", "config", "data", "run"] {
            let made = dir.join(made);
            fs::create_dir_all(&made).unwrap();
            fs::set_permissions(&made, fs::Permissions::from_mode(0o700)).unwrap();
            lab.give(&made);
        }
        lab
    }

    /// Allows every user of this host to run `qvm` here, and to read the files that their modes
    /// permit.
    pub(crate) fn open_to_others(&mut self) {
        self.copy_program();
        fs::set_permissions(self._temp.path(), fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// Runs a copy of `qvm` from now on, which a test may replace. Returns its path.
    pub(crate) fn copy_program(&mut self) -> PathBuf {
        self.program = self.dir.join("qvm");
        copy_program(env!("CARGO_BIN_EXE_qvm"), &self.program);
        self.program.clone()
    }

    /// Changes the owner of a file to the user.
    pub(crate) fn give(&self, path: &Path) {
        if nix::unistd::geteuid().is_root() {
            std::os::unix::fs::chown(path, self.user, self.user).unwrap();
        }
    }

    /// Uses a new mount namespace from now on; `None` if that is impossible.
    pub(crate) fn mounts(&mut self) -> Option<&mut mounts::Mounts> {
        self.mounts = Some(mounts::Mounts::new()?);
        self.mounts.as_mut()
    }

    pub(crate) fn path(&self) -> &Path {
        &self.dir
    }

    pub(crate) fn state(&self, vm: &str, file: &str) -> PathBuf {
        self.seen(self.places[1].join("vms").join(vm).join(file))
    }

    pub(crate) fn runtime(&self, vm: &str, file: &str) -> PathBuf {
        self.seen(self.places[2].join(vm).join(file))
    }

    /// Returns the path for the test of a path in the lab's mount namespace.
    fn seen(&self, path: PathBuf) -> PathBuf {
        self.mounts.as_ref().map_or(path.clone(), |mounts| mounts.seen(&path))
    }

    /// Writes a VM file with a guest image.
    pub(crate) fn vm(&self, name: &str, image: &Path, more: &str) {
        let text = format!(
            "accel = \"tcg\"\n{}{more}\n[image]\npath = {}\n",
            if more.contains("mem =") { "" } else { "mem = \"64M\"\n" },
            toml::Value::from(image.to_str().unwrap())
        );
        fs::write(self.file(name), text).unwrap();
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.places[0].join("vms").join(format!("{name}.toml"))
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = match (&self.network, &self.mounts) {
            (None, None) => Command::new(&self.program),
            (None, Some(mounts)) => mounts.command(&self.program),
            (Some(network), _) => network.command(&self.program),
        };
        command.args(arguments);
        match self.user {
            None => {
                for (key, place) in ["CONFIG", "STATE", "RUNTIME"].into_iter().zip(&self.places) {
                    command.env(format!("QVM_{key}_DIR"), place);
                }
            }
            Some(user) => {
                let keys = ["XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_RUNTIME_DIR"];
                for (key, place) in keys.into_iter().zip(&self.places) {
                    command.env(key, place.parent().unwrap());
                }
                command.env("HOME", &self.dir);
                if nix::unistd::geteuid().is_root() {
                    command.current_dir("/").uid(user).gid(user);
                }
            }
        }
        for key in ["NOTIFY_SOCKET", "INVOCATION_ID", "QVM_LOG", "QVM_QEMU", "JOURNAL_STREAM"] {
            command.env_remove(key);
        }
        // Every test with guests can use another QEMU.
        if let Some(qemu) = self.qemu.clone().or_else(|| std::env::var_os("QVM_TEST_QEMU")) {
            command.env("QVM_QEMU", qemu);
        }
        command
    }

    pub(crate) fn qvm(&self, arguments: &[&str]) -> Output {
        self.command(arguments).stdin(Stdio::null()).output().unwrap()
    }

    /// Runs `qvm`, which must succeed; returns its output.
    pub(crate) fn ok(&self, arguments: &[&str]) -> String {
        let output = self.qvm(arguments);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(
            output.status.success(),
            "qvm {arguments:?}: {}\n{text}{}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        text
    }

    /// Starts `qvm run NAME`; its standard error is written to a file.
    pub(crate) fn run(&mut self, name: &str) -> usize {
        self.run_with(name, |_| {})
    }

    /// Starts `qvm run NAME` with a changed command.
    pub(crate) fn run_with(&mut self, name: &str, more: impl FnOnce(&mut Command)) -> usize {
        let log =
            fs::OpenOptions::new().create(true).append(true).open(self.log_path(name)).unwrap();
        let mut command = self.command(&["run", name]);
        more(&mut command);
        self.supervisors.push(command.stdin(Stdio::null()).stderr(log).spawn().unwrap());
        self.supervisors.len() - 1
    }

    pub(crate) fn log_path(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}.stderr"))
    }

    pub(crate) fn log(&self, name: &str) -> String {
        fs::read_to_string(self.log_path(name)).unwrap_or_default()
    }

    pub(crate) fn supervisor(&mut self, index: usize) -> &mut Child {
        &mut self.supervisors[index]
    }

    /// Waits for the exit of a supervisor; returns its exit code, `None` after a signal.
    pub(crate) fn exit_code(&mut self, index: usize) -> Option<i32> {
        let child = &mut self.supervisors[index];
        let mut code = None;
        until("the supervisor's end", || {
            code = child.try_wait().unwrap();
            code.is_some()
        });
        code.unwrap().code()
    }

    pub(crate) fn status(&self, name: &str) -> serde_json::Value {
        let output = self.qvm(&["status", "--json", name]);
        let all: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        all[0].clone()
    }

    /// Returns the codes of the notes of a VM, each with the key of the note if it has one, such as
    /// `no-effect cpu.pin`.
    pub(crate) fn notes(&self, name: &str) -> Vec<String> {
        notes_of(&self.status(name))
    }

    pub(crate) fn has_note(&self, name: &str, note: &str) -> bool {
        self.notes(name).iter().any(|other| other == note)
    }

    pub(crate) fn wait_state(&self, name: &str, state: &str) {
        // A guest without a supervisor is reported as running, but accepts no requests.
        let down = ["stopped", "failed"].contains(&state);
        self.until_guest(name, &format!("{name} is {state}"), || {
            let status = self.status(name);
            status["state"] == state && (down || !status["supervisorPid"].is_null())
        });
    }

    /// Waits until a VM is running, or its supervisor has exited: then true.
    pub(crate) fn until_guest_or_exit(&mut self, name: &str, index: usize) -> bool {
        let mut ended = false;
        until("the VM runs, or its supervisor has ended", || {
            ended = self.supervisors[index].try_wait().unwrap().is_some();
            let status = self.status(name);
            ended || (status["state"] == "running" && !status["supervisorPid"].is_null())
        });
        ended
    }

    /// Waits for an effect of the guest, as long as its console log grows.
    pub(crate) fn until_guest(&self, name: &str, what: &str, done: impl FnMut() -> bool) {
        if let Err(standstill) = self.while_guest_progresses(name, done) {
            panic!("never: {what}: {standstill:?}\n{}\n{}", self.console(name), self.log(name));
        }
    }

    /// Waits in the same way; the caller handles a guest without progress.
    pub(crate) fn while_guest_progresses(
        &self,
        name: &str,
        done: impl FnMut() -> bool,
    ) -> Result<(), patience::Standstill> {
        let log = self.state(name, "console.log");
        patience::while_progress(|| patience::console_length(&log), done)
    }

    pub(crate) fn console(&self, name: &str) -> String {
        String::from_utf8_lossy(&fs::read(self.state(name, "console.log")).unwrap_or_default())
            .into_owned()
    }

    /// Waits until the console contains `text` at least `count` times.
    pub(crate) fn says(&self, name: &str, text: &str, count: usize) {
        let what = format!("`{text}` ({count}) on the console");
        self.until_guest(name, &what, || self.console(name).matches(text).count() >= count);
    }

    /// Types into the console.
    pub(crate) fn types(&self, name: &str, bytes: &[u8]) {
        use tokio::io::AsyncWriteExt;
        let socket = self.runtime(name, "control.sock");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let client = qvm::control::client::Client::connect(&socket).await.unwrap();
            let mut console = client.console(false, 0).await.unwrap();
            console.write_all(bytes).await.unwrap();
        });
    }

    pub(crate) fn qemu_pid(&self, name: &str) -> i32 {
        let record = fs::read(self.runtime(name, "record.json")).unwrap();
        let record: serde_json::Value = serde_json::from_slice(&record).unwrap();
        record["pid"].as_i64().unwrap().try_into().unwrap()
    }

    pub(crate) fn last_reason(&self, name: &str) -> String {
        self.status(name)["lastStop"]["reason"].as_str().unwrap_or_default().to_owned()
    }
}

/// Makes child processes react to SIGINT and SIGHUP, even if the tests run in the background of a
/// shell or under nohup(1): children inherit ignored signals (signal(7)).
#[allow(unsafe_code)]
fn interruptible() {
    use nix::sys::signal::{SigHandler, Signal, signal};
    for number in [Signal::SIGINT, Signal::SIGHUP] {
        // SAFETY: the default action runs no code of this process.
        unsafe { signal(number, SigHandler::SigDfl) }.unwrap();
    }
}

/// Sends a signal by number.
pub(crate) fn signal(pid: i32, number: i32) {
    let signal = nix::sys::signal::Signal::try_from(number).unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal).unwrap();
}

/// Whether a process is running; a zombie is not.
pub(crate) fn runs(pid: i32) -> bool {
    let threads = || fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count);
    // A killed process exits thread by thread: the first may be a zombie before the others exit.
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.contains(") Z ") || threads() > 1)
}

/// Copies a program that is executed afterward. A separate process writes the file: a child that
/// another thread forks meanwhile would keep it open for writing (ETXTBSY).
pub(crate) fn copy_program(from: impl AsRef<Path>, to: &Path) {
    let copied = Command::new("cp").arg(from.as_ref()).arg(to).status();
    assert!(copied.unwrap().success(), "cannot copy `{}`", from.as_ref().display());
}

/// Waits for a condition.
pub(crate) fn until(what: &str, so: impl FnMut() -> bool) {
    until_within(LONG, what, so);
}

/// Waits for a condition with a longer time limit.
pub(crate) fn until_within(bound: Duration, what: &str, mut so: impl FnMut() -> bool) {
    let begun = Instant::now();
    loop {
        let asked = Instant::now();
        if so() {
            return;
        }
        assert!(begun.elapsed() < bound, "never: {what}");
        patience::rest(asked.elapsed(), begun.elapsed());
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for child in &mut self.supervisors {
            let _ = child.kill();
            let _ = child.wait();
        }
        for entry in fs::read_dir(self.seen(self.places[2].clone())).into_iter().flatten().flatten()
        {
            let number = |file: &str, key: &str| -> Option<i32> {
                let bytes = fs::read(entry.path().join(file)).ok()?;
                let value: serde_json::Value = serde_json::from_slice(&bytes).ok()?;
                let pid = if key.is_empty() { &value } else { &value[key] };
                pid.as_i64()?.try_into().ok()
            };
            // A detached supervisor first, so that it does not report the end of its QEMU.
            for pid in [number("lock", ""), number("record.json", "pid")].into_iter().flatten() {
                let ours = fs::read(format!("/proc/{pid}/environ")).is_ok_and(|environ| {
                    String::from_utf8_lossy(&environ).contains(&*self.dir.to_string_lossy())
                });
                if ours {
                    let _ = nix::sys::signal::kill(
                        nix::unistd::Pid::from_raw(pid),
                        nix::sys::signal::Signal::SIGKILL,
                    );
                    // The directory is removed next, and no process may write into it meanwhile.
                    let killed = Instant::now();
                    while runs(pid) && killed.elapsed() < Duration::from_secs(10) {
                        std::thread::sleep(Duration::from_millis(1));
                    }
                }
            }
        }
        // A start that had not yet written its files.
        let ended = Instant::now();
        while ended.elapsed() < Duration::from_secs(10) {
            let left = processes_of(&self.dir);
            if left.is_empty() {
                break;
            }
            for pid in left {
                let pid = nix::unistd::Pid::from_raw(pid);
                let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Returns the processes of qvm and QEMU whose command line contains a lab's directory.
fn processes_of(dir: &Path) -> Vec<i32> {
    let dir = dir.to_string_lossy();
    let is_of_lab = |pid: &i32| {
        let program = fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
        let program = program.file_name().unwrap_or_default().to_string_lossy();
        let arguments = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        (program.starts_with("qvm") || program.starts_with("qemu"))
            && String::from_utf8_lossy(&arguments).contains(&*dir)
    };
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(is_of_lab).collect()
}

/// Returns the notes of a status, as [`Lab::notes`] does.
pub(crate) fn notes_of(status: &serde_json::Value) -> Vec<String> {
    let details = status["noteDetails"].as_array().map(Vec::as_slice).unwrap_or_default();
    // `notes` has the same texts.
    assert_eq!(status["notes"].as_array().map_or(0, Vec::len), details.len(), "{status}");
    let note = |note: &serde_json::Value| {
        let code = note["code"].as_str().unwrap();
        note["key"].as_str().map_or(code.to_owned(), |key| format!("{code} {key}"))
    };
    details.iter().map(note).collect()
}
