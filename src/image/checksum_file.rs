//! Which digest a list of checksums (SHA256SUMS and the like) gives a file.
//!
//! These lines are read:
//!
//! | form | written by |
//! |---|---|
//! | `HEX  NAME`, `HEX *NAME`, `\HEX  NAME` with escapes | sha256sum(1), `openssl dgst -r` |
//! | `SHA256 (NAME) = HEX` | Fedora, the BSDs |
//! | `SHA256(NAME)= HEX`, `SHA2-256(NAME)= HEX` | openssl(1) |
//! | `SHA256  HEX  NAME` | PowerShell |
//! | `sha256:HEX  NAME`, `sha256-BASE64  NAME` | container tools, Subresource Integrity |
//!
//! Lines may be indented and end in CR LF; hex digits are of either case. `NAME` may carry a path:
//! the last part counts. A list may also be one digest and nothing else. Other lines (comments, an
//! OpenPGP frame, weaker digests) are ignored.

use crate::value::{Algorithm, Digest, shown};

/// Why the list gives no digest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// It lists other files.
    #[error("it does not list `{}`{}", shown(.name), listed(.near))]
    NotListed {
        /// What was looked for.
        name: String,
        /// The names that come nearest, at most three.
        near: Vec<String>,
    },
    /// It lists none.
    #[error("it has no line with a sha256 or sha512 digest{}",
        if *.weak { ", only weaker ones" } else { "" })]
    Empty {
        /// It has digests of the length of MD5 or SHA-1.
        weak: bool,
    },
    /// It lists the name with two digests.
    #[error("it lists `{}` twice, with different digests", shown(.0))]
    Ambiguous(String),
}

fn listed(names: &[String]) -> String {
    let names: Vec<String> = names.iter().map(|n| format!("`{}`", shown(n))).collect();
    match names.split_last() {
        None => String::new(),
        Some((one, [])) => format!("; it lists {one}"),
        Some((last, others)) => format!("; it lists {} and {last}", others.join(", ")),
    }
}

/// A line of a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The last part of the file's name as the list has it.
    pub name: String,
    /// The name has a path before it.
    in_a_path: bool,
    /// The file's digest.
    pub digest: Digest,
}

/// The text of a list: UTF-8, or UTF-16 with or without a byte order mark, as Windows programs
/// write it. A mark is left out, and what is no text becomes U+FFFD.
pub fn decoded(bytes: &[u8]) -> String {
    let wide = |bytes: &[u8], unit: fn([u8; 2]) -> u16| {
        let units: Vec<u16> = bytes.as_chunks::<2>().0.iter().map(|pair| unit(*pair)).collect();
        String::from_utf16_lossy(&units)
    };
    match bytes {
        [0xef, 0xbb, 0xbf, rest @ ..] => String::from_utf8_lossy(rest).into_owned(),
        [0xff, 0xfe, rest @ ..] => wide(rest, u16::from_le_bytes),
        [0xfe, 0xff, rest @ ..] => wide(rest, u16::from_be_bytes),
        [1..=255, 0, 1..=255, 0, ..] => wide(bytes, u16::from_le_bytes),
        [0, 1..=255, 0, 1..=255, ..] => wide(bytes, u16::from_be_bytes),
        _ => String::from_utf8_lossy(bytes).into_owned(),
    }
}

