//! `qvm man`: the manual pages qvm(1), qvm.toml(5) and qvm-errors(7), and the documents with the
//! same contents.

mod command;
mod errors;
mod keys;
mod markdown;
mod verbs;

use clap_mangen::roff::{Roff, bold, roman};

use crate::{cli::exit::Failure, value::ErrorCode};

/// The arguments of `qvm man`.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// The page
    #[arg(default_value = "qvm")]
    page: Page,
    /// The format of the output
    #[arg(long, default_value = "roff")]
    format: Format,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Page {
    Qvm,
    #[value(name = "qvm.toml")]
    QvmToml,
    QvmErrors,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    /// A manual page
    Roff,
    /// A document of docs/reference/
    Markdown,
    /// The NixOS options, of qvm.toml only
    Nix,
}

/// The date of the last review of the pages. Not the build date: builds must be reproducible.
const DATE: &str = "2026-11-29";

/// Prints a page; qvm(1) is that of `command`.
///
/// # Errors
/// Standard output cannot be written, or the page does not exist in this format.
pub fn run(args: &Args, command: clap::Command) -> Result<(), Failure> {
    super::print(&match (args.page, args.format) {
        (Page::Qvm, Format::Roff) => {
            command_page(command).map_err(|error| Failure::from_error(&error))?
        }
        (Page::Qvm, Format::Markdown) => verbs::markdown(command),
        (Page::QvmToml, Format::Roff) => keys_page(),
        (Page::QvmToml, Format::Markdown) => keys::document(),
        (Page::QvmToml, Format::Nix) => keys::nix(),
        (Page::QvmErrors, Format::Roff) => errors_page(),
        (Page::QvmErrors, Format::Markdown) => errors::document(),
        (Page::Qvm | Page::QvmErrors, Format::Nix) => {
            return Err(Failure::new(ErrorCode::Usage, "only qvm.toml(5) has NixOS options"));
        }
    })
}

fn command_page(mut command: clap::Command) -> std::io::Result<String> {
    command.build();
    let mut roff = title("QVM", "1");
    roff.control("SH", ["NAME"]);
    let about = command.get_about().map(ToString::to_string).unwrap_or_default();
    roff.text([roman(format!("qvm - {}", lower(&about)))]);
    roff.control("SH", ["SYNOPSIS"]);
    roff.text([bold("qvm"), roman(" [OPTIONS] VERB [ARGUMENT...]")]);
    roff.control("SH", ["DESCRIPTION"]);
    super::man::markdown::write(&mut roff, include_str!("intro.md"));
    let mut page = roff.render();
    super::man::command::write(&mut page, &command)?;
    let mut roff = Roff::new();
    super::man::markdown::write(&mut roff, include_str!("outro.md"));
    page.push_str(&roff.to_roff());
    Ok(ascii(&page))
}

fn keys_page() -> String {
    let mut roff = title("QVM.TOML", "5");
    roff.control("SH", ["NAME"]);
    roff.text([roman("qvm.toml - the file that describes a virtual machine for qvm(1)")]);
    roff.control("SH", ["DESCRIPTION"]);
    super::man::markdown::write(&mut roff, &keys::markdown());
    roff.control("SH", ["SEE ALSO"]);
    roff.text([roman("qvm(1), systemd.unit(5), authorized_keys(5), crypt(5)")]);
    ascii(&roff.render())
}

fn errors_page() -> String {
    let mut roff = title("QVM-ERRORS", "7");
    roff.control("SH", ["NAME"]);
    roff.text([roman("qvm-errors - the codes of the errors of qvm(1)")]);
    roff.control("SH", ["DESCRIPTION"]);
    super::man::markdown::write(&mut roff, &errors::markdown());
    roff.control("SH", ["SEE ALSO"]);
    roff.text([roman("qvm(1), journalctl(1)")]);
    ascii(&roff.render())
}

fn title(name: &str, section: &str) -> Roff {
    let mut roff = Roff::new();
    let source = format!("qvm {}", env!("CARGO_PKG_VERSION"));
    roff.control("TH", [name, section, DATE, &source, "qvm manual"]);
    roff
}

/// Returns a sentence as the text after the dash of a NAME section.
fn lower(sentence: &str) -> String {
    let mut chars = sentence.trim_end_matches('.').chars();
    chars.next().map(|first| first.to_lowercase().chain(chars).collect()).unwrap_or_default()
}

/// Returns the page in ASCII, with the escapes of groff_man_style(7) for all other characters.
fn ascii(page: &str) -> String {
    page.chars().fold(String::with_capacity(page.len()), |mut out, c| {
        match c {
            '~' => out.push_str("\\(ti"),
            '^' => out.push_str("\\(ha"),
            '`' => out.push_str("\\(ga"),
            c if c.is_ascii() => out.push(c),
            c => out.push_str(&format!("\\[u{:04X}]", u32::from(c))),
        }
        out
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn page_has_every_key() {
        let page = keys_page();
        for key in crate::spec::keys() {
            let last = key.rsplit('.').next().unwrap_or(key);
            assert!(page.contains(last), "{key}");
        }
        // No markup is left; a literal backtick is \(ga.
        assert!(!page.contains("\\(ga") && !page.contains("**") && !page.contains("\n|"), "{page}");
    }

    #[test]
    fn page_is_ascii() {
        assert_eq!(ascii("a…~^`é"), "a\\[u2026]\\(ti\\(ha\\(ga\\[u00E9]");
        assert!(keys_page().is_ascii());
    }

    #[test]
    fn empty_lines_occur_only_in_examples() {
        let command = clap::Command::new("qvm").about("It").subcommand(
            clap::Command::new("do")
                .about("Does")
                .arg(clap::Arg::new("a").long("a").help("One of").value_parser(["b", "c"])),
        );
        for page in [keys_page(), command_page(command).unwrap()] {
            let mut example = false;
            for line in page.lines() {
                example = (example || line == ".nf") && line != ".fi";
                assert!(example || !line.is_empty(), "{page}");
            }
        }
    }
}
