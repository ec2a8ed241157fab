//! Starting a process that will outlive us: its own session, its own descriptors, nothing of ours but standard error.

use std::{
    io,
    os::{
        fd::{OwnedFd, RawFd},
        unix::process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use command_fds::{CommandFdExt, FdMapping};

/// What systemd gives to one process and its children must not take for their own (sd_notify(3), sd_listen_fds(3),
/// sd_watchdog_enabled(3)).
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

/// Why a process did not start.
#[derive(Debug, thiserror::Error)]
#[error("cannot start `{}`", program.display())]
pub struct Error {
    program: PathBuf,
    source: io::Error,
}

impl Error {
    /// The host is at fault: it has no memory, processes or descriptors to give.
    pub fn is_the_hosts(&self) -> bool {
        matches!(self.source.kind(), io::ErrorKind::OutOfMemory | io::ErrorKind::WouldBlock)
    }

    /// The way out.
    pub fn hint(&self) -> Option<String> {
        match self.source.kind() {
            io::ErrorKind::NotFound => Some("install QEMU, or name it with `QVM_QEMU`".into()),
            _ => None,
        }
    }
}

/// Starts `program` with these descriptors under these numbers, and gives its pid. Its standard error is ours, never
/// a pipe to us, for it would die of SIGPIPE after us. It has a session of its own, so that neither Ctrl-C nor the end of a
/// terminal reaches it. It is never reaped here, so the pid stays its own until somebody waits for it. The last thing that it does
/// before it becomes the program is `inside`, which must do nothing but bare system calls.
///
/// # Errors
/// It cannot be started, or `inside` fails.
pub fn spawn(
    program: &Path,
    arguments: &[String],
    fds: Vec<(OwnedFd, i32)>,
    inside: impl FnMut() -> io::Result<()> + Send + Sync + 'static,
) -> Result<u32, Error> {
    let wrap = |source| Error { program: program.to_owned(), source };
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null());
    for variable in NOT_INHERITED {
        command.env_remove(variable);
    }
    // SAFETY: between fork and exec only async-signal-safe calls are allowed: these are two bare system calls,
    // and nothing is allocated.
    unsafe {
        command.pre_exec(|| {
            rustix::process::setsid()?;
            close_on_exec_from_3();
            Ok(())
        });
    }
    let _held = hold(&fds).map_err(wrap)?;
    // Added after close_on_exec_from_3, since hooks run in the order they were added.
    let mappings =
        fds.into_iter().map(|(parent_fd, child_fd)| FdMapping { parent_fd, child_fd }).collect();
    command.fd_mappings(mappings).map_err(|e| wrap(io::Error::other(e)))?;
    // SAFETY: as above, and by the contract of this function.
    unsafe { command.pre_exec(inside) };
    command.spawn().map(|child| child.id()).map_err(wrap)
}

/// Waits until a process that was started here has ended: whether it ended well.
pub fn wait(pid: u32) -> bool {
    let ended = nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(pid.cast_signed()), None);
    matches!(ended, Ok(nix::sys::wait::WaitStatus::Exited(_, 0)))
}

/// Marks every descriptor but 0, 1 and 2 close-on-exec. Those that this program opens are already; those that it
/// was started with (a shell's, a job server's) are not, and a guest that holds one for weeks keeps its other end
/// waiting. Best effort: `CLOSE_RANGE_CLOEXEC` is Linux 5.11.
fn close_on_exec_from_3() {
    // SAFETY: a system call without pointers; it changes flags of this (forked) process' descriptors only.
    unsafe {
        nix::libc::syscall(
            nix::libc::SYS_close_range,
            3_u32,
            u32::MAX,
            nix::libc::CLOSE_RANGE_CLOEXEC,
        );
    }
}

/// Occupies those of these numbers that are free, until dropped. std's spawn reports a failing exec through a pipe
/// at the lowest free numbers; a mapping onto one of those would close it, and the failure would be lost.
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
    fn the_child_has_the_descriptors_under_their_numbers_and_no_others() {
        let (mut ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        // As a shell or a job server may leave one to us.
        let stray = std::fs::File::open("/dev/null").unwrap();
        let stray = rustix::io::fcntl_dupfd_cloexec(&stray, 100).unwrap();
        rustix::io::fcntl_setfd(&stray, rustix::io::FdFlags::empty()).unwrap();
        let script = "cd /proc/$$/fd; echo * >&9; env >&9".to_owned();
        let pid =
            spawn(Path::new("sh"), &["-c".into(), script], vec![(theirs.into(), 9)], || Ok(()))
                .unwrap();
        let mut said = String::new();
        ours.read_to_string(&mut said).unwrap();
        let fds: Vec<&str> = said.lines().next().unwrap().split(' ').collect();
        // The shell reads the directory itself by 3, and keeps what it likes from 10 on.
        assert!(["0", "1", "2", "9"].iter().all(|fd| fds.contains(fd)), "{said}");
        assert!(!fds.iter().any(|fd| matches!(*fd, "4" | "5" | "6" | "7" | "8")), "{said}");
        let stray = std::os::fd::AsRawFd::as_raw_fd(&stray).to_string();
        assert!(!fds.contains(&stray.as_str()), "{said}");
        assert!(!said.contains("NOTIFY_SOCKET"));
        let _ = nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(pid.cast_signed()), None);
    }

    #[test]
    fn a_missing_program_is_named() {
        let fds = (3..12).map(|number| (std::fs::File::open("/dev/null").unwrap().into(), number));
        let error = spawn(Path::new("/nowhere/qemu"), &[], fds.collect(), || Ok(())).unwrap_err();
        assert_eq!(error.to_string(), "cannot start `/nowhere/qemu`");
        assert!(error.hint().is_some());
    }
}
