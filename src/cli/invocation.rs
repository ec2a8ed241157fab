//! The environment of the process.

use std::{ffi::OsString, path::Path};

/// The environment of the process, besides its arguments.
pub struct Invocation<'a> {
    /// The effective UID.
    pub uid: u32,
    /// The current directory; `None` if it was removed or cannot be read.
    pub cwd: Option<&'a Path>,
    /// Returns an environment variable.
    pub env: &'a dyn Fn(&str) -> Option<OsString>,
    /// The path of this program.
    pub exe: &'a Path,
    /// The whole command line, including the name of the program.
    pub arguments: &'a [OsString],
    /// Whether init started this process directly.
    pub by_init: bool,
    /// Whether systemd is the host's init.
    pub systemd: bool,
    /// Whether standard error is a terminal.
    pub terminal: bool,
    /// The current time.
    pub now: jiff::Timestamp,
}
