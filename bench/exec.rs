//! The time from exec of `qvm run` to exec of QEMU, by ptrace(2) events.
//!
//! The tracer stops each new thread and process for some microseconds: the result is an upper bound.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::process::CommandExt,
    process::Command,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    sys::{
        ptrace::{self, Options},
        signal::{Signal, kill},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::Pid,
};

use crate::figure::Outcome;

const EVENTS: Options = Options::PTRACE_O_TRACEEXEC
    .union(Options::PTRACE_O_TRACECLONE)
    .union(Options::PTRACE_O_TRACEFORK)
    .union(Options::PTRACE_O_TRACEVFORK)
    .union(Options::PTRACE_O_EXITKILL);

/// Runs a supervisor until it executes QEMU, and kills both.
#[allow(unsafe_code)]
pub(crate) fn to_qemu(mut command: Command) -> Outcome<Duration> {
    // SAFETY: one system call, after the fork.
    unsafe { command.pre_exec(|| ptrace::traceme().map_err(Into::into)) };
    // Reaped below, with everything that it starts.
    #[allow(clippy::zombie_processes)]
    let child = command.spawn()?;
    let first = Pid::from_raw(i32::try_from(child.id())?);
    let mut processes = BTreeSet::from([first]);
    let mut begun = None;
    let mut took = None;
    loop {
        let stopped = match waitpid(None, Some(WaitPidFlag::__WALL)) {
            Err(Errno::ECHILD) => break,
            status => status?,
        };
        let Some(pid) = stopped.pid() else { continue };
        let mut signal = None;
        match stopped {
            // The stop after the first exec: the tracee waits, so no time is lost.
            WaitStatus::Stopped(pid, Signal::SIGTRAP) if pid == first && begun.is_none() => {
                ptrace::setoptions(pid, EVENTS)?;
                begun = Some(Instant::now());
            }
            WaitStatus::PtraceEvent(pid, _, libc_event) if libc_event == libc_exec() => {
                let exe = fs::read_link(format!("/proc/{pid}/exe"))?;
                let name = exe.file_name().unwrap_or_default().to_string_lossy();
                processes.insert(pid);
                if name.starts_with("qemu-system") {
                    took = begun.map(|begun| begun.elapsed());
                    for pid in &processes {
                        let _ = kill(*pid, Signal::SIGKILL);
                    }
                }
            }
            // The first stop of a new thread or process.
            WaitStatus::Stopped(_, Signal::SIGSTOP) | WaitStatus::PtraceEvent(..) => {}
            WaitStatus::Stopped(_, other) => signal = Some(other),
            _ => continue,
        }
        match ptrace::cont(pid, signal) {
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(error) => return Err(error.into()),
        }
    }
    took.ok_or_else(|| "`qvm run` did not execute QEMU".into())
}

fn libc_exec() -> i32 {
    ptrace::Event::PTRACE_EVENT_EXEC as i32
}
