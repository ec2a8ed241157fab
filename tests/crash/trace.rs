//! A program under ptrace(2), killed before its Nth system call that changes something outside the
//! process.
//!
//! Unlike strace's `inject`, which counts per thread and per call, all threads and calls are
//! counted together: every instant between two changes has one number.

use std::{
    fmt, fs,
    io::Read,
    os::{
        fd::OwnedFd,
        unix::{fs::FileExt, process::CommandExt},
    },
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use nix::{
    libc,
    sys::{
        ptrace::{self, Options},
        signal::{Signal, kill},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::Pid,
};
use rustix::process::{PidfdFlags, pidfd_open, pidfd_send_signal};

/// The processes to kill.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cut {
    /// Only the program; its child processes continue.
    Program,
    /// The program and its child processes: a power failure, except for the page cache.
    Everything,
}

/// A call that changes something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Call {
    pub(crate) name: &'static str,
    /// The files of its paths or descriptors.
    pub(crate) files: Vec<String>,
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}({})", self.name, self.files.join(", "))
    }
}

/// The kind of the arguments of a call.
#[derive(Clone, Copy)]
enum Names {
    /// A path at this argument.
    Path(usize),
    /// Two paths.
    Paths(usize, usize),
    /// A path, if the flags at the other argument create or truncate a file.
    Made(usize, usize),
    /// A descriptor other than standard output, standard error and the program's own event
    /// descriptors.
    Fd(usize),
    /// A descriptor, if the request is one of these.
    Request(usize, &'static [u64]),
    Nothing,
}

/// `FICLONE` and `TUNSETIFF` (linux/fs.h, linux/if_tun.h).
const REQUESTS: &[u64] = &[0x4004_9409, 0x4004_54ca];

/// The calls that change something, with their names.
fn known(number: i64) -> Option<(&'static str, Names)> {
    use Names::{Fd, Made, Nothing, Path, Paths, Request};
    #[cfg(target_arch = "x86_64")]
    match number {
        libc::SYS_open => return Some(("open", Made(0, 1))),
        libc::SYS_rename => return Some(("rename", Paths(0, 1))),
        libc::SYS_link => return Some(("link", Paths(0, 1))),
        libc::SYS_symlink => return Some(("symlink", Paths(0, 1))),
        libc::SYS_unlink => return Some(("unlink", Path(0))),
        libc::SYS_rmdir => return Some(("rmdir", Path(0))),
        libc::SYS_mkdir => return Some(("mkdir", Path(0))),
        libc::SYS_chmod => return Some(("chmod", Path(0))),
        libc::SYS_chown => return Some(("chown", Path(0))),
        libc::SYS_fork => return Some(("fork", Nothing)),
        libc::SYS_vfork => return Some(("vfork", Nothing)),
        _ => {}
    }
    Some(match number {
        libc::SYS_openat => ("openat", Made(1, 2)),
        libc::SYS_renameat => ("renameat", Paths(1, 3)),
        libc::SYS_renameat2 => ("renameat2", Paths(1, 3)),
        libc::SYS_linkat => ("linkat", Paths(1, 3)),
        libc::SYS_symlinkat => ("symlinkat", Paths(0, 2)),
        libc::SYS_unlinkat => ("unlinkat", Path(1)),
        libc::SYS_mkdirat => ("mkdirat", Path(1)),
        libc::SYS_fchmodat => ("fchmodat", Path(1)),
        libc::SYS_fchownat => ("fchownat", Path(1)),
        libc::SYS_fchmod => ("fchmod", Fd(0)),
        libc::SYS_fchown => ("fchown", Fd(0)),
        libc::SYS_write => ("write", Fd(0)),
        libc::SYS_writev => ("writev", Fd(0)),
        libc::SYS_pwrite64 => ("pwrite64", Fd(0)),
        libc::SYS_pwritev => ("pwritev", Fd(0)),
        libc::SYS_copy_file_range => ("copy_file_range", Fd(2)),
        libc::SYS_sendfile => ("sendfile", Fd(0)),
        libc::SYS_splice => ("splice", Fd(2)),
        libc::SYS_ftruncate => ("ftruncate", Fd(0)),
        libc::SYS_fallocate => ("fallocate", Fd(0)),
        libc::SYS_fsync => ("fsync", Fd(0)),
        libc::SYS_fdatasync => ("fdatasync", Fd(0)),
        libc::SYS_flock => ("flock", Fd(0)),
        libc::SYS_bind => ("bind", Fd(0)),
        libc::SYS_listen => ("listen", Fd(0)),
        libc::SYS_connect => ("connect", Fd(0)),
        libc::SYS_sendto => ("sendto", Fd(0)),
        libc::SYS_sendmsg => ("sendmsg", Fd(0)),
        libc::SYS_ioctl => ("ioctl", Request(0, REQUESTS)),
        libc::SYS_clone => ("clone", Nothing),
        libc::SYS_clone3 => ("clone3", Nothing),
        libc::SYS_execve => ("execve", Path(0)),
        libc::SYS_pidfd_send_signal => ("pidfd_send_signal", Nothing),
        libc::SYS_kill => ("kill", Nothing),
        libc::SYS_exit_group => ("exit_group", Nothing),
        _ => return None,
    })
}

/// Reads a string at an address of another process.
fn text(pid: Pid, address: u64) -> Option<String> {
    let memory = fs::File::open(format!("/proc/{pid}/mem")).ok()?;
    let (mut bytes, mut at) = (Vec::new(), address);
    while bytes.len() < 4096 {
        // Up to the end of the page: the next one may not be mapped.
        let mut piece = vec![0; (64 - at % 64) as usize];
        memory.read_exact_at(&mut piece, at).ok()?;
        if let Some(end) = piece.iter().position(|byte| *byte == 0) {
            bytes.extend_from_slice(&piece[..end]);
            return Some(String::from_utf8_lossy(&bytes).into_owned());
        }
        at += piece.len() as u64;
        bytes.append(&mut piece);
    }
    None
}

fn behind(pid: Pid, fd: u64) -> String {
    let link = fs::read_link(format!("/proc/{pid}/fd/{fd}"));
    link.map_or_else(|_| format!("fd {fd}"), |path| path.to_string_lossy().into_owned())
}

/// Returns the call that this thread is about to make, if it changes something.
#[allow(unsafe_code)]
fn about_to(pid: Pid) -> Option<Call> {
    let info = ptrace::syscall_info(pid).ok()?;
    if info.op != libc::PTRACE_SYSCALL_INFO_ENTRY {
        return None;
    }
    // SAFETY: the kernel fills this member of the union at a system call entry, and `op` shows that
    // this is one.
    let (number, arguments) = unsafe { (info.u.entry.nr, info.u.entry.args) };
    let (name, names) = known(i64::try_from(number).ok()?)?;
    let path = |at: usize| text(pid, arguments[at]).unwrap_or_default();
    let own = |file: &str| file.starts_with("anon_inode:") || file.starts_with("pipe:");
    let fd = |at: usize| {
        let file = behind(pid, arguments[at]);
        (arguments[at] > 2 && !own(&file)).then_some(file)
    };
    let files = match names {
        Names::Nothing => vec![],
        Names::Path(at) => vec![path(at)],
        Names::Paths(from, to) => vec![path(from), path(to)],
        Names::Made(at, flags) => {
            let makes = (libc::O_CREAT | libc::O_TRUNC) as u64;
            if arguments[flags] & makes == 0 {
                return None;
            }
            vec![path(at)]
        }
        Names::Fd(at) => vec![fd(at)?],
        Names::Request(at, requests) => {
            if !requests.contains(&arguments[1]) {
                return None;
            }
            vec![behind(pid, arguments[at])]
        }
    };
    Some(Call { name, files })
}

/// The result of the program.
#[derive(Debug)]
pub(crate) struct Ended {
    /// All counted calls.
    pub(crate) calls: Vec<Call>,
    /// The exit code; `None` after a signal.
    pub(crate) code: Option<i32>,
}

/// A traced program.
pub(crate) struct Traced {
    pub(crate) pid: i32,
    counts: Arc<AtomicBool>,
    counted: Arc<AtomicUsize>,
    thread: Option<thread::JoinHandle<Ended>>,
}

impl Traced {
    /// Starts the program. Its calls are counted from the beginning, or after [`Traced::count`] if
    /// `later`. `others` are killed with it, although it has not started them.
    pub(crate) fn begin(
        command: Command,
        cut: Option<(Cut, usize)>,
        later: bool,
        others: &[i32],
    ) -> Self {
        let started = others.iter().filter_map(|pid| held(Pid::from_raw(*pid))).collect();
        let (counts, counted) = (Arc::new(AtomicBool::new(!later)), Arc::new(AtomicUsize::new(0)));
        let (tell, told) = mpsc::channel();
        let (counts_there, counted_there) = (counts.clone(), counted.clone());
        // The tracer is one thread, and waits only for its own children.
        let thread = thread::spawn(move || {
            let root = begun(command);
            tell.send(root.as_raw()).unwrap();
            Tracer { root, cut, counts: counts_there, counted: counted_there, started }.follow()
        });
        Self { pid: told.recv().unwrap(), counts, counted, thread: Some(thread) }
    }

