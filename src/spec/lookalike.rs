//! Characters that look like those of TOML's syntax and are others: word processors and web pages put them there.

/// Characters that look like quotes.
const QUOTES: &str = "“”„‟«»‘’‚‛‹›″′´`";
/// Characters that look like a blank, or like nothing.
const BLANKS: &str = "\u{a0}\u{2002}\u{2003}\u{2007}\u{2009}\u{202f}\u{200b}\u{3000}\u{feff}";
/// Characters that look like a hyphen.
const HYPHENS: &str = "‐‑–—−";

/// The way out where a refused text begins or ends with such a character; quotes around the text do not count.
pub(super) fn hint(refused: &str) -> Option<String> {
    let inner = refused.trim_matches(['"', '\'', '\n', '\r', ' ', '\t']);
    inner.chars().next().into_iter().chain(inner.chars().next_back()).find_map(of)
}

/// What to write for a character.
fn of(found: char) -> Option<String> {
    let code = format!("U+{:04X}", u32::from(found));
    if QUOTES.contains(found) {
        Some(format!("`{found}` ({code}) is not a quote of TOML; write `\"`"))
    } else if BLANKS.contains(found) {
        Some(format!("there is a special blank ({code}); write a plain one"))
    } else if HYPHENS.contains(found) {
        Some(format!("`{found}` ({code}) is not a hyphen; write `-`"))
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_ends_of_the_text_count() {
        for (text, code) in [
            ("“2G”", Some("U+201C")),
            ("\"“2G”\"", Some("U+201C")),
            ("”", Some("U+201D")),
            ("br0’", Some("U+2019")),
            ("\u{a0}= 1", Some("U+00A0")),
            ("–", Some("U+2013")),
            ("\"it’s\"", None),
            ("2G", None),
            ("", None),
        ] {
            let hint = hint(text);
            assert_eq!(hint.is_some(), code.is_some(), "{text}: {hint:?}");
            assert!(hint.is_none_or(|hint| hint.contains(code.unwrap())), "{text}");
        }
    }
}
