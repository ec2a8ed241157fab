//! The state of parsing a VM file: text, lines and problems.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
    path::{Path, PathBuf},
};

use super::{
    lookalike,
    problem::{Excerpt, Problem, is_secret},
};

/// The position of a key or table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct At {
    /// The path of the key, such as `disk.data.size`.
    pub(super) key: String,
    /// The byte range in the text.
    pub(super) span: Range<usize>,
}

/// A key of the file: absent, written but refused (and reported), or valid.
#[derive(Debug, Clone)]
pub(super) struct Key<T> {
    /// Its position, if written.
    pub(super) at: Option<At>,
    /// Its value, if valid.
    pub(super) value: Option<T>,
}

impl<T> Key<T> {
    pub(super) const ABSENT: Self = Self { at: None, value: None };

    /// Returns position and value of a valid key.
    pub(super) fn good(&self) -> Option<(&At, &T)> {
        self.at.as_ref().zip(self.value.as_ref())
    }
}

/// Returns the hint for an unknown key, from the table's path, the key and the known keys.
pub(super) type UnknownKey = fn(&str, &str, &[&str]) -> String;

/// The state of the parser.
pub(super) struct Reading<'t> {
    file: &'t Path,
    text: &'t str,
    /// The offset at which each line begins.
    starts: Vec<usize>,
    /// The lines with syntax errors.
    broken: BTreeSet<usize>,
    /// The lines below an invalid table header: they belong to an unknown table.
    adrift: BTreeSet<usize>,
    problems: Vec<Problem>,
    /// The number of problems beyond the limit.
    more: usize,
    /// The line of each written key.
    pub(super) lines: BTreeMap<String, usize>,
    /// Every key that the parser requested, by its path.
    pub(super) asked: BTreeSet<String>,
    pub(super) unknown_key: UnknownKey,
}

impl<'t> Reading<'t> {
    /// The maximum number of reported problems. More problems suggest that it is the wrong file.
    const MAX_PROBLEMS: usize = 100;

    pub(super) fn new(file: &'t Path, text: &'t str, unknown_key: UnknownKey) -> Self {
        let starts = std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1));
        Self {
            file,
            text,
            starts: starts.collect(),
            broken: BTreeSet::new(),
            adrift: BTreeSet::new(),
            problems: Vec::new(),
            more: 0,
            lines: BTreeMap::new(),
            asked: BTreeSet::new(),
            unknown_key,
        }
    }

    /// Returns the text between two offsets, extended to character boundaries.
    pub(super) fn text(&self, span: Range<usize>) -> &'t str {
        self.text.get(self.border(span.start)..self.border(span.end)).unwrap_or_default()
    }

    /// Returns the line of an offset, from 1.
    pub(super) fn line(&self, offset: usize) -> usize {
        let offset = self.border(offset);
        // An error at the end of the text belongs to the last non-empty line.
        let offset = match offset {
            end if end == self.text.len() && self.text.ends_with('\n') => end.saturating_sub(1),
            within => within,
        };
        self.starts.partition_point(|start| *start <= offset).max(1)
    }

    /// Returns a path of the VM file, made absolute against its directory.
    pub(super) fn resolve(&self, path: &str) -> PathBuf {
        self.file.parent().unwrap_or(Path::new("")).join(path)
    }

    /// Reports a syntax error; only the first of each line.
    pub(super) fn syntax(&mut self, span: Range<usize>, message: String, hint: Option<String>) {
        let line = self.line(span.start);
        if !self.broken.insert(line) {
            return;
        }
        let is_header = |line: &&str| line.trim_start().starts_with('[');
        let mut from = self.text.lines().skip(line - 1);
        if from.next().as_ref().is_some_and(is_header) {
            let lines = from.take_while(|line| !is_header(line)).count();
            self.adrift.extend(line + 1..=line + lines);
        }
        self.push(None, span, message, hint);
    }

    /// Reports a problem of one key.
    pub(super) fn wrong(&mut self, at: &At, message: impl Into<String>, hint: Option<String>) {
        let line = self.line(at.span.start);
        if !self.broken.contains(&line) && !self.adrift.contains(&line) {
            self.push(Some(at.key.clone()), at.span.clone(), message.into(), hint);
        }
    }

    /// Reports a conflict of a key with others, unless syntax errors may hide some of them.
    pub(super) fn refuse(&mut self, at: &At, message: impl Into<String>, hint: Option<String>) {
        if self.broken.is_empty() {
            self.push(Some(at.key.clone()), at.span.clone(), message.into(), hint);
        }
    }

    /// Reports a problem of the file as a whole.
    pub(super) fn file(&mut self, message: impl Into<String>, hint: Option<String>) {
        self.problems.push(Problem::of_file(self.file, message, hint));
    }

    /// Returns the written one of two equivalent keys; reports if both are written.
    pub(super) fn either<T>(&mut self, flat: Key<T>, named: Key<T>) -> Key<T> {
        let (Some(first), Some(second)) = (&flat.at, &named.at) else {
            return if flat.at.is_some() { flat } else { named };
        };
        let in_order = first.span.start < second.span.start;
        let (first, second) = if in_order { (first, second) } else { (second, first) };
        let line = self.line(first.span.start);
        self.refuse(
            second,
            format!("`{}` in line {line} already sets the same value", first.key),
            Some("keep one of the two".into()),
        );
        flat
    }

    /// Returns the problems in the order of the file.
    pub(super) fn into_problems(mut self) -> Vec<Problem> {
        self.problems.sort_by_key(|p| (p.line, p.column));
        if self.more > 0 {
            let message = format!("{} more problems are not shown", self.more);
            self.problems.push(Problem::of_file(self.file, message, None));
        }
        self.problems
    }

    pub(super) fn is_good(&self) -> bool {
        self.problems.is_empty()
    }

    /// Counts a problem beyond the limit; returns true if the limit is reached.
    pub(super) fn is_full(&mut self) -> bool {
        let full = self.problems.len() >= Self::MAX_PROBLEMS;
        self.more += usize::from(full);
        full
    }

    fn push(
        &mut self,
        key: Option<String>,
        span: Range<usize>,
        message: String,
        hint: Option<String>,
    ) {
        if self.is_full() {
            return;
        }
        let line = self.line(span.start);
        let start = self.starts.get(line - 1).copied().unwrap_or_default();
        let offset = self.border(span.start).max(start);
        let source = self.text(start..self.text.len()).lines().next().unwrap_or_default();
        let column = self.text(start..offset).trim_end_matches(['\r', '\n']).chars().count();
        let length = self.text(offset..span.end).lines().next().unwrap_or_default();
        let value = source.split_once('=').map_or("", |(_, value)| value);
        let value = value.trim().trim_matches(['"', '\'']);
        let repeats = |hint: &String| !value.is_empty() && hint.contains(value);
        let hint = hint.filter(|hint| !(is_secret(source) && repeats(hint)));
        let hint = hint.or_else(|| lookalike::hint(self.text(span.clone())));
        self.problems.push(Problem {
            file: self.file.to_owned(),
            line: Some(line),
            column: Some(column + 1),
            key,
            message,
            hint,
            excerpt: Excerpt::new(source, column, length.chars().count()),
            is_host_fault: false,
        });
    }

    /// Returns the nearest character boundary at or before an offset.
    fn border(&self, offset: usize) -> usize {
        let mut offset = offset.min(self.text.len());
        while !self.text.is_char_boundary(offset) {
            offset -= 1;
        }
        offset
    }
}