    /// Starts counting.
    pub(crate) fn count(&self) {
        self.counts.store(true, Ordering::SeqCst);
    }

    /// The number of calls so far.
    pub(crate) fn counted(&self) -> usize {
        self.counted.load(Ordering::SeqCst)
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.thread.as_ref().is_none_or(thread::JoinHandle::is_finished)
    }

    /// Kills the program after this time.
    pub(crate) fn end_after(&self, time: Duration) {
        let Some(process) = held(Pid::from_raw(self.pid)) else { return };
        thread::spawn(move || {
            thread::sleep(time);
            killed(&process);
        });
    }

    /// Waits for its end.
    pub(crate) fn ended(mut self) -> Ended {
        self.thread.take().unwrap().join().unwrap()
    }
}

impl Drop for Traced {
    fn drop(&mut self) {
        if let Some(thread) = self.thread.take() {
            if !thread.is_finished() {
                let _ = kill(Pid::from_raw(self.pid), Signal::SIGKILL);
            }
            let _ = thread.join();
        }
    }
}

/// Starts the program; it stops after its execve(2).
#[allow(unsafe_code)]
#[allow(clippy::zombie_processes)] // The tracer waits for it, like for all tracees.
fn begun(mut command: Command) -> Pid {
    // SAFETY: one bare system call between fork and exec.
    unsafe { command.pre_exec(|| Ok(ptrace::traceme()?)) };
    let child = command.spawn().unwrap();
    let root = Pid::from_raw(child.id().cast_signed());
    waitpid(root, Some(WaitPidFlag::__WALL)).unwrap();
    let options = Options::PTRACE_O_TRACESYSGOOD
        | Options::PTRACE_O_TRACECLONE
        | Options::PTRACE_O_TRACEFORK
        | Options::PTRACE_O_TRACEVFORK
        | Options::PTRACE_O_TRACEEXEC;
    ptrace::setoptions(root, options).unwrap();
    ptrace::syscall(root, None).unwrap();
    root
}

/// Opens a process by a pidfd, so that a later kill hits no other process.
fn held(pid: Pid) -> Option<OwnedFd> {
    pidfd_open(rustix::process::Pid::from_raw(pid.as_raw())?, PidfdFlags::empty()).ok()
}

fn killed(process: &OwnedFd) {
    let _ = pidfd_send_signal(process, rustix::process::Signal::KILL);
}

struct Tracer {
    root: Pid,
    cut: Option<(Cut, usize)>,
    counts: Arc<AtomicBool>,
    counted: Arc<AtomicUsize>,
    /// The child processes of the program.
    started: Vec<OwnedFd>,
}

impl Tracer {
    fn follow(mut self) -> Ended {
        let mut ended = Ended { calls: vec![], code: None };
        let mut cut = false;
        let any = Pid::from_raw(-1);
        let own = WaitPidFlag::__WALL | WaitPidFlag::__WNOTHREAD;
        // Waits for the end of its last thread, and of all tracees that were not detached.
        while let Ok(status) = waitpid(any, Some(own)) {
            let Some(pid) = status.pid() else { continue };
            match status {
                WaitStatus::Exited(pid, code) if pid == self.root => ended.code = Some(code),
                WaitStatus::Exited(..) | WaitStatus::Signaled(..) => {}
                WaitStatus::PtraceSyscall(pid) => {
                    if !cut
                        && self.counts.load(Ordering::SeqCst)
                        && let Some(call) = about_to(pid)
                    {
                        ended.calls.push(call);
                        let nth = self.counted.fetch_add(1, Ordering::SeqCst) + 1;
                        if self.cut.is_some_and(|(_, at)| at == nth) {
                            cut = true;
                            self.kill();
                            continue;
                        }
                    }
                    let _ = ptrace::syscall(pid, None);
                }
                WaitStatus::Stopped(_, Signal::SIGSTOP) if self.is_another(pid) => {
                    // Child processes are not traced: tracing is slow, and they outlive the
                    // program.
                    let started = held(pid);
                    if cut && self.cut.is_some_and(|(cut, _)| cut == Cut::Everything) {
                        started.iter().for_each(killed);
                    }
                    self.started.extend(started);
                    let _ = ptrace::detach(pid, None);
                }
                // A new thread, and stops that are not signals.
                WaitStatus::Stopped(_, Signal::SIGSTOP | Signal::SIGTRAP)
                | WaitStatus::PtraceEvent(..) => drop(ptrace::syscall(pid, None)),
                WaitStatus::Stopped(_, signal) => drop(ptrace::syscall(pid, signal)),
                _ => drop(ptrace::syscall(pid, None)),
            }
        }
        ended
    }

    fn kill(&self) {
        let _ = kill(self.root, Signal::SIGKILL);
        if let Some((Cut::Everything, _)) = self.cut {
            self.started.iter().for_each(killed);
        }
    }

    /// Whether this is a process, not a thread of the program.
    fn is_another(&self, pid: Pid) -> bool {
        let mut status = String::new();
        let read = fs::File::open(format!("/proc/{pid}/status"))
            .and_then(|mut file| file.read_to_string(&mut status));
        let group = status.lines().find_map(|line| line.strip_prefix("Tgid:")?.trim().parse().ok());
        read.is_ok() && group != Some(self.root.as_raw())
    }
}
