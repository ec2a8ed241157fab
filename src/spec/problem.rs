//! Problems of VM files and their display.

use std::{
    fmt, io,
    path::{Path, PathBuf},
};

use serde::{Serialize, Serializer};

use crate::value::{ErrorCode, Explain, is_host_fault};

/// One problem and its position.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Problem {
    /// The VM file.
    #[serde(serialize_with = "lossy")]
    pub file: PathBuf,
    /// The line, from 1; `None` for the file as a whole.
    pub line: Option<usize>,
    /// The column in characters, from 1.
    pub column: Option<usize>,
    /// The path of the key, such as `disk.data.size`; `None` if the problem is not about one key.
    pub key: Option<String>,
    /// One sentence: what was found and what is allowed.
    pub message: String,
    /// A hint for the operator, if there is one.
    pub hint: Option<String>,
    /// The text of the line, if available.
    #[serde(skip)]
    pub(super) excerpt: Option<Excerpt>,
    /// The host is at fault that the file cannot be read: whether it is valid is not known.
    #[serde(skip)]
    pub is_host_fault: bool,
}

impl Problem {
    /// Returns a problem of the file as a whole.
    pub fn of_file(file: &Path, message: impl Into<String>, hint: Option<String>) -> Self {
        Self {
            file: file.to_owned(),
            line: None,
            column: None,
            key: None,
            message: message.into(),
            hint,
            excerpt: None,
            is_host_fault: false,
        }
    }

    /// Returns the problem of an unreadable file.
    pub(super) fn unreadable(file: &Path, doing: &str, error: &io::Error) -> Self {
        let message = format!("{doing}: {error}");
        Self { is_host_fault: is_host_fault(error), ..Self::of_file(file, message, None) }
    }
}

/// Displays `error: FILE:LINE:COLUMN: KEY: MESSAGE`, the line with carets below, and `hint: …`;
/// without a final newline.
impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error: {}", one_line(&self.file.to_string_lossy()))?;
        for number in [self.line, self.column].into_iter().flatten() {
            write!(f, ":{number}")?;
        }
        if let Some(key) = &self.key {
            write!(f, ": {key}")?;
        }
        write!(f, ": {}", self.message)?;
        if let (Some(line), Some(excerpt)) = (self.line, &self.excerpt) {
            let gutter = line.to_string().len();
            write!(f, "\n {line} | {}", excerpt.line)?;
            write!(f, "\n {:gutter$} | {:2$}", "", "", excerpt.column)?;
            write!(f, "{}", "^".repeat(excerpt.carets))?;
        }
        match &self.hint {
            Some(hint) => write!(f, "\nhint: {hint}"),
            None => Ok(()),
        }
    }
}

/// All problems of one VM file; never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invalid(pub Vec<Problem>);

/// A file that cannot be read is a host fault: its content is unknown.
impl Explain for Invalid {
    fn own_code(&self) -> Option<ErrorCode> {
        Some(match self.is_own_host_fault() {
            true => ErrorCode::FileUnread,
            false => ErrorCode::InvalidFile,
        })
    }

    fn is_own_host_fault(&self) -> bool {
        self.0.iter().any(|problem| problem.is_host_fault)
    }
}

impl From<Problem> for Invalid {
    fn from(problem: Problem) -> Self {
        Self(vec![problem])
    }
}

/// Displays all problems; without a final newline.
impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (nr, problem) in self.0.iter().enumerate() {
            let newline = if nr == 0 { "" } else { "\n" };
            write!(f, "{newline}{problem}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Invalid {}

/// A line of the file and the position of the carets below it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Excerpt {
    line: String,
    /// Characters before the first caret.
    column: usize,
    carets: usize,
}

impl Excerpt {
    /// The maximum length of the shown part of a line, in characters.
    const WIDTH: usize = 100;

    /// Returns `line` with carets under `length` characters from `column` on (from 0). `None` if
    /// the line seems to contain a secret: messages appear in journals and bug reports.
    pub(super) fn new(line: &str, column: usize, length: usize) -> Option<Self> {
        if is_secret(line) {
            return None;
        }
        let cut = if column < Self::WIDTH - 20 { 0 } else { column - 40 };
        let mut shown: String = if cut == 0 { String::new() } else { "…".to_owned() };
        let before = shown.chars().count();
        let mut rest = line.chars().skip(cut);
        shown.extend(rest.by_ref().take(Self::WIDTH).map(|c| match c {
            '\t' => ' ',
            c if c.is_control() => '\u{fffd}',
            c => c,
        }));
        let end = shown.chars().count();
        let column = column - cut + before;
        let carets = length.clamp(1, end.saturating_sub(column).max(1));
        if rest.next().is_some() {
            shown.push('…');
        }
        Some(Self { line: shown.trim_end().to_owned(), column, carets })
    }
}

/// Returns true if a line of a VM file seems to contain a secret.
pub(super) fn is_secret(line: &str) -> bool {
    let key = line.split(['=', '[', '#']).next().unwrap_or_default().to_ascii_lowercase();
    ["pass", "secret", "token"].iter().any(|word| key.contains(word))
        || line.contains("PRIVATE KEY")
}

/// Replaces control characters, so that a path can neither start a new line nor control a terminal.
pub(super) fn one_line(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() {
            out.extend(c.escape_debug());
        } else {
            out.push(c);
        }
    }
    out
}

fn lossy<S: Serializer>(path: &Path, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(&path.to_string_lossy())
}
