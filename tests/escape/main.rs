//! A program in the place of QEMU, started like QEMU, attacks the host and a neighbor; and the same
//! in each layer alone.
//!
//! The program is this test binary: `qvm` starts it as its QEMU. Only a real QEMU has the seccomp
//! filter, so that layer is tested in a real one.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs, unsafe_code)]

mod attempt;
#[cfg(target_arch = "x86_64")]
mod calls;
#[cfg(target_arch = "x86_64")]
mod inject;
#[path = "../lab/mod.rs"]
mod lab;

use std::{
    env,
    fs::{self, Permissions},
    io::{Read, Write},
    net::{TcpListener, UdpSocket},
    os::{
        linux::net::SocketAddrExt,
        unix::{
            fs::PermissionsExt,
            net::{SocketAddr, UnixListener, UnixStream},
            process::CommandExt,
        },
    },
    path::{Path, PathBuf},
    process::Command,
};

use attempt::{ALL, TARGETS, Targets, WHO};
use lab::Lab;
use nix::unistd::{Pid, geteuid};
use qvm::{
    control::isolation,
    sandbox::file_access,
    sandbox::{
        confine::{Cell, Domain},
        spawn,
    },
};

/// The real QEMU answers the queries before the start.
const QEMU: &str = "qemu-system-x86_64";

fn main() {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let given = |word: &str| arguments.iter().any(|argument| argument == word);
    if given(WHO) {
        println!("{}", geteuid());
    } else if given("-version") || given("help") {
        panic!("{}", Command::new(QEMU).args(&arguments).exec());
    } else if given("-S") {
        escape();
    } else if given("--list") {
        // A test harness that lists its tests.
    } else {
        tests();
    }
}

fn escape() {
    let targets: Targets = serde_json::from_str(&env::var(TARGETS).unwrap()).unwrap();
    let said = attempt::all(&targets);
    match targets.report {
        None => eprint!("{said}"),
        Some(number) => {
            // SAFETY: the test passes a socket at this number, and nothing else in this program
            // uses it.
            let mut to: UnixStream = unsafe { std::os::fd::FromRawFd::from_raw_fd(number) };
            to.write_all(said.as_bytes()).unwrap();
        }
    }
}

/// A running neighbor, and all other targets.
struct Place {
    lab: Lab,
    targets: Targets,
    /// A copy of this program that every user can execute: a clone may be in a home directory.
    program: PathBuf,
    _open: tempfile::TempDir,
    _listeners: (UnixListener, TcpListener, UdpSocket),
}

