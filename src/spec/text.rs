//! Rules for texts that have no type of their own: paths, host names, accounts, keys, password hashes.

use std::path::PathBuf;

use super::reading::{At, Reading};
use crate::value::shown;

/// A path, made absolute against the VM file's directory. Commas, quotes and blanks are fine.
pub(super) fn path(r: &mut Reading<'_>, at: &At, text: &str) -> Option<PathBuf> {
    let (message, hint) = if text.is_empty() {
        ("an empty path names no file".into(), None)
    } else if let Some(c) = text.chars().find(|c| matches!(c, '\n' | '\r' | '\0')) {
        let what = match c {
            '\0' => "a NUL",
            _ => "a line break",
        };
        (format!("`{}` has {what} in it", shown(text)), None)
    } else if text == "~" || text.starts_with("~/") {
        let hint = "write the whole path: `~` is the shell's, and of another user under systemd";
        (format!("`{}` begins with `~`", shown(text)), Some(hint.to_owned()))
    } else if text.split('/').any(|name| name.len() > 255) || text.len() > 4095 {
        // NAME_MAX and PATH_MAX less the terminating NUL, linux/limits.h.
        let longest = "a name has at most 255 bytes, a whole path 4095";
        (format!("`{}` is too long: {longest}", shown(text)), None)
    } else {
        return Some(r.resolve(text));
    };
    r.wrong(at, message, hint);
    None
}

/// A path out of an address, its `%XX` decoded; `None` where that is not possible.
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

/// A host name: DNS labels with dots between them (RFC 1123, 2.1).
pub(super) fn is_hostname(text: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    text.len() <= 253 && text.split('.').all(label)
}

/// A name that useradd(8) takes without being forced.
pub(super) fn is_user(text: &str) -> bool {
    text.len() <= 32
        && text.starts_with(|c: char| c.is_ascii_lowercase() || c == '_')
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"_-".contains(&b))
}

/// The key types of OpenSSH (`ssh -Q key`, 10.0), without DSA, which it no longer has.
const KEY_TYPES: [&str; 14] = [
    "ssh-ed25519",
    "ssh-ed25519-cert-v01@openssh.com",
    "sk-ssh-ed25519@openssh.com",
    "sk-ssh-ed25519-cert-v01@openssh.com",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp256-cert-v01@openssh.com",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp384-cert-v01@openssh.com",
    "ecdsa-sha2-nistp521",
    "ecdsa-sha2-nistp521-cert-v01@openssh.com",
    "sk-ecdsa-sha2-nistp256@openssh.com",
    "sk-ecdsa-sha2-nistp256-cert-v01@openssh.com",
    "ssh-rsa",
    "ssh-rsa-cert-v01@openssh.com",
];

/// What is wrong with a line of authorized_keys(5), and the way out.
pub(super) fn ssh_key(line: &str) -> Result<(), (String, Option<String>)> {
    if line.contains("PRIVATE KEY") {
        let hint = "write the line of the `.pub` file beside it";
        return Err(("this is a private key, which stays where it is".into(), Some(hint.into())));
    }
    if line.chars().any(char::is_control) {
        let message = format!("`{}` is not one line", shown(line));
        return Err((message, Some("write each key as an element of its own".into())));
    }
    let words = words(line);
    let Some(kind) = words.iter().take(2).position(|word| KEY_TYPES.contains(word)) else {
        let hint = "write the line as it is in the `.pub` file, such as `ssh-ed25519 AAAA…`";
        let message = format!("`{}` begins with no type of key that is known", shown(line));
        return Err((message, Some(hint.into())));
    };
    // A key is its type once more with 4 bytes of length before it, the first of which are 0.
    let base64 = |key: &str| {
        key.starts_with("AAAA")
            && key
                .trim_end_matches('=')
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"+/".contains(&b))
    };
    match words.get(kind + 1) {
        Some(key) if base64(key) => Ok(()),
        _ => Err((format!("`{}` has no key after its type", shown(line)), None)),
    }
}

/// The words of a line; a blank within double quotes does not end one.
fn words(line: &str) -> Vec<&str> {
    let mut quoted = false;
    line.split(|c: char| {
        quoted ^= c == '"';
        c == ' ' && !quoted
    })
    .filter(|word| !word.is_empty())
    .collect()
}

/// `$id$…$…` as crypt(5) makes it. The text itself is never shown.
pub(super) fn is_crypt(text: &str) -> bool {
    let Some(rest) = text.strip_prefix('$') else {
        return false;
    };
    let parts: Vec<&str> = rest.split('$').collect();
    parts.len() >= 3
        && parts.iter().all(|part| !part.is_empty())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"$./,=+_-".contains(&b))
}
