//! Texts of others in messages.

/// A text as a message may show it: at most 64 characters, control characters escaped.
pub fn shown(text: &str) -> String {
    let mut out: String = text.chars().take(64).flat_map(char::escape_debug).collect();
    if text.chars().nth(64).is_some() {
        out.push('…');
    }
    out
}
