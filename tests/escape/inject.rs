//! Makes system calls in a thread of another program (ptrace(2)), like injected code.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt,
};

use nix::{
    errno::Errno,
    libc,
    sys::{
        ptrace::{self, Options},
        signal::{Signal, kill},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::Pid,
};

/// Below the stack pointer and the red zone of 128 bytes (System V ABI).
const BELOW: u64 = 640;
/// The maximum size of the code that is searched for an instruction.
const CODE: usize = 32 << 20;

/// The instruction of the system call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Entry {
    /// `syscall`.
    Native,
    /// `int $0x80`, with the numbers of i386.
    Ia32,
}

impl Entry {
    const fn instruction(self) -> [u8; 2] {
        match self {
            Self::Native => [0x0f, 0x05],
            Self::Ia32 => [0xcd, 0x80],
        }
    }
}

/// The result of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The return value.
    Returned(Result<i64, Errno>),
    /// A new process, which is killed before it runs.
    Forked,
    /// The program executed another one.
    Executed,
    /// A signal ended the thread or the program during the call.
    Ended(i32),
    /// The kernel has no such system call entry.
    NoEntry(Signal),
}

impl Outcome {
    /// Whether the call succeeded.
    pub(crate) fn succeeded(self) -> bool {
        matches!(self, Self::Returned(Ok(_)) | Self::Forked | Self::Executed)
    }
}

/// A stopped thread. Tracees end with the test.
#[derive(Debug)]
pub(crate) struct Stopped {
    thread: Pid,
}

impl Stopped {
    /// Stops the thread at any position.
    pub(crate) fn seize(thread: Pid) -> nix::Result<Self> {
        let options = Options::PTRACE_O_TRACEFORK
            | Options::PTRACE_O_TRACEVFORK
            | Options::PTRACE_O_TRACECLONE
            | Options::PTRACE_O_TRACEEXEC
            | Options::PTRACE_O_TRACEEXIT
            | Options::PTRACE_O_EXITKILL;
        ptrace::seize(thread, options)?;
        ptrace::interrupt(thread)?;
        loop {
            match waitpid(thread, Some(WaitPidFlag::__WALL))? {
                WaitStatus::PtraceEvent(_, _, libc::PTRACE_EVENT_STOP) => {
                    return Ok(Self { thread });
                }
                WaitStatus::Stopped(_, signal) => ptrace::cont(thread, signal)?,
                other => panic!("{other:?} of a thread that was to be stopped"),
            }
        }
    }

    /// Continues the thread at its previous position.
    pub(crate) fn go(self) {
        ptrace::detach(self.thread, None).unwrap();
    }

    /// Makes a call. `scratch` is written to its memory; `arguments` gets its address. The thread
    /// has its previous state afterward only if the call returned or forked.
    pub(crate) fn call(
        &self,
        entry: Entry,
        number: u64,
        scratch: &[u64],
        arguments: impl Fn(u64) -> [u64; 5],
    ) -> Outcome {
        let before = ptrace::getregs(self.thread).unwrap();
        let at = (before.rsp - BELOW) & !15;
        for (offset, word) in (at..).step_by(size_of::<u64>()).zip(scratch) {
            ptrace::write(self.thread, offset as ptrace::AddressType, word.cast_signed()).unwrap();
        }
        let mut registers = before;
        let [first, second, third, fourth, fifth] = arguments(at);
        match entry {
            Entry::Native => {
                (registers.rdi, registers.rsi, registers.rdx) = (first, second, third);
                (registers.r10, registers.r8) = (fourth, fifth);
            }
            Entry::Ia32 => {
                (registers.rbx, registers.rcx, registers.rdx) = (first, second, third);
                (registers.rsi, registers.rdi) = (fourth, fifth);
            }
        }
        registers.rip = self.find(entry.instruction());
        registers.rax = number;
        // The kernel must not restart an interrupted call.
        registers.orig_rax = u64::MAX;
        ptrace::setregs(self.thread, registers).unwrap();
        let outcome = self.step();
        if matches!(outcome, Outcome::Returned(_) | Outcome::Forked) {
            ptrace::setregs(self.thread, before).unwrap();
        }
        outcome
    }

    /// Executes one instruction.
    fn step(&self) -> Outcome {
        let mut forked = false;
        loop {
            ptrace::step(self.thread, None).unwrap();
            match waitpid(self.thread, Some(WaitPidFlag::__WALL)).unwrap() {
                WaitStatus::Stopped(_, Signal::SIGTRAP) if forked => return Outcome::Forked,
                WaitStatus::Stopped(_, Signal::SIGTRAP) => {
                    let returned = ptrace::getregs(self.thread).unwrap().rax.cast_signed();
                    let error =
                        i32::try_from(-returned).ok().filter(|error| (1..4096).contains(error));
                    let returned = error.map_or(Ok(returned), |error| Err(Errno::from_raw(error)));
                    return Outcome::Returned(returned);
                }
                WaitStatus::PtraceEvent(_, _, libc::PTRACE_EVENT_EXEC) => return Outcome::Executed,
                WaitStatus::PtraceEvent(_, _, libc::PTRACE_EVENT_EXIT) => {
                    let status = ptrace::getevent(self.thread).unwrap();
                    ptrace::cont(self.thread, None).unwrap();
                    return Outcome::Ended(status as i32 & 0x7f);
                }
                WaitStatus::PtraceEvent(_, _, _) => {
                    let child = ptrace::getevent(self.thread).unwrap();
                    end(Pid::from_raw(child as i32));
                    forked = true;
                }
                WaitStatus::Stopped(_, signal @ (Signal::SIGSEGV | Signal::SIGILL)) => {
                    return Outcome::NoEntry(signal);
                }
                // Discards the program's own signals.
                WaitStatus::Stopped(..) => {}
                other => panic!("{other:?} of a thread that was to make a call"),
            }
        }
    }

    /// Finds these executable bytes in the program, at any alignment.
    fn find(&self, bytes: [u8; 2]) -> u64 {
        let maps = fs::read_to_string(format!("/proc/{}/maps", self.thread)).unwrap();
        let memory = File::open(format!("/proc/{}/mem", self.thread)).unwrap();
        let code = maps.lines().filter(|line| line.contains(" r-xp "));
        for range in code.filter_map(|line| line.split(' ').next()?.split_once('-')) {
            let [start, end] = [range.0, range.1].map(|hex| u64::from_str_radix(hex, 16).unwrap());
            let mut code = vec![0; usize::try_from(end - start).unwrap().min(CODE)];
            let Ok(read) = memory.read_at(&mut code, start) else { continue };
            if let Some(found) = code[..read].windows(2).position(|two| two == bytes) {
                return start + found as u64;
            }
        }
        panic!("nowhere in the program are the bytes {bytes:x?}");
    }
}

/// Kills a child or tracee of this process.
pub(crate) fn end(pid: Pid) {
    let _ = kill(pid, Signal::SIGKILL);
    reap(pid);
}

/// Waits for its end.
pub(crate) fn reap(pid: Pid) {
    while let Ok(status) = waitpid(pid, Some(WaitPidFlag::__WALL)) {
        match status {
            WaitStatus::Exited(..) | WaitStatus::Signaled(..) => return,
            _ => drop(ptrace::cont(pid, None)),
        }
    }
}