/// The digest that `text` gives the file `image`; the strongest where it gives several. `list` is
/// the name of the list itself: in `IMAGE.sha256` and the like a sole entry is the image's,
/// whatever its name.
///
/// # Errors
/// No line, or contradicting lines, for that name.
pub fn find(text: &str, image: &str, list: Option<&str>) -> Result<Digest, Error> {
    let entries = entries(text);
    let named = |in_a_path: bool| -> Vec<&Digest> {
        let named = entries.iter().filter(|e| e.name == image && e.in_a_path == in_a_path);
        named.map(|e| &e.digest).collect()
    };
    let mut matching = named(false);
    if matching.is_empty() {
        matching = named(true);
    }
    if let ([], [first, rest @ ..]) = (&matching[..], &entries[..])
        && list.is_some_and(|list| is_list_of(list, image))
        && rest.iter().all(|entry| entry.name == first.name)
    {
        matching = entries.iter().map(|entry| &entry.digest).collect();
    }
    if let Some(best) = matching.iter().max_by_key(|d| d.algorithm()) {
        if matching.iter().any(|d| d.algorithm() == best.algorithm() && d != best) {
            return Err(Error::Ambiguous(image.to_owned()));
        }
        return Ok((*best).clone());
    }
    let lines = text.lines().map(str::trim);
    let lines: Vec<&str> =
        lines.filter(|line| !line.is_empty() && !line.starts_with('#')).collect();
    if let ([], [only]) = (&entries[..], &lines[..])
        && let Some(digest) = digest(only)
    {
        return Ok(digest);
    }
    if entries.is_empty() {
        return Err(Error::Empty { weak: text.split_whitespace().any(is_weak) });
    }
    let mut names: Vec<(f64, &str)> =
        entries.iter().map(|e| (strsim::jaro_winkler(&e.name, image), e.name.as_str())).collect();
    names.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(b.1)));
    names.dedup();
    let near = names.into_iter().take(3).map(|(_, n)| n.to_owned()).collect();
    Err(Error::NotListed { name: image.to_owned(), near })
}

/// `IMAGE.sha256`, `IMAGE.SHA512SUM`, `IMAGE.sha256.txt`, `IMAGE.CHECKSUM`.
fn is_list_of(list: &str, image: &str) -> bool {
    let suffix = list.strip_prefix(image).and_then(|rest| rest.strip_prefix('.'));
    let suffix = suffix.map(str::to_ascii_lowercase).unwrap_or_default();
    ["sha256", "sha512", "checksum", "digest"].iter().any(|start| suffix.starts_with(start))
}

/// Every line that gives a named file a digest.
pub fn entries(text: &str) -> Vec<Entry> {
    text.lines().filter_map(entry).collect()
}

fn entry(line: &str) -> Option<Entry> {
    let line = line.trim();
    let (name, digest) = in_brackets(line).or_else(|| digest_first(line))?;
    let last = name.rsplit(['/', '\\']).next().unwrap_or_default();
    let in_a_path = last.len() < name.len();
    (!last.is_empty()).then(|| Entry { name: last.to_owned(), in_a_path, digest })
}

/// `SHA256 (NAME) = HEX`. The last `)` counts, since a name may have one.
fn in_brackets(line: &str) -> Option<(String, Digest)> {
    let (head, digest) = line.rsplit_once(')')?;
    let (function, name) = head.split_once('(')?;
    let hex = digest.trim_start().strip_prefix('=')?.trim_start();
    // SHA512/256 and others of the same length are other functions.
    let digest = Digest::new(algorithm(function.trim_end())?, hex).ok()?;
    Some((name.to_owned(), digest))
}

/// `HEX  NAME` and its relatives.
fn digest_first(line: &str) -> Option<(String, Digest)> {
    let (escaped, line) = match line.strip_prefix('\\') {
        Some(line) => (true, line),
        None => (false, line),
    };
    let (first, mut rest) = line.split_once(char::is_whitespace)?;
    let found = match algorithm(first) {
        Some(algorithm) => {
            let (hex, name) = rest.trim_start().split_once(char::is_whitespace)?;
            rest = name;
            Digest::new(algorithm, hex).ok()?
        }
        None => digest(first)?,
    };
    let name = rest.trim_start();
    let name = name.strip_prefix('*').unwrap_or(name);
    let name = if escaped { unescaped(name) } else { name.to_owned() };
    Some((name, found))
}

