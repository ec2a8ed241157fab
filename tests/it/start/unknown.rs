//! Each cause of an unknown VM state × each verb: the verb is refused with 75 and changes nothing,
//! and the verbs that only read print the state `unknown` with the reason.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io,
    os::unix::{
        fs::{FileTypeExt, MetadataExt, PermissionsExt},
        process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use crate::lab::{Lab, guest, notes_of, orphaned::Orphaned, runs, signal, until};
use nix::{
    fcntl::{FcntlArg, fcntl},
    libc,
};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

const HOST: Option<i32> = Some(75);
/// Debian's `nobody`.
const NOBODY: u32 = 65534;
/// The reason, as printed by all verbs.
const REASON: &str = "cannot determine whether";

fn said(output: &Output) -> String {
    let (out, err) = (&output.stdout, &output.stderr);
    String::from_utf8_lossy(out).into_owned() + &String::from_utf8_lossy(err)
}

/// The environment of a command.
#[derive(Default)]
struct Caller {
    /// The user that runs the program.
    prefix: Vec<String>,
    /// A system call that fails with this error.
    failing: Option<(libc::c_long, i32)>,
    /// The limit of open files.
    files: Option<u64>,
}

impl Caller {
    fn command(&self, lab: &Lab, words: &[&str]) -> Command {
        let plain = lab.command(words);
        let mut all = self.prefix.iter().map(AsRef::as_ref).chain([plain.get_program()]);
        let mut command = Command::new(all.next().unwrap());
        command.args(all).args(plain.get_args());
        for (key, value) in plain.get_envs() {
            match value {
                Some(value) => command.env(key, value),
                None => command.env_remove(key),
            };
        }
        // The editor of `qvm edit`.
        command.env("EDITOR", "true").stdin(Stdio::null());
        let (failing, files) = (self.failing, self.files);
        #[allow(unsafe_code)]
        // SAFETY: `restrict` allocates nothing, and only makes system calls.
        unsafe {
            command.pre_exec(move || restrict(failing, files));
        }
        command
    }

    fn run(&self, lab: &Lab, words: &[&str]) -> Output {
        self.command(lab, words).output().unwrap()
    }
}

fn restrict(failing: Option<(libc::c_long, i32)>, files: Option<u64>) -> io::Result<()> {
    if let Some((call, error)) = failing {
        fail(call, error)?;
    }
    if let Some(files) = files {
        let maximum = getrlimit(Resource::Nofile).maximum;
        setrlimit(Resource::Nofile, Rlimit { current: Some(files), maximum })?;
    }
    Ok(())
}

/// Makes a system call fail for this process and its children (seccomp(2)).
#[allow(unsafe_code)]
fn fail(call: libc::c_long, error: i32) -> io::Result<()> {
    let call = u32::try_from(call).map_err(io::Error::other)?;
    let operation = |code: u32, jf, k| libc::sock_filter { code: code as u16, jt: 0, jf, k };
    // The number of the system call is the first field of `seccomp_data`.
    let mut filter = [
        operation(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0),
        operation(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 1, call),
        operation(libc::BPF_RET | libc::BPF_K, 0, libc::SECCOMP_RET_ERRNO | error as u32),
        operation(libc::BPF_RET | libc::BPF_K, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    // SAFETY: the kernel copies the filter, which outlives both calls.
    let done = unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
            && libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) == 0
    };
    if done { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Runs the program in a mount namespace, after a line of a shell.
fn behind(line: &str) -> Vec<String> {
    let script = format!("{line} && exec \"$@\"");
    ["unshare", "--mount", "sh", "-c", &script, "x"].map(str::to_owned).to_vec()
}

/// The type, the content and the identity of a file.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    inode: u64,
    mode: u32,
    content: Vec<u8>,
}

/// The files that a refused supervisor may write or remove.
const IS_THE_SUPERVISORS: [&str; 5] =
    ["supervisor.log", "console.log", "ends.json", "lock", "control.sock"];

/// The VM files, and all state of the VMs and their runs.
fn seen(lab: &Lab) -> BTreeMap<PathBuf, Seen> {
    let mut found = BTreeMap::new();
    let mut dirs = ["c", "s", "r"].map(|place| lab.path().join(place)).to_vec();
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(&dir).unwrap() {
            let (path, name) = (entry.as_ref().unwrap().path(), entry.unwrap().file_name());
            let meta = path.symlink_metadata().unwrap();
            if IS_THE_SUPERVISORS.iter().any(|its| name == *its) {
                continue;
            }
            if meta.is_dir() {
                dirs.push(path.clone());
            }
            let is_socket = meta.file_type().is_socket();
            let content = if meta.is_file() { fs::read(&path).unwrap() } else { vec![] };
            assert!(is_socket || meta.is_file() || meta.is_dir(), "{}", path.display());
            found.insert(path, Seen { inode: meta.ino(), mode: meta.mode(), content });
        }
    }
    found
}

fn changed<'a>(
    before: &'a BTreeMap<PathBuf, Seen>,
    after: &'a BTreeMap<PathBuf, Seen>,
) -> Vec<&'a Path> {
    let all = before.keys().chain(after.keys());
    all.filter(|path| before.get(*path) != after.get(*path)).map(PathBuf::as_path).collect()
}

