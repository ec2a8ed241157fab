//! Checks the rules of the tree: layers, purity, names, first lines, lengths, language, leftovers.
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

/// The folders of `src/` in the order of the table in `src/lib.rs`: a folder imports only from
/// earlier folders.
const LAYERS: [&str; 22] = [
    "value",
    "sys",
    "life",
    "spec",
    "control",
    "store",
    "machine",
    "systemd",
    "guest",
    "seed",
    "net",
    "sandbox",
    "image",
    "disk",
    "snapshot",
    "supervisor",
    "transfer",
    "fleet",
    "doctor",
    "cli",
    "lib",
    "main",
];
/// Folders and files without I/O, clock and environment.
const PURE: [&str; 25] = [
    "src/value/",
    "src/life/",
    "src/machine/",
    "src/doctor/rules/",
    "src/seed/",
    "src/control/change.rs",
    "src/control/isolation.rs",
    "src/image/checksum_file.rs",
    "src/image/download/proxy.rs",
    "src/image/qcow2.rs",
    "src/image/reference.rs",
    "src/snapshot/kind.rs",
    "src/snapshot/tree.rs",
    "src/store/snapshot_record.rs",
    "src/net/anti_spoof/mod.rs",
    "src/net/tap_spec.rs",
    "src/store/identity.rs",
    "src/store/layout.rs",
    "src/store/saved_header.rs",
    "src/supervisor/start/memory_budget.rs",
    "src/supervisor/start/start_turns.rs",
    "src/sys/bpf.rs",
    "src/systemd/registration.rs",
    "src/systemd/unit.rs",
    "src/transfer/archive_format.rs",
];
/// The parts of pure folders that probe the host.
const PROBES: [&str; 1] = ["src/machine/probe/"];
const IMPURE_PATHS: [&str; 9] = [
    "std::fs",
    "std::process",
    "std::env",
    "std::net::TcpStream",
    "std::net::UdpSocket",
    "std::os::unix::net",
    "std::thread",
    "std::time::SystemTime",
    "tokio",
];
/// Methods of `Path` that access the file system, and those of clocks.
const IMPURE_CALLS: [&str; 9] = [
    "exists",
    "try_exists",
    "is_file",
    "is_dir",
    "metadata",
    "canonicalize",
    "read_dir",
    "read_link",
    "now",
];
const EMPTY_NAMES: [&str; 9] =
    ["util", "utils", "common", "helper", "helpers", "manager", "handler", "misc", "stuff"];
const LEFTOVERS: [&str; 3] = ["todo", "dbg", "unimplemented"];
const WALL: usize = 400;

/// The central structs, with their files.
const HUBS: [(&str, &str); 2] =
    [("src/supervisor/mod.rs", "Supervisor"), ("src/supervisor/running/mod.rs", "RunningVm")];
/// The maximum number of their fields.
const FIELDS: usize = 12;
/// The files that may have methods of `Supervisor`: the loop and its handlers. Components are not
/// among them.
const LOOP: [&str; 10] = [
    "src/supervisor/actions.rs",
    "src/supervisor/dispatch.rs",
    "src/supervisor/mod.rs",
    "src/supervisor/qemu_events.rs",
    "src/supervisor/reload.rs",
    "src/supervisor/requests.rs",
    "src/supervisor/shutdown.rs",
    "src/supervisor/start_events.rs",
    "src/supervisor/status.rs",
    "src/supervisor/supervise.rs",
];
/// The folders whose tests compare error codes: the whole texts are in tests/golden/errors/. Add a
/// folder once its tests do.
const CODED_FOLDERS: [&str; 6] = [
    "tests/it/cli/",
    "tests/it/control/",
    "tests/it/disk/",
    "tests/it/net/",
    "tests/it/start/",
    "tests/it/transfer/",
];
/// Names of variables and methods that are the text of an error in tests.
const ERROR_TEXTS: [&str; 8] =
    ["said", "stderr", "err", "error", "message", "hint", "refused", "to_string"];
/// The maximum length of a line in characters, comments and strings included.
const COLUMNS: usize = 100;
/// This file, which lists the odd phrases.
const THIS: &str = "tests/it/package/house.rs";
/// Phrases that comments, strings and documents must not contain: each has a plain technical
/// equivalent.
const ODD_PHRASES: [&str; 26] = [
    "all the same",
    "anew",
    "any more",
    "called off",
    "cannot be told",
    "comes about",
    "for ever",
    "gladly",
    "goes on",
    "held up",
    "holds up",
    "is kept apart",
    "lies beside",
    "makes of",
    "of its own",
    "once more",
    "said",
    "says",
    "sees to",
    "somebody",
    "stands on",
    "tells",
    "told",
    "way out",
    "what of",
    "whoever",
];
/// Files and directories that follow the rules of language and are not Rust: documents, units,
/// scripts, and what the packages install.
const TEXTS: [&str; 15] = [
    ".ci/run",
    "CHANGELOG.md",
    "Makefile",
    "README.md",
    "docs",
    "examples",
    "nix",
    "packaging",
    "src/spec/reference.toml",
    "systemd",
    "tests/demo",
    "tests/nix",
    "tests/progress.sh",
    "tests/setup",
    "tests/setup-roots",
];
/// The folder whose components have unit tests, and the minimum share of test lines in it, in
/// percent.
const TESTED: (&str, usize) = ("src/supervisor/", 40);
/// The only file that spawns tasks directly: its types own them.
const TASKS: &str = "src/sys/tasks.rs";
/// The only files that create processes: the runner of programs, and the spawn of QEMU.
const PROCESSES: [&str; 2] = ["src/sys/program/", "src/sandbox/spawn.rs"];
/// The paths by which a process is created, as a part of a longer path.
const SPAWNS: [&[&str]; 8] = [
    &["process", "Command"],
    &["process", "CommandExt"],
    &["std", "process", "*"],
    &["tokio", "process"],
    &["unistd", "fork"],
    &["unistd", "execv"],
    &["unistd", "execve"],
    &["libc", "fork"],
];

/// The file of the trait `Explain`, and its methods that no other file defines.
const EXPLAIN: &str = "src/value/explain.rs";
const EXPLAIN_METHODS: [&str; 4] = ["hint", "hint_for", "is_host_fault", "is_the_hosts"];
/// The only file that compares texts of other programs.
const FOREIGN_TEXTS: &str = "src/value/foreign_error.rs";
/// Methods that compare or split a text.
const COMPARISONS: [&str; 7] =
    ["contains", "starts_with", "ends_with", "strip_prefix", "strip_suffix", "split_once", "find"];
