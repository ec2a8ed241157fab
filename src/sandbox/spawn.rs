//! Starts a process that outlives the supervisor, with its own session and only the passed
//! descriptors and standard error.

use std::{
    io::{self, Read, Write},
    os::{
        fd::{AsRawFd, OwnedFd, RawFd},
        unix::{net::UnixStream, process::CommandExt},
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use command_fds::{CommandFdExt, FdMapping};

use crate::value::{ErrorCode, Explain};

/// Environment variables of systemd that only the supervisor may use (sd_notify(3),
/// sd_listen_fds(3), sd_watchdog_enabled(3)).
const NOT_INHERITED: [&str; 10] = [
    "NOTIFY_SOCKET",
    "WATCHDOG_USEC",
    "WATCHDOG_PID",
    "LISTEN_FDS",
    "LISTEN_PID",
    "LISTEN_PIDFDID",
    "LISTEN_FDNAMES",
    "FDSTORE",
    "SYSTEMD_EXEC_PID",
    "INVOCATION_ID",
];

/// The error of starting a process.
#[derive(Debug, thiserror::Error)]
#[error("cannot start `{}`", program.display())]
pub struct Error {
    program: PathBuf,
    source: io::Error,
}

impl Explain for Error {
    fn own_code(&self) -> Option<ErrorCode> {
        Some(ErrorCode::QemuNotExecuted)
    }

    fn own_hint(&self) -> Option<String> {
        match self.source.kind() {
            io::ErrorKind::NotFound => Some("install QEMU, or name it with `QVM_QEMU`".into()),
            _ => None,
        }
    }

    fn is_own_host_fault(&self) -> bool {
        matches!(self.source.kind(), io::ErrorKind::OutOfMemory | io::ErrorKind::WouldBlock)
    }
}

/// Starts `program` with these descriptors under these numbers, and returns its PID. It shares
/// standard error, which must not be a pipe to this process: the program would get SIGPIPE
/// afterwards. It has its own session, so neither Ctrl-C nor a hangup reaches it. This module does
/// not reap it, so the PID remains valid until waited for. The child calls `inside` last before
/// exec.
///
/// `known` is called with the PID before exec. If it fails, or this process dies before it returns,
/// the program is never executed: there is no unrecorded running program.
///
/// # Safety
/// `inside` runs between fork(2) and execve(2) in a copy of a process that may have several
/// threads: it must call async-signal-safe functions alone (signal-safety(7)), and neither allocate
/// nor take a lock.
///
/// # Errors
/// The program cannot be started, `inside` fails, or `known` returns an error.
pub unsafe fn spawn_known<E: From<Error>>(
    program: &Path,
    arguments: &[String],
    fds: Vec<(OwnedFd, i32)>,
    inside: impl FnMut() -> io::Result<()> + Send + Sync + 'static,
    known: impl FnOnce(u32) -> Result<(), E>,
) -> Result<u32, E> {
    let wrap = |source| Error { program: program.to_owned(), source };
    let (ours, theirs) = UnixStream::pair().map_err(wrap)?;
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null());
    for variable in NOT_INHERITED {
        command.env_remove(variable);
    }
    let ends = (ours.as_raw_fd(), theirs.as_raw_fd());
    // SAFETY: between fork and exec only async-signal-safe calls are allowed: these are bare system
    // calls, and nothing is allocated.
    unsafe {
        command.pre_exec(move || {
            rustix::process::setsid()?;
            close_on_exec_from_3();
            await_permission(ends)
        });
    }
    let _held = hold(&fds).map_err(wrap)?;
    // Added after close_on_exec_from_3, since hooks run in this order.
    let mappings =
        fds.into_iter().map(|(parent_fd, child_fd)| FdMapping { parent_fd, child_fd }).collect();
    command.fd_mappings(mappings).map_err(|e| wrap(io::Error::other(e)))?;
    // SAFETY: the caller guarantees that `inside` makes only async-signal-safe calls.
    unsafe { command.pre_exec(inside) };
    std::thread::scope(|scope| {
        // Returns after exec, so another thread sends the permission.
        let spawned = std::thread::Builder::new().name("spawn".into()).spawn_scoped(scope, || {
            // Dropped here to detect the end of the child.
            let _theirs = theirs;
            command.spawn()
        });
        let spawned = spawned.map_err(wrap)?;
        let permitted = permit_exec(ours, known);
        let child: Result<Child, Error> = match spawned.join() {
            Ok(child) => child.map_err(wrap),
            Err(panic) => std::panic::resume_unwind(panic),
        };
        // The error of `known` comes first: it is the reason for the missing exec.
        permitted?;
        Ok(child?.id())
    })
}

/// Like [`spawn_known`], without `known`.
///
/// # Errors
/// The program cannot be started, or `inside` fails.
///
/// # Safety
/// As for [`spawn_known`].
pub unsafe fn spawn(
    program: &Path,
    arguments: &[String],
    fds: Vec<(OwnedFd, i32)>,
    inside: impl FnMut() -> io::Result<()> + Send + Sync + 'static,
) -> Result<u32, Error> {
    // SAFETY: the caller of this function guarantees the contract of `inside`.
    unsafe { spawn_known(program, arguments, fds, inside, |_| Ok(())) }
}

/// Receives the PID of the child, passes it to `known`, and sends the permission for exec. Closes
/// `ours` in any case.
fn permit_exec<E>(mut ours: UnixStream, known: impl FnOnce(u32) -> Result<(), E>) -> Result<(), E> {
    let mut pid = [0; size_of::<u32>()];
    if ours.read_exact(&mut pid).is_err() {
        return Ok(());
    }
    let result = known(u32::from_ne_bytes(pid));
    let _ = ours.write_all(&[u8::from(result.is_ok())]);
    result
}

/// In the child: sends the PID, and waits for the permission or for the end of the parent.
fn await_permission((ours, theirs): (RawFd, RawFd)) -> io::Result<()> {
    let pid = std::process::id().to_ne_bytes();
    let mut leave = [0_u8];
    // SAFETY: system calls on descriptors that were open at the fork, and on buffers that outlive
    // them. The copy of the parent's end is closed first to detect the parent's death.
    unsafe {
        nix::libc::close(ours);
        let sent = retried(|| {
            nix::libc::send(theirs, pid.as_ptr().cast(), pid.len(), nix::libc::MSG_NOSIGNAL)
        });
        let read = || nix::libc::read(theirs, leave.as_mut_ptr().cast(), leave.len());
        if sent != pid.len().cast_signed() || retried(read) != 1 {
            // The parent, which would handle the error, is gone.
            nix::libc::_exit(1);
        }
    }
    if leave == [1] { Ok(()) } else { Err(io::ErrorKind::Interrupted.into()) }
}

/// Retries a system call interrupted by a signal handler, which the child has until exec.
fn retried(mut call: impl FnMut() -> nix::libc::ssize_t) -> nix::libc::ssize_t {
    loop {
        let done = call();
        if done >= 0 || nix::errno::Errno::last() != nix::errno::Errno::EINTR {
            return done;
        }
    }
}

/// Waits for the exit of a process; returns true for exit code 0.
pub fn wait(pid: u32) -> bool {
    let ended = nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(pid.cast_signed()), None);
    matches!(ended, Ok(nix::sys::wait::WaitStatus::Exited(_, 0)))
}

