//! Holds README.md to the repository: its VM files parse, its make targets, links and the licence files exist.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

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

#[test]
fn vm_files_are_toml_and_say_where_the_disk_comes_from() {
    let readme = readme();
    let files: Vec<Block> =
        blocks(&readme).into_iter().filter(|block| block.language == "toml").collect();
    assert!(!files.is_empty(), "README.md shows no VM file");
    for block in files {
        let table: toml::Table = toml::from_str(&block.text)
            .unwrap_or_else(|error| panic!("README.md:{}: {error}", block.line));
        assert!(
            table.contains_key("image") || table.contains_key("disk"),
            "README.md:{}: no image",
            block.line
        );
    }
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
                matches!(command, "make" | "qvm" | "ssh"),
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
    fn links_to_other_sites_are_left_out() {
        assert_eq!(links("[a](b/c.md) [d](https://example.org/) (e)"), ["b/c.md"]);
    }
}