impl Place {
    fn new() -> Option<Self> {
        let image = lab::guest("boot-count.qcow2")?;
        if !geteuid().is_root() {
            println!("skipped: only root has anything to be kept from");
            return None;
        }
        let lab = Lab::new();
        lab.vm("db", &image, "");
        lab.ok(&["start", "db"]);
        let pid = |key: &str| i32::try_from(lab.status("db")[key].as_i64().unwrap()).unwrap();
        let open = tempfile::Builder::new().prefix("qvm-escape").tempdir_in("/tmp").unwrap();
        fs::set_permissions(open.path(), Permissions::from_mode(0o1777)).unwrap();
        let (program, suid) = (open.path().join("program"), open.path().join("suid"));
        for copy in [&program, &suid] {
            fs::copy(env::current_exe().unwrap(), copy).unwrap();
        }
        fs::set_permissions(&program, Permissions::from_mode(0o755)).unwrap();
        fs::set_permissions(&suid, Permissions::from_mode(0o4755)).unwrap();
        let abstract_name = format!("qvm-escape-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&abstract_name).unwrap();
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = tcp.local_addr().unwrap().port();
        let udp = UdpSocket::bind(("127.0.0.1", port)).unwrap();
        let targets = Targets {
            disk: lab.state("db", "root.qcow2"),
            state: lab.state("web", ""),
            vm_file: lab.file("db"),
            neighbour: pid("pid"),
            supervisor: pid("supervisorPid"),
            control: lab.runtime("db", "control.sock"),
            monitor: lab.runtime("db", "qmp.sock"),
            abstract_name,
            port,
            suid,
            open_dir: open.path().to_owned(),
            report: None,
        };
        let listeners = (UnixListener::bind_addr(&address).unwrap(), tcp, udp);
        Some(Self { lab, targets, program, _open: open, _listeners: listeners })
    }

    /// Returns the output of this program in a cell; without one, in the test's own context.
    fn tried_in(&self, cell: Option<&Cell>) -> String {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        let targets = Targets { report: Some(9), ..self.targets.clone() };
        // SAFETY: this process has one thread, so nothing else accesses the environment meanwhile.
        unsafe { env::set_var(TARGETS, serde_json::to_string(&targets).unwrap()) };
        fs::create_dir_all(&self.targets.state).unwrap();
        let (arguments, fds) = (["-S".to_owned()], vec![(theirs.into(), 9)]);
        let pid = match cell.map(|cell| cell.prepare().unwrap()) {
            // SAFETY: the closure does nothing.
            None => unsafe { spawn::spawn(&self.program, &arguments, fds, || Ok(())) }.unwrap(),
            Some((inside, report)) => {
                // SAFETY: `Prepared::enter` only makes bare system calls.
                let pid =
                    unsafe { spawn::spawn(&self.program, &arguments, fds, move || inside.enter()) };
                let pid = pid.unwrap();
                assert_eq!(report.read(), [], "a layer is missing");
                pid
            }
        };
        let mut said = String::new();
        ours.read_to_string(&mut said).unwrap();
        let _ = nix::sys::wait::waitpid(Pid::from_raw(pid.cast_signed()), None);
        said
    }
}

/// No layer.
fn open() -> Cell {
    Cell {
        uid: None,
        device: Some(PathBuf::from("/dev/kvm")),
        network: false,
        capabilities: false,
        no_new_privileges: false,
        domain: None,
        filter: false,
        strict: true,
    }
}

fn domain(program: &Path) -> Domain {
    Domain { open_to: file_access::open_to(program, None), tcp: false }
}

fn tests() {
    let Some(place) = Place::new() else { return };
    nothing_is_reached_from_qemus_place(&place);
    each_layer_alone_holds_what_it_is_for(&place);
    the_real_qemu_is_in_all_of_them(&place);
    println!("test result: ok. 3 passed: {} attempts in 7 cells", ALL.len());
    #[cfg(target_arch = "x86_64")]
    {
        qemus_own_filter_alone_stops_each_call();
        qemus_own_filter_is_in_each_thread_of_a_vm(&place);
        a_tap_does_not_obey_qemu();
        let all = calls::REFUSED.len() + calls::OTHERS.len();
        println!("test result: ok. 3 passed: {all} system calls in QEMU");
    }
}

/// The launch path: `qvm start` with this program as its QEMU.
fn nothing_is_reached_from_qemus_place(place: &Place) {
    let lab = &place.lab;
    let Some(network) = lab::network::Network::new() else { return };
    lab.vm(
        "web",
        &lab::guest("boot-count.qcow2").unwrap(),
        "isolation = \"strict\"\nbridge = \"br0\"\n",
    );
    let mut inside = network.command(env!("CARGO_BIN_EXE_qvm"));
    let start = lab.command(&["start", "web"]);
    inside.arg("start").arg("web");
    for (key, value) in start.get_envs().filter_map(|(key, value)| Some((key, value?))) {
        inside.env(key, value);
    }
    inside.env("QVM_QEMU", &place.program);
    inside.env(TARGETS, serde_json::to_string(&place.targets).unwrap());
    let output = inside.output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{told}");
    let log = fs::read_to_string(lab.state("web", "supervisor.log")).unwrap();
    let said: String =
        log.lines().filter(|l| l.contains("escape: ")).map(|l| format!("{l}\n")).collect();
    assert_eq!(attempt::succeeded(&said), [""; 0], "{told}\n{said}");
    println!("test nothing_is_reached_from_qemus_place ... ok");
}

fn each_layer_alone_holds_what_it_is_for(place: &Place) {
    // As root without layers, every attempt succeeds here: an attempt that fails anyway proves
    // nothing.
    let said = place.tried_in(None);
    let free = attempt::succeeded(&said);
    let always: Vec<&str> =
        ALL.iter().map(|(name, _)| *name).filter(|name| !free.contains(name)).collect();
    let machines = ["make a tap", "read /etc/shadow", "load a program into the kernel"];
    assert!(always.iter().all(|name| machines.contains(name)), "{always:?}\n{said}");
    let uid = Some(1_900_065_000);
    let held = |cell: &Cell, wanted: &[&str]| {
        let said = place.tried_in(Some(cell));
        let through = attempt::succeeded(&said);
        for name in wanted {
            assert!(!through.contains(name), "{name}, in {cell:?}\n{said}");
            assert!(ALL.iter().any(|(known, _)| known == name), "no attempt is called `{name}`");
        }
    };
    let processes = [
        "read the supervisor's environment",
        "open the neighbour's memory",
        "read the neighbour's memory",
        "trace the neighbour",
        "take a descriptor of the neighbour's",
    ];
    let signals = ["signal the neighbour", "signal the supervisor"];
    let files = [
        "read a neighbour's disk",
        "write a neighbour's disk",
        "list the VMs",
        "list its own state",
        "read its own identity",
        "read /etc/shadow",
    ];
    let rights =
        ["open a packet socket", "make a tap", "change the root directory", "make a device"];
    let sockets =
        ["connect to the neighbour's control socket", "connect to the neighbour's monitor"];
    let network =
        ["connect by TCP", "listen by TCP", "send by UDP", "connect to an abstract socket"];

    held(
        &Cell { uid, ..open() },
        &[&processes[..], &signals, &files, &rights, &sockets, &["become root"]].concat(),
    );
    held(
        &Cell { capabilities: true, ..open() },
        &[&processes[..], &rights, &["become root", "signal the neighbour"]].concat(),
    );
    held(&Cell { network: true, ..open() }, &network);
    let landlock = Cell { no_new_privileges: true, domain: Some(domain(&place.program)), ..open() };
    let closed = [
        "read its own VM file",
        "read its own VM file",
        "read /etc/passwd",
        "list /etc",
        "make a file where everybody may",
        "become root by a set-user-ID program",
    ];
    held(
        &landlock,
        &[
            &processes[..],
            &signals,
            &files,
            &closed,
            &["connect by TCP", "connect to an abstract socket", "make a tap", "make a device"],
        ]
        .concat(),
    );
    let refused = [
        "make a tap",
        "change a tap",
        "trace the neighbour",
        "read the neighbour's memory",
        "take a descriptor of the neighbour's",
        "change the root directory",
        "keep a key",
        "handle its own page faults",
        "load a program into the kernel",
        "make a user namespace",
    ];
    held(&Cell { no_new_privileges: true, filter: true, ..open() }, &refused);
    // The set-user-ID bit makes any user root, except with no_new_privs.
    if attempt::is_suid(&place.targets.suid) {
        let by = "become root by a set-user-ID program";
        let another = Cell { uid, ..open() };
        let said = place.tried_in(Some(&another));
        assert!(attempt::succeeded(&said).contains(&by), "{said}");
        held(&Cell { no_new_privileges: true, ..another }, &[by]);
    }
    println!("test each_layer_alone_holds_what_it_is_for ... ok");
}

/// The state of a running QEMU, as reported by the kernel.
fn the_real_qemu_is_in_all_of_them(place: &Place) {
    let lab = &place.lab;
    lab.vm("app", &lab::guest("boot-count.qcow2").unwrap(), "isolation = \"strict\"\n[nic]\n");
    lab.ok(&["start", "app"]);
    let status = lab.status("app");
    let layers = status["isolation"]["layers"].as_array().unwrap().len();
    assert_eq!(layers, isolation::Layer::ALL.len(), "{status}");
    let doctor = lab.qvm(&["doctor"]).stdout;
    let doctor = String::from_utf8_lossy(&doctor).into_owned();
    assert!(doctor.contains("all layers are available for QEMU"), "{doctor}");
    let of = |vm: &str| {
        let pid = lab.status(vm)["pid"].to_string();
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let value = |key: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(key)).unwrap();
            line.trim_start_matches(':').split_whitespace().collect::<Vec<_>>().join(" ")
        };
        let keys = [
            "Uid",
            "Gid",
            "Groups",
            "CapPrm",
            "CapEff",
            "CapInh",
            "CapAmb",
            "CapBnd",
            "NoNewPrivs",
            "Seccomp",
        ];
        let network = fs::read_link(format!("/proc/{pid}/ns/net")).unwrap();
        (keys.map(value), network)
    };
    let (app, network) = of("app");
    let uid = status["isolation"]["uid"].to_string();
    let four = [uid.as_str(); 4].join(" ");
    let none = "0000000000000000";
    assert_eq!(app, [&four, &four, "", none, none, none, none, none, "1", "2"].map(str::to_owned));
    assert_ne!(network, fs::read_link("/proc/self/ns/net").unwrap());
    // The neighbor has another UID. Its network namespace is the host's.
    let (db, _) = of("db");
    assert_ne!(db[0], app[0]);
    // The disk belongs to its UID, and the next start uses the same UID.
    let owner = |vm: &str| {
        std::os::unix::fs::MetadataExt::uid(&lab.state(vm, "root.qcow2").metadata().unwrap())
    };
    assert_eq!(owner("app").to_string(), uid);
    lab.ok(&["stop", "app"]);
    lab.ok(&["start", "app"]);
    assert_eq!(lab.status("app")["isolation"]["uid"].to_string(), uid);
    println!("test the_real_qemu_is_in_all_of_them ... ok");
}