/// The functions that return the text of an error, and the names of variables that contain one.
const TEXT_CALLS: [&str; 2] = ["to_string", "chain"];
const TEXT_NAMES: [&str; 8] =
    ["error", "desc", "detail", "why", "reason", "problem", "note", "hint"];

/// A file: its path in the repository, and its text.
struct Source {
    path: String,
    text: String,
}

/// A word or a sign of the code, and its line.
#[derive(Debug, Clone, PartialEq)]
struct Token {
    text: String,
    line: usize,
}

/// Returns the code without comments, string and character literals, line for line.
fn bare(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let mut out = String::with_capacity(text.len());
    let mut at = 0;
    let starts = |at: usize, what: &str| {
        what.chars().enumerate().all(|(n, c)| chars.get(at + n) == Some(&c))
    };
    let word = |c: Option<&char>| c.is_some_and(|c| c.is_alphanumeric() || *c == '_');
    while at < chars.len() {
        let from = at;
        if starts(at, "//") {
            while at < chars.len() && chars[at] != '\n' {
                at += 1;
            }
        } else if starts(at, "/*") {
            let mut depth = 0;
            loop {
                if starts(at, "/*") {
                    depth += 1;
                    at += 2;
                } else if starts(at, "*/") {
                    depth -= 1;
                    at += 2;
                } else {
                    at += 1;
                }
                if depth == 0 || at >= chars.len() {
                    break;
                }
            }
        } else if chars[at] == 'r'
            && !(at > 0 && word(chars.get(at - 1)) && chars[at - 1] != 'b' && chars[at - 1] != 'c')
            && matches!(chars.get(at + 1), Some('"' | '#'))
            && chars[at + 1..].iter().find(|c| **c != '#') == Some(&'"')
        {
            let hashes = chars[at + 1..].iter().take_while(|c| **c == '#').count();
            let end = format!("\"{}", "#".repeat(hashes));
            at += hashes + 2;
            while at < chars.len() && !starts(at, &end) {
                at += 1;
            }
            at += end.len();
        } else if chars[at] == '"' {
            at += 1;
            while at < chars.len() && chars[at] != '"' {
                at += if chars[at] == '\\' { 2 } else { 1 };
            }
            at += 1;
        } else if chars[at] == '\''
            && (chars.get(at + 1) == Some(&'\\') || chars.get(at + 2) == Some(&'\''))
        {
            at += if chars[at + 1] == '\\' { 3 } else { 2 };
            while at < chars.len() && chars[at] != '\'' {
                at += 1;
            }
            at += 1;
        } else {
            out.push(chars[at]);
            at += 1;
            continue;
        }
        out.push(' ');
        out.extend(chars[from..at.min(chars.len())].iter().filter(|c| **c == '\n'));
    }
    out
}

/// Returns the code without its test modules, line for line. Only modules are removed: the rules
/// apply to other code that is compiled for tests, and to the code behind a test module.
fn without_tests(code: &str) -> String {
    const MARK: &str = "#[cfg(test)]";
    let mut out = String::with_capacity(code.len());
    let mut rest = code;
    while let Some(at) = rest.find(MARK) {
        let end = test_module(&rest[at + MARK.len()..]).map(|length| at + MARK.len() + length);
        let kept = if end.is_some() { at } else { at + MARK.len() };
        out.push_str(&rest[..kept]);
        out.extend(rest[kept..end.unwrap_or(kept)].chars().filter(|c| *c == '\n'));
        rest = &rest[end.unwrap_or(kept)..];
    }
    out + rest
}

/// Returns the length of the module at the beginning of `code`, attributes included.
fn test_module(code: &str) -> Option<usize> {
    let mut rest = code.trim_start();
    while rest.starts_with("#[") {
        rest = rest[rest.find(']')? + 1..].trim_start();
    }
    let rest = rest.strip_prefix("pub(crate) ").or(rest.strip_prefix("pub ")).unwrap_or(rest);
    let (name, body) = rest.strip_prefix("mod ")?.split_at(rest.find(['{', ';'])? - 4);
    if !name.trim().chars().all(|c| c.is_alphanumeric() || c == '_') {
        return None;
    }
    let mut depth = 0;
    let end = body.find(|c| {
        depth += i32::from(c == '{') - i32::from(c == '}');
        depth == 0
    });
    Some(code.len() - body.len() + end.map_or(body.len(), |end| end + 1))
}

fn tokens(code: &str) -> Vec<Token> {
    let mut tokens: Vec<Token> = Vec::new();
    for (n, line) in code.lines().enumerate() {
        let mut rest = line.trim_start();
        while let Some(first) = rest.chars().next() {
            let length = if first.is_alphanumeric() || first == '_' {
                rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len())
            } else if rest.starts_with("::") {
                2
            } else {
                first.len_utf8()
            };
            tokens.push(Token { text: rest[..length].to_owned(), line: n + 1 });
            rest = rest[length..].trim_start();
        }
    }
    tokens
}

/// Returns every path `a::b::c` of the code, with groups in braces expanded, with its line.
fn paths(code: &str) -> Vec<(usize, Vec<String>)> {
    let tokens = tokens(code);
    let mut found = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        let in_a_path = at > 0 && tokens[at - 1].text == "::";
        let follows = tokens.get(at + 1).is_some_and(|next| next.text == "::");
        let used = at > 0 && tokens[at - 1].text == "use";
        if is_word(&tokens[at].text) && !in_a_path && (follows || used) {
            at = path_from(&tokens, at, &[], &mut found);
        } else {
            at += 1;
        }
    }
    found
}

fn is_word(text: &str) -> bool {
    text.starts_with(|c: char| c.is_alphabetic() || c == '_')
}

fn path_from(
    tokens: &[Token],
    mut at: usize,
    prefix: &[String],
    found: &mut Vec<(usize, Vec<String>)>,
) -> usize {
    let mut path = prefix.to_vec();
    let line = tokens[at].line;
    loop {
        match tokens.get(at).map(|token| token.text.as_str()) {
            Some("{") => {
                at += 1;
                while tokens.get(at).is_some_and(|token| token.text != "}") {
                    let word = is_word(&tokens[at].text) || tokens[at].text == "*";
                    at = if word { path_from(tokens, at, &path, found) } else { at + 1 };
                }
                return at + 1;
            }
            Some(word) if is_word(word) || word == "*" => {
                path.push(word.to_owned());
                at += 1;
            }
            _ => break,
        }
        if tokens.get(at).is_none_or(|token| token.text != "::") {
            break;
        }
        at += 1;
    }
    // `use a::b as c` imports no other name.
    if tokens.get(at).is_some_and(|token| token.text == "as") {
        at += 2;
    }
    found.push((line, path));
    at
}

