//! Compares README.md and docs/ with the repository: VM files are valid; verbs, make targets, links
//! and constants exist; samples of output have the shape of real output.
use std::{
    collections::BTreeSet,
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use qvm::{
    cli::Cli,
    doctor::rules::FindingCode,
    spec,
    value::{ErrorCode, NoteCode},
};

use crate::lab::{Lab, guest, network::Network};

/// A fenced block: its language, the line of its fence, its content.
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

/// The targets of a makefile.
fn targets(makefile: &str) -> BTreeSet<String> {
    makefile
        .lines()
        .filter(|line| line.starts_with(|c: char| c.is_ascii_lowercase()))
        .filter_map(|line| line.split_once(':'))
        .map(|(target, _)| target.to_owned())
        .collect()
}

/// The targets of `[text](target)`, without other sites.
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

/// All files below `dir`.
fn files_below(dir: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()) {
        if entry.is_dir() {
            files.extend(files_below(&entry));
        } else {
            files.push(entry);
        }
    }
    files.sort();
    files
}

/// README.md, CHANGELOG.md and the documents below docs/, by their paths.
fn pages() -> Vec<(String, String)> {
    let mut files = vec![top().join("README.md"), top().join("CHANGELOG.md")];
    let docs = files_below(&top().join("docs")).into_iter();
    files.extend(docs.filter(|file| file.extension().is_some_and(|suffix| suffix == "md")));
    let name = |file: &Path| file.strip_prefix(top()).unwrap().display().to_string();
    files.iter().map(|file| (name(file), fs::read_to_string(file).unwrap())).collect()
}