/// Without other layers and as root, so that no other layer can have the effect.
#[cfg(target_arch = "x86_64")]
fn qemus_own_filter_alone_stops_each_call() {
    for (call, outcome) in calls::tried_alone(false) {
        assert!(calls::is_free(&call, outcome), "without the filter: {}: {outcome:?}", call.name);
        assert!(!call.is_held(outcome), "without the filter: {}: {outcome:?}", call.name);
    }
    for (call, outcome) in calls::tried_alone(true) {
        assert!(call.is_held(outcome), "{}: {outcome:?}", call.name);
    }
    println!("test qemus_own_filter_alone_stops_each_call ... ok");
}

/// The launch path. With `isolation = "off"` there is no filter, which proves that the test works.
#[cfg(target_arch = "x86_64")]
fn qemus_own_filter_is_in_each_thread_of_a_vm(place: &Place) {
    use inject::{Outcome, Stopped};
    let lab = &place.lab;
    lab.vm("off", &lab::guest("boot-count.qcow2").unwrap(), "isolation = \"off\"\n[nic]\n");
    lab.ok(&["start", "off"]);
    let off = Stopped::seize(Pid::from_raw(lab.qemu_pid("off"))).unwrap();
    assert_eq!(calls::FORK.by(&off), Outcome::Forked);
    assert_eq!(calls::SETPRIORITY.by(&off), Outcome::Returned(Ok(0)));
    off.go();

    // QEMU runs with all layers.
    let app = Pid::from_raw(lab.qemu_pid("app"));
    let threads = calls::threads(app);
    assert!(threads.len() > 2, "{threads:?}");
    for thread in threads {
        let stopped = Stopped::seize(thread).unwrap();
        for call in calls::REFUSED {
            let outcome = call.by(&stopped);
            assert!(call.is_held(outcome), "{} by thread {thread}: {outcome:?}", call.name);
        }
        stopped.go();
    }
    // The neighbor is unharmed.
    assert_eq!(lab.status("app")["state"], "running");
    let stopped = Stopped::seize(app).unwrap();
    let outcome = calls::FORK.by(&stopped);
    assert!(calls::FORK.is_held(outcome), "{outcome:?}");
    if matches!(outcome, Outcome::Returned(_)) {
        assert_eq!(calls::SETUID.by(&stopped), Outcome::Ended(nix::libc::SIGSYS));
    }
    inject::reap(app);
    lab.wait_state("app", "failed");
    assert_eq!(lab.last_reason("app"), "qemu-signal");
    println!("test qemus_own_filter_is_in_each_thread_of_a_vm ... ok");
}

