//! A network namespace with the bridge `br0`, 192.168.97.1/24. It ends with the test, even if that
//! is killed.

use std::{
    ffi::OsStr,
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
};

/// Holds the namespace, and prints a line when all interfaces are up and taps can be created. Its
/// standard input closes at the end of the test.
const HOLDER: &str = "ip link set lo up && ip link add br0 type bridge && \
                      ip addr add 192.168.97.1/24 dev br0 && \
                      ip link set br0 up && ip tuntap add probe mode tap && \
                      ip link del probe && echo up && \
                      exec cat >/dev/null";

/// The namespace, held by a process.
pub(crate) struct Network {
    holder: Child,
    user: bool,
}

impl Network {
    /// Creates a namespace; `None` if that is impossible and not required. Without root it has a
    /// user namespace too.
    pub(crate) fn new() -> Option<Self> {
        let user = !nix::unistd::geteuid().is_root();
        let mut unshare = Command::new("unshare");
        unshare.args(user.then_some(["--user", "--map-root-user"]).into_iter().flatten());
        let mut holder = unshare
            .args(["--net", "sh", "-c", HOLDER])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(holder.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let network = Self { holder, user };
        if line == "up\n" {
            return Some(network);
        }
        assert!(!super::required("netns"), "no network namespace with a bridge can be made");
        println!("skipped: no network namespace with a bridge");
        None
    }

    /// Returns a command of `program` in the namespace, which has the PID of the child.
    pub(crate) fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut nsenter = Command::new("nsenter");
        nsenter.arg("--target").arg(self.holder.id().to_string()).arg("--net");
        nsenter
            .args(self.user.then_some(["--user", "--preserve-credentials"]).into_iter().flatten());
        nsenter.arg("--").arg(program);
        nsenter
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}