/// Returns the module of a file below src/, `["net", "tap"]` for `src/net/tap.rs`.
fn module(path: &str) -> Option<Vec<String>> {
    let inner = path.strip_prefix("src/")?.strip_suffix(".rs")?;
    let mut parts: Vec<String> = inner.split('/').map(str::to_owned).collect();
    if parts.len() > 1 && parts.last().is_some_and(|last| last == "mod") {
        parts.pop();
    }
    Some(parts)
}

/// Returns the paths into this crate, `crate`, `self` and `super` resolved: `["net", "tap",
/// "Tap"]`.
fn inward(source: &Source) -> Vec<(usize, Vec<String>)> {
    let Some(here) = module(&source.path) else { return Vec::new() };
    let top = here.len() == 1 && matches!(here[0].as_str(), "lib" | "main");
    let code = bare(&source.text);
    let mut found = Vec::new();
    for (line, path) in paths(&without_tests(&code)) {
        let mut base: Vec<String> = if top { Vec::new() } else { here.clone() };
        let mut rest = path.as_slice();
        match rest[0].as_str() {
            "crate" | "qvm" => {
                base.clear();
                rest = &rest[1..];
            }
            "self" => rest = &rest[1..],
            "super" => {
                while rest.first().is_some_and(|word| word == "super") {
                    base.pop();
                    rest = &rest[1..];
                }
            }
            _ => continue,
        }
        base.extend_from_slice(rest);
        if !base.is_empty() {
            found.push((line, base));
        }
    }
    found
}

fn layer(module: &str) -> Option<usize> {
    LAYERS.iter().position(|name| *name == module)
}

/// A folder imports only from folders before it in [`LAYERS`], which has every folder.
fn layers(sources: &[Source]) -> Vec<String> {
    let mut problems = Vec::new();
    for source in sources {
        let Some(here) = module(&source.path) else { continue };
        let Some(own) = layer(&here[0]) else {
            problems.push(format!("{}: `{}` is not in LAYERS", source.path, here[0]));
            continue;
        };
        for (line, path) in inward(source) {
            let Some(theirs) = layer(&path[0]) else { continue };
            if theirs > own {
                problems.push(format!(
                    "{}:{line}: `{}` imports `{}`, which is above it",
                    source.path,
                    here[0],
                    path.join("::"),
                ));
            }
        }
    }
    problems
}

/// Returns the files that each file imports, `pub use` included.
fn imports(sources: &[Source]) -> BTreeMap<&str, BTreeSet<&str>> {
    let files: BTreeMap<Vec<String>, &str> = sources
        .iter()
        .filter_map(|source| Some((module(&source.path)?, source.path.as_str())))
        .collect();
    let deepest = |path: &[String]| {
        (1..=path.len()).rev().find_map(|length| files.get(&path[..length])).copied()
    };
    sources
        .iter()
        .map(|source| {
            let targets = inward(source).into_iter().filter_map(|(_, path)| deepest(&path));
            let others = targets.filter(|target| *target != source.path);
            (source.path.as_str(), others.collect())
        })
        .collect()
}

/// Returns the cycles of imports between files, each as the shortest path from a file to itself.
fn cycles(sources: &[Source]) -> Vec<String> {
    let imports = imports(sources);
    let mut problems: Vec<String> = Vec::new();
    let mut named: BTreeSet<&str> = BTreeSet::new();
    for start in imports.keys() {
        if named.contains(start) {
            continue;
        }
        let mut from: BTreeMap<&str, &str> = BTreeMap::new();
        let mut queue: std::collections::VecDeque<&str> = [*start].into();
        'search: while let Some(file) = queue.pop_front() {
            for target in &imports[file] {
                if target == start {
                    let mut way = vec![*start, file];
                    while let Some(before) = from.get(way[way.len() - 1]) {
                        way.push(before);
                    }
                    way.dedup();
                    way.reverse();
                    named.extend(&way);
                    way.push(start);
                    problems.push(format!("cycle of imports: {}", way.join(" -> ")));
                    break 'search;
                }
                if !from.contains_key(target) {
                    from.insert(target, file);
                    queue.push_back(target);
                }
            }
        }
    }
    problems
}

/// Pure files have no I/O, clock or environment; life uses no crate at all.
fn purity(sources: &[Source], crates: &BTreeSet<String>) -> Vec<String> {
    let mut problems = Vec::new();
    for source in sources {
        let Some(here) = module(&source.path) else { continue };
        let is_in = |list: &[&str]| list.iter().any(|path| source.path.starts_with(path));
        if !is_in(&PURE) || is_in(&PROBES) {
            continue;
        }
        let code = bare(&source.text);
        let code = without_tests(&code);
        for (line, path) in paths(&code) {
            let whole = path.join("::");
            if let Some(bad) = IMPURE_PATHS
                .iter()
                .find(|bad| whole == **bad || whole.starts_with(&format!("{bad}::")))
            {
                problems.push(format!("{}:{line}: `{bad}` in a pure file", source.path));
            }
            if here[0] == "life" && crates.contains(&path[0]) {
                problems.push(format!(
                    "{}:{line}: crate `{}` in `life`, which is std only",
                    source.path, path[0]
                ));
            }
        }
        for pair in tokens(&code).windows(3) {
            let call = matches!(pair[0].text.as_str(), "." | "::") && pair[2].text == "(";
            if call && IMPURE_CALLS.contains(&pair[1].text.as_str()) {
                problems.push(format!(
                    "{}:{}: `{}()` in a pure file",
                    source.path, pair[1].line, pair[1].text
                ));
            }
        }
    }
    problems
}

/// Returns the files and directories with empty names.
fn names(sources: &[Source]) -> Vec<String> {
    let mut problems = Vec::new();
    for source in sources {
        let words = source.path.trim_end_matches(".rs").split(['/', '_', '-']);
        for word in words.filter(|word| EMPTY_NAMES.contains(word)) {
            problems.push(format!("{}: `{word}` is no noun of this house", source.path));
        }
    }
    problems
}

/// Each file begins with a description.
fn openings(sources: &[Source]) -> Vec<String> {
    sources
        .iter()
        .filter(|source| !source.text.starts_with("//! "))
        .map(|source| {
            format!("{}: its first line is no `//! ` that says what it answers", source.path)
        })
        .collect()
}

