//! The exit codes, and the error messages on standard error.

use std::{error::Error, fmt, io};

use super::table::{Screen, Style};
use crate::{
    spec::Invalid,
    value::{Explain, VmName, chain, is_host_fault, plain},
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
    code: u8,
    subject: Option<String>,
    chain: String,
    hint: Option<String>,
    /// `chain` contains its own `error: ` lines, or is empty.
    as_it_is: bool,
}

impl Failure {
    /// Creates a failure from one sentence.
    pub fn new(code: u8, text: impl Into<String>) -> Self {
        Self { code, subject: None, chain: text.into(), hint: None, as_it_is: false }
    }

    /// Creates a failure from an error and its causes: exit code 75 if the host is out of a
    /// resource or its storage fails ([`is_host_fault`]), else 1.
    pub fn from_error(error: &(dyn Error + 'static)) -> Self {
        Self::new(if is_host_fault(error) { HOST } else { FAILED }, chain(error))
    }

    /// Creates a failure from an error, its causes and its hint: exit code 75 for a fault of the
    /// host, else 1.
    pub fn explained(error: &(dyn Explain + 'static)) -> Self {
        Self::from_error(error).host_fault_if(error.is_host_fault()).hint(error.hint())
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
        let code = if invalid.is_host_fault() { HOST } else { INVALID };
        Self::preformatted(code, invalid.to_string())
    }

    /// Sets exit code 75 if `is_host_fault` is true.
    #[must_use]
    pub fn host_fault_if(self, is_host_fault: bool) -> Self {
        if is_host_fault { self.code(HOST) } else { self }
    }

    /// Creates a failure whose text already contains `error: ` lines.
    pub fn preformatted(code: u8, text: impl Into<String>) -> Self {
        Self { as_it_is: true, ..Self::new(code, text) }
    }

    /// Creates a failure without a text.
    pub fn quiet(code: u8) -> Self {
        Self::preformatted(code, "")
    }

    /// A failed write to standard output. A closed pipe is reported without a text.
    pub fn output(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::quiet(0),
            // A terminal that hung up: the exit code of SIGHUP.
            _ if error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error()) => {
                Self::quiet(128 + 1)
            }
            _ => Self::new(FAILED, format!("cannot write to standard output: {error}")),
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

    /// Sets the exit code.
    #[must_use]
    pub fn code(self, code: u8) -> Self {
        Self { code, ..self }
    }

    /// Returns the exit code of the process.
    pub fn exit_code(&self) -> u8 {
        self.code
    }

    /// Combines failures: all texts, and the worst exit code. An invalid file is worse than a
    /// failure; "not running" is the least.
    ///
    /// # Errors
    /// `failures` is not empty.
    pub fn all(failures: Vec<Self>) -> Result<(), Self> {
        let badness = |code: u8| match code {
            INVALID => 4,
            FAILED | HOST | NO_MEMORY | NOT_ENDED => 3,
            USAGE => 2,
            0 => 0,
            _ => 1,
        };
        let Some(worst) = failures.iter().map(|f| f.code).max_by_key(|code| badness(*code)) else {
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

/// `error: web: a: b: c` and a line `hint: …`, without a newline at the end; empty if there is no
/// text.
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
        match &self.hint {
            Some(hint) => write!(f, "\nhint: {hint}"),
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
            let kinds = [("error: ", Style::Bad), ("hint: ", Style::Doubtful)];
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
        assert_eq!(failure.to_string(), "error: web: outer: inner: the cause\nhint: do this");
    }

    #[test]
    fn control_characters_are_escaped() {
        let failure = Failure::new(FAILED, "guest agent: \u{1b}]0;x\u{7}\nno").about("web");
        let colours = Screen { colours: true, width: None };
        let shown = "error: web: guest agent: \\u{1b}]0;x\\u{7}\nno";
        assert_eq!(failure.shown(Screen::default()), shown);
        let painted = shown.replacen("error: ", "\u{1b}[31merror: \u{1b}[0m", 1);
        assert_eq!(failure.shown(colours), painted);
    }

    #[test]
    fn several_failures_exit_with_the_worst_code() {
        let not_running = Failure::new(NOT_RUNNING, "not running").about("a");
        let failed = Failure::new(FAILED, "broken").about("b");
        let both = Failure::all(vec![not_running.clone(), failed]).unwrap_err();
        assert_eq!(both.exit_code(), FAILED);
        assert_eq!(both.to_string(), "error: a: not running\nerror: b: broken");
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