/// Requests that need only the tap's descriptor, which QEMU has: in a real QEMU, and without the
/// filter.
#[cfg(target_arch = "x86_64")]
fn a_tap_does_not_obey_qemu() {
    use inject::{Entry, Outcome, Stopped};
    use nix::{errno::Errno, libc};
    let Some(network) = lab::network::Network::new() else { return };
    let mut lab = Lab::new();
    lab.network = Some(network);
    for (isolation, held) in [("strict", true), ("off", false)] {
        let more = format!("isolation = \"{isolation}\"\nbridge = \"br0\"\n");
        lab.vm(isolation, &lab::guest("boot-count.qcow2").unwrap(), &more);
        lab.ok(&["start", isolation]);
        let qemu = lab.qemu_pid(isolation);
        let is_tap = |entry: &fs::DirEntry| {
            fs::read_link(entry.path()).is_ok_and(|to| to == *Path::new("/dev/net/tun"))
        };
        let fds = fs::read_dir(format!("/proc/{qemu}/fd")).unwrap().map(Result::unwrap);
        let tap = fds.into_iter().find(is_tap).unwrap().file_name();
        let tap: u64 = tap.to_str().unwrap().parse().unwrap();
        let stopped = Stopped::seize(Pid::from_raw(qemu)).unwrap();
        let ask = |request: u64, value: Option<u64>| {
            // An ifreq without a name: ARPHRD_ETHER, and 00:52:54:00:66:66.
            let address = [0, 0, 0x6666_0054_5200_0001, 0x66, 0];
            let number = libc::SYS_ioctl.cast_unsigned();
            stopped.call(Entry::Native, number, &address, |at| {
                [tap, request, value.unwrap_or(at), 0, 0]
            })
        };
        let refused = Outcome::Returned(Err(Errno::EPERM));
        for (request, value) in [
            (libc::SIOCSIFHWADDR, None),
            (libc::TUNSETPERSIST, Some(1)),
            (libc::TUNSETPERSIST, Some(0)),
        ] {
            let outcome = ask(request, value);
            assert_eq!(outcome == refused, held, "{isolation}: {request:#x}: {outcome:?}");
            assert!(held || outcome.succeeded(), "{isolation}: {request:#x}: {outcome:?}");
        }
        stopped.go();
        lab.ok(&["kill", isolation]);
    }
    println!("test a_tap_does_not_obey_qemu ... ok");
}