/// A file has at most 400 lines, without the test modules in it.
fn lengths(sources: &[Source]) -> Vec<String> {
    let length = |source: &Source| match is_test_file(&source.path) {
        true => source.text.lines().count(),
        false => without_tests(&bare(&source.text)).trim_end().lines().count(),
    };
    sources
        .iter()
        .map(|source| (source, length(source)))
        .filter(|(_, lines)| *lines > WALL)
        .map(|(source, lines)| {
            format!("{}: {lines} lines without inline tests, {WALL} at most", source.path)
        })
        .collect()
}

/// Macros of unfinished work.
fn leftovers(sources: &[Source]) -> Vec<String> {
    let mut problems = Vec::new();
    for source in sources {
        for pair in tokens(&bare(&source.text)).windows(2) {
            if pair[1].text == "!" && LEFTOVERS.contains(&pair[0].text.as_str()) {
                problems.push(format!(
                    "{}:{}: `{}!` is left over",
                    source.path, pair[0].line, pair[0].text
                ));
            }
        }
    }
    problems
}

/// No line exceeds the columns, unless it contains a URL, which cannot be wrapped. Only comments of
/// other files than Rust are checked, and the paragraphs of documents.
fn columns(sources: &[Source]) -> Vec<String> {
    let mut problems = Vec::new();
    for source in sources {
        let mut in_block = false;
        let mut is_checked = |line: &str| match source.path.rsplit('.').next() {
            Some("rs") => true,
            Some("md") => {
                in_block ^= line.starts_with("```");
                !in_block && line.starts_with(|c: char| c.is_alphanumeric())
            }
            _ => line.trim_start().starts_with("# "),
        };
        for (nr, line) in source.text.lines().enumerate() {
            let length = line.chars().count();
            if is_checked(line) && length > COLUMNS && !line.contains("://") {
                problems.push(format!("{}:{}: {length} columns", source.path, nr + 1));
            }
        }
    }
    problems
}

/// Tests of the converted folders do not compare the wording of an error: a text that is compared
/// with a literal of several words.
fn compared_errors(sources: &[Source]) -> Vec<String> {
    let mut problems = Vec::new();
    let is_coded = |path: &str| CODED_FOLDERS.iter().any(|folder| path.starts_with(folder));
    for source in sources.iter().filter(|source| is_coded(&source.path)) {
        for method in [".contains(", ".starts_with(", ".ends_with("] {
            for (at, _) in source.text.match_indices(method) {
                let (before, after) = (&source.text[..at], &source.text[at + method.len()..]);
                let receiver = before
                    .trim_end_matches(|c: char| "()&*output".contains(c) || c.is_whitespace());
                let is_text = ERROR_TEXTS.iter().any(|name| receiver.ends_with(name));
                let literal = after.trim_start_matches(['&', ' ', '\n']);
                let literal = literal.trim_start_matches("format!(").strip_prefix('"');
                let words = literal.and_then(|text| text.split('"').next()).unwrap_or_default();
                // A name, a path or a number is no wording.
                if is_text && words.split(' ').filter(|word| word.len() > 1).count() > 1 {
                    let line = before.lines().count().max(1);
                    problems.push(format!("{}:{line}: compares `{words}`", source.path));
                }
            }
        }
    }
    problems
}

/// Each `own_code` names every variant, so that a new one gets a code.
fn partial_codes(sources: &[Source]) -> Vec<String> {
    let mut problems = Vec::new();
    for source in sources {
        for (at, _) in source.text.match_indices("fn own_code(&self)") {
            let body = source.text[at..].split("\n    }\n").next().unwrap_or_default();
            if body.contains("match self {") && body.contains(" _ =>") {
                let line = source.text[..at].lines().count();
                problems.push(format!("{}:{line}: `_` hides variants without a code", source.path));
            }
        }
    }
    problems
}

/// Returns how often a text contains a phrase as whole words, in any case.
fn occurrences(text: &str, phrase: &str) -> usize {
    let text = text.to_lowercase();
    let is_word = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
    text.match_indices(phrase)
        .filter(|(at, _)| {
            let after = &text[at + phrase.len()..];
            !is_word(text[..*at].chars().next_back()) && !is_word(after.chars().next())
        })
        .count()
}

/// Comments and strings of Rust files contain no odd phrase, nor do other files.
fn phrases(sources: &[Source]) -> Vec<String> {
    let mut problems = Vec::new();
    for source in sources.iter().filter(|source| source.path != THIS) {
        let is_rust = source.path.ends_with(".rs");
        let code = if is_rust { bare(&source.text) } else { String::new() };
        let code = code.lines().chain(std::iter::repeat(""));
        for (nr, (line, code)) in source.text.lines().zip(code).enumerate() {
            let line = without_placeholders(line);
            let code = without_placeholders(code);
            for phrase in ODD_PHRASES {
                if occurrences(&line, phrase) > occurrences(&code, phrase) {
                    problems.push(format!("{}:{}: `{phrase}`", source.path, nr + 1));
                }
            }
        }
    }
    problems
}

/// Removes the placeholders of format strings, `{name}` and `{name:?}`, which are code.
fn without_placeholders(line: &str) -> String {
    let mut out = String::with_capacity(line.len());
    let mut rest = line;
    while let Some((before, after)) = rest.split_once('{') {
        let end = after.find(|c: char| !c.is_alphanumeric() && !"_:?#.".contains(c));
        let end = end.filter(|end| after[*end..].starts_with('}'));
        out.push_str(before);
        rest = end.map_or(after, |end| &after[end + 1..]);
    }
    out + rest
}

/// A hub has few fields, all private.
fn hubs(sources: &[Source]) -> Vec<String> {
    let mut problems = Vec::new();
    for (path, name) in HUBS {
        let Some(source) = sources.iter().find(|source| source.path == path) else {
            problems.push(format!("{path}: there is no such file"));
            continue;
        };
        let code = bare(&source.text);
        let body = code
            .split_once(&format!("struct {name} {{"))
            .and_then(|(_, rest)| rest.split_once("\n}"))
            .map(|(body, _)| body.trim());
        let Some(body) = body else {
            problems.push(format!("{path}: there is no struct `{name}`"));
            continue;
        };
        let fields: Vec<&str> = body.split(",\n").filter(|field| field.contains(':')).collect();
        if fields.len() > FIELDS {
            problems
                .push(format!("{path}: `{name}` has {} fields, {FIELDS} at most", fields.len()));
        }
        let public = |field: &&&str| field.trim_start().starts_with("pub");
        if let Some(field) = fields.iter().find(public) {
            problems.push(format!("{path}: `{}` of `{name}` is not private", field.trim()));
        }
    }
    problems
}

