//! Finds the known word that is most similar to an unknown one.

use crate::value::shown;

/// Returns the message and the hint for a word that is not in `allowed`.
pub(super) fn word(text: &str, allowed: &[&str]) -> (String, Option<String>) {
    let hint = nearest(text, allowed).map(|near| format!("did you mean `\"{near}\"`?"));
    let message = format!("`{}` is not known: {}", shown(text), one_of(allowed));
    (message, hint)
}

/// Returns `write one of …`.
pub(super) fn one_of(allowed: &[&str]) -> String {
    let quoted: Vec<String> = allowed.iter().map(|word| format!("`\"{word}\"`")).collect();
    match quoted.as_slice() {
        [first, second] => format!("write {first} or {second}"),
        _ => format!("write one of {}", quoted.join(", ")),
    }
}

/// Returns the most similar known word; up to a third of its letters may differ.
pub(super) fn nearest<'k>(text: &str, known: &[&'k str]) -> Option<&'k str> {
    // The computation is quadratic in the length, and no key is that long.
    if text.len() > 64 {
        return None;
    }
    let text = plain(text);
    known
        .iter()
        .map(|word| (strsim::damerau_levenshtein(&text, &plain(word)), *word))
        .filter(|(distance, word)| *distance <= (word.len() / 3).min(text.len() / 2))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, word)| word)
}

/// Normalizes a word: `cpu_weight` and `CPU-weight` are `cpuWeight`.
pub(super) fn plain(word: &str) -> String {
    word.chars().filter(char::is_ascii_alphanumeric).map(|c| c.to_ascii_lowercase()).collect()
}
