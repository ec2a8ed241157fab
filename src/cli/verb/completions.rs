//! `qvm completions`: prints the script with which a shell completes command lines of `qvm`. The
//! script calls `qvm` for the candidates.

use clap_complete::env::{Bash, EnvCompleter, Fish, Zsh};

use crate::cli::exit::Failure;

/// The arguments of `qvm completions`.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// The shell
    shell: Shell,
}

/// The supported shells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Shell {
    Bash,
    Zsh,
    Fish,
}

/// The variable that marks a completion request of a shell.
pub const VARIABLE: &str = "QVM_COMPLETE";

/// Prints the script.
///
/// # Errors
/// Standard output cannot be written.
pub fn run(args: &Args) -> Result<(), Failure> {
    super::print(&script(args.shell).map_err(|error| Failure::from_error(&error))?)
}

fn script(shell: Shell) -> std::io::Result<String> {
    let by: &dyn EnvCompleter = match shell {
        Shell::Bash => &Bash,
        Shell::Zsh => &Zsh,
        Shell::Fish => &Fish,
    };
    let mut script = Vec::new();
    by.write_registration(VARIABLE, "qvm", "qvm", "qvm", &mut script)?;
    let script = String::from_utf8_lossy(&script).trim().to_owned() + "\n";
    Ok(match shell {
        Shell::Zsh => loadable(&script),
        Shell::Bash | Shell::Fish => script,
    })
}

/// zsh runs the file `_qvm` as a function of that name at the first completion, which has to
/// complete at once.
fn loadable(script: &str) -> String {
    const REGISTER: &str = "compdef _clap_dynamic_completer_qvm qvm\n";
    let loaded =
        "if [[ $funcstack[1] == _qvm ]]; then\n    _clap_dynamic_completer_qvm \"$@\"\nelse\n";
    match script.strip_suffix(REGISTER) {
        Some(functions) => format!("{functions}{loaded}    {REGISTER}fi\n"),
        None => script.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_script_calls_qvm() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let script = script(shell).unwrap();
            assert!(script.contains("QVM_COMPLETE=") && script.ends_with('\n'), "{script}");
        }
        let zsh = script(Shell::Zsh).unwrap();
        assert!(zsh.starts_with("#compdef qvm\n"), "{zsh}");
        assert!(zsh.ends_with("else\n    compdef _clap_dynamic_completer_qvm qvm\nfi\n"), "{zsh}");
    }
}