/// Only the loop uses the supervisor: components get what they need as arguments.
fn components(sources: &[Source]) -> Vec<String> {
    let mut problems = Vec::new();
    for source in sources.iter().filter(|source| source.path.starts_with("src/supervisor/")) {
        if LOOP.contains(&source.path.as_str()) {
            continue;
        }
        for (line, path) in inward(source) {
            if path == ["supervisor", "Supervisor"] || path == ["supervisor", "*"] {
                problems
                    .push(format!("{}:{line}: a component that knows `Supervisor`", source.path));
            }
        }
    }
    problems
}

/// A task has an owner, which aborts it: a `JoinSet`, or one of the types of `sys::tasks`.
fn task_owners(sources: &[Source]) -> Vec<String> {
    let mut problems = Vec::new();
    for source in sources.iter().filter(|source| source.path != TASKS) {
        let code = bare(&source.text);
        for (line, path) in paths(&without_tests(&code)) {
            let path = path.join("::");
            if ["tokio::spawn", "tokio::task::spawn", "tokio::task::spawn_local"]
                .contains(&path.as_str())
            {
                problems.push(format!("{}:{line}: `{path}` starts a task of nobody", source.path));
            }
        }
    }
    problems
}

/// A file that contains only tests.
fn is_test_file(path: &str) -> bool {
    path.ends_with("tests.rs") || path.contains("/tests/")
}

/// A folder has enough unit tests, by its lines.
fn tested(sources: &[Source]) -> Vec<String> {
    let (folder, least) = TESTED;
    let (mut all, mut tests) = (0, 0);
    for source in sources.iter().filter(|source| source.path.starts_with(folder)) {
        let lines = source.text.lines().count();
        all += lines;
        tests += if is_test_file(&source.path) {
            lines
        } else {
            let code = without_tests(&bare(&source.text));
            lines - lines.min(code.trim_end().lines().count())
        };
    }
    if tests * 100 >= all * least {
        return vec![];
    }
    vec![format!("{folder}: {tests} of {all} lines are unit tests, {least} % at least")]
}

/// Programs are run by one module, with limits.
fn processes(sources: &[Source]) -> Vec<String> {
    let mut problems = Vec::new();
    for source in sources {
        if PROCESSES.iter().any(|allowed| source.path.starts_with(allowed)) {
            continue;
        }
        let code = bare(&source.text);
        for (line, path) in paths(&without_tests(&code)) {
            let has = |spawn: &&&[&str]| path.windows(spawn.len()).any(|part| part == **spawn);
            if SPAWNS.iter().any(|spawn| has(&spawn)) {
                problems.push(format!(
                    "{}:{line}: `{}` creates a process beside `sys::program`",
                    source.path,
                    path.join("::")
                ));
            }
        }
    }
    problems
}

/// Errors are explained by one trait, and no behavior depends on the text of an error or a note.
fn explanations(sources: &[Source]) -> Vec<String> {
    let mut problems = Vec::new();
    for source in sources {
        let code = bare(&source.text);
        let tokens = tokens(&without_tests(&code));
        let is = |at: usize, texts: &[&str]| {
            tokens.get(at).is_some_and(|token| texts.contains(&token.text.as_str()))
        };
        for (at, token) in tokens.iter().enumerate() {
            let problem = |what: String| format!("{}:{}: {what}", source.path, token.line);
            let is_method = is(at + 2, &["("]) && is(at + 3, &["&"]) && is(at + 4, &["self"]);
            if token.text == "fn"
                && is(at + 1, &EXPLAIN_METHODS)
                && is_method
                && is(at + 5, &[")"])
                && source.path != EXPLAIN
            {
                let method = &tokens[at + 1].text;
                problems.push(problem(format!("`{method}` beside the trait `Explain`")));
            }
            // `chain(&error).contains(`, `error.to_string().contains(`, `why.contains(`
            if source.path == FOREIGN_TEXTS
                || !(token.text == "." && is(at + 1, &COMPARISONS) && is(at + 2, &["("]))
            {
                continue;
            }
            let call = (at > 0 && is(at - 1, &[")"])).then(|| callee(&tokens, at - 1)).flatten();
            let receiver = call.unwrap_or(at.saturating_sub(1));
            let texts: &[&str] = if call.is_some() { &TEXT_CALLS } else { &TEXT_NAMES };
            if is(receiver, texts) {
                let method = &tokens[at + 1].text;
                problems.push(problem(format!("`{method}` on the text of an error")));
            }
        }
    }
    problems
}

/// Returns the position of the name of the called function, for a call that ends at `close`.
fn callee(tokens: &[Token], close: usize) -> Option<usize> {
    let mut depth = 0;
    for at in (0..=close).rev() {
        match tokens[at].text.as_str() {
            ")" => depth += 1,
            "(" => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return at.checked_sub(1);
        }
    }
    None
}

fn read_tree(top: &Path, below: &str, sources: &mut Vec<Source>) {
    let Ok(entries) = fs::read_dir(top.join(below)) else { return };
    for entry in entries {
        let entry = entry.unwrap();
        let path = format!("{below}/{}", entry.file_name().to_str().unwrap());
        if entry.file_type().unwrap().is_dir() {
            read_tree(top, &path, sources);
        } else if path.ends_with(".rs") {
            sources.push(Source { text: fs::read_to_string(entry.path()).unwrap(), path });
        }
    }
}

/// Reads every Rust file below these directories of the repository.
fn tree(directories: &[&str]) -> Vec<Source> {
    let mut sources = Vec::new();
    for directory in directories {
        read_tree(Path::new(env!("CARGO_MANIFEST_DIR")), directory, &mut sources);
    }
    assert!(!sources.is_empty(), "no Rust file below {directories:?}");
    sources
}

/// Reads all files that follow the rules of language.
fn texts() -> Vec<Source> {
    let mut sources = tree(&["src", "qmp", "tests", "bench", "fuzz/fuzz_targets", "fuzz/checks"]);
    for path in TEXTS {
        read_texts(Path::new(env!("CARGO_MANIFEST_DIR")), path, &mut sources);
    }
    sources
}

/// Reads a file, or all files below a directory.
fn read_texts(root: &Path, path: &str, sources: &mut Vec<Source>) {
    let file = root.join(path);
    if !file.is_dir() {
        let text = fs::read_to_string(&file).unwrap_or_else(|error| panic!("{path}: {error}"));
        return sources.push(Source { path: path.to_owned(), text });
    }
    for entry in fs::read_dir(file).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        read_texts(root, &format!("{path}/{name}"), sources);
    }
}

