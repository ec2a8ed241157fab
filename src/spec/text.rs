//! Checks of texts without their own type: paths, host names, accounts, keys, password hashes.

use std::path::PathBuf;

use super::reading::{At, Reading};
use crate::value::shown;

/// Parses a path and makes it absolute against the VM file's directory. Commas, quotes and spaces
/// are allowed.
pub(super) fn path(r: &mut Reading<'_>, at: &At, text: &str) -> Option<PathBuf> {
    let (message, hint) = if text.is_empty() {
        ("the path is empty".into(), None)
    } else if let Some(c) = text.chars().find(|c| matches!(c, '\n' | '\r' | '\0')) {
        let what = match c {
            '\0' => "a NUL",
            _ => "a line break",
        };
        (format!("`{}` contains {what}", shown(text)), None)
    } else if text == "~" || text.starts_with("~/") {
        let hint = "write an absolute path: only a shell expands `~`";
        (format!("`{}` begins with `~`", shown(text)), Some(hint.to_owned()))
    } else if text.split('/').any(|name| name.len() > 255) || text.len() > 4095 {
        // NAME_MAX and PATH_MAX without the terminating NUL, linux/limits.h.
        let longest = "a file name has at most 255 bytes, a path 4095";
        (format!("`{}` is too long: {longest}", shown(text)), None)
    } else {
        return Some(r.resolve(text));
    };
    r.wrong(at, message, hint);
    None
}

/// Decodes `%XX` in the path of a URL; `None` if invalid.
pub(super) fn percent_decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let mut digit = || char::from(rest.next()?).to_digit(16);
        let (high, low) = (digit()?, digit()?);
        bytes.push(u8::try_from(high * 16 + low).ok()?);
    }
    String::from_utf8(bytes).ok()
}

/// Returns true for a host name: DNS labels separated by dots (RFC 1123, 2.1).
pub(super) fn is_hostname(text: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    text.len() <= 253 && text.split('.').all(label)
}

/// Returns true for a name that useradd(8) accepts by default.
pub(super) fn is_user(text: &str) -> bool {
    text.len() <= 32
        && text.starts_with(|c: char| c.is_ascii_lowercase() || c == '_')
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"_-".contains(&b))
}

/// Returns true for a crypt(5) hash `$id$…$…`. The text itself is never shown.
pub(super) fn is_crypt(text: &str) -> bool {
    let Some(rest) = text.strip_prefix('$') else {
        return false;
    };
    let parts: Vec<&str> = rest.split('$').collect();
    parts.len() >= 3
        && parts.iter().all(|part| !part.is_empty())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"$./,=+_-".contains(&b))
}
