//! The exit codes, and the error messages and error codes on standard error.

use std::{error::Error, fmt, io};

use super::table::{Screen, Style};
use crate::{
    spec::Invalid,
    value::{ErrorCode, Explain, VmName, chain, is_host_fault, plain},
};

/// Failure.
pub const FAILED: u8 = 1;
/// Wrong usage; clap uses the same code.
pub const USAGE: u8 = 2;
/// The VM is not running or does not exist.
pub const NOT_RUNNING: u8 = 3;
/// `qvm disk check`: clusters are leaked, and no data is corrupt.
pub const LEAKS: u8 = 4;
/// `qvm disk check`: a disk is corrupt.
pub const CORRUPT: u8 = 5;
/// Not enough memory to start another VM, and the host settings refuse the start then
/// (`EX_UNAVAILABLE` of sysexits.h).
pub const NO_MEMORY: u8 = 69;
/// QEMU has not exited after SIGKILL: the kernel waits for storage (`EX_SOFTWARE` of sysexits.h).
pub const NOT_ENDED: u8 = 70;
/// A fault of the host; a retry may succeed (`EX_TEMPFAIL` of sysexits.h).
pub const HOST: u8 = 75;
/// A VM file is invalid (`EX_CONFIG` of sysexits.h).
pub const INVALID: u8 = 78;

/// Why a verb failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    exit: u8,
    /// `None` if `chain` contains its own `code: ` lines, or is empty.
    code: Option<ErrorCode>,
    subject: Option<String>,
    chain: String,
    hint: Option<String>,
    /// `chain` contains its own `error: ` lines, or is empty.
    as_it_is: bool,
}

impl Failure {
    /// Creates a failure from one sentence, with the exit code of its error code.
    pub fn new(code: ErrorCode, text: impl Into<String>) -> Self {
        Self {
            exit: code.exit_code(),
            code: Some(code),
            subject: None,
            chain: text.into(),
            hint: None,
            as_it_is: false,
        }
    }

    /// Creates a failure from an error and its causes: exit code 75 if the host is out of a
    /// resource or its storage fails ([`is_host_fault`]), else 1. The error code is that of the
    /// I/O error among the causes.
    pub fn from_error(error: &(dyn Error + 'static)) -> Self {
        let exit = if is_host_fault(error) { HOST } else { FAILED };
        Self::new(io_code(error), chain(error)).exit(exit)
    }

    /// Like [`from_error`](Self::from_error), with the error's own code and hint.
    pub fn described(error: &(dyn Explain + 'static)) -> Self {
        Self::from_error(error).error_code(error.code()).hint(error.hint())
    }

    /// Creates a failure from an error, its causes, its code and its hint: exit code 75 for a fault
    /// of the host, else 1.
    pub fn explained(error: &(dyn Explain + 'static)) -> Self {
        Self::described(error).host_fault_if(error.is_host_fault())
    }

    /// Like [`explained`](Self::explained), for an error about one VM: its name replaces `NAME` in
    /// the hint.
    pub fn explained_for(error: &(dyn Explain + 'static), name: &VmName) -> Self {
        Self::explained(error).about(name).hint(error.hint_for(name))
    }

    /// Creates a failure from an I/O error of the operation `doing`.
    pub fn from_io(doing: &str, error: &io::Error) -> Self {
        let failure = Self::from_error(error);
        Self { chain: format!("{doing}: {}", failure.chain), ..failure }
    }

    /// Exit code 78, or 75 if a fault of the host prevents reading a file. The text of the problems
    /// includes `error: `.
    pub fn invalid(invalid: &Invalid) -> Self {
        let code = invalid.code();
        Self::preformatted(code.exit_code(), invalid.to_string()).error_code(code)
    }

    /// Sets exit code 75 if `is_host_fault` is true.
    #[must_use]
    pub fn host_fault_if(self, is_host_fault: bool) -> Self {
        if is_host_fault { self.exit(HOST) } else { self }
    }

    /// Creates a failure whose text already contains `error: ` lines.
    pub fn preformatted(exit: u8, text: impl Into<String>) -> Self {
        Self { exit, code: None, as_it_is: true, ..Self::new(ErrorCode::Other, text) }
    }

    /// Creates a failure without a text.
    pub fn quiet(exit: u8) -> Self {
        Self::preformatted(exit, "")
    }

    /// A failed write to standard output. A closed pipe is reported without a text.
    pub fn output(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::quiet(0),
            // A terminal that hung up: the exit code of SIGHUP.
            _ if error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error()) => {
                Self::quiet(128 + 1)
            }
            _ => {
                let text = format!("cannot write to standard output: {error}");
                Self::new(ErrorCode::OutputFailed, text)
            }
        }
    }

    /// Sets the subject, such as the name of a VM.
    #[must_use]
    pub fn about(self, subject: impl fmt::Display) -> Self {
        Self { subject: Some(subject.to_string()), ..self }
    }

    /// Sets the hint.
    #[must_use]
    pub fn hint(self, hint: impl Into<Option<String>>) -> Self {
        Self { hint: hint.into(), ..self }
    }

    /// Sets the hint of a failure without one.
    #[must_use]
    pub fn or_hint(self, hint: &str) -> Self {
        Self { hint: self.hint.or_else(|| Some(hint.to_owned())), ..self }
    }

    /// Sets the exit code.
    #[must_use]
    pub fn exit(self, exit: u8) -> Self {
        Self { exit, ..self }
    }

    /// Sets the error code; the exit code stays.
    #[must_use]
    pub fn error_code(self, code: ErrorCode) -> Self {
        Self { code: Some(code), ..self }
    }

    /// Returns the exit code of the process.
    pub fn exit_code(&self) -> u8 {
        self.exit
    }

    /// Returns the error code; `None` for several failures, and for one without a text.
    pub fn code(&self) -> Option<ErrorCode> {
        self.code
    }

    /// Combines failures: all texts, and the worst exit code. An invalid file is worse than a
    /// failure; "not running" is the least.
    ///
    /// # Errors
    /// `failures` is not empty.
    pub fn all(failures: Vec<Self>) -> Result<(), Self> {
        let badness = |exit: u8| match exit {
            INVALID => 4,
            FAILED | HOST | NO_MEMORY | NOT_ENDED => 3,
            USAGE => 2,
            0 => 0,
            _ => 1,
        };
        let Some(worst) = failures.iter().map(|f| f.exit).max_by_key(|exit| badness(*exit)) else {
            return Ok(());
        };
        if let [one] = failures.as_slice() {
            return Err(one.clone());
        }
        let messages: Vec<String> =
            failures.iter().map(Self::to_string).filter(|text| !text.is_empty()).collect();
        Err(Self::preformatted(worst, messages.join("\n")))
    }
}

/// The code of the I/O error among the causes; `internal-error` if there is none.
fn io_code(error: &(dyn Error + 'static)) -> ErrorCode {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(io) = error.downcast_ref() {
            return ErrorCode::of_io(io);
        }
        cause = error.source();
    }
    ErrorCode::InternalError
}

/// `error: web: a: b: c`, a line `hint: …` and a line `code: …`, without a newline at the end;
/// empty if there is no text.
impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.as_it_is {
            f.write_str(&self.chain)?;
        } else {
            f.write_str("error: ")?;
            if let Some(subject) = &self.subject {
                write!(f, "{subject}: ")?;
            }
            f.write_str(&self.chain)?;
        }
        if let Some(hint) = &self.hint {
            write!(f, "\nhint: {hint}")?;
        }
        match self.code {
            Some(code) => write!(f, "\ncode: {code}"),
            None => Ok(()),
        }
    }
}

