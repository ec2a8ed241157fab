//! `qvm doctor`: what of the host and of all VM files is, or will be, trouble, and what to do about
//! it.

use std::path::PathBuf;

use crate::{
    cli::{
        exit::{self, Failure},
        table::{Look, Screen},
    },
    doctor::{
        collect::{Sources, look},
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

/// How many descriptors the programs that are asked need, and the files.
const DESCRIPTORS: usize = 64;

/// Prints every finding.
///
/// # Errors
/// There are too few descriptors to look at anything: exit code 75.
/// There is an error among the findings: exit code 1, after they were printed.
pub async fn run(args: &Args, from: &Sources<'_>, screen: Screen) -> Result<(), Failure> {
    descriptors::probe(DESCRIPTORS)
        .map_err(|error| Failure::of_io("cannot open files to look at", &error))?;
    let findings = examine(&look(from).await);
    if args.json {
        let json = serde_json::to_string_pretty(&findings).map_err(|e| Failure::of(&e))?;
        super::print(&format!("{json}\n"))?;
    } else {
        super::print(&told(&findings, screen))?;
    }
    match findings.iter().any(|finding| finding.level == Level::Error) {
        true => Err(Failure::quiet(exit::FAILED)),
        false => Ok(()),
    }
}

/// A line each, in columns, and below it what to do.
fn told(findings: &[Finding], screen: Screen) -> String {
    let levels = findings.iter().map(|finding| finding.level.word().len()).max().unwrap_or(0);
    let subjects = findings.iter().map(|finding| finding.about.chars().count()).max().unwrap_or(0);
    let indent = levels + 2 + subjects + 2;
    let line = |Finding { level, about, found, todo, .. }: &Finding| {
        let todo = todo.as_ref().map_or_else(String::new, |todo| {
            format!("{:indent$}do: {}\n", "", screen.folded(todo, indent + "do: ".len()))
        });
        let look = match level {
            Level::Ok => Look::Good,
            Level::Note => Look::Plain,
            Level::Warning => Look::Doubtful,
            Level::Error => Look::Bad,
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
    fn columns_and_what_to_do_below() {
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
        assert_eq!(told(&all, Screen::default()), text);
        assert_eq!(told(&[], Screen::default()), "");
    }
}
