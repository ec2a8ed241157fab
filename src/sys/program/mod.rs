//! Runs other programs of the host: bounded in time and output, or in the operator's terminal.
//!
//! Only this module and the spawn of QEMU create processes.

mod captured;
mod error;

use std::{
    ffi::{OsStr, OsString},
    fs::File,
    io,
    os::unix::{net::UnixStream, process::CommandExt},
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    time::Duration,
};

use self::captured::{Cancel, Limits};
pub use self::error::Error;
pub(crate) use self::error::run_code;

/// The default output limit in bytes.
const OUTPUT_LIMIT: usize = 1 << 20;

/// A program, its arguments and its environment, and the limits of a run whose output is captured.
#[derive(Debug)]
pub struct Program {
    command: Command,
    discards_stdout: bool,
    time_limit: Option<Duration>,
    output_limit: usize,
}

/// What a program printed, and how it ended.
#[derive(Debug)]
pub struct Output {
    /// The exit code or the signal.
    pub status: ExitStatus,
    /// Standard output. Bytes that are not UTF-8 are replaced.
    pub stdout: String,
    /// Standard error, without its middle part where it exceeds the output limit.
    pub stderr: String,
    /// The command line.
    command: String,
}

impl Output {
    /// Returns standard output.
    ///
    /// # Errors
    /// [`Error::Failed`] for any status but exit code 0.
    pub fn success(self) -> Result<String, Error> {
        let Self { status, stdout, stderr, command } = self;
        if status.success() {
            return Ok(stdout);
        }
        Err(Error::Failed { command, status, stderr: error::last_lines(&stderr) })
    }
}

impl Program {
    /// Names a program: a path, or a name to find in `PATH`. It inherits this process' environment.
    pub fn new(program: impl AsRef<OsStr>) -> Self {
        Self {
            command: Command::new(program),
            discards_stdout: false,
            time_limit: None,
            output_limit: OUTPUT_LIMIT,
        }
    }

    /// Adds an argument.
    #[must_use]
    pub fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.command.arg(argument);
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args(mut self, arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Self {
        self.command.args(arguments);
        self
    }

    /// Sets an environment variable.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// Limits the time of a captured run. At the limit its process group is killed.
    #[must_use]
    pub fn time_limit(mut self, limit: Duration) -> Self {
        self.time_limit = Some(limit);
        self
    }

    /// Limits what is captured, in bytes each of standard output and standard error; 1 MiB without.
    #[must_use]
    pub fn output_limit(mut self, bytes: usize) -> Self {
        self.output_limit = bytes;
        self
    }

    /// Connects standard output of a captured run to /dev/null.
    #[must_use]
    pub fn discard_stdout(mut self) -> Self {
        self.discards_stdout = true;
        self
    }

    /// Runs the program to its end and captures its output. Blocks the calling thread.
    ///
    /// # Errors
    /// The program cannot be run, or exceeds a limit. A status other than 0 is no error here.
    pub fn run(self) -> Result<Output, Error> {
        self.capture(Cancel::Never)
    }

    /// Does the same while `goes_on`, which is called every 100 ms, returns true.
    ///
    /// # Errors
    /// Those of [`Self::run`], and [`Error::Canceled`].
    pub fn run_while(self, goes_on: &mut dyn FnMut() -> bool) -> Result<Output, Error> {
        self.capture(Cancel::Unless(goes_on))
    }

    /// Does the same on a thread of the runtime. The process group is killed where the future is
    /// dropped.
    ///
    /// # Errors
    /// Those of [`Self::run`].
    pub async fn run_async(self) -> Result<Output, Error> {
        let program = self.command.get_program().to_owned();
        let failed = |source| Error::Run { program: Path::new(&program).to_owned(), source };
        let (guard, dropped) = UnixStream::pair().map_err(failed)?;
        let run = tokio::task::spawn_blocking(move || self.capture(Cancel::Dropped(dropped)));
        let output = run.await.map_err(io::Error::other).map_err(failed)?;
        drop(guard);
        output
    }

    fn capture(mut self, cancel: Cancel<'_>) -> Result<Output, Error> {
        let command = self.command_line();
        let stdout = if self.discards_stdout { Stdio::null() } else { Stdio::piped() };
        self.command.stdin(Stdio::null()).stdout(stdout).stderr(Stdio::piped());
        // Programs read the output. Programs of systemd would notify the manager in this process'
        // name (systemd's src/shared/main-func.h).
        self.command.env("LC_ALL", "C").env_remove("NOTIFY_SOCKET").process_group(0);
        let limits = Limits { time: self.time_limit, output: self.output_limit };
        let (status, stdout, stderr) = captured::run(&mut self.command, &command, &limits, cancel)?;
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Ok(Output { status, stdout: text(stdout), stderr: text(stderr), command })
    }

    fn command_line(&self) -> String {
        let mut words = vec![self.command.get_program()];
        words.extend(self.command.get_args());
        words.join(OsStr::new(" ")).to_string_lossy().into_owned()
    }

    /// Starts the program in the foreground: it shares this process' terminal and process group.
    ///
    /// # Errors
    /// The program cannot be started.
    pub fn spawn_in_foreground(mut self) -> io::Result<Child> {
        self.command.spawn()
    }

    /// Starts the program in a new process group and without standard input, so that a
    /// Ctrl-C at the terminal does not reach it. Without `output` its standard output is discarded
    /// and standard error is shared.
    ///
    /// # Errors
    /// The program cannot be started.
    pub fn spawn_in_background(mut self, output: Option<File>) -> io::Result<Child> {
        let (stdout, stderr) = match output {
            Some(output) => (Stdio::from(output.try_clone()?), Stdio::from(output)),
            None => (Stdio::null(), Stdio::inherit()),
        };
        self.command.stdin(Stdio::null()).stdout(stdout).stderr(stderr);
        self.command.current_dir("/").process_group(0).spawn()
    }

    /// Replaces this process by the program. Returns only where that fails, with the reason.
    pub fn exec(mut self) -> io::Error {
        self.command.exec()
    }
}

/// Lets the shell run `command`, which may contain options, with `argument` as one more word.
pub fn by_shell(command: &OsStr, argument: impl AsRef<OsStr>) -> Program {
    let mut script: OsString = command.to_owned();
    script.push(" \"$1\"");
    Program::new("sh").arg("-c").arg(script).arg("sh").arg(argument)
}

#[cfg(test)]
mod tests;
