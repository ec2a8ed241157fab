//! Characters that look like TOML syntax but are not, typically copied from word processors and web
//! pages.

/// Characters that look like quotes.
const QUOTES: &str = "“”„‟«»‘’‚‛‹›″′´`";
/// Characters that look like a space or are invisible.
const BLANKS: &str = "\u{a0}\u{2002}\u{2003}\u{2007}\u{2009}\u{202f}\u{200b}\u{3000}\u{feff}";
/// Characters that look like a hyphen.
const HYPHENS: &str = "‐‑–—−";

/// Returns a hint if a refused text begins or ends with such a character; quotes around the text
/// are ignored.
pub(super) fn hint(refused: &str) -> Option<String> {
    let inner = refused.trim_matches(['"', '\'', '\n', '\r', ' ', '\t']);
    inner.chars().next().into_iter().chain(inner.chars().next_back()).find_map(of)
}

/// Returns what to write instead of a character.
fn of(found: char) -> Option<String> {
    let code = format!("U+{:04X}", u32::from(found));
    if QUOTES.contains(found) {
        Some(format!("`{found}` ({code}) is not a TOML quote; write `\"`"))
    } else if BLANKS.contains(found) {
        Some(format!("the text contains a special space ({code}); write an ASCII space"))
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
    fn only_ends_of_text_are_examined() {
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