/// Marks every descriptor except 0, 1 and 2 close-on-exec. Inherited ones (of a shell or a job
/// server) are not yet, and QEMU would keep their other ends waiting. Best effort:
/// `CLOSE_RANGE_CLOEXEC` requires Linux 5.11.
fn close_on_exec_from_3() {
    // SAFETY: a system call without pointers; it changes only flags of descriptors of this forked
    // process.
    unsafe {
        nix::libc::syscall(
            nix::libc::SYS_close_range,
            3_u32,
            u32::MAX,
            nix::libc::CLOSE_RANGE_CLOEXEC,
        );
    }
}

/// Occupies the free ones of these numbers until dropped. The standard library reports a failing
/// exec through a pipe at the lowest free numbers; a mapping to one of these would close it and
/// lose the error.
fn hold(fds: &[(OwnedFd, RawFd)]) -> io::Result<Vec<OwnedFd>> {
    let null = std::fs::File::open("/dev/null")?;
    let mut held = Vec::with_capacity(fds.len() + 1);
    for (_, number) in fds {
        held.push(rustix::io::fcntl_dupfd_cloexec(&null, *number)?);
    }
    held.push(null.into());
    Ok(held)
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn child_has_only_mapped_descriptors() {
        let (mut ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        // Like a descriptor leaked by a shell or a job server.
        let stray = std::fs::File::open("/dev/null").unwrap();
        let stray = rustix::io::fcntl_dupfd_cloexec(&stray, 100).unwrap();
        rustix::io::fcntl_setfd(&stray, rustix::io::FdFlags::empty()).unwrap();
        let script = "cd /proc/$$/fd; echo * >&9; env >&9".to_owned();
        let mut known = 0;
        let tell = |pid| -> Result<(), Error> {
            known = pid;
            Ok(())
        };
        let arguments = ["-c".to_owned(), script];
        let fds = vec![(theirs.into(), 9)];
        // SAFETY: the closure does nothing.
        let pid = unsafe { spawn_known(Path::new("sh"), &arguments, fds, || Ok(()), tell) };
        let pid = pid.unwrap();
        assert_eq!(pid, known);
        let mut output = String::new();
        ours.read_to_string(&mut output).unwrap();
        let fds: Vec<&str> = output.lines().next().unwrap().split(' ').collect();
        // The shell reads the directory with 3, and uses numbers from 10 on.
        assert!(["0", "1", "2", "9"].iter().all(|fd| fds.contains(fd)), "{output}");
        assert!(!fds.iter().any(|fd| matches!(*fd, "4" | "5" | "6" | "7" | "8")), "{output}");
        let stray = std::os::fd::AsRawFd::as_raw_fd(&stray).to_string();
        assert!(!fds.contains(&stray.as_str()), "{output}");
        assert!(!output.contains("NOTIFY_SOCKET"));
        let _ = nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(pid.cast_signed()), None);
    }

    #[test]
    fn signal_does_not_interrupt_the_start() {
        use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, kill, sigaction};
        extern "C" fn nothing(_: i32) {}
        // Without SA_RESTART, interrupted system calls fail with EINTR.
        let action =
            SigAction::new(SigHandler::Handler(nothing), SaFlags::empty(), SigSet::empty());
        // SAFETY: the handler does nothing, and no other test of this program uses the signal.
        unsafe { sigaction(Signal::SIGUSR1, &action) }.unwrap();
        let interrupt = |pid: u32| -> Result<(), Error> {
            let stat = || std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
            let sleeps = || stat().rsplit_once(") ").unwrap().1.starts_with('S');
            for _ in 0..3 {
                let begun = std::time::Instant::now();
                while !sleeps() && begun.elapsed() < std::time::Duration::from_secs(60) {
                    std::thread::yield_now();
                }
                kill(nix::unistd::Pid::from_raw(pid.cast_signed()), Signal::SIGUSR1).unwrap();
            }
            Ok(())
        };
        // SAFETY: the closure does nothing.
        let pid = unsafe { spawn_known(Path::new("true"), &[], vec![], || Ok(()), interrupt) };
        let pid = pid.unwrap();
        assert!(wait(pid));
    }

    #[test]
    fn missing_program_is_named() {
        let fds = (3..12).map(|number| (std::fs::File::open("/dev/null").unwrap().into(), number));
        // SAFETY: the closure does nothing.
        let spawned = unsafe { spawn(Path::new("/nowhere/qemu"), &[], fds.collect(), || Ok(())) };
        let error = spawned.unwrap_err();
        assert_eq!(error.to_string(), "cannot start `/nowhere/qemu`");
        assert!(error.hint().is_some());
    }

    #[test]
    fn unrecorded_child_is_not_executed() {
        let dir = tempfile::tempdir().unwrap();
        let made = dir.path().join("made");
        let arguments = ["-c".to_owned(), format!("touch {}", made.display())];
        let no = || Error { program: "known".into(), source: io::ErrorKind::StorageFull.into() };
        let mut child = 0;
        let known = |pid| {
            child = pid;
            Err(no())
        };
        // SAFETY: the closure does nothing.
        let error = unsafe { spawn_known(Path::new("sh"), &arguments, vec![], || Ok(()), known) };
        assert_eq!(error.unwrap_err().to_string(), "cannot start `known`");
        // The child was reaped.
        assert!(child > 0 && !Path::new(&format!("/proc/{child}")).exists());
        assert!(!made.exists());
    }
}
