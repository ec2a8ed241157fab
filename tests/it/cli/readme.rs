//! Holds README.md and docs/ to the repository: VM files are read as the program reads them, verbs, make targets, links and constants exist.
use std::{
    collections::BTreeSet,
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
};

use qvm::{cli::Cli, spec};

/// A fenced block: its language, the line of its fence, what it holds.
#[derive(Debug, PartialEq)]
struct Block {
    language: String,
    line: usize,
    text: String,
}

fn blocks(markdown: &str) -> Vec<Block> {
    let mut blocks = Vec::new();
    let mut open: Option<Block> = None;
    for (n, line) in markdown.lines().enumerate() {
        match (&mut open, line.strip_prefix("```")) {
            (None, Some(language)) => {
                open =
                    Some(Block { language: language.to_owned(), line: n + 1, text: String::new() });
            }
            (Some(_), Some(_)) => blocks.extend(open.take()),
            (Some(block), None) => {
                block.text += line;
                block.text += "\n";
            }
            (None, None) => {}
        }
    }
    assert_eq!(open, None, "a block is not closed");
    blocks
}

/// The targets of all `make TARGET` in shell blocks and in `code`.
fn make_targets(markdown: &str) -> BTreeSet<String> {
    let inline = markdown.split('`').skip(1).step_by(2).map(str::to_owned);
    let shell = blocks(markdown).into_iter().filter(|block| block.language == "sh");
    inline
        .chain(shell.flat_map(|block| block.text.lines().map(str::to_owned).collect::<Vec<_>>()))
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            (words.next() == Some("make")).then(|| words.next().unwrap_or("build").to_owned())
        })
        .collect()
}

/// The targets that a makefile has.
fn targets(makefile: &str) -> BTreeSet<String> {
    makefile
        .lines()
        .filter(|line| line.starts_with(|c: char| c.is_ascii_lowercase()))
        .filter_map(|line| line.split_once(':'))
        .map(|(target, _)| target.to_owned())
        .collect()
}

/// Where `[text](target)` points to, other sites left out.
fn links(markdown: &str) -> Vec<&str> {
    markdown
        .split("](")
        .skip(1)
        .filter_map(|rest| rest.split_once(')'))
        .map(|(target, _)| target)
        .filter(|target| !target.contains("://"))
        .collect()
}

fn top() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).to_owned()
}

fn readme() -> String {
    fs::read_to_string(top().join("README.md")).unwrap()
}

/// README.md and what lies in docs/, by name.
fn pages() -> Vec<(String, String)> {
    let mut files = vec![top().join("README.md")];
    let docs = fs::read_dir(top().join("docs")).unwrap().map(|entry| entry.unwrap().path());
    files.extend(docs.filter(|file| file.extension().is_some_and(|suffix| suffix == "md")));
    let name = |file: &Path| file.strip_prefix(top()).unwrap().display().to_string();
    files.iter().map(|file| (name(file), fs::read_to_string(file).unwrap())).collect()
}

#[test]
fn vm_files_are_read_as_the_program_reads_them() {
    let mut count = 0;
    for (page, text) in pages() {
        for block in blocks(&text).into_iter().filter(|block| block.language == "toml") {
            let mut user_data = |_: &Path| Ok(b"#cloud-config\n".to_vec());
            let file = Path::new("/etc/qvm/vms/web.toml");
            if page == "docs/host.toml.md" {
                let read = spec::HostSettings::read(Path::new("/etc/qvm/qvm.toml"), &block.text);
                read.map_err(spec::Invalid).unwrap();
                count += 1;
                continue;
            }
            let vm = spec::read(&"web".parse().unwrap(), file, &block.text, &mut user_data);
            if let Err(problems) = vm {
                panic!("{page}:{}: {}", block.line, spec::Invalid(problems));
            }
            count += 1;
        }
    }
    assert!(count >= 5, "only {count} VM files in all pages");
}

/// Every `qvm …` in code, in lines of shell blocks and between backticks, with words for what is to be filled in.
fn commands(markdown: &str) -> Vec<String> {
    let shell = blocks(markdown).into_iter().filter(|block| block.language == "sh");
    let lines = shell.flat_map(|b| b.text.lines().map(str::to_owned).collect::<Vec<_>>());
    let prose: Vec<&str> = markdown.split("```").step_by(2).collect();
    let inline = prose.iter().flat_map(|text| text.split('`').skip(1).step_by(2));
    lines
        .chain(inline.map(str::to_owned))
        .map(|line| line.split(" #").next().unwrap_or_default().to_owned())
        .map(|line| line.split(" | ").next().unwrap_or_default().trim().to_owned())
        .filter(|line| line.starts_with("qvm "))
        .collect()
}

#[test]
fn commands_are_taken_by_the_command_line() {
    let mut count = 0;
    for (page, text) in pages() {
        for command in commands(&text) {
            // `[NAME…]`, `COMMAND…`, `FILE\|NAME…`: whatever may stand there, a name does.
            let words = command.replace("\\|", " ").replace(['[', ']', '…'], "");
            let words = words.split_whitespace().map(|word| match word {
                "NAME" | "FILE" | "COMMAND" | "VM" | "OLD" | "NEW" | "FROM" => "web",
                word => word,
            });
            let words: Vec<OsString> = words.map(OsString::from).collect();
            if let Err(error) = Cli::read(words) {
                use clap::error::ErrorKind::{
                    DisplayHelp, DisplayVersion, MissingRequiredArgument,
                };
                // A verb that is only named need not say all that it takes.
                let named = command.split_whitespace().count() == 2;
                let fine = matches!(error.kind(), DisplayHelp | DisplayVersion)
                    || named && error.kind() == MissingRequiredArgument
                    || named && error.to_string().contains("Usage: qvm image");
                assert!(fine, "{page}: `{command}`: {error}");
            }
            count += 1;
        }
    }
    assert!(count >= 40, "only {count} commands in all pages");
}