#[test]
fn vm_files_are_valid() {
    let mut count = 0;
    for (page, text) in pages() {
        for block in blocks(&text).into_iter().filter(|block| block.language == "toml") {
            let mut user_data = |_: &Path| Ok(b"#cloud-config\n".to_vec());
            let file = Path::new("/etc/qvm/vms/web.toml");
            if page == "docs/reference/host-settings.md" {
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

/// The document of the host settings has a row for each key of the reader, and no other row.
#[test]
fn host_settings_document_has_all_keys() {
    let page = fs::read_to_string(top().join("docs/reference/host-settings.md")).unwrap();
    let rows = page.lines().filter_map(|line| line.strip_prefix("| `")?.split_once('`'));
    let mut documented: Vec<&str> = rows.map(|(key, _)| key).collect();
    documented.sort_unstable();
    let problems = spec::HostSettings::read(Path::new("qvm.toml"), "unknown = 1").unwrap_err();
    let hint = problems[0].hint.clone().unwrap();
    assert_eq!(hint, format!("valid keys are: {}", documented.join(", ")));
}

/// The document of the notes has a row for each code, with the meaning of the code.
#[test]
fn notes_document_has_all_codes() {
    let page = fs::read_to_string(top().join("docs/reference/notes.md")).unwrap();
    let (_, codes) = page.split_once("## Codes\n").unwrap();
    let rows: Vec<&str> = codes.lines().filter(|line| line.starts_with("| `")).collect();
    let row = |word: &str, meaning: &str| format!("| `{word}` | {meaning} |");
    let notes = NoteCode::ALL.iter().map(|(code, meaning)| row(code.word(), meaning));
    let findings = FindingCode::ALL.iter().map(|(code, meaning)| row(code.word(), meaning));
    assert_eq!(rows, notes.chain(findings).collect::<Vec<_>>());
}

/// The document of the errors is that of `qvm man`, with a row for each code.
#[test]
fn errors_document_is_generated() {
    let page = fs::read_to_string(top().join("docs/reference/errors.md")).unwrap();
    let words = ["man", "qvm-errors", "--format", "markdown"];
    let printed = Command::new(env!("CARGO_BIN_EXE_qvm")).args(words).output().unwrap();
    assert_eq!(page, String::from_utf8(printed.stdout).unwrap(), "run `make docs`");
    for (code, meaning) in ErrorCode::ALL {
        let row = format!("| `{code}` | {} | {meaning} |", code.exit_code());
        assert!(page.lines().any(|line| line == row), "{row}");
    }
}

/// Every `qvm …` in shell blocks and between backticks.
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
fn commands_are_accepted_by_the_parser() {
    let mut count = 0;
    for (page, text) in pages() {
        for command in commands(&text) {
            // A name is valid for each of `[NAME…]`, `COMMAND…`, `FILE\|NAME…`.
            let words = command.replace("\\|", " ").replace(['[', ']', '…'], "");
            let words = words.split_whitespace().map(|word| match word {
                "NAME" | "FILE" | "COMMAND" | "VM" | "OLD" | "NEW" | "FROM" | "SNAP" => "web",
                word => word,
            });
            let words: Vec<OsString> = words.map(OsString::from).collect();
            if let Err(error) = Cli::from_arguments(words) {
                use clap::error::ErrorKind::{
                    DisplayHelp, DisplayVersion, MissingRequiredArgument,
                };
                // A verb can be named without all of its arguments.
                let group = ["image", "disk", "snapshot"].iter().any(|group| {
                    command.strip_prefix("qvm ").is_some_and(|rest| rest.starts_with(group))
                });
                let words = command.split_whitespace().count();
                let named = words == 2 || group && words == 3;
                let fine = matches!(error.kind(), DisplayHelp | DisplayVersion)
                    || named && error.kind() == MissingRequiredArgument
                    || group && words == 2;
                assert!(fine, "{page}: `{command}`: {error}");
            }
            count += 1;
        }
    }
    assert!(count >= 40, "only {count} commands in all pages");
}

/// The constants of a source file whose type is a time, a size, a count or a limit.
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

/// The documents of docs/decisions/, by their paths.
fn decisions() -> Vec<(String, String)> {
    let is_decision =
        |page: &str| page.starts_with("docs/decisions/") && !page.ends_with("README.md");
    pages().into_iter().filter(|(page, _)| is_decision(page)).collect()
}

/// A decision names each constant together with its file, which is below src/ or qmp/.
#[test]
fn every_constant_is_explained() {
    let mut files = files_below(&top().join("src"));
    files.extend(files_below(&top().join("qmp/src")));
    files.retain(|file| file.extension().is_some_and(|suffix| suffix == "rs"));
    files.retain(|file| {
        let path = file.strip_prefix(top()).unwrap();
        !path.ends_with("tests.rs") && !path.components().any(|part| part.as_os_str() == "tests")
    });
    let decisions: String = decisions().into_iter().map(|(_, text)| text).collect();
    let decisions: Vec<&str> = decisions.split("\n### ").collect();
    let mut missing = vec![];
    for file in files {
        let path = file.strip_prefix(top()).unwrap().to_str().unwrap();
        let path = path.strip_prefix("src/").unwrap_or(path);
        for name in constants(&fs::read_to_string(&file).unwrap()) {
            let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
            let explains = |decision: &str| {
                decision.contains(path) && decision.split(|c| !is_word(c)).any(|word| word == name)
            };
            // Units of measure and signal numbers are not decisions.
            let is_fact = ["MIB", "GIB", "SIGKILL"].contains(&name.as_str());
            if !is_fact && !decisions.iter().any(|decision| explains(decision)) {
                missing.push(format!("{path}: {name}"));
            }
        }
    }
    let missing = missing.join("\n");
    assert!(missing.is_empty(), "no decision in docs/decisions/ names both:\n{missing}");
}

/// Each decision has its four fields in this order.
#[test]
fn decisions_have_four_fields() {
    let mut count = 0;
    let mut wrong = Vec::new();
    for (page, text) in decisions() {
        for decision in text.split("\n### ").skip(1) {
            let title = decision.lines().next().unwrap_or_default();
            let fields = decision.lines().filter_map(|line| {
                line.strip_prefix("- **")?.split_once("**: ").map(|(field, _)| field)
            });
            if fields.collect::<Vec<_>>() != ["Value", "Why", "Source", "Change"] {
                wrong.push(format!("{page}: {title}: wrong fields"));
            }
            count += 1;
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(count > 150, "only {count} decisions");
}

/// The drawing of the folders has the order of the table in src/lib.rs, the uppermost folder first.
#[test]
fn drawing_has_the_order_of_the_layers() {
    let lib = fs::read_to_string(top().join("src/lib.rs")).unwrap();
    let rows = lib.lines().filter_map(|line| line.strip_prefix("//! | [`")?.split_once('`'));
    let mut layers: Vec<&str> = rows.map(|(folder, _)| folder).collect();
    layers.reverse();
    let page = fs::read_to_string(top().join("docs/architecture.md")).unwrap();
    let drawing = &blocks(&page)[0].text;
    let folder = |line: &str| line.get(17..)?.split_whitespace().next().map(str::to_owned);
    let drawn: Vec<String> = drawing.lines().filter_map(folder).collect();
    assert!(layers.len() > 15);
    assert_eq!(drawn, layers);
}

/// Source files in documents exist: by their paths in the repository or in src/, or in the folder
/// at the beginning of a table row.
#[test]
fn source_files_named_in_documents_exist() {
    let mut wrong = Vec::new();
    for (page, text) in pages() {
        for line in text.lines() {
            let code: Vec<&str> = line.split('`').skip(1).step_by(2).collect();
            let folder = code.first().filter(|_| line.starts_with("| `")).unwrap_or(&"");
            let is_path = |code: &&&str| {
                let is_plain =
                    |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"/_.-".contains(&b);
                let is_source = code.ends_with(".rs") || code.ends_with('/');
                is_source
                    && (code.contains('/') || folder.ends_with('/'))
                    && code.bytes().all(is_plain)
            };
            for file in code.iter().filter(is_path).filter(|file| !file.starts_with(['/', '.'])) {
                let places = [top(), top().join("src"), top().join("src").join(folder)];
                let is_built = file.starts_with("target/");
                if !is_built && !places.iter().any(|place| place.join(file).exists()) {
                    wrong.push(format!("{page}: {file} does not exist"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn readme_is_short_and_all_blocks_are_checked() {
    assert!(readme().lines().count() < 120, "README.md is too long");
    for block in blocks(&readme()) {
        let is_checked = match block.language.as_str() {
            "sh" | "toml" => true,
            // A sample of output, which `samples_have_the_shape_of_real_output` checks.
            "text" => block.text.starts_with("$ qvm "),
            _ => false,
        };
        assert!(is_checked, "README.md:{}: no test checks this block", block.line);
    }
}

/// The samples of output in a text block: each command without its prompt, and its output.
fn samples(markdown: &str) -> Vec<(String, String)> {
    let blocks = blocks(markdown).into_iter().filter(|block| block.language == "text");
    let parts = blocks
        .flat_map(|block| block.text.split("$ ").skip(1).map(str::to_owned).collect::<Vec<_>>());
    let parts: Vec<String> = parts.collect();
    parts
        .iter()
        .filter_map(|part| part.split_once('\n'))
        .map(|(command, output)| (command.to_owned(), output.trim_end().to_owned()))
        .collect()
}

/// The three VMs of the README: two run on a bridge with one pending change each, one is stopped.
#[test]
fn samples_have_the_shape_of_real_output() {
    let samples = samples(&readme());
    let commands: Vec<&str> = samples.iter().map(|(command, _)| command.as_str()).collect();
    assert_eq!(commands, ["qvm list", "qvm status web"]);
    let (Some(image), Some(network)) = (guest("boot.qcow2"), Network::new()) else { return };
    let mut lab = Lab::new();
    lab.network = Some(network);
    let bridged = |vm: &str, address: u8, more: &str| {
        let more =
            format!("autostart = true\nbridge = \"br0\"\nip = \"192.168.97.{address}/24\"\n{more}");
        lab.vm(vm, &image, &more);
        let text = fs::read_to_string(lab.file(vm)).unwrap() + "[cloudInit]\n";
        fs::write(lab.file(vm), text).unwrap();
    };
    bridged("db", 14, "");
    bridged("web", 15, "description = \"the web server\"\n");
    lab.vm("build", &image, "");
    lab.ok(&["start", "db", "web", "build"]);
    lab.ok(&["stop", "build"]);
    for vm in ["db", "web"] {
        let text = fs::read_to_string(lab.file(vm)).unwrap().replace("64M", "96M");
        fs::write(lab.file(vm), text).unwrap();
        crate::lab::until("the change is pending", || lab.status(vm)["pending"][0].is_object());
    }
    for (command, sample) in samples {
        let arguments: Vec<&str> = command.split(' ').skip(1).collect();
        let output = lab.ok(&arguments);
        // The heading and the first two columns of a table, the keys of a status.
        let shape = |text: &str| -> Vec<Vec<String>> {
            let words =
                |line: &str, n: usize| line.split_whitespace().take(n).map(str::to_owned).collect();
            if command == "qvm list" {
                let lines = text.lines().enumerate();
                lines.map(|(nr, line)| words(line, if nr == 0 { 99 } else { 2 })).collect()
            } else {
                text.lines().map(|line| words(line, 1)).collect()
            }
        };
        assert_eq!(shape(&sample), shape(&output), "`{command}` prints:\n{output}");
    }
}

#[test]
fn make_targets_exist() {
    let named: BTreeSet<String> = pages().iter().flat_map(|(_, text)| make_targets(text)).collect();
    let readme = make_targets(&readme());
    let there = targets(&fs::read_to_string(top().join("Makefile")).unwrap());
    assert!(
        readme.contains("demo") && readme.contains("test"),
        "README.md lost its two commands: {readme:?}"
    );
    let missing: Vec<_> = named.difference(&there).collect();
    assert!(missing.is_empty(), "these make targets do not exist: {missing:?}");
}

#[test]
fn shell_blocks_call_known_programs() {
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

/// The anchor of a heading, as GitHub makes it.
fn anchor(heading: &str) -> String {
    let lower = heading.trim_start_matches('#').trim().to_lowercase();
    let kept = lower.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}

#[test]
fn links_of_all_pages_exist() {
    let mut missing = Vec::new();
    for (page, text) in pages() {
        for link in links(&text) {
            let (file, heading) = link.split_once('#').unwrap_or((link, ""));
            let file = match file {
                "" => top().join(&page),
                file => top().join(&page).parent().unwrap().join(file),
            };
            let target =
                if file.is_dir() { Some(String::new()) } else { fs::read_to_string(file).ok() };
            let headings = |text: &str| -> Vec<String> {
                text.lines().filter(|line| line.starts_with('#')).map(anchor).collect()
            };
            let is_there = target.is_some_and(|text| {
                heading.is_empty() || headings(&text).iter().any(|one| one == heading)
            });
            if !is_there {
                missing.push(format!("{page}: {link}"));
            }
        }
    }
    assert!(missing.is_empty(), "these links lead nowhere: {missing:#?}");
}

/// Every document is linked by another one; the pages at old paths link to the new ones.
#[test]
fn every_document_is_linked() {
    let mut linked = BTreeSet::new();
    for (page, text) in pages() {
        for link in links(&text) {
            let file = link.split('#').next().unwrap();
            if let Ok(file) = top().join(&page).parent().unwrap().join(file).canonicalize() {
                linked.insert(file);
            }
        }
    }
    for (page, text) in pages().into_iter().skip(1) {
        let is_moved = text.starts_with("# Moved\n") && links(&text).len() == 1;
        let is_linked = linked.contains(&top().join(&page).canonicalize().unwrap());
        assert!(is_moved || is_linked, "no document links to {page}");
    }
}

/// `cargo test --test it start::files::held` requires tests/it/start/files.rs with a test whose
/// name contains `held`.
#[test]
fn tests_named_in_documents_exist() {
    let mut count = 0;
    for (page, text) in pages() {
        let is_command = |part: &&str| part.contains("cargo test") && part.contains("--test it");
        let commands = text.split(['`', '\n']).filter(is_command);
        let filters = commands.flat_map(str::split_whitespace).filter(|word| word.contains("::"));
        for filter in filters {
            let mut parts: Vec<&str> = filter.split("::").filter(|part| !part.is_empty()).collect();
            let mut place = top().join("tests/it");
            let mut is_there = true;
            while !parts.is_empty() && is_there {
                let part = parts.remove(0);
                let (dir, file) = (place.join(part), place.join(format!("{part}.rs")));
                if dir.is_dir() {
                    place = dir;
                } else if let Ok(source) = fs::read_to_string(file) {
                    let has = |name: &str| {
                        source.lines().any(|line| line.contains("fn ") && line.contains(name))
                    };
                    is_there = parts.iter().all(|name| has(name));
                    parts.clear();
                } else {
                    is_there = false;
                }
            }
            assert!(is_there, "{page}: no test is called {filter}");
            count += 1;
        }
    }
    assert!(count > 30, "only {count} test names in all documents");
}

#[test]
fn generated_documents_are_up_to_date() {
    for (file, arguments) in [
        ("docs/reference/verbs.md", ["man", "qvm", "--format", "markdown"]),
        ("docs/reference/vm-file.md", ["man", "qvm.toml", "--format", "markdown"]),
        ("nix/keys.nix", ["man", "qvm.toml", "--format", "nix"]),
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_qvm")).args(arguments).output().unwrap();
        let printed = String::from_utf8(output.stdout).unwrap();
        let committed = fs::read_to_string(top().join(file)).unwrap();
        assert!(printed == committed, "{file} is out of date: run `make docs`");
    }
}

/// The parsers of this file.
mod parsers {
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
    fn unclosed_block_is_reported() {
        blocks("```sh\nmake\n");
    }

    #[test]
    fn targets_are_found() {
        let named =
            make_targets("Run `make demo`, `cmake x`.\n```sh\nmake test # all\nmake\n```\n");
        assert_eq!(named, BTreeSet::from(["build", "demo", "test"].map(str::to_owned)));
        let there = targets("A := b\n.PHONY: x\ntest: guests ## all\n\techo no: y\nFOO ?= 1\n");
        assert_eq!(there, BTreeSet::from(["test".to_owned()]));
    }

    #[test]
    fn constants_that_count_are_found() {
        let source = "pub(super) const A_B: Duration = x;\n    const C: u32 = 1;\n\
                      const D: &str = \"\";\n\
                      const fn e() -> u8 {}\n#[cfg(test)]\nmod tests { const F: u8 = 1; }\n";
        assert_eq!(constants(source), ["A_B", "C"]);
    }

    #[test]
    fn commands_are_found_in_blocks_and_in_prose() {
        let text = "Say `qvm list`, not `qvmx`.\n```sh\nqvm stop web   # now\nmake\n```\n";
        assert_eq!(commands(text), ["qvm stop web", "qvm list"]);
    }

    #[test]
    fn links_to_other_sites_are_ignored() {
        assert_eq!(links("[a](b/c.md) [d](https://example.org/) (e)"), ["b/c.md"]);
    }
}
