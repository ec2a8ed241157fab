//! A finding of `qvm doctor`, and its texts.

use serde::Serialize;

use super::code::FindingCode;
use crate::value::VmName;

/// The severity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// No problem.
    Ok,
    /// Information.
    Note,
    /// A problem that may occur, or an unexpected behavior.
    Warning,
    /// Something does not work.
    Error,
}

impl Level {
    /// Returns the word in tables and JSON.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Note => "note",
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }
}

/// A finding; an object of `qvm doctor --json`. Each text is one line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The finding, for programs.
    pub code: FindingCode,
    /// The severity.
    pub level: Level,
    /// The subject, or the name of a VM.
    pub about: String,
    /// The fact and its consequence.
    pub found: String,
    /// The remedy.
    pub todo: Option<String>,
}

impl Finding {
    pub(super) fn new(
        code: FindingCode,
        level: Level,
        about: impl Into<String>,
        found: impl AsRef<str>,
    ) -> Self {
        Self { code, level, about: about.into(), found: one_line(found.as_ref()), todo: None }
    }

    pub(super) fn ok(code: FindingCode, about: impl Into<String>, found: impl AsRef<str>) -> Self {
        Self::new(code, Level::Ok, about, found)
    }

    pub(super) fn note(
        code: FindingCode,
        about: impl Into<String>,
        found: impl AsRef<str>,
    ) -> Self {
        Self::new(code, Level::Note, about, found)
    }

    pub(super) fn warning(
        code: FindingCode,
        about: impl Into<String>,
        found: impl AsRef<str>,
    ) -> Self {
        Self::new(code, Level::Warning, about, found)
    }

    pub(super) fn error(
        code: FindingCode,
        about: impl Into<String>,
        found: impl AsRef<str>,
    ) -> Self {
        Self::new(code, Level::Error, about, found)
    }

    pub(super) fn complaint(
        code: FindingCode,
        level: Level,
        about: impl Into<String>,
        complaint: &Complaint,
    ) -> Self {
        Self::new(code, level, about, &complaint.what).maybe_todo(complaint.hint.as_deref())
    }

    #[must_use]
    pub(super) fn todo(self, todo: impl AsRef<str>) -> Self {
        self.maybe_todo(Some(todo))
    }

    #[must_use]
    pub(super) fn maybe_todo(self, todo: Option<impl AsRef<str>>) -> Self {
        Self { todo: todo.map(|todo| one_line(todo.as_ref())), ..self }
    }
}

/// Output of other programs may have several lines and control characters.
pub(super) fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// An error with its chain of causes, and a hint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Complaint {
    /// The error.
    pub what: String,
    /// The hint.
    pub hint: Option<String>,
}

/// Formats names for a sentence: `a`, `b` and 3 more.
pub(super) fn names<'a>(names: impl IntoIterator<Item = &'a VmName>) -> String {
    const SHOWN: usize = 5;
    let all: Vec<String> = names.into_iter().map(|name| format!("`{name}`")).collect();
    match all.split_last() {
        None => String::new(),
        Some((last, [])) => last.clone(),
        Some((last, rest)) if all.len() <= SHOWN => format!("{} and {last}", rest.join(", ")),
        Some(_) => {
            let shown: Vec<&str> = all.iter().take(SHOWN).map(String::as_str).collect();
            format!("{} and {} more", shown.join(", "), all.len() - SHOWN)
        }
    }
}
