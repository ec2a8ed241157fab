//! A text that somebody else wrote, for a terminal: shown whole, and obeyed in nothing.

/// What turns the direction of writing, so that a line reads as another one (UAX #9, 2.1 to 2.5).
const fn turns(c: char) -> bool {
    matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// The text with its control characters escaped, newlines too, and those that turn the direction of writing. U+0080 to U+009F are
/// control characters as well: to many a terminal U+009B is what ESC [ is (ECMA-48, 5.3).
pub fn plain(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' | '\r' | '\t' => out.extend(c.escape_default()),
            c if c.is_control() || turns(c) => out.extend(c.escape_unicode()),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_drives_a_terminal() {
        for (text, shown) in [
            ("eth0", "eth0"),
            ("ein Wörtchen, 雪 `x` \\ \"", "ein Wörtchen, 雪 `x` \\ \""),
            ("a\u{1b}[2Jb", "a\\u{1b}[2Jb"),
            ("a\u{9b}2Jb\u{7f}", "a\\u{9b}2Jb\\u{7f}"),
            ("a\nb\r\tc", "a\\nb\\r\\tc"),
            ("\u{202e}gnp.exe", "\\u{202e}gnp.exe"),
        ] {
            assert_eq!(plain(text), shown);
        }
    }
}
