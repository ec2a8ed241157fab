//! The system calls that QEMU's own seccomp filter blocks, made inside a real QEMU.

use std::{env, fs, path::PathBuf};

use nix::{
    errno::Errno,
    libc::{self, SYS_clone, SYS_fork},
    unistd::Pid,
};
use qvm::{machine::argv::SANDBOX, sandbox::spawn};

use crate::{
    QEMU,
    inject::{self, Entry, Outcome, Stopped},
    lab,
};

/// The data of the calls in QEMU's memory: a `struct clone_args` with SIGCHLD, which begins like a
/// `struct sched_param` of priority 0; a path; all CPUs.
const SCRATCH: [u64; 11] = {
    let path = *b"/bin/true\0\0\0\0\0\0\0";
    let (mut words, mut at) = ([0; 11], 0);
    while at < path.len() {
        words[8 + at / 8] |= (path[at] as u64) << (at % 8 * 8);
        at += 1;
    }
    words[4] = libc::SIGCHLD as u64;
    words[10] = u64::MAX;
    words
};
const CLONE_ARGS: u64 = 64;
const PATH: u64 = 64;
const CPUS: u64 = 80;
/// The bit of x32 system call numbers (`__X32_SYSCALL_BIT`).
const X32: u64 = 0x4000_0000;
const I386_FORK: u64 = 2;
const NONE: u64 = u64::MAX;

/// The effect of the filter on a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Held {
    /// SIGSYS ends the thread or QEMU.
    Ends,
    /// An error.
    Refuses(Errno),
}

/// A system call.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Call {
    pub(crate) name: &'static str,
    number: u64,
    entry: Entry,
    arguments: fn(u64) -> [u64; 5],
    held: Held,
    /// Without the filter, the call succeeds for root.
    works: bool,
}

const fn ends(name: &'static str, number: i64, arguments: fn(u64) -> [u64; 5]) -> Call {
    let number = number.cast_unsigned();
    Call { name, number, entry: Entry::Native, arguments, held: Held::Ends, works: true }
}

const fn refused(name: &'static str, number: i64, arguments: fn(u64) -> [u64; 5]) -> Call {
    Call { held: Held::Refuses(Errno::EPERM), ..ends(name, number, arguments) }
}

/// A new process or program: QEMU 7.2 is killed, later versions get an error.
const fn spawns(name: &'static str, number: i64, arguments: fn(u64) -> [u64; 5]) -> Call {
    refused(name, number, arguments)
}

/// A call with arguments that make it fail, because it would do harm; or that the kernel no longer
/// has.
const fn fails(call: Call) -> Call {
    Call { works: false, ..call }
}

const fn nothing(_: u64) -> [u64; 5] {
    [0; 5]
}

const fn same(_: u64) -> [u64; 5] {
    [NONE; 5]
}

/// A new process.
pub(crate) const FORK: Call = spawns("fork", SYS_fork, nothing);
/// Another user.
pub(crate) const SETUID: Call = ends("setuid", libc::SYS_setuid, nothing);
/// Another priority.
pub(crate) const SETPRIORITY: Call =
    refused("setpriority", libc::SYS_setpriority, |_| [0, 0, 19, 0, 0]);

/// Calls that every QEMU refuses with an error.
pub(crate) const REFUSED: [Call; 5] = [
    SETPRIORITY,
    refused("sched_setaffinity", libc::SYS_sched_setaffinity, |at| [0, 8, at + CPUS, 0, 0]),
    refused("sched_setparam", libc::SYS_sched_setparam, |at| [0, at, 0, 0, 0]),
    refused("sched_setscheduler", libc::SYS_sched_setscheduler, |at| {
        [0, libc::SCHED_BATCH as u64, at, 0, 0]
    }),
    Call {
        // With an error, libc uses clone(2).
        held: Held::Refuses(Errno::ENOSYS),
        ..ends("clone3", libc::SYS_clone3, |at| [at, CLONE_ARGS, 0, 0, 0])
    },
];