/// Returns the product's code: the tree of src/ without the files that contain only tests.
fn product() -> Vec<Source> {
    let mut sources = tree(&["src"]);
    sources.retain(|source| !is_test_file(&source.path));
    sources
}

/// The dependencies of Cargo.toml, as names in code.
fn crates() -> BTreeSet<String> {
    let manifest =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml")).unwrap();
    let manifest: BTreeMap<String, toml::Value> = toml::from_str(&manifest).unwrap();
    manifest["dependencies"].as_table().unwrap().keys().map(|name| name.replace('-', "_")).collect()
}

#[track_caller]
fn none(problems: Vec<String>) {
    assert!(problems.is_empty(), "\n{}\n", problems.join("\n"));
}

#[test]
fn imports_go_down() {
    none(layers(&product()));
}

#[test]
fn imports_have_no_cycles() {
    none(cycles(&product()));
}

#[test]
fn pure_modules_are_pure() {
    none(purity(&product(), &crates()));
}

#[test]
fn names_are_not_empty_words() {
    none(names(&tree(&["src", "qmp", "tests", "bench", "fuzz/fuzz_targets", "fuzz/checks"])));
}

#[test]
fn files_begin_with_a_description() {
    none(openings(&tree(&["src", "qmp", "tests", "bench", "fuzz/fuzz_targets", "fuzz/checks"])));
}

#[test]
fn files_have_a_maximum_length() {
    none(lengths(&tree(&["src"])));
    none(lengths(&tree(&["qmp/src", "bench", "fuzz/fuzz_targets", "fuzz/checks"])));
}

#[test]
fn no_unfinished_code() {
    none(leftovers(&tree(&["src", "qmp", "tests", "bench", "fuzz/fuzz_targets", "fuzz/checks"])));
}

#[test]
fn lines_fit_the_columns() {
    none(columns(&texts()));
}

#[test]
fn texts_have_no_odd_phrases() {
    none(phrases(&texts()));
}

#[test]
fn hubs_have_few_private_fields() {
    none(hubs(&product()));
}

#[test]
fn components_know_no_supervisor() {
    none(components(&product()));
}

#[test]
fn tasks_have_owners() {
    none(task_owners(&product()));
}

#[test]
fn supervisor_has_unit_tests() {
    none(tested(&tree(&["src"])));
}

#[test]
fn one_module_creates_processes() {
    none(processes(&product()));
}

#[test]
fn errors_are_explained_by_one_trait() {
    none(explanations(&product()));
}

#[test]
fn every_error_has_a_code() {
    none(partial_codes(&product()));
}

#[test]
fn tests_compare_codes() {
    none(compared_errors(&tree(&["tests/it"])));
}

/// The rules on trees that break them.
mod on_bad_trees {
    use super::*;

    fn one(path: &str, text: &str) -> Vec<Source> {
        vec![Source { path: path.to_owned(), text: text.to_owned() }]
    }

    #[test]
    fn code_of_any_other_variant() {
        let text = "fn own_code(&self) -> Option<ErrorCode> {\n        Some(match self {\n\
                    Self::A => ErrorCode::Other,\n            _ => return None,\n        \
                    })\n    }\n";
        assert_eq!(partial_codes(&one("src/a/b.rs", text)).len(), 1);
        assert!(partial_codes(&one("src/a/b.rs", &text.replace("_ =>", "Self::B =>"))).is_empty());
    }

    #[test]
    fn compared_wording_of_an_error() {
        let problems = |text: &str| compared_errors(&one("tests/it/cli/a.rs", text)).len();
        assert_eq!(problems("assert!(said.contains(\"is not there\"));"), 1);
        assert_eq!(problems("assert!(said(&output).contains(\"is not there\"));"), 1);
        assert_eq!(problems("assert!(error.to_string().ends_with(\"is not there\"));"), 1);
        assert_eq!(problems("assert!(said.contains(\"web.toml\"));"), 0);
        assert_eq!(problems("assert!(console.contains(\"it has booted\"));"), 0);
    }

    #[test]
    fn upward_import_is_reported() {
        for text in [
            "use crate::net::tap;",
            "use crate::{value::Size, supervisor::{start::launch, settings}};",
            "fn f() -> crate::supervisor::Supervisor { todo }",
            "use super::super::cli::verb;",
        ] {
            assert_ne!(layers(&one("src/machine/argv.rs", text)), Vec::<String>::new(), "{text}");
        }
        assert_ne!(layers(&one("src/value/mod.rs", "use super::spec;")), Vec::<String>::new());
    }

    #[test]
    fn each_bad_path_of_a_group_is_reported() {
        let text = "use crate::{\n    value::Size,\n    store::record,\n};";
        assert_eq!(
            layers(&one("src/spec/check.rs", text)),
            ["src/spec/check.rs:3: `spec` imports `store::record`, which is above it"]
        );
    }

    #[test]
    fn downward_and_local_imports_pass() {
        let text = "use crate::{store::layout::Layout, value::Size};\nuse super::launch::Launched;";
        assert_eq!(layers(&one("src/supervisor/adopt.rs", text)), Vec::<String>::new());
        let tests = "//! x\n#[cfg(test)]\nmod tests {\n    use crate::cli::verb;\n}";
        assert_eq!(layers(&one("src/machine/argv.rs", tests)), Vec::<String>::new());
        let words = "// use crate::cli::x\nconst S: &str = \"crate::cli::x\"; /* crate::cli::y */";
        assert_eq!(layers(&one("src/machine/argv.rs", words)), Vec::<String>::new());
    }

    #[test]
    fn code_behind_a_test_module_counts() {
        let test = "//! x\n#[cfg(test)]\n#[path = \"x.rs\"]\nmod fake { fn f() { if x {} } }\n";
        let file = "//! x\n#[cfg(test)]\nmod fake;\n#[cfg(test)]\npub(crate) mod more;\n";
        let other = "//! x\n#[cfg(test)]\nfn f() {}\n#[cfg(test)]\nuse crate::net::tap;\n";
        let whole = "#[cfg(test)]\nmod tests {\n    use crate::cli::verb;\n}\n";
        for above in [test, file, other, whole] {
            let code = format!("{above}use crate::cli::verb;\n{whole}");
            let problems = layers(&one("src/machine/argv.rs", &code));
            let line = above.lines().count() + 1;
            let expected = format!(
                "src/machine/argv.rs:{line}: `machine` imports `cli::verb`, which is above it"
            );
            assert!(problems.contains(&expected), "{code}\n{problems:?}");
            assert_eq!(problems.len(), if above == other { 2 } else { 1 }, "{problems:?}");
            let long = format!("{above}{}{whole}", "fn f() {}\n".repeat(WALL + 1));
            assert_ne!(lengths(&one("src/a.rs", &long)), Vec::<String>::new());
        }
        assert_eq!(without_tests(&format!("a\n{whole}b\n")), "a\n\n\n\n\nb\n");
    }

