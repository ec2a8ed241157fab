//! QEMU by itself, with the command line that qvm would run: what any supervisor costs comes on top of this.

use std::{
    io::{BufRead, BufReader, Write},
    os::{
        fd::OwnedFd,
        unix::net::{UnixListener, UnixStream},
    },
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use command_fds::{CommandFdExt, FdMapping};

use super::place::Place;

/// A QEMU that runs its guest.
pub(crate) struct Raw {
    pub(crate) child: Child,
    monitor: BufReader<UnixStream>,
    /// From before exec until `cont` was answered.
    pub(crate) took: Duration,
}

impl Raw {
    /// Starts the VM `name` without qvm; its disk must be there.
    pub(crate) fn start(place: &Place, name: &str) -> Self {
        let plan = place.command(&["plan", name]).stdout(Stdio::piped()).output().unwrap();
        let plan = String::from_utf8(plan.stdout).unwrap();
        let mut words = plan.lines();
        let mut command = Command::new(words.next().unwrap());
        command.args(words).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let listening = |number| {
            let path = place.path(&format!("raw{number}"));
            let _ = std::fs::remove_file(&path);
            (UnixListener::bind(&path).unwrap(), path, number)
        };
        let sockets = [3, 4, 5].map(listening);
        let begun = Instant::now();
        let stream = UnixStream::connect(&sockets[0].1).unwrap();
        let mappings = sockets
            .into_iter()
            .map(|(socket, _, child_fd)| FdMapping { parent_fd: OwnedFd::from(socket), child_fd });
        command.fd_mappings(mappings.collect()).unwrap();
        let child = command.spawn().unwrap();
        let mut raw = Self { child, monitor: BufReader::new(stream), took: Duration::ZERO };
        raw.hear("\"QMP\"");
        raw.call("qmp_capabilities");
        raw.call("cont");
        raw.took = begun.elapsed();
        raw
    }

    fn hear(&mut self, what: &str) {
        let mut line = String::new();
        while !line.contains(what) {
            line.clear();
            assert!(self.monitor.read_line(&mut line).unwrap() > 0, "QEMU went");
        }
    }

    fn call(&mut self, command: &str) {
        self.say(command);
        self.hear("\"return\"");
    }

    fn say(&mut self, command: &str) {
        let line = format!("{{\"execute\":\"{command}\"}}\n");
        self.monitor.get_mut().write_all(line.as_bytes()).unwrap();
    }

    /// QMP `quit`, until the process is gone.
    pub(crate) fn quit(mut self) -> Duration {
        let begun = Instant::now();
        self.say("quit");
        self.child.wait().unwrap();
        begun.elapsed()
    }
}
