//! The surroundings of the process.

use std::{ffi::OsString, path::Path};

/// What the process was given beside its arguments.
pub struct Given<'a> {
    /// The effective user.
    pub uid: u32,
    /// The current directory; `None` where it was removed or cannot be read.
    pub cwd: Option<&'a Path>,
    /// The environment.
    pub env: &'a dyn Fn(&str) -> Option<OsString>,
    /// This program.
    pub exe: &'a Path,
    /// The whole command line, the program's name first.
    pub arguments: &'a [OsString],
    /// The host's init started this process itself.
    pub by_init: bool,
    /// The host's init is systemd.
    pub systemd: bool,
    /// Standard error is a terminal.
    pub terminal: bool,
    /// The time.
    pub now: jiff::Timestamp,
}
