//! A command that fails: its error code, its exit code, and its text in tests/golden/errors/.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Output,
    sync::Mutex,
};

use qvm::value::{ErrorCode, Explain, chain};

use super::Lab;

/// The error of a command.
#[derive(Debug, Clone)]
pub(crate) struct Refusal {
    /// The code of the last error.
    pub(crate) code: ErrorCode,
    /// The exit code.
    pub(crate) exit: i32,
    /// Standard error: the directories of the test are `DIR`, process IDs are `N`.
    pub(crate) text: String,
}

impl Lab {
    /// Runs a command that has to fail.
    #[track_caller]
    pub(crate) fn refused(&self, arguments: &[&str]) -> Refusal {
        let output = self.qvm(arguments);
        self.refusal(&output)
    }

    /// Compares a text about the files of this test with a golden section; see [`golden`].
    #[track_caller]
    pub(crate) fn golden(&self, feature: &str, name: &str, text: &str) {
        golden(
            feature,
            name,
            &without_pids(
                &text.replace(self.path().display().to_string().trim_end_matches('/'), "DIR"),
            ),
        );
    }

    /// The refusal in the log of a supervisor that has exited with `exit`.
    #[track_caller]
    pub(crate) fn refusal_in(&self, log: &str, exit: i32) -> Refusal {
        Refusal::of_text(log, exit, self.path().display().to_string().trim_end_matches('/'))
    }

    /// The refusal of a command that has failed.
    #[track_caller]
    pub(crate) fn refusal(&self, output: &Output) -> Refusal {
        Refusal::new(output, self.path().display().to_string().trim_end_matches('/'))
    }
}

impl Refusal {
    /// The refusal of a command whose files are in `dir`.
    #[track_caller]
    pub(crate) fn new(output: &Output, dir: &str) -> Self {
        let text = String::from_utf8_lossy(&output.stderr);
        Self::of_text(&text, output.status.code().unwrap_or(-1), dir)
    }

    /// The exit code has to be that of the error code, or 75.
    #[track_caller]
    fn of_text(text: &str, exit: i32, dir: &str) -> Self {
        let text = without_pids(&text.replace(dir, "DIR"));
        let code = text.lines().rev().find_map(|line| line.strip_prefix("code: "));
        let Some(code) = code else { panic!("exit code {exit}, no error code: {text:?}") };
        let code = ErrorCode::from_word(code);
        assert!(!matches!(code, ErrorCode::Other | ErrorCode::InternalError), "{text}");
        let usual = i32::from(code.exit_code());
        // A fault of the host, or a failure that the verb does not distinguish.
        let is_usual = [usual, 75, 1].contains(&exit);
        assert!(is_usual, "exit code {exit} of {text}");
        Self { code, exit, text }
    }

    /// The refusal without the lines that a supervisor logged before.
    pub(crate) fn without_log(mut self) -> Self {
        let is_log =
            |line: &&str| [" INFO ", " WARN ", " ERROR "].iter().any(|level| line.contains(level));
        let lines: Vec<&str> = self.text.lines().filter(|line| !is_log(line)).collect();
        self.text = lines.join("\n");
        self
    }

    /// The refusal with `COPY` for the directory in which `qvm edit` edits a file.
    pub(crate) fn without_copy(mut self) -> Self {
        let Some(at) = self.text.find(".qvm-edit_") else { return self };
        let name: String = self.text[at..].chars().take_while(|c| !"/`".contains(*c)).collect();
        self.text = self.text.replace(&name, "COPY");
        self
    }

    /// The refusal with `DIGEST` for each SHA-256.
    pub(crate) fn without_digests(mut self) -> Self {
        let words = self.text.split_inclusive(|c: char| !c.is_ascii_alphanumeric());
        let is_digest =
            |word: &str| word.len() == 65 && word[..64].bytes().all(|b| b.is_ascii_hexdigit());
        let masked = words.map(|word| match is_digest(word) {
            true => format!("DIGEST{}", &word[64..]),
            false => word.to_owned(),
        });
        self.text = masked.collect();
        self
    }

    /// The refusal with `mask` instead of a part that each run names differently.
    pub(crate) fn masked(mut self, part: &str, mask: &str) -> Self {
        self.text = self.text.replace(part, mask);
        self
    }

    /// Compares the codes.
    #[track_caller]
    pub(crate) fn is(&self, code: ErrorCode, exit: i32) -> &Self {
        assert_eq!((self.code, self.exit), (code, exit), "{}", self.text);
        self
    }

    /// Compares the text with the section `name` of tests/golden/errors/FEATURE.txt;
    /// `QVM_BLESS=1` writes it.
    #[track_caller]
    pub(crate) fn golden(&self, feature: &str, name: &str) -> &Self {
        golden(feature, name, &self.text);
        self
    }
}

/// Compares a text with the section `name` of tests/golden/errors/FEATURE.txt; `QVM_BLESS=1` writes
/// it.
#[track_caller]
pub(crate) fn golden(feature: &str, name: &str, text: &str) {
    static FILES: Mutex<()> = Mutex::new(());
    let _one = FILES.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let top = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let file = top.join(format!("tests/golden/errors/{feature}.txt"));
    let mut sections = sections(&fs::read_to_string(&file).unwrap_or_default());
    let text = text.trim_end().to_owned();
    if std::env::var_os("QVM_BLESS").is_some() {
        sections.retain(|(other, _)| other != name);
        sections.push((name.to_owned(), text));
        sections.sort();
        let all = sections.iter().map(|(name, text)| format!("## {name}\n{text}\n"));
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        return fs::write(&file, all.collect::<Vec<_>>().join("\n")).unwrap();
    }
    let found = sections.into_iter().find(|(other, _)| other == name);
    let Some((_, expected)) = found else { panic!("no `## {name}` in {}", file.display()) };
    assert_eq!(text, expected, "`## {name}` of {}", file.display());
}

/// Compares the text, the hint and the code of an error about files in `dir` with a golden section.
#[track_caller]
pub(crate) fn golden_error(feature: &str, name: &str, error: &(dyn Explain + 'static), dir: &Path) {
    let hint = error.hint().map_or_else(String::new, |hint| format!("\nhint: {hint}"));
    let text = format!("error: {}{hint}\ncode: {}", chain(error), error.code());
    golden(feature, name, &text.replace(&dir.display().to_string(), "DIR"));
}

fn sections(file: &str) -> Vec<(String, String)> {
    let sections = file.split("## ").skip(1);
    let section = |section: &str| {
        let (name, text) = section.split_once('\n').unwrap_or((section, ""));
        (name.to_owned(), text.trim_end().to_owned())
    };
    sections.map(section).collect()
}

/// The text with `N` for each process ID.
fn without_pids(text: &str) -> String {
    ["pid ", "process ", "ps -fp ", "`kill "].iter().fold(text.to_owned(), |text, before| {
        let mut parts = text.split(before);
        let mut out = parts.next().unwrap_or_default().to_owned();
        for part in parts {
            let rest = part.trim_start_matches(|c: char| c.is_ascii_digit());
            out.push_str(before);
            out.push_str(if rest.len() < part.len() { "N" } else { "" });
            out.push_str(rest);
        }
        out
    })
}
