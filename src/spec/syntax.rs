//! Reports TOML syntax errors with hints.

use std::ops::Range;

use toml::de::{DeTable, DeValue};

use super::{lookalike, reading::Reading};

/// Redundant parts of the parser's messages.
const EMPTY: [&str; 3] = [", expected literal string", ", expected nothing", ", expected newline"];

/// Reports a syntax error; `table` is the part that was parsed.
pub(super) fn report(
    r: &mut Reading<'_>,
    text: &str,
    table: &DeTable<'_>,
    errors: &[toml::de::Error],
) {
    for error in errors {
        if r.is_full() {
            continue;
        }
        let span = error.span().unwrap_or(text.len()..text.len());
        let (message, hint) = match error.message() {
            "duplicate key" => duplicate(r, text, table, &span),
            message => {
                let hint = way_out(r, message, &span);
                let telling = EMPTY.iter().find_map(|end| message.strip_suffix(end));
                (format!("TOML syntax error: {}", telling.unwrap_or(message)), hint)
            }
        };
        r.syntax(span, message, hint);
    }
}

fn duplicate(
    r: &Reading<'_>,
    text: &str,
    table: &DeTable<'_>,
    span: &Range<usize>,
) -> (String, Option<String>) {
    let key = r.text(span.clone());
    let start = text.get(..span.start).map_or(0, |before| before.rfind('\n').map_or(0, |n| n + 1));
    let header = text.get(start..).and_then(|line| line.lines().next()).unwrap_or_default().trim();
    // The second header of a table overwrites the position of the first, so the first is searched
    // in the text.
    let first = if header.starts_with('[') {
        text.lines().position(|line| line.trim() == header).map(|line| line + 1)
    } else {
        first_of(table, key, span.start).map(|offset| r.line(offset))
    };
    let what = if header.starts_with('[') { header } else { key };
    let what = crate::value::shown(what);
    match first.filter(|first| *first < r.line(span.start)) {
        Some(first) => {
            (format!("`{what}` is already in line {first}"), Some("keep one of the two".into()))
        }
        None => (format!("`{what}` appears twice"), None),
    }
}

/// Returns the last position before `end` where a key of this name was written, which is in the
/// same table.
fn first_of(table: &DeTable<'_>, name: &str, end: usize) -> Option<usize> {
    let own = table.keys().filter(|key| key.get_ref() == name).map(|key| key.span().start);
    let below = table.values().filter_map(|value| match value.get_ref() {
        DeValue::Table(table) => first_of(table, name, end),
        _ => None,
    });
    own.chain(below).filter(|start| *start < end).max()
}

/// Returns hints for the most common mistakes.
fn way_out(r: &Reading<'_>, message: &str, span: &Range<usize>) -> Option<String> {
    let found = r.text(span.clone()).trim();
    let before = r.text(0..span.start).chars().next_back();
    let before = before.map(String::from).unwrap_or_default();
    if let Some(hint) = lookalike::hint(found).or_else(|| lookalike::hint(&before)) {
        return Some(hint);
    }
    let hint = if message.starts_with("string values must be quoted") {
        match found.to_ascii_lowercase().as_str() {
            "true" | "yes" | "on" => "write `true`".to_owned(),
            "false" | "no" | "off" => "write `false`".to_owned(),
            _ => format!("write it in quotes: `\"{}\"`", crate::value::shown(found)),
        }
    } else if message.starts_with("key with no value") {
        "write `key = value`".to_owned()
    } else if message.starts_with("unclosed array") || message.contains("between array elements") {
        "write an array as `[a, b]`".to_owned()
    } else if message.starts_with("unclosed table") {
        "write a table header as `[table]`".to_owned()
    } else if message.starts_with("invalid basic string") {
        "end the string with `\"` in the same line, and write a `\\` as `\\\\`".to_owned()
    } else if message.starts_with("unexpected leading zero") {
        "remove the leading 0".to_owned()
    } else {
        return None;
    };
    Some(hint)
}