/// The VM `web`, whose state becomes unknown, beside the stopped `other`.
struct Table {
    vm: Orphaned,
    /// The run record as it was written.
    text: String,
}

impl Table {
    /// `None` if this machine cannot run it.
    fn new() -> Option<Self> {
        let image = guest("boot.qcow2")?;
        let lab = Lab::new();
        lab.vm("web", &image, "[cloudInit]\n");
        lab.vm("other", &image, "");
        lab.ok(&["start", "other"]);
        lab.ok(&["kill", "other"]);
        let vm = Orphaned::of(lab);
        let text = fs::read_to_string(vm.record()).unwrap();
        Some(Self { vm, text })
    }

    fn lab(&self) -> &Lab {
        &self.vm.lab
    }

    fn write(&self, text: &str) {
        fs::write(self.vm.record(), text).unwrap();
    }

    fn with(&self, change: impl FnOnce(&mut serde_json::Map<String, serde_json::Value>)) -> String {
        let mut record: serde_json::Value = serde_json::from_str(&self.text).unwrap();
        change(record.as_object_mut().unwrap());
        record.to_string()
    }

    /// Each verb that starts, changes, deletes, exports, renames, clones or collects, or sends a
    /// request to the guest.
    fn verbs(&self) -> Vec<Vec<&str>> {
        let new = "/dev/null/web.tar";
        let all: [&[&str]; 34] = [
            &["start", "web"],
            &["start", "--discard-state", "web"],
            &["run", "web"],
            &["restart", "web"],
            &["stop", "web"],
            &["stop", "--no-wait", "web"],
            &["reboot", "web"],
            &["reboot", "--force", "web"],
            &["pause", "web"],
            &["resume", "web"],
            &["suspend", "web"],
            &["apply", "web"],
            &["apply"],
            &["diff", "web"],
            &["reseed", "web"],
            &["rm", "web", "--disks", "--yes"],
            &["rename", "web", "www"],
            &["clone", "web", "copy"],
            &["export", "web", new],
            &["image", "prune"],
            &["image", "rm", "0123456789"],
            &["reap", "web"],
            &["fsfreeze", "web"],
            &["fsfreeze", "--thaw", "web"],
            &["exec", "web", "--", "true"],
            &["cp", "web:/etc/hostname", "-"],
            &["console", "web"],
            &["vnc", "web"],
            &["screenshot", "web", "/dev/null/web.png"],
            &["type", "web", "x"],
            &["sendkey", "web", "a"],
            &["wait", "web", "--for", "stopped", "--timeout", "5"],
            &["wait", "web", "--for", "running", "--timeout", "5"],
            &["status", "web"],
        ];
        all.iter().map(|words| words.to_vec()).collect()
    }