/// As sha256sum(1) escapes a name.
fn unescaped(name: &str) -> String {
    let mut out = String::with_capacity(name.len());
    let mut chars = name.chars();
    while let Some(c) = chars.next() {
        match (c, c == '\\') {
            (_, true) => match chars.next() {
                Some('n') => out.push('\n'),
                Some('r') => out.push('\r'),
                other => out.extend(other),
            },
            (c, _) => out.push(c),
        }
    }
    out
}

fn algorithm(function: &str) -> Option<Algorithm> {
    match function.to_ascii_lowercase().as_str() {
        "sha256" | "sha2-256" | "sha-256" => Some(Algorithm::Sha256),
        "sha512" | "sha2-512" | "sha-512" => Some(Algorithm::Sha512),
        _ => None,
    }
}

/// A digest without a name: hex digits, `sha256:HEX`, or `sha256-BASE64`.
fn digest(text: &str) -> Option<Digest> {
    let algorithms = [Algorithm::Sha256, Algorithm::Sha512];
    algorithms.into_iter().find_map(|algorithm| Digest::parse_prefixed(algorithm, text).ok())
}

/// Of the length of MD5 or SHA-1.
fn is_weak(word: &str) -> bool {
    matches!(word.len(), 32 | 40) && word.bytes().all(|byte| byte.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::value::to_base64;

    fn sha256(digit: char) -> String {
        digit.to_string().repeat(64)
    }

    #[test]
    fn each_form_is_read() {
        let (a, b) = (sha256('a'), "b".repeat(128));
        let sri = format!("sha256-{}", to_base64(&[0xaa; 32]));
        for text in [
            format!("{a}  x.qcow2\n"),
            format!("{a} *x.qcow2\r\n"),
            format!("{a}\tx.qcow2\n"),
            format!("  {a}  x.qcow2\n"),
            format!("{a}  ./images/x.qcow2\n"),
            format!("{a} *.\\x.qcow2\n"),
            format!("\\{a}  x.qcow2\n"),
            format!("{}  x.qcow2\n", a.to_uppercase()),
            format!("# x.qcow2: 5 bytes\nSHA256 (x.qcow2) = {a}\n"),
            format!("SHA256(x.qcow2)= {a}\n"),
            format!("SHA2-256(x.qcow2)= {a}\n"),
            format!("SHA256          {}       C:\\images\\x.qcow2\n", a.to_uppercase()),
            format!("sha256:{a}  x.qcow2\n"),
            format!("{sri} x.qcow2\n"),
            format!("{a}\n"),
            format!("\n# the image\n  {a}\r\n\n"),
            format!("sha256:{a}\n"),
            format!("{sri}\n"),
            format!("0000  x.qcow2\n{a}  x.qcow2\n{a}  x.qcow2\n"),
        ] {
            let found = find(&text, "x.qcow2", None);
            assert_eq!(found.map(|d| d.hex().to_owned()), Ok(a.clone()), "{text}");
        }
        let both = format!("SHA256 (x.qcow2) = {a}\nSHA512 (x.qcow2) = {b}\n");
        assert_eq!(find(&both, "x.qcow2", None).unwrap().hex(), b);
        let odd = format!("\\{a}  a\\\\b\\nx (1)=.raw\nSHA256 (x (2).raw) = {a}\n");
        assert_eq!(find(&odd, "b\nx (1)=.raw", None).unwrap().hex(), a);
        assert_eq!(find(&odd, "x (2).raw", None).unwrap().hex(), a);
    }

    #[test]
    fn encodings_of_windows_are_read() {
        let text = format!("{}  x\r\n", sha256('a'));
        let le: Vec<u8> = text.encode_utf16().flat_map(u16::to_le_bytes).collect();
        let be: Vec<u8> = text.encode_utf16().flat_map(u16::to_be_bytes).collect();
        for bytes in [
            text.clone().into_bytes(),
            [b"\xef\xbb\xbf", text.as_bytes()].concat(),
            [b"\xff\xfe", &le[..]].concat(),
            [b"\xfe\xff", &be[..]].concat(),
            le,
            be,
        ] {
            assert_eq!(decoded(&bytes), text);
        }
        assert_eq!(decoded(b"\xffx"), "\u{fffd}x");
    }

    #[test]
    fn name_without_path_comes_first() {
        let text = format!("{}  old/x\n{}  x\n", sha256('0'), sha256('1'));
        assert_eq!(find(&text, "x", None).unwrap().hex(), sha256('1'));
    }

    #[test]
    fn sole_entry_counts_in_image_list() {
        let text = format!("{}  x-Build18.71.qcow2\n", sha256('1'));
        for list in ["x.qcow2.sha256", "x.qcow2.SHA256", "x.qcow2.sha256sum", "x.qcow2.sha256.txt"]
        {
            assert_eq!(find(&text, "x.qcow2", Some(list)).unwrap().hex(), sha256('1'), "{list}");
        }
        for list in ["SHA256SUMS", "x.sha256", "y.qcow2.sha256", "x.qcow2.asc", "x.qcow2"] {
            let refused = find(&text, "x.qcow2", Some(list));
            assert!(matches!(refused, Err(Error::NotListed { .. })), "{list}");
        }
        let two = format!("{text}{}  other.qcow2\n", sha256('2'));
        let refused = find(&two, "x.qcow2", Some("x.qcow2.sha256"));
        assert!(matches!(refused, Err(Error::NotListed { .. })));
        // Digests of the one file by both functions.
        let strong = format!("{text}{}  x-Build18.71.qcow2\n", "3".repeat(128));
        assert_eq!(
            find(&strong, "x.qcow2", Some("x.qcow2.sha256")).unwrap().hex(),
            "3".repeat(128)
        );
        let twice = format!("{text}{}  x-Build18.71.qcow2\n", sha256('2'));
        let refused = find(&twice, "x.qcow2", Some("x.qcow2.sha256"));
        assert_eq!(refused, Err(Error::Ambiguous("x.qcow2".into())));
    }

    #[test]
    fn nearest_names_are_named() {
        let text = format!(
            "{0}  debian-12-generic-amd64.qcow2\n{0}  debian-12-generic-arm64.qcow2\n{0}  README\n",
            sha256('a')
        );
        assert_eq!(
            find(&text, "debian-12-genericcloud-amd64.qcow2", None).unwrap_err().to_string(),
            "it does not list `debian-12-genericcloud-amd64.qcow2`; it lists \
             `debian-12-generic-amd64.qcow2`, `debian-12-generic-arm64.qcow2` and `README`"
        );
    }

    #[test]
    fn lists_without_one_digest_are_refused() {
        let none = Err(Error::Empty { weak: false });
        assert_eq!(find("<html>no</html>", "x", None), none);
        assert_eq!(find("", "x", None), none);
        for text in ["SHA512/256 (x) = ", "SHA3-256(x)= ", "sha384-", "sha512:"] {
            assert_eq!(find(&format!("{text}{}", sha256('a')), "x", None), none, "{text}");
        }
        let md5 = format!("{}  x\n", "a".repeat(32));
        assert_eq!(find(&md5, "x", None), Err(Error::Empty { weak: true }));
        let text = format!("{}  x\n{}  x\n", sha256('0'), sha256('1'));
        assert_eq!(find(&text, "x", None), Err(Error::Ambiguous("x".into())));
        // Two bare digests belong to nothing.
        assert_eq!(find(&format!("{}\n{}\n", sha256('0'), sha256('1')), "x", None), none);
    }

    proptest! {
        #[test]
        fn no_text_panics(
            bytes in any::<Vec<u8>>(),
            text in "[ -~\n()=*]{0,200}",
            name in "[ -~]{0,20}",
        ) {
            let _ = find(&decoded(&bytes), &name, Some(&name));
            let _ = find(&text, &name, None);
        }
    }
}
