//! Which digest a SHA256SUMS or SHA512SUMS file gives a file.
//!
//! Understood are the lines of sha256sum(1), `HEX  NAME` and `HEX *NAME`, the BSD form that Fedora and the BSDs
//! publish, `SHA256 (NAME) = HEX`, and a file that holds one digest and nothing else. Everything else (comments,
//! an OpenPGP frame, digests by weaker algorithms) is passed over. `NAME` may carry a path: the last part counts.

use crate::value::{Algorithm, Digest, shown};

/// Why the file gives no digest.
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
    #[error("it has no line with a sha256 or sha512 digest")]
    Empty,
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

/// The digest that `text` gives the file `name`; the strongest where it gives several.
///
/// # Errors
/// No line, or contradicting lines, for that name.
pub fn find(text: &str, name: &str) -> Result<Digest, Error> {
    let entries: Vec<(&str, Digest)> = text.lines().filter_map(entry).collect();
    let exact: Vec<&Digest> = entries.iter().filter(|(n, _)| *n == name).map(|(_, d)| d).collect();
    let matching: Vec<&Digest> = if exact.is_empty() {
        entries.iter().filter(|(n, _)| last_part(n) == name).map(|(_, d)| d).collect()
    } else {
        exact
    };
    if let Some(best) = matching.iter().max_by_key(|d| d.algorithm()) {
        if matching.iter().any(|d| d.algorithm() == best.algorithm() && d != best) {
            return Err(Error::Ambiguous(name.to_owned()));
        }
        return Ok((*best).clone());
    }
    if let ([], [only]) = (&entries[..], &text.split_whitespace().collect::<Vec<_>>()[..])
        && let Some(digest) = digest(only)
    {
        return Ok(digest);
    }
    if entries.is_empty() {
        return Err(Error::Empty);
    }
    let mut names: Vec<(f64, &str)> = entries
        .iter()
        .map(|(n, _)| (strsim::jaro_winkler(last_part(n), name), last_part(n)))
        .collect();
    names.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(b.1)));
    names.dedup();
    let near = names.into_iter().take(3).map(|(_, n)| n.to_owned()).collect();
    Err(Error::NotListed { name: name.to_owned(), near })
}

/// One line, if it gives a digest.
fn entry(line: &str) -> Option<(&str, Digest)> {
    let line = line.trim_end();
    if let Some((head, hex)) = line.rsplit_once(") = ") {
        let (algorithm, name) = head.split_once(" (")?;
        let digest = digest(hex)?;
        let said = match digest.algorithm() {
            Algorithm::Sha256 => "SHA256",
            Algorithm::Sha512 => "SHA512",
        };
        // SHA512/256 and others of the same length are other functions.
        return (algorithm == said).then_some((name, digest));
    }
    let (hex, rest) = line.split_once(' ')?;
    let name = rest.trim_start_matches(' ');
    let name = name.strip_prefix('*').unwrap_or(name);
    (!name.is_empty()).then_some((name, digest(hex)?))
}

fn digest(hex: &str) -> Option<Digest> {
    [Algorithm::Sha256, Algorithm::Sha512].into_iter().find_map(|a| Digest::new(a, hex).ok())
}

fn last_part(name: &str) -> &str {
    name.rsplit('/').next().unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sha256(digit: char) -> String {
        digit.to_string().repeat(64)
    }

    #[test]
    fn reads_each_form() {
        let (a, b) = (sha256('a'), "b".repeat(128));
        for text in [
            format!("{a}  x.qcow2\n"),
            format!("{a} *x.qcow2\r\n"),
            format!("{a}  ./images/x.qcow2\n"),
            format!("{}  x.qcow2\n", a.to_uppercase()),
            format!("# x.qcow2: 5 bytes\nSHA256 (x.qcow2) = {a}\n"),
            format!("{a}\n"),
            format!("0000  x.qcow2\n{a}  x.qcow2\n{a}  x.qcow2\n"),
        ] {
            assert_eq!(find(&text, "x.qcow2").unwrap().hex(), a, "{text}");
        }
        let both = format!("SHA256 (x.qcow2) = {a}\nSHA512 (x.qcow2) = {b}\n");
        assert_eq!(find(&both, "x.qcow2").unwrap().hex(), b);
    }

    #[test]
    fn prefers_the_name_without_a_path() {
        let text = format!("{}  old/x\n{}  x\n", sha256('0'), sha256('1'));
        assert_eq!(find(&text, "x").unwrap().hex(), sha256('1'));
    }

    #[test]
    fn names_what_comes_near() {
        let text = format!(
            "{0}  debian-12-generic-amd64.qcow2\n{0}  debian-12-generic-arm64.qcow2\n{0}  README\n",
            sha256('a')
        );
        assert_eq!(
            find(&text, "debian-12-genericcloud-amd64.qcow2").unwrap_err().to_string(),
            "it does not list `debian-12-genericcloud-amd64.qcow2`; it lists \
             `debian-12-generic-amd64.qcow2`, `debian-12-generic-arm64.qcow2` and `README`"
        );
    }

    #[test]
    fn refuses_what_says_nothing_or_two_things() {
        assert_eq!(find("<html>no</html>", "x"), Err(Error::Empty));
        assert_eq!(find("", "x"), Err(Error::Empty));
        assert_eq!(find(&format!("SHA512/256 (x) = {}\n", sha256('a')), "x"), Err(Error::Empty));
        let text = format!("{}  x\n{}  x\n", sha256('0'), sha256('1'));
        assert_eq!(find(&text, "x"), Err(Error::Ambiguous("x".into())));
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "[ -~\n()=*]{0,200}", name in "[ -~]{0,20}") {
            let _ = find(&text, &name);
        }
    }
}
