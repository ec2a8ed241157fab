//! Starting a process that will outlive us: its own group, its own descriptors, nothing of ours but standard error.

use std::{
    io,
    os::{fd::OwnedFd, unix::process::CommandExt},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use command_fds::{CommandFdExt, FdMapping};

/// What belongs to our own conversation with the service manager.
const NOT_INHERITED: [&str; 7] = [
    "NOTIFY_SOCKET",
    "WATCHDOG_USEC",
    "WATCHDOG_PID",
    "LISTEN_FDS",
    "LISTEN_PID",
    "LISTEN_FDNAMES",
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
/// a pipe to us; a terminal's Ctrl-C does not reach it.
///
/// # Errors
/// It cannot be started.
pub fn spawn(program: &Path, arguments: &[String], fds: Vec<(OwnedFd, i32)>) -> Result<u32, Error> {
    let wrap = |source| Error { program: program.to_owned(), source };
    let mappings =
        fds.into_iter().map(|(parent_fd, child_fd)| FdMapping { parent_fd, child_fd }).collect();
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).process_group(0);
    for variable in NOT_INHERITED {
        command.env_remove(variable);
    }
    command.fd_mappings(mappings).map_err(|e| wrap(io::Error::other(e)))?;
    command.spawn().map(|child| child.id()).map_err(wrap)
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn the_child_has_the_descriptors_under_their_numbers_and_no_others() {
        let (mut ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        let script = "cd /proc/$$/fd; echo * >&9; env >&9".to_owned();
        let pid = spawn(Path::new("sh"), &["-c".into(), script], vec![(theirs.into(), 9)]).unwrap();
        let mut said = String::new();
        ours.read_to_string(&mut said).unwrap();
        let fds: Vec<&str> = said.lines().next().unwrap().split(' ').collect();
        // The shell reads the directory itself by 3, and keeps what it likes from 10 on.
        assert!(["0", "1", "2", "9"].iter().all(|fd| fds.contains(fd)), "{said}");
        assert!(!fds.iter().any(|fd| matches!(*fd, "4" | "5" | "6" | "7" | "8")), "{said}");
        assert!(!said.contains("NOTIFY_SOCKET"));
        let _ = nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(pid.cast_signed()), None);
    }

    #[test]
    fn a_missing_program_is_named() {
        let error = spawn(Path::new("/nowhere/qemu"), &[], vec![]).unwrap_err();
        assert_eq!(error.to_string(), "cannot start `/nowhere/qemu`");
        assert!(error.hint().is_some());
    }
}