/// The others.
pub(crate) const OTHERS: [Call; 31] = [
    FORK,
    spawns("vfork", libc::SYS_vfork, nothing),
    spawns("clone as fork(3) does", SYS_clone, |_| [libc::SIGCHLD as u64, 0, 0, 0, 0]),
    spawns("clone as posix_spawn(3) does", SYS_clone, |_| {
        [(libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD) as u64, 0, 0, 0, 0]
    }),
    Call { entry: Entry::Ia32, number: I386_FORK, ..ends("fork by int $0x80", 0, nothing) },
    fails(Call { number: X32 | SYS_fork as u64, ..ends("fork of x32", 0, nothing) }),
    spawns("execve", libc::SYS_execve, |at| [at + PATH, 0, 0, 0, 0]),
    spawns("execveat", libc::SYS_execveat, |at| [libc::AT_FDCWD as u64, at + PATH, 0, 0, 0]),
    spawns("unshare", libc::SYS_unshare, |_| [libc::CLONE_FS as u64, 0, 0, 0, 0]),
    fails(spawns("unshare(CLONE_NEWUSER)", libc::SYS_unshare, |_| {
        [libc::CLONE_NEWUSER as u64, 0, 0, 0, 0]
    })),
    fails(spawns("setns", libc::SYS_setns, same)),
    SETUID,
    ends("setgid", libc::SYS_setgid, nothing),
    ends("setreuid", libc::SYS_setreuid, same),
    ends("setregid", libc::SYS_setregid, same),
    ends("setresuid", libc::SYS_setresuid, same),
    ends("setresgid", libc::SYS_setresgid, same),
    ends("setfsuid", libc::SYS_setfsuid, nothing),
    ends("setfsgid", libc::SYS_setfsgid, nothing),
    // QEMU is a session leader already.
    fails(ends("setsid", libc::SYS_setsid, nothing)),
    fails(ends("setpgid", libc::SYS_setpgid, nothing)),
    fails(ends("reboot", libc::SYS_reboot, nothing)),
    fails(ends("kexec_load", libc::SYS_kexec_load, same)),
    fails(ends("mount", libc::SYS_mount, same)),
    fails(ends("swapon", libc::SYS_swapon, same)),
    fails(ends("swapoff", libc::SYS_swapoff, same)),
    fails(ends("syslog", libc::SYS_syslog, same)),
    fails(ends("uselib", libc::SYS_uselib, same)),
    fails(ends("ustat", libc::SYS_ustat, same)),
    fails(ends("sysfs", libc::SYS_sysfs, same)),
    fails(ends("_sysctl", libc::SYS__sysctl, same)),
];

impl Call {
    /// Makes the call in a thread.
    pub(crate) fn by(&self, thread: &Stopped) -> Outcome {
        thread.call(self.entry, self.number, &SCRATCH, self.arguments)
    }

    /// Whether the filter has this effect; a kill counts like an error.
    pub(crate) fn is_held(&self, outcome: Outcome) -> bool {
        match (outcome, self.held) {
            (Outcome::Ended(libc::SIGSYS), _) => true,
            (Outcome::Returned(Err(errno)), Held::Refuses(with)) => errno == with,
            _ => false,
        }
    }
}

/// A QEMU without a guest, as root, with only the filter or without it.
struct Alone(Pid);

impl Alone {
    fn start(filtered: bool) -> Self {
        let mut arguments = vec!["-nodefaults", "-display", "none", "-machine", "none", "-S"];
        if filtered {
            arguments.extend(["-sandbox", SANDBOX]);
        }
        let arguments: Vec<String> = arguments.into_iter().map(String::from).collect();
        let program = env::var_os("QVM_TEST_QEMU").unwrap_or_else(|| QEMU.into());
        // SAFETY: the closure does nothing.
        let pid = unsafe { spawn::spawn(&PathBuf::from(program), &arguments, vec![], || Ok(())) };
        let pid = pid.unwrap();
        let alone = Self(Pid::from_raw(pid.cast_signed()));
        lab::until("QEMU has begun", || {
            assert!(lab::runs(pid.cast_signed()), "QEMU has ended");
            // QEMU executes its own code when it has a second thread.
            if filtered { is_filtered(alone.0) } else { threads(alone.0).len() > 1 }
        });
        alone
    }
}

impl Drop for Alone {
    fn drop(&mut self) {
        inject::end(self.0);
    }
}

/// Makes each of the calls, in as few QEMUs as necessary.
pub(crate) fn tried_alone(filtered: bool) -> Vec<(Call, Outcome)> {
    let mut running: Option<(Alone, Stopped)> = None;
    let tried = REFUSED.into_iter().chain(OTHERS).map(|call| {
        let (alone, thread) = running.take().unwrap_or_else(|| {
            let alone = Alone::start(filtered);
            let thread = Stopped::seize(alone.0).unwrap();
            (alone, thread)
        });
        let outcome = call.by(&thread);
        if matches!(outcome, Outcome::Returned(_) | Outcome::Forked) {
            running = Some((alone, thread));
        }
        (call, outcome)
    });
    tried.collect()
}

/// Whether an unfiltered call had its intended effect.
pub(crate) fn is_free(call: &Call, outcome: Outcome) -> bool {
    // A kernel without i386 system calls.
    let no_entry = call.entry == Entry::Ia32 && matches!(outcome, Outcome::NoEntry(_));
    no_entry || outcome.succeeded() || (!call.works && matches!(outcome, Outcome::Returned(Err(_))))
}

/// The threads.
pub(crate) fn threads(pid: Pid) -> Vec<Pid> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let number = |entry: fs::DirEntry| entry.file_name().to_string_lossy().parse().unwrap();
    tasks.map(|entry| Pid::from_raw(number(entry.unwrap()))).collect()
}

fn is_filtered(thread: Pid) -> bool {
    let status = fs::read_to_string(format!("/proc/{thread}/status")).unwrap_or_default();
    status.lines().any(|line| line == "Seccomp:\t2")
}