    /// The same without the VM file, with the verbs that would use its name.
    fn verbs_without_file(&self) -> Vec<Vec<&str>> {
        let all: [&[&str]; 8] = [
            &["start", "web"],
            &["run", "web"],
            &["stop", "web"],
            &["rm", "web", "--disks", "--yes"],
            &["gc", "--yes"],
            &["gc", "--disks", "--yes"],
            &["rename", "other", "web"],
            &["image", "prune"],
        ];
        all.iter().map(|words| words.to_vec()).collect()
    }

    /// Checks that every verb is refused and changes nothing.
    fn refuses(&self, way: &str, caller: &Caller) -> Vec<String> {
        let mut faults = self.each(way, caller, self.verbs());
        let (file, aside) = (self.lab().file("web"), self.lab().path().join("web.toml"));
        fs::rename(&file, &aside).unwrap();
        faults.extend(self.each(&format!("{way}, no VM file"), caller, self.verbs_without_file()));
        fs::rename(&aside, &file).unwrap();
        faults
    }

    fn each(&self, way: &str, caller: &Caller, verbs: Vec<Vec<&str>>) -> Vec<String> {
        let (mut faults, mut before) = (vec![], seen(self.lab()));
        let ran = runs(self.vm.qemu);
        for words in verbs {
            let output = caller.run(self.lab(), &words);
            let after = seen(self.lab());
            let changed = changed(&before, &after);
            // Without descriptors a verb may fail earlier, or have more information than `qvm
            // status`.
            let is_refused = output.status.code() == HOST
                || caller.files.is_some() && output.status.code() == Some(1);
            if !is_refused || !changed.is_empty() || runs(self.vm.qemu) != ran {
                faults.push(format!(
                    "{way}: {words:?}: {}, changed {changed:?}, QEMU runs: {}\n{}",
                    output.status,
                    runs(self.vm.qemu),
                    said(&output)
                ));
                none(if changed.is_empty() { &[] } else { &faults });
            }
            before = after;
        }
        faults
    }

    /// The printed state is `unknown`, with the reason.
    fn shows_unknown(&self, way: &str, caller: &Caller) -> Vec<String> {
        let (lab, mut faults) = (self.lab(), vec![]);
        let mut check = |is: bool, what: &str, output: &Output| {
            if !is {
                faults.push(format!("{way}: {what}: {}\n{}", output.status, said(output)));
            }
        };
        let json = |output: &Output| -> serde_json::Value {
            serde_json::from_slice(&output.stdout).unwrap_or_default()
        };
        let output = caller.run(lab, &["list"]);
        let is = output.status.success() && said(&output).contains("unknown");
        check(is && said(&output).contains(REASON), "list", &output);
        for verb in [&["list", "--json"][..], &["status", "--json"]] {
            let output = caller.run(lab, verb);
            let all = json(&output);
            let web = all.as_array().and_then(|all| all.iter().find(|vm| vm["name"] == "web"));
            let web = web.cloned().unwrap_or_default();
            let is = web["state"] == "unknown" && notes_of(&web).contains(&"unknown".to_owned());
            check(is, &verb.join(" "), &output);
        }
        let output = caller.run(lab, &["status"]);
        check(
            said(&output).contains("unknown") && said(&output).contains(REASON),
            "status",
            &output,
        );
        let output = caller.run(lab, &["doctor", "--json"]);
        check(said(&output).contains(REASON), "doctor", &output);
        let output = caller.run(lab, &["metrics"]);
        let has = |line: String| said(&output).lines().any(|found| found == line);
        let states = [("unknown", 1), ("stopped", 0), ("running", 0)];
        let is = states
            .iter()
            .all(|(state, is)| has(format!("qvm_vm_state{{vm=\"web\",state=\"{state}\"}} {is}")));
        check(is && has("qvm_vm_file_valid{vm=\"web\"} 1".into()), "metrics", &output);
        faults
    }