/// The constants of a source file that are a time, a size, a count or a limit.
fn constants(source: &str) -> Vec<String> {
    let product = source.split("#[cfg(test)]").next().unwrap_or_default();
    let constant = |line: &str| {
        let (_, rest) = line.trim_start().split_once("const ")?;
        let (name, kind) = rest.split_once(": ")?;
        let kind = kind.split(" =").next()?;
        let counts = ["Duration", "Seconds", "usize", "u8", "u16", "u32", "u64", "i32", "i64"];
        (counts.contains(&kind) && name.bytes().all(|b| b.is_ascii_uppercase() || b == b'_'))
            .then(|| name.to_owned())
    };
    product.lines().filter(|line| !line.contains("fn ")).filter_map(constant).collect()
}

#[test]
fn every_constant_is_explained() {
    fn below(dir: &Path, out: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()) {
            match entry.is_dir() {
                true => below(&entry, out),
                false => out.push(entry),
            }
        }
    }
    let mut files = vec![];
    below(&top().join("src"), &mut files);
    below(&top().join("qmp/src"), &mut files);
    let decisions = fs::read_to_string(top().join("docs/decisions.md")).unwrap();
    let explained: BTreeSet<&str> =
        decisions.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').collect();
    let mut missing = vec![];
    for file in files {
        for name in constants(&fs::read_to_string(&file).unwrap()) {
            // Units of measure decide nothing.
            if !explained.contains(name.as_str()) && !["MIB", "GIB"].contains(&name.as_str()) {
                missing.push(format!("{}: {name}", file.strip_prefix(top()).unwrap().display()));
            }
        }
    }
    assert!(missing.is_empty(), "not in docs/decisions.md:\n{}", missing.join("\n"));
}

#[test]
fn every_block_has_a_language_that_is_checked() {
    for block in blocks(&readme()) {
        assert!(
            matches!(block.language.as_str(), "sh" | "toml"),
            "README.md:{}: nothing checks a block of `{}`",
            block.line,
            block.language
        );
    }
}

#[test]
fn make_targets_exist() {
    let named = make_targets(&readme());
    let there = targets(&fs::read_to_string(top().join("Makefile")).unwrap());
    assert!(
        named.contains("demo") && named.contains("test"),
        "README.md lost its two commands: {named:?}"
    );
    let missing: Vec<_> = named.difference(&there).collect();
    assert!(missing.is_empty(), "README.md names make targets that are not there: {missing:?}");
}

#[test]
fn shell_blocks_call_only_what_a_reader_has() {
    for block in blocks(&readme()).into_iter().filter(|block| block.language == "sh") {
        for line in block.text.lines() {
            let command = line.split_whitespace().next().unwrap_or_default();
            assert!(
                matches!(command, "make" | "qvm" | "ssh" | "systemctl" | "journalctl"),
                "README.md:{}: `{line}`",
                block.line
            );
        }
    }
}

#[test]
fn links_lead_somewhere() {
    let readme = readme();
    let missing: Vec<_> =
        links(&readme).into_iter().filter(|link| !top().join(link).exists()).collect();
    assert!(missing.is_empty(), "README.md links to what is not there: {missing:?}");
}

/// What reads the README, on texts that it must not take for good.
mod on_bad_texts {
    use super::*;

    #[test]
    fn blocks_are_found_with_their_lines() {
        let found = blocks("a\n```toml\nb = 1\nc = 2\n```\nd\n```\ne\n```\n");
        let block = |language: &str, line, text: &str| Block {
            language: language.to_owned(),
            line,
            text: text.to_owned(),
        };
        assert_eq!(found, [block("toml", 2, "b = 1\nc = 2\n"), block("", 7, "e\n")]);
    }

    #[test]
    #[should_panic(expected = "not closed")]
    fn an_open_block() {
        blocks("```sh\nmake\n");
    }

    #[test]
    fn targets_of_text_and_makefile() {
        let named =
            make_targets("Run `make demo`, `cmake x`.\n```sh\nmake test # all\nmake\n```\n");
        assert_eq!(named, BTreeSet::from(["build", "demo", "test"].map(str::to_owned)));
        let there = targets("A := b\n.PHONY: x\ntest: guests ## all\n\techo no: y\nFOO ?= 1\n");
        assert_eq!(there, BTreeSet::from(["test".to_owned()]));
    }

    #[test]
    fn constants_that_count_are_found() {
        let source = "pub(super) const A_B: Duration = x;\n    const C: u32 = 1;\nconst D: &str = \"\";\n\
                      const fn e() -> u8 {}\n#[cfg(test)]\nmod tests { const F: u8 = 1; }\n";
        assert_eq!(constants(source), ["A_B", "C"]);
    }

    #[test]
    fn commands_are_found_in_blocks_and_in_prose() {
        let text = "Say `qvm list`, not `qvmx`.\n```sh\nqvm stop web   # now\nmake\n```\n";
        assert_eq!(commands(text), ["qvm stop web", "qvm list"]);
    }

    #[test]
    fn links_to_other_sites_are_left_out() {
        assert_eq!(links("[a](b/c.md) [d](https://example.org/) (e)"), ["b/c.md"]);
    }
}
