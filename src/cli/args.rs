//! The command line arguments of `qvm`.

use std::{
    ffi::{OsStr, OsString},
    path::Path,
};

use clap::{ArgAction, Parser, error::ContextValue};

use super::{dirs::Dirs, verbs::Verb};
use crate::value::shown;

/// Run virtual machines directly on QEMU: one TOML file, one systemd unit, one QEMU process
#[derive(Debug, Parser)]
#[command(
    name = "qvm",
    version,
    max_term_width = 100,
    disable_help_subcommand = true,
    help_template = crate::cli::help::TEMPLATE
)]
pub struct Cli {
    /// The directories.
    #[command(flatten)]
    pub dirs: Dirs,
    /// Log more; twice for debug messages [env: QVM_LOG]
    #[arg(short, long, global = true, action = ArgAction::Count, display_order = 901)]
    pub verbose: u8,
    /// Log errors only
    #[arg(short, long, global = true, conflicts_with = "verbose", display_order = 901)]
    pub quiet: bool,
    #[command(subcommand)]
    pub(super) verb: Verb,
}

/// The name under which systemd runs this program as a generator.
pub(super) const GENERATOR: &str = "qvm-generator";

impl Cli {
    /// Parses the command line. The first argument is the name of the program, which selects the
    /// verb if it is `qvm-generator`.
    ///
    /// # Errors
    /// The usage is wrong, or help was requested. clap repeats the arguments; here without control
    /// characters, which a terminal would interpret.
    pub fn from_arguments(
        arguments: impl IntoIterator<Item = OsString>,
    ) -> Result<Self, clap::Error> {
        let mut arguments: Vec<OsString> = arguments.into_iter().collect();
        let program = arguments.first().and_then(|program| Path::new(program).file_name());
        if program == Some(OsStr::new(GENERATOR)) {
            arguments.insert(1, "generate".into());
        }
        Self::try_parse_from(arguments).map_err(|mut error| {
            let hostile = error.context().filter_map(|(kind, value)| match value {
                ContextValue::String(text) if text.contains(char::is_control) => {
                    Some((kind, ContextValue::String(shown(text))))
                }
                _ => None,
            });
            for (kind, value) in hostile.collect::<Vec<_>>() {
                error.insert(kind, value);
            }
            error
        })
    }
}

impl Cli {
    /// Whether this process is a supervisor, which logs at level `info` by default.
    pub fn is_supervisor(&self) -> bool {
        matches!(self.verb, Verb::Run(_) | Verb::ExecStopPost(_))
    }
}