impl Failure {
    /// Returns the text for standard error, with colors. Control characters in texts of a guest or
    /// a server are escaped.
    pub fn shown(&self, screen: Screen) -> String {
        let paint = |line: &str| {
            let line = plain(line);
            let kinds =
                [("error: ", Style::Bad), ("hint: ", Style::Doubtful), ("code: ", Style::Faint)];
            let kind =
                kinds.iter().find_map(|(kind, look)| Some((line.strip_prefix(kind)?, kind, look)));
            match kind {
                Some((rest, kind, look)) => look.paint(kind, screen.colours) + rest,
                None => line,
            }
        };
        self.to_string().split('\n').map(paint).collect::<Vec<_>>().join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("outer")]
    struct Outer(#[source] Inner);

    #[derive(Debug, thiserror::Error)]
    #[error("inner")]
    struct Inner(#[source] io::Error);

    #[test]
    fn causes_are_printed_in_one_line() {
        let error = Outer(Inner(io::Error::other("the cause")));
        assert_eq!(chain(&error), "outer: inner: the cause");
        let failure = Failure::from_error(&error).about("web").hint(Some("do this".to_owned()));
        assert_eq!(
            failure.to_string(),
            "error: web: outer: inner: the cause\nhint: do this\ncode: file-error"
        );
    }

    #[test]
    fn control_characters_are_escaped() {
        let failure =
            Failure::new(ErrorCode::GuestRefused, "guest agent: \u{1b}]0;x\u{7}\nno").about("web");
        let colours = Screen { colours: true, width: None };
        let shown = "error: web: guest agent: \\u{1b}]0;x\\u{7}\nno\ncode: guest-refused";
        assert_eq!(failure.shown(Screen::default()), shown);
        let painted = shown.replacen("error: ", "\u{1b}[31merror: \u{1b}[0m", 1);
        let painted = painted.replacen("code: ", "\u{1b}[2mcode: \u{1b}[0m", 1);
        assert_eq!(failure.shown(colours), painted);
    }

    #[test]
    fn several_failures_exit_with_the_worst_code() {
        let not_running = Failure::new(ErrorCode::NotRunning, "not running").about("a");
        let failed = Failure::new(ErrorCode::FileError, "broken").about("b");
        let both = Failure::all(vec![not_running.clone(), failed]).unwrap_err();
        assert_eq!(both.exit_code(), FAILED);
        assert_eq!(
            both.to_string(),
            "error: a: not running\ncode: not-running\nerror: b: broken\ncode: file-error"
        );
        assert_eq!(Failure::all(vec![not_running.clone()]), Err(not_running));
        assert_eq!(Failure::all(vec![]), Ok(()));
    }

    #[test]
    fn closed_pipe_is_silent() {
        let failure = Failure::output(&io::ErrorKind::BrokenPipe.into());
        assert_eq!((failure.to_string().as_str(), failure.exit_code()), ("", 0));
        assert_eq!(Failure::output(&io::ErrorKind::StorageFull.into()).exit_code(), FAILED);
    }
}