    #[test]
    fn import_cycle_is_reported() {
        let file = |path: &str, text: &str| Source { path: path.into(), text: text.into() };
        let mut sources = vec![
            file("src/net/mod.rs", "pub mod tap;\npub use self::tap::Tap;"),
            file("src/net/tap.rs", "use super::link::Link;"),
            file("src/net/link.rs", "use crate::sys::file;"),
            file("src/sys/file.rs", "use std::fs;"),
        ];
        assert_eq!(cycles(&sources), Vec::<String>::new());
        sources[2].text = "use super::Tap;".into();
        let problems = cycles(&sources);
        assert_eq!(problems.len(), 1, "{problems:?}");
        for path in ["src/net/mod.rs", "src/net/tap.rs", "src/net/link.rs"] {
            assert!(problems[0].contains(path), "{problems:?}");
        }
    }

    #[test]
    fn texts_are_compared_and_hints_forwarded() {
        for text in [
            "impl Error { pub fn hint(&self) -> Option<String> { None } }",
            "impl Explain for Error { fn is_host_fault(&self) -> bool { true } }",
            "fn f() { if error.to_string().contains(\"busy\") {} }",
            "fn f() { match e { Err(Refused { desc }) if desc.contains(\"unplug\") => {} } }",
            "fn f() { if chain(&error).starts_with(\"x\") {} }",
            "fn f() { notes.iter().filter(|note| note.starts_with(\"x\")) }",
        ] {
            let problems = explanations(&one("src/net/tap.rs", text));
            assert_eq!(problems.len(), 1, "{text}: {problems:?}");
        }
        for text in [
            "impl Explain for Error { fn own_hint(&self) -> Option<String> { self.cause.hint() } }",
            "impl Failure { pub fn hint(self, hint: Option<String>) -> Self { self } }",
            "fn f() { if codes(&notes).contains(&code) || path.to_owned().ends_with(x) {} }",
            "fn f() {}\n#[cfg(test)]\nmod tests { fn t() { why.contains(\"x\") } }",
        ] {
            assert_eq!(explanations(&one("src/net/tap.rs", text)), [""; 0], "{text}");
        }
    }

    #[test]
    fn folder_without_a_layer_is_reported() {
        assert_ne!(layers(&one("src/attic/box.rs", "")), Vec::<String>::new());
    }

    #[test]
    fn impurity_is_reported() {
        let crates = BTreeSet::from(["serde".to_owned(), "tokio".to_owned()]);
        for text in [
            "use std::fs;",
            "use std::{env, path::Path};",
            "fn f() { std::process::exit(1) }",
            "use std::time::{Duration, SystemTime};",
            "fn f(p: &Path) -> bool { p.exists() }",
            "fn f() -> Instant { Instant::now() }",
            "use tokio::sync::mpsc;",
        ] {
            assert_ne!(
                purity(&one("src/machine/argv.rs", text), &crates),
                Vec::<String>::new(),
                "{text}"
            );
        }
        assert_ne!(
            purity(&one("src/life/state.rs", "use serde::Serialize;"), &crates),
            Vec::<String>::new()
        );
        assert_eq!(
            purity(&one("src/machine/facts.rs", "use serde::Serialize;"), &crates),
            Vec::<String>::new()
        );
        assert_eq!(purity(&one("src/sys/file.rs", "use std::fs;"), &crates), Vec::<String>::new());
        assert_eq!(
            purity(&one("src/life/state.rs", "use std::time::Instant;"), &crates),
            Vec::<String>::new()
        );
    }

    #[test]
    fn empty_names_are_reported() {
        for path in [
            "src/sys/utils.rs",
            "src/common/mod.rs",
            "src/supervisor/event_handler.rs",
            "tests/helpers/mod.rs",
        ] {
            assert_ne!(names(&one(path, "")), Vec::<String>::new(), "{path}");
        }
        assert_eq!(names(&one("src/net/tap.rs", "")), Vec::<String>::new());
    }

    #[test]
    fn missing_description_is_reported() {
        assert_ne!(openings(&one("src/a.rs", "use std::fmt;\n//! late\n")), Vec::<String>::new());
        assert_ne!(openings(&one("src/a.rs", "")), Vec::<String>::new());
        assert_eq!(openings(&one("src/a.rs", "//! What it answers.\n")), Vec::<String>::new());
    }

    #[test]
    fn long_file_is_reported() {
        let code = "//! x\n".to_owned() + &"fn f() {}\n".repeat(WALL);
        assert_ne!(lengths(&one("src/a.rs", &code)), Vec::<String>::new());
        let tests = "//! x\n#[cfg(test)]\nmod tests {\n".to_owned() + &"fn f() {}\n".repeat(WALL);
        assert_eq!(lengths(&one("src/a.rs", &tests)), Vec::<String>::new());
        for path in ["src/a/tests.rs", "src/a/tests/b.rs"] {
            assert_ne!(lengths(&one(path, &code)), Vec::<String>::new(), "{path}");
        }
    }

    #[test]
    fn unfinished_code_is_reported() {
        for text in ["fn f() { todo!() }", "let a = dbg!(b);", "fn f() { unimplemented! { } }"] {
            assert_ne!(leftovers(&one("src/a.rs", text)), Vec::<String>::new(), "{text}");
        }
        let quoted = "// todo!()\nconst A: &str = \"dbg!(\"; const B: &str = r#\"\"todo!()\"#; \
                      const C: char = '\"';";
        assert_eq!(leftovers(&one("src/a.rs", quoted)), Vec::<String>::new());
    }

