//! The options and verbs of qvm(1), from clap's definitions.

use std::io;

use clap::Command;
use clap_mangen::{
    Man,
    roff::{Roff, bold, roman},
};

/// Writes the options of all verbs, and each verb with its own options.
///
/// # Errors
/// None in practice: it writes to memory.
pub(crate) fn write(page: &mut String, command: &Command) -> io::Result<()> {
    page.push_str(".SH OPTIONS\n");
    page.push_str(&options(command.clone())?);
    page.push_str(".SH VERBS\n");
    for verb in command.get_subcommands().filter(|verb| !verb.is_hide_set()) {
        write_verb(page, verb)?;
    }
    Ok(())
}

fn write_verb(page: &mut String, verb: &Command) -> io::Result<()> {
    let usage = verb.clone().render_usage().to_string();
    let usage = usage.trim_start_matches("Usage: ").lines().next().unwrap_or_default().to_owned();
    let mut roff = Roff::new();
    roff.control("SS", [usage.as_str()]);
    let about = verb.get_long_about().or(verb.get_about());
    let about = about.map(ToString::to_string).unwrap_or_default();
    let mut text = vec![roman(format!("{}.", about.trim_end_matches('.')))];
    for alias in verb.get_visible_aliases() {
        text.extend([roman(" Also called "), bold(alias), roman(".")]);
    }
    roff.text(text);
    page.push_str(&roff.to_roff());
    if verb.has_subcommands() {
        for verb in verb.get_subcommands().filter(|verb| !verb.is_hide_set()) {
            write_verb(page, verb)?;
        }
        return Ok(());
    }
    // The options of all verbs have been written.
    let own = verb.clone().disable_help_flag(true).mut_args(|arg| {
        let is_global = arg.is_global_set() || arg.get_id() == "help";
        let hidden = arg.is_hide_set();
        arg.hide(is_global || hidden)
    });
    page.push_str(&options(own)?);
    Ok(())
}

/// Returns each option and argument as a term with its meaning, without the heading.
fn options(command: Command) -> io::Result<String> {
    let mut section = Vec::new();
    Man::new(command).render_options_section(&mut section)?;
    let section = String::from_utf8_lossy(&section);
    let preamble = |line: &&str| {
        line.starts_with(".SH") || line.starts_with(".ie \\n(.g") || line.starts_with(".el .ds Aq")
    };
    // mandoc(1) warns about an empty paragraph.
    let lines = section.lines().filter(|line| !preamble(line) && !line.is_empty());
    let lines: String = lines.map(|line| format!("{}\n", code(line))).collect();
    Ok(lines.replace("\n.br\n.br\n", "\n.br\n"))
}

/// Sets text between backticks in bold, as man pages do for literals.
fn code(line: &str) -> String {
    let parts = line.split('`').enumerate();
    let bold = |(nr, part): (usize, &str)| match nr % 2 {
        0 => part.to_owned(),
        _ => format!("\\fB{part}\\fR"),
    };
    if line.matches('`').count().is_multiple_of(2) {
        parts.map(bold).collect()
    } else {
        line.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn page_has_each_option_once() {
        let global = clap::Arg::new("dir").long("dir").global(true).help("Where");
        let fast = clap::Arg::new("fast")
            .long("fast")
            .action(clap::ArgAction::SetTrue)
            .help("As `sprint -x`");
        let start = Command::new("start").about("Starts it").visible_alias("boot").arg(fast);
        let hidden = Command::new("internal").about("Not shown").hide(true);
        let mut command = Command::new("qvm").arg(global).subcommand(start).subcommand(hidden);
        command.build();
        let mut page = String::new();
        write(&mut page, &command).unwrap();
        assert_eq!(page.matches("\\-\\-dir").count(), 1, "{page}");
        assert!(
            page.contains(".SS \"qvm start [OPTIONS]\"\nStarts it. Also called \\fBboot\\fR.\n"),
            "{page}"
        );
        assert!(page.contains("\\fB\\-\\-fast\\fR\nAs \\fBsprint \\-x\\fR\n"), "{page}");
        assert!(!page.contains("Not shown") && page.matches(".SH").count() == 2, "{page}");
    }
}
