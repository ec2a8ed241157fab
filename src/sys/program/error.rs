//! Why a captured run of a program has no result.

use std::{io, path::PathBuf, process::ExitStatus, time::Duration};

use crate::value::{ErrorCode, Explain, shown};

/// How many of the last lines of standard error a message quotes.
const LINES: usize = 3;

/// Why a program's run has no result.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The program cannot be started, or its end cannot be awaited.
    #[error("cannot run `{}`", .program.display())]
    Run {
        /// The program as it was named.
        program: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// The program did not end in time.
    #[error("`{command}` did not end within {} s and was killed", .limit.as_secs())]
    TimedOut {
        /// The program and its arguments.
        command: String,
        /// The time limit.
        limit: Duration,
    },
    /// The program printed more than the output limit.
    #[error("`{command}` printed more than {limit} bytes and was killed")]
    OutputTooLong {
        /// The program and its arguments.
        command: String,
        /// The output limit.
        limit: usize,
    },
    /// The caller canceled the run.
    #[error("`{command}` was canceled")]
    Canceled {
        /// The program and its arguments.
        command: String,
    },
    /// The program ended with another status than 0.
    #[error("`{command}` failed ({status}): {stderr}")]
    Failed {
        /// The program and its arguments.
        command: String,
        /// The exit code or the signal.
        status: ExitStatus,
        /// The last lines of standard error.
        stderr: String,
    },
}

impl Explain for Error {
    fn own_code(&self) -> Option<ErrorCode> {
        Some(match self {
            Self::Run { source, .. } => run_code(source),
            Self::TimedOut { .. } => ErrorCode::ProgramTimeout,
            Self::Canceled { .. } => ErrorCode::Canceled,
            Self::OutputTooLong { .. } | Self::Failed { .. } => ErrorCode::ProgramFailed,
        })
    }
}

/// The code of an error of execve(2) or fork(2).
pub(crate) fn run_code(error: &io::Error) -> ErrorCode {
    match error.kind() {
        io::ErrorKind::NotFound => ErrorCode::ProgramMissing,
        _ => ErrorCode::of_io(error),
    }
}

/// The last lines that are not blank, each bounded and escaped, separated by `; `.
pub(super) fn last_lines(text: &str) -> String {
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let mut last: Vec<String> = lines.rev().take(LINES).map(shown).collect();
    last.reverse();
    last.join("; ")
}
