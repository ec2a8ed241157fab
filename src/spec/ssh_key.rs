//! Checks lines of authorized_keys(5): a complete public key of a type that OpenSSH supports.

use crate::value::{base64, shown};

/// The key types of OpenSSH (`ssh -Q key`, 10.0) without DSA, which was removed; each with the
/// parts that follow the type name (RFC 4253, RFC 5656, RFC 8709, OpenSSH's PROTOCOL.u2f).
const TYPES: [(&str, &[Part]); 7] = [
    ("ssh-ed25519", &[Part::Text]),
    ("sk-ssh-ed25519@openssh.com", &[Part::Text; 2]),
    ("ecdsa-sha2-nistp256", &[Part::Text; 2]),
    ("ecdsa-sha2-nistp384", &[Part::Text; 2]),
    ("ecdsa-sha2-nistp521", &[Part::Text; 2]),
    ("sk-ecdsa-sha2-nistp256@openssh.com", &[Part::Text; 3]),
    ("ssh-rsa", &[Part::Text; 2]),
];
/// The suffix of certificate types; replaces `@openssh.com` if present.
const CERTIFICATE: &str = "-cert-v01@openssh.com";
/// The parts of a certificate after its key: serial, type, id, principals, after, before, options,
/// extensions, reserved, the authority's key, its signature (OpenSSH's PROTOCOL.certkeys).
const CERTIFIED: [Part; 11] = [
    Part::Number(8),
    Part::Number(4),
    Part::Text,
    Part::Text,
    Part::Number(8),
    Part::Number(8),
    Part::Text,
    Part::Text,
    Part::Text,
    Part::Text,
    Part::Text,
];

/// A part of a key (RFC 4251, section 5).
#[derive(Debug, Clone, Copy)]
enum Part {
    /// Length-prefixed bytes.
    Text,
    /// An integer of this many bytes.
    Number(usize),
}

/// Checks a line; an error has a message and a hint.
pub(super) fn check(line: &str) -> Result<(), (String, Option<String>)> {
    if line.contains("PRIVATE KEY") {
        let hint = "use the line of the matching `.pub` file";
        return Err(("this is a private key, which must remain secret".into(), Some(hint.into())));
    }
    if line.chars().any(char::is_control) {
        let message = format!("`{}` is not one line", shown(line));
        return Err((message, Some("write each key as a separate array element".into())));
    }
    let words = words(line);
    let known = |word: &str| parts(word).map(|parts| (word.to_owned(), parts));
    let found = words.iter().take(2).enumerate().find_map(|(at, word)| Some((at, known(word)?)));
    let Some((at, (kind, parts))) = found else {
        let hint = "use the line of the `.pub` file, such as `ssh-ed25519 AAAA…`";
        let message = format!("`{}` does not begin with a known key type", shown(line));
        return Err((message, Some(hint.into())));
    };
    let whole = "copy the whole line of the `.pub` file";
    // The key data repeats its type after a length of 4 bytes, the first of which are 0.
    let Some(key) = words.get(at + 1).filter(|key| key.starts_with("AAAA")) else {
        let message = format!("`{}` has no key after its type", shown(line));
        return Err((message, Some(whole.into())));
    };
    match base64(key).is_some_and(|bytes| is_whole(&bytes, &kind, &parts)) {
        true => Ok(()),
        false => {
            let message = format!("`{}` is not a complete key of type `{kind}`", shown(key));
            Err((message, Some(whole.into())))
        }
    }
}

/// Returns the parts of a key or certificate after the type name; `None` if the type is unknown.
fn parts(word: &str) -> Option<Vec<Part>> {
    let of = |name: &str| TYPES.iter().find(|(kind, _)| *kind == name).map(|(_, parts)| *parts);
    if let Some(parts) = of(word) {
        return Some(parts.to_vec());
    }
    let name = word.strip_suffix(CERTIFICATE)?;
    let key = of(name).or_else(|| of(&format!("{name}@openssh.com")))?;
    // A certificate has a random nonce before the key.
    Some([&[Part::Text], key, &CERTIFIED].concat())
}

/// Returns true if the bytes are exactly the type name and all parts.
fn is_whole(bytes: &[u8], kind: &str, parts: &[Part]) -> bool {
    let Some((name, mut rest)) = text(bytes) else { return false };
    for part in parts {
        let after = match part {
            Part::Text => text(rest).map(|(_, after)| after),
            Part::Number(length) => rest.get(*length..),
        };
        let Some(after) = after else { return false };
        rest = after;
    }
    name == kind.as_bytes() && rest.is_empty()
}

/// Returns a length-prefixed text and the rest.
fn text(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_first_chunk()?;
    rest.split_at_checked(usize::try_from(u32::from_be_bytes(*length)).ok()?)
}

/// Splits a line into words; a space within double quotes does not separate words.
fn words(line: &str) -> Vec<&str> {
    let mut quoted = false;
    line.split(|c: char| {
        quoted ^= c == '"';
        c == ' ' && !quoted
    })
    .filter(|word| !word.is_empty())
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::value::to_base64;

    fn key(kind: &str) -> Vec<u8> {
        let text = |bytes: &[u8]| [&(bytes.len() as u32).to_be_bytes(), bytes].concat();
        let parts = parts(kind).unwrap();
        let part = |part: &Part| match part {
            Part::Text => text(&[7; 33]),
            Part::Number(length) => vec![0; *length],
        };
        text(kind.as_bytes()).into_iter().chain(parts.iter().flat_map(part)).collect()
    }

    #[test]
    fn each_type_is_accepted_only_complete() {
        let kinds = TYPES.iter().map(|(kind, _)| (*kind).to_owned());
        let certificates = TYPES
            .iter()
            .map(|(kind, _)| format!("{}{CERTIFICATE}", kind.trim_end_matches("@openssh.com")));
        for kind in kinds.chain(certificates) {
            let bytes = key(&kind);
            let line = |bytes: &[u8]| format!("{kind} {} op@desk", to_base64(bytes));
            assert_eq!(check(&line(&bytes)), Ok(()), "{kind}");
            for length in 3..bytes.len() {
                assert!(check(&line(&bytes[..length])).is_err(), "{kind}: {length} bytes");
            }
            assert!(check(&line(&[&bytes[..], &[0]].concat())).is_err(), "{kind}");
        }
    }

    #[test]
    fn key_cut_within_its_base64_is_refused() {
        let whole = "AAAAC3NzaC1lZDI1NTE5AAAAIJ5rJ3mUq0kT7m5S4m8xv0bq2vY1n6c3Zp9wQe7dR8sT";
        assert_eq!(check(&format!("ssh-ed25519 {whole}")), Ok(()));
        for length in 0..whole.len() {
            assert!(check(&format!("ssh-ed25519 {} a@b", &whole[..length])).is_err(), "{length}");
        }
        let (message, hint) = check(&format!("ssh-rsa {whole}")).unwrap_err();
        assert!(message.contains("not a complete key of type `ssh-rsa`"), "{message}");
        assert!(hint.unwrap().contains(".pub"));
    }
}