    fn is_unknown(&self, way: &str, caller: &Caller) -> Vec<String> {
        let mut faults = self.shows_unknown(way, caller);
        faults.extend(self.refuses(way, caller));
        faults
    }
}

fn none(faults: &[String]) {
    assert!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults.join("\n"));
}

#[test]
fn record_that_names_no_process() {
    let Some(table) = Table::new() else { return };
    let (root, record) = (Caller::default(), table.vm.record());
    let ways: [(&str, &dyn Fn()); 9] = [
        ("truncated", &|| table.write(&table.text[..table.text.len() / 2])),
        ("empty", &|| table.write("")),
        ("absent", &|| fs::remove_file(&record).unwrap()),
        ("a directory", &|| fs::create_dir(&record).unwrap()),
        ("newer, without fields", &|| {
            fs::remove_dir(&record).unwrap();
            table.write(&table.with(|record| {
                record.insert("version".into(), 99.into());
                record.remove("machine");
                record.remove("accel");
            }));
        }),
        ("another boot", &|| {
            table.write(
                &table.with(|record| drop(record.insert("bootId".into(), "another".into()))),
            );
        }),
        ("reused pid", &|| {
            let own = std::process::id();
            table.write(&table.with(|record| drop(record.insert("pid".into(), own.into()))));
        }),
        ("lock of the runtime directory replaced", &|| {
            let [lock, _] = table.vm.locks();
            fs::remove_file(&lock).unwrap();
            File::create(&lock)
                .unwrap()
                .set_permissions(fs::Permissions::from_mode(0o600))
                .unwrap();
        }),
        // Like those of a QEMU that an earlier qvm started.
        ("both locks replaced", &|| {
            table.vm.locks().iter().for_each(|lock| fs::remove_file(lock).unwrap());
        }),
    ];
    let mut faults = vec![];
    for (way, make) in ways {
        make();
        faults.extend(table.is_unknown(way, &root));
    }
    none(&faults);
}

/// A caller without some of root's capabilities.
fn without(mut prefix: Vec<String>, capabilities: &str) -> Vec<String> {
    let dropped = format!("--bounding-set={capabilities}");
    prefix.extend(["setpriv", &dropped].map(str::to_owned));
    prefix
}

#[test]
fn record_that_cannot_be_compared() {
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: only root can mount over /proc");
        return;
    }
    let Some(table) = Table::new() else { return };
    let empty = table.lab().path().join("empty");
    File::create(&empty).unwrap();
    let (empty, stat) = (empty.display(), format!("/proc/{}/stat", table.vm.qemu));
    let boot_id = "/proc/sys/kernel/random/boot_id";
    let random = Path::new(boot_id).parent().unwrap().display();
    let prefixed = |prefix| Caller { prefix, ..Caller::default() };
    let failing = |call, error| Caller { failing: Some((call, error)), ..Caller::default() };
    // The record belongs to another user than the caller.
    let unreadable = |table: &Table| {
        std::os::unix::fs::chown(table.vm.record(), Some(NOBODY), None).unwrap();
        fs::set_permissions(table.vm.record(), fs::Permissions::from_mode(0o000)).unwrap();
    };
    let readable = |table: &Table| {
        fs::set_permissions(table.vm.record(), fs::Permissions::from_mode(0o640)).unwrap();
        std::os::unix::fs::chown(table.vm.record(), Some(0), None).unwrap();
    };
    let ways = [
        ("empty boot id", prefixed(behind(&format!("mount --bind {empty} {boot_id}")))),
        ("no boot id", prefixed(behind(&format!("mount -t tmpfs tmpfs {random}")))),
        ("empty start time", prefixed(behind(&format!("mount --bind {empty} {stat}")))),
        (
            "hidden processes",
            prefixed(without(
                behind("mount -t proc -o hidepid=2,gid=54321 proc /proc"),
                "-sys_ptrace",
            )),
        ),
        ("pidfd_open fails with EMFILE", failing(libc::SYS_pidfd_open, libc::EMFILE)),
        ("pidfd_open fails with EPERM", failing(libc::SYS_pidfd_open, libc::EPERM)),
        ("pidfd_open is missing", failing(libc::SYS_pidfd_open, libc::ENOSYS)),
    ];
    let mut faults = vec![];
    for (way, caller) in ways {
        faults.extend(table.is_unknown(way, &caller));
    }
    unreadable(&table);
    let caller = prefixed(without(vec![], "-dac_override,-dac_read_search"));
    faults.extend(table.is_unknown("record that may not be read", &caller));
    readable(&table);
    none(&faults);
}

