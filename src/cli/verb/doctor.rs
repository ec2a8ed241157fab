//! `qvm doctor`: checks the host and all VM files for problems.

use std::path::PathBuf;

use crate::{
    cli::{
        exit::{self, Failure},
        table::{Screen, Style},
    },
    doctor::{
        collect::{Sources, inspect},
        rules::{Finding, Level, examine},
    },
    sys::descriptors,
};

/// The arguments of `qvm doctor`.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Print a JSON array of objects
    #[arg(long)]
    json: bool,
    /// Where /dev, /proc and /sys are
    #[arg(long, value_name = "DIR", default_value = "/", hide = true)]
    pub root: PathBuf,
}

/// The number of descriptors required by the probes and the programs they run.
const DESCRIPTORS: usize = 64;

/// Prints every finding.
///
/// # Errors
/// Too few descriptors are available: exit code 75.
/// A finding is an error: exit code 1, after all findings are printed.
pub async fn run(args: &Args, from: &Sources<'_>, screen: Screen) -> Result<(), Failure> {
    descriptors::probe(DESCRIPTORS)
        .map_err(|error| Failure::from_io("cannot open files", &error))?;
    let findings = examine(&inspect(from).await);
    if args.json {
        let json = serde_json::to_string_pretty(&findings).map_err(|e| Failure::from_error(&e))?;
        super::print(&format!("{json}\n"))?;
    } else {
        super::print(&table(&findings, screen))?;
    }
    match findings.iter().any(|finding| finding.level == Level::Error) {
        true => Err(Failure::quiet(exit::FAILED)),
        false => Ok(()),
    }
}

/// Returns a line for each finding, in columns, and the remedy below it.
fn table(findings: &[Finding], screen: Screen) -> String {
    let levels = findings.iter().map(|finding| finding.level.word().len()).max().unwrap_or(0);
    let subjects = findings.iter().map(|finding| finding.about.chars().count()).max().unwrap_or(0);
    let indent = levels + 2 + subjects + 2;
    let line = |Finding { level, about, found, todo, .. }: &Finding| {
        let todo = todo.as_ref().map_or_else(String::new, |todo| {
            format!("{:indent$}do: {}\n", "", screen.folded(todo, indent + "do: ".len()))
        });
        let look = match level {
            Level::Ok => Style::Good,
            Level::Note => Style::Plain,
            Level::Warning => Style::Doubtful,
            Level::Error => Style::Bad,
        };
        let word = look.paint(&format!("{:levels$}", level.word()), screen.colours);
        format!("{word}  {about:subjects$}  {}\n{todo}", screen.folded(found, indent))
    };
    findings.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::rules::FindingCode;

    #[test]
    fn findings_have_columns_and_remedies() {
        let finding = |level, about: &str, todo: Option<&str>| Finding {
            code: FindingCode::Kvm,
            level,
            about: about.to_owned(),
            found: "seen".to_owned(),
            todo: todo.map(str::to_owned),
        };
        let all =
            [finding(Level::Ok, "kvm", None), finding(Level::Warning, "bridge br0", Some("this"))];
        let text = "ok       kvm         seen\n\
                    warning  bridge br0  seen\n                     do: this\n";
        assert_eq!(table(&all, Screen::default()), text);
        assert_eq!(table(&[], Screen::default()), "");
    }
}
