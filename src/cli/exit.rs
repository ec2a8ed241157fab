//! How a verb ends when it does not end well: the exit code, and what is said on standard error.

use std::{error::Error, fmt, io};

use super::table::{Look, Screen};
use crate::{
    spec::Invalid,
    value::{Explain, VmName, chain, is_host_fault, plain},
};

/// Failed.
pub const FAILED: u8 = 1;
/// The command line is wrong; clap uses the same.
pub const USAGE: u8 = 2;
/// Not running, or not found, where that is the answer.
pub const NOT_RUNNING: u8 = 3;
/// `qvm disk check`: clusters are leaked, and no data is wrong.
pub const LEAKS: u8 = 4;
/// `qvm disk check`: a disk is corrupt.
pub const CORRUPT: u8 = 5;
/// There is not enough memory for another VM, and the host's settings say that it is refused then (`EX_UNAVAILABLE` of sysexits.h).
pub const NO_ROOM: u8 = 69;
/// QEMU was sent SIGKILL and has not ended: the kernel has it waiting for storage (`EX_SOFTWARE` of sysexits.h, the number next to it).
pub const NOT_GONE: u8 = 70;
/// The host is at fault, and another try may help (`EX_TEMPFAIL` of sysexits.h).
pub const HOST: u8 = 75;
/// A VM file is invalid (`EX_CONFIG` of sysexits.h).
pub const INVALID: u8 = 78;

/// Why a verb was not done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    code: u8,
    subject: Option<String>,
    chain: String,
    hint: Option<String>,
    /// `chain` has its own `error: ` lines, or says nothing at all.
    as_it_is: bool,
}

impl Failure {
    /// A failure that one sentence tells.
    pub fn new(code: u8, text: impl Into<String>) -> Self {
        Self { code, subject: None, chain: text.into(), hint: None, as_it_is: false }
    }

    /// For this error and its causes: exit code 75 where the host has run out of something, or its
    /// storage fails ([`is_host_fault`]), else 1.
    pub fn of(error: &(dyn Error + 'static)) -> Self {
        Self::new(if is_host_fault(error) { HOST } else { FAILED }, chain(error))
    }

    /// For this error, its causes and its hint: exit code 75 where the host is at fault, else 1.
    pub fn explained(error: &(dyn Explain + 'static)) -> Self {
        Self::of(error).host_fault_if(error.is_host_fault()).hint(error.hint())
    }

    /// [`explained`](Self::explained) for an error about one VM, whose name stands for `NAME` in
    /// the hint.
    pub fn explained_for(error: &(dyn Explain + 'static), name: &VmName) -> Self {
        Self::explained(error).about(name).hint(error.hint_for(name))
    }

    /// The same of a step that has no error type of its own.
    pub fn of_io(doing: &str, error: &io::Error) -> Self {
        let failure = Self::of(error);
        Self { chain: format!("{doing}: {}", failure.chain), ..failure }
    }

    /// Exit code 78, or 75 where the host is at fault that a file cannot be read; the problems show
    /// themselves.
    pub fn invalid(invalid: &Invalid) -> Self {
        let code = if invalid.is_host_fault() { HOST } else { INVALID };
        Self::told(code, invalid.to_string())
    }

    /// Exit code 75 where this is true; otherwise as before.
    #[must_use]
    pub fn host_fault_if(self, is_host_fault: bool) -> Self {
        if is_host_fault { self.code(HOST) } else { self }
    }

    /// What has its `error: ` line in it already.
    pub fn told(code: u8, text: impl Into<String>) -> Self {
        Self { as_it_is: true, ..Self::new(code, text) }
    }

    /// Only a code: everything has been said.
    pub fn quiet(code: u8) -> Self {
        Self::told(code, "")
    }

    /// Standard output does not take it. Who reads no more is not told so.
    pub fn output(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::quiet(0),
            // A terminal that is hung up; as SIGHUP, which comes with it.
            _ if error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error()) => {
                Self::quiet(128 + 1)
            }
            _ => Self::new(FAILED, format!("cannot write the answer: {error}")),
        }
    }

    /// What it is about, such as a VM's name.
    #[must_use]
    pub fn about(self, subject: impl fmt::Display) -> Self {
        Self { subject: Some(subject.to_string()), ..self }
    }

    /// The way out.
    #[must_use]
    pub fn hint(self, hint: impl Into<Option<String>>) -> Self {
        Self { hint: hint.into(), ..self }
    }

    /// With another code.
    #[must_use]
    pub fn code(self, code: u8) -> Self {
        Self { code, ..self }
    }

    /// The code that the process exits with.
    pub fn exit_code(&self) -> u8 {
        self.code
    }

    /// Several as one: all are told, the worst code counts. An invalid file is worse than a failure,
    /// and "not running" is hardly one.
    ///
    /// # Errors
    /// There is one among them.
    pub fn all(failures: Vec<Self>) -> Result<(), Self> {
        let badness = |code: u8| match code {
            INVALID => 4,
            FAILED | HOST | NO_ROOM | NOT_GONE => 3,
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
        let told: Vec<String> =
            failures.iter().map(Self::to_string).filter(|text| !text.is_empty()).collect();
        Err(Self::told(worst, told.join("\n")))
    }
}

/// `error: web: a: b: c` and `hint: …` below; empty where nothing is left to say; no newline at the end.
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
    /// The same for standard error: what kind of line each is stands out, and nothing in it that a guest or a server said drives a terminal.
    pub fn shown(&self, screen: Screen) -> String {
        let paint = |line: &str| {
            let line = plain(line);
            let kinds = [("error: ", Look::Bad), ("hint: ", Look::Doubtful)];
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
    fn the_causes_are_told_in_one_line() {
        let error = Outer(Inner(io::Error::other("the cause")));
        assert_eq!(chain(&error), "outer: inner: the cause");
        let failure = Failure::of(&error).about("web").hint(Some("do this".to_owned()));
        assert_eq!(failure.to_string(), "error: web: outer: inner: the cause\nhint: do this");
    }

    #[test]
    fn what_a_guest_said_drives_no_terminal() {
        let failure = Failure::new(FAILED, "guest agent: \u{1b}]0;x\u{7}\nno").about("web");
        let colours = Screen { colours: true, width: None };
        let shown = "error: web: guest agent: \\u{1b}]0;x\\u{7}\nno";
        assert_eq!(failure.shown(Screen::default()), shown);
        let painted = shown.replacen("error: ", "\u{1b}[31merror: \u{1b}[0m", 1);
        assert_eq!(failure.shown(colours), painted);
    }

    #[test]
    fn of_several_all_are_told_and_the_worst_counts() {
        let not_running = Failure::new(NOT_RUNNING, "not running").about("a");
        let failed = Failure::new(FAILED, "broken").about("b");
        let both = Failure::all(vec![not_running.clone(), failed]).unwrap_err();
        assert_eq!(both.exit_code(), FAILED);
        assert_eq!(both.to_string(), "error: a: not running\nerror: b: broken");
        assert_eq!(Failure::all(vec![not_running.clone()]), Err(not_running));
        assert_eq!(Failure::all(vec![]), Ok(()));
    }

    #[test]
    fn who_reads_no_more_is_not_told() {
        let failure = Failure::output(&io::ErrorKind::BrokenPipe.into());
        assert_eq!((failure.to_string().as_str(), failure.exit_code()), ("", 0));
        assert_eq!(Failure::output(&io::ErrorKind::StorageFull.into()).exit_code(), FAILED);
    }
}
