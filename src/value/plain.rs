//! Escapes untrusted text for output on a terminal.

/// Characters that change the writing direction, so that a line reads as another one (UAX #9, 2.1
/// to 2.5).
const fn is_bidi_control(c: char) -> bool {
    matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Escapes control characters, newlines and bidirectional controls. U+0080 to U+009F are control
/// characters too: many terminals interpret U+009B as ESC [ (ECMA-48, 5.3).
pub fn plain(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' | '\r' | '\t' => out.extend(c.escape_default()),
            c if c.is_control() || is_bidi_control(c) => out.extend(c.escape_unicode()),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terminal_controls_are_escaped() {
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
