//! Another program of the host's, asked for what it prints: with a bound on its time and on its words.

use std::{
    io::{self, Read},
    os::unix::process::CommandExt,
    path::Path,
    process::{Child, Command, Stdio},
    sync::mpsc,
    time::{Duration, Instant},
};

use super::error::Error;
use crate::value::shown;

/// What is asked, of whom.
#[derive(Debug, Clone, Copy)]
pub struct Question<'a> {
    /// The program.
    pub program: &'a Path,
    /// Its arguments.
    pub arguments: &'a [&'a str],
    /// How long it may take.
    pub patience: Duration,
    /// The most that is read of what it prints, in bytes.
    pub most: u64,
}

impl Question<'_> {
    /// What the program prints on standard output. It is killed when its time is up.
    ///
    /// # Errors
    /// It cannot be run, does not end in time, or says no.
    pub fn ask(&self) -> Result<String, Error> {
        let ends = Instant::now() + self.patience;
        let command = format!("{} {}", self.program.display(), self.arguments.join(" "));
        let run = |source| Error::Run { command: command.clone(), source };
        let mut child = Command::new(self.program)
            .args(self.arguments)
            // What it says is read by a program.
            .env("LC_ALL", "C")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // A group of its own, so that a wrapper script is killed with what it started.
            .process_group(0)
            .spawn()
            .map_err(run)?;
        let said = collect(child.stdout.take(), self.most);
        let complained = collect(child.stderr.take(), self.most);
        let remaining = || ends.saturating_duration_since(Instant::now());
        let output = said.recv_timeout(remaining()).and_then(|said| {
            complained.recv_timeout(remaining()).map(|complained| (said, complained))
        });
        let ended = match output {
            Ok(output) => wait(&mut child, ends).map_err(run)?.map(|status| (output, status)),
            Err(_) => None,
        };
        let Some(((said, complained), status)) = ended else {
            kill(&mut child);
            return Err(Error::Hung(command, self.patience.as_secs()));
        };
        if !status.success() {
            let said = complained.lines().next().map(shown).unwrap_or_default();
            return Err(Error::Failed { command, status, said });
        }
        Ok(said)
    }
}

/// Reads a pipe to its end, or to `most` bytes, on a thread of its own. What is not UTF-8 is replaced.
fn collect(pipe: Option<impl Read + Send + 'static>, most: u64) -> mpsc::Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(pipe) = pipe {
            let _ = pipe.take(most).read_to_end(&mut bytes);
        }
        let _ = sender.send(String::from_utf8_lossy(&bytes).into_owned());
    });
    receiver
}

/// Waits for a child that has closed its pipes, and so is about to end.
fn wait(child: &mut Child, ends: Instant) -> io::Result<Option<std::process::ExitStatus>> {
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() >= ends {
            return Ok(None);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn kill(child: &mut Child) {
    if let Ok(group) = i32::try_from(child.id()) {
        let _ = nix::sys::signal::killpg(
            nix::unistd::Pid::from_raw(group),
            nix::sys::signal::Signal::SIGKILL,
        );
    }
    let _ = child.wait();
}