    #[test]
    fn long_line_is_reported() {
        let line = |length: usize| format!("//! {}\n", "ä".repeat(length - 4));
        assert_eq!(columns(&one("src/net/tap.rs", &line(COLUMNS))), Vec::<String>::new());
        assert_eq!(
            columns(&one("src/net/tap.rs", &line(COLUMNS + 1))),
            ["src/net/tap.rs:1: 101 columns"]
        );
        let wide = "x".repeat(COLUMNS + 1);
        assert_eq!(columns(&one("docs/a.md", &wide)).len(), 1);
        assert_eq!(columns(&one("docs/a.md", &format!("| {wide}"))), [""; 0]);
        assert_eq!(columns(&one("docs/a.md", &format!("```sh\n{wide}\n```\n{wide}"))).len(), 1);
        assert_eq!(columns(&one("systemd/a.service", &format!("# {wide}"))).len(), 1);
        assert_eq!(columns(&one("systemd/a.service", &wide)), [""; 0]);
        let url = format!("//! <https://example.org/{}>\n", "x".repeat(COLUMNS));
        assert_eq!(columns(&one("src/net/tap.rs", &url)), Vec::<String>::new());
    }

    #[test]
    fn odd_phrase_is_reported() {
        for text in [
            "//! Whoever has it.",
            "const A: &str = \"it was called off\";",
            "const A: &str = \"one\n  stands on two\";",
            "fn f(told: u8) {} // what it is told",
            "fn f(told: u8) { panic!(\"{told}: told\") }",
        ] {
            assert_ne!(phrases(&one("src/net/tap.rs", text)), Vec::<String>::new(), "{text}");
        }
        for text in [
            "fn f(told: u8) {}",
            "//! A canned untold newsletter.",
            "//! A stand.",
            "fn f() { panic!(\"{told}, {told:?}\") }",
        ] {
            assert_eq!(phrases(&one("src/net/tap.rs", text)), Vec::<String>::new(), "{text}");
        }
        assert_ne!(phrases(&one("systemd/a.service", "# told\n")), Vec::<String>::new());
    }

    #[test]
    fn hub_fields_are_few_and_private() {
        let tree = |fields: &str| -> Vec<Source> {
            HUBS.iter()
                .map(|(path, name)| Source {
                    path: (*path).to_owned(),
                    text: format!("//! x\npub(crate) struct {name} {{\n{fields}}}\n"),
                })
                .collect()
        };
        let field = "    /// A field.\n    a: BTreeMap<u8, u8>,\n";
        assert_eq!(hubs(&tree(&field.repeat(FIELDS))), Vec::<String>::new());
        assert_eq!(hubs(&tree(&field.repeat(FIELDS + 1))).len(), 2);
        assert_eq!(hubs(&tree("    pub(crate) a: u8,\n")).len(), 2);
        assert_eq!(hubs(&[]).len(), 2);
        assert_eq!(hubs(&one(HUBS[0].0, "//! x\nstruct Other;\n")).len(), 2);
    }

    #[test]
    fn component_must_not_use_the_supervisor() {
        let text = "//! x\nuse crate::supervisor::Supervisor;\n";
        assert_ne!(
            components(&one("src/supervisor/running/freeze.rs", text)),
            Vec::<String>::new()
        );
        for (path, text) in [
            ("src/supervisor/requests.rs", text),
            ("src/supervisor/running/freeze.rs", "//! The Supervisor.\n"),
            ("src/cli/verb/run.rs", text),
        ] {
            assert_eq!(components(&one(path, text)), Vec::<String>::new(), "{path}");
        }
    }

    #[test]
    fn task_without_owner_is_reported() {
        let text = "//! x\nfn f() { tokio::spawn(async {}); }\n";
        assert_ne!(task_owners(&one("src/net/link.rs", text)), Vec::<String>::new());
        let text = "//! x\nuse tokio::task::{JoinSet, spawn};\n";
        assert_ne!(task_owners(&one("src/net/link.rs", text)), Vec::<String>::new());
        let tests = "//! x\n#[cfg(test)]\nmod tests { fn f() { tokio::spawn(async {}); } }\n";
        for (path, text) in [
            (TASKS, "fn f() { tokio::spawn(async {}); }"),
            ("src/a.rs", tests),
            ("src/a.rs", "fn f() { tasks.spawn(async {}); tokio::task::spawn_blocking(f); }"),
        ] {
            assert_eq!(task_owners(&one(path, text)), Vec::<String>::new(), "{path}");
        }
    }

    #[test]
    fn folder_with_too_few_tests_is_reported() {
        let file = |path: &str, lines: usize| Source {
            path: path.to_owned(),
            text: "use a;\n".repeat(lines),
        };
        let inline = Source {
            path: "src/supervisor/b.rs".into(),
            text: "use a;\n#[cfg(test)]\nmod tests {\n    fn f() {}\n}\n".into(),
        };
        // 4 of 10, then 4 of 11; other folders do not count.
        let mut sources = vec![file("src/supervisor/a.rs", 5), inline];
        assert_eq!(tested(&sources), Vec::<String>::new());
        sources.push(file("src/fleet/tests.rs", 90));
        sources.push(file("src/supervisor/c.rs", 1));
        assert_eq!(tested(&sources).len(), 1);
        sources.push(file("src/supervisor/c/tests.rs", 1));
        assert_eq!(tested(&sources), Vec::<String>::new());
    }

    #[test]
    fn process_outside_the_runner_is_reported() {
        for text in [
            "use std::process::{Command, Stdio};",
            "use std::process::*;",
            "use std::{io, os::unix::process::CommandExt};",
            "fn f() { std::process::Command::new(\"true\").spawn(); }",
            "use std::process;\nfn f() { process::Command::new(\"true\"); }",
            "use tokio::process::Command;",
            "fn f() { unsafe { nix::libc::fork() }; }",
            "use nix::unistd::{Pid, fork};",
        ] {
            let problems = processes(&one("src/image/qemu_img.rs", text));
            assert_eq!(problems.len(), 1, "{text}: {problems:?}");
        }
        let tests = "//! x\n#[cfg(test)]\nmod tests { use std::process::Command; }\n";
        for (path, text) in [
            ("src/sys/program/mod.rs", "use std::process::Command;"),
            ("src/sandbox/spawn.rs", "use std::process::Command;"),
            ("src/a.rs", tests),
            ("src/a.rs", "use std::process::{Child, ExitStatus};\nuse clap::Command;"),
        ] {
            assert_eq!(processes(&one(path, text)), Vec::<String>::new(), "{path}");
        }
    }

    #[test]
    fn literals_and_comments_are_removed() {
        let text =
            "a /* x\n/* y */ z */ b 'c' '\\n' &'d str \"e\\\"\nf\" r##\"g\"#\n\"## h // i\nj";
        let code = bare(text);
        assert_eq!(code.lines().count(), text.lines().count());
        let words: Vec<String> =
            tokens(&code).into_iter().map(|token| token.text).filter(|t| is_word(t)).collect();
        assert_eq!(words, ["a", "b", "d", "str", "h", "j"]);
    }
}
