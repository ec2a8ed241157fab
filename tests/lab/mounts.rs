//! File systems in a mount namespace, which end with the test, even if it is killed.

use std::{
    ffi::OsStr,
    fs,
    io::{BufRead, BufReader, Write},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
};

/// Runs each line of its standard input, and prints the result. The input closes at the end of the
/// test.
const HOLDER: &str =
    "mount --make-rprivate / && echo 0 && while read -r line; do eval \"$line\" >&2; echo $?; done";

/// The namespace, held by a process.
pub(crate) struct Mounts {
    holder: Child,
    lines: Option<ChildStdin>,
    answers: BufReader<std::process::ChildStdout>,
    user: bool,
}

impl Mounts {
    /// Creates a namespace with the mounts of the machine; `None` if that is impossible and not
    /// required. Without root it has a user namespace too.
    pub(crate) fn new() -> Option<Self> {
        let user = !nix::unistd::geteuid().is_root();
        let mut unshare = Command::new("unshare");
        unshare.args(user.then_some(["--user", "--map-root-user"]).into_iter().flatten());
        let mut holder = unshare
            .args(["--mount", "sh", "-c", HOLDER])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = holder.stdin.take();
        let answers = BufReader::new(holder.stdout.take().unwrap());
        let mut mounts = Self { holder, lines, answers, user };
        if mounts.answer() == "0" {
            return Some(mounts);
        }
        assert!(!super::required("netns"), "no mount namespace can be made");
        println!("skipped: no mount namespace");
        None
    }

    fn answer(&mut self) -> String {
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    /// Runs a line of a shell in the namespace, which must succeed.
    pub(crate) fn sh(&mut self, line: &str) {
        writeln!(self.lines.as_mut().unwrap(), "{line}").unwrap();
        assert_eq!(self.answer(), "0", "{line}");
    }

    /// Mounts a tmpfs of this size over `at`.
    pub(crate) fn tmpfs(&mut self, at: &Path, options: &str) {
        fs::create_dir_all(at).unwrap();
        self.sh(&format!("mount -t tmpfs -o {options} tmpfs '{}'", at.display()));
    }

    /// Returns the path for processes outside of the namespace.
    pub(crate) fn seen(&self, path: &Path) -> PathBuf {
        let root = PathBuf::from(format!("/proc/{}/root", self.holder.id()));
        root.join(path.strip_prefix("/").unwrap())
    }

    /// Fills the file system of a directory except for this number of bytes, by the file `filler`.
    pub(crate) fn fill(&self, dir: &Path, but_for: u64) {
        let free = fs2::available_space(self.seen(dir)).unwrap();
        let mut filler = fs::File::options()
            .create(true)
            .append(true)
            .open(self.seen(dir).join("filler"))
            .unwrap();
        let page = [b'f'; 4096];
        for _ in 0..free.saturating_sub(but_for) / 4096 {
            match filler.write_all(&page) {
                // Another process wrote meanwhile.
                Err(error) if error.kind() == std::io::ErrorKind::StorageFull => break,
                done => done.unwrap(),
            }
        }
        assert!(filler.metadata().unwrap().size() > 0);
    }

    /// Removes the filler.
    pub(crate) fn make_room(&self, dir: &Path) {
        fs::remove_file(self.seen(dir).join("filler")).unwrap();
    }

    /// Returns a command of `program` in the namespace, which has the PID of the child.
    pub(crate) fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut nsenter = Command::new("nsenter");
        nsenter.arg("--target").arg(self.holder.id().to_string()).arg("--mount");
        nsenter
            .args(self.user.then_some(["--user", "--preserve-credentials"]).into_iter().flatten());
        nsenter.arg("--").arg(program);
        nsenter
    }
}

impl Drop for Mounts {
    fn drop(&mut self) {
        self.lines = None;
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}