/// A process that is not QEMU holds a lock like QEMU.
#[test]
fn lock_that_is_held_by_another_program() {
    let Some(table) = Table::new() else { return };
    let root = Caller::default();
    signal(table.vm.qemu, 9);
    until("QEMU is gone", || !runs(table.vm.qemu));
    let mut faults = vec![];
    for lock in table.vm.locks() {
        let held = File::options().read(true).write(true).open(&lock).unwrap();
        let whole = libc::flock {
            l_type: libc::F_WRLCK as libc::c_short,
            l_whence: libc::SEEK_SET as libc::c_short,
            l_start: 0,
            l_len: 0,
            l_pid: 0,
        };
        fcntl(&held, FcntlArg::F_OFD_SETLK(&whole)).unwrap();
        let way = format!("{} held", lock.file_name().unwrap().to_string_lossy());
        faults.extend(table.is_unknown(&way, &root));
        faults.extend(table.each(&way, &root, vec![vec!["kill", "web"]]));
    }
    none(&faults);
    // The state is known again. The last end is that of `qvm run`, which was refused.
    assert_eq!(table.lab().status("web")["state"], "failed");
    table.lab().ok(&["start", "web"]);
    table.lab().ok(&["kill", "web"]);
}

/// No file descriptor is left: while it is unknown whether the VM is running, every verb is
/// refused.
#[test]
fn descriptors_that_are_exhausted() {
    let Some(table) = Table::new() else { return };
    let (mut faults, mut limits) = (vec![], 0);
    for files in 3..64 {
        let caller = Caller { files: Some(files), ..Caller::default() };
        if !caller.run(table.lab(), &["--version"]).status.success() {
            // The dynamic loader lacks descriptors too.
            continue;
        }
        let output = caller.run(table.lab(), &["status", "--json", "web"]);
        let all = serde_json::from_slice::<serde_json::Value>(&output.stdout).unwrap_or_default();
        match all[0]["state"].as_str() {
            Some("running") => break,
            Some("unknown") | None => {}
            Some(other) => panic!("{files} descriptors: {other}"),
        }
        faults.extend(table.refuses(&format!("{files} descriptors"), &caller));
        limits += 1;
    }
    none(&faults);
    assert!(limits > 0);
}

/// The lock of the runtime directory is held; a VM with the same name would conflict with its QEMU.
#[test]
fn state_directory_that_is_missing() {
    let Some(table) = Table::new() else { return };
    let (lab, root) = (table.lab(), Caller::default());
    let archive = lab.path().join("other.tar").display().to_string();
    lab.ok(&["export", "other", &archive]);
    table.write("");
    let (state, aside) = (lab.state("web", ""), lab.path().join("aside"));
    fs::rename(&state, &aside).unwrap();
    fs::rename(lab.file("web"), lab.path().join("web.toml")).unwrap();
    let verbs = [
        &["start", "web"][..],
        &["run", "web"],
        &["stop", "web"],
        &["rename", "other", "web"],
        &["clone", "other", "web"],
        &["import", &archive, "--name", "web"],
        &["image", "prune"],
        &["status", "web"],
    ];
    let verbs = verbs.map(<[&str]>::to_vec).to_vec();
    none(&table.each("no state directory", &root, verbs));
    // The VM of the reason.
    let output = root.run(lab, &["import", &archive, "--name", "web"]);
    assert!(said(&output).contains("kill"), "{}", said(&output));
}
