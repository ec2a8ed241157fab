//! The command line of `qvm`.

use std::{
    ffi::{OsStr, OsString},
    path::Path,
};

use clap::{ArgAction, Parser, error::ContextValue};

use super::{dirs::Dirs, run_line, verbs::Verb};
use crate::value::shown;

/// Run virtual machines directly on QEMU: one TOML file, one systemd unit, one QEMU process
#[derive(Debug, Parser)]
#[command(name = "qvm", version, max_term_width = 100, disable_help_subcommand = true, help_template = crate::cli::help::TEMPLATE)]
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
    /// Recognizes the command line of a supervisor, `qvm run NAME`, which clap need not parse.
    pub fn recognize_run(arguments: &[OsString]) -> Option<Self> {
        run_line::recognize(arguments)
    }

    /// Reads the command line, the program's name first, which may say what it is to do.
    ///
    /// # Errors
    /// It is wrong usage, or asks for help. clap repeats what was written: here without its control characters, which would
    /// be obeyed by the terminal.
    pub fn read(arguments: impl IntoIterator<Item = OsString>) -> Result<Self, clap::Error> {
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
    /// Whether this process is a supervisor, whose log tells what it does.
    pub fn is_supervisor(&self) -> bool {
        matches!(self.verb, Verb::Run(_) | Verb::ExecStopPost(_))
    }
}
