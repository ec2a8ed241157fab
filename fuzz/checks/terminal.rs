//! Any untrusted text in a table, a message or a line: it controls no terminal, breaks no column,
//! and loses no printable character.

use qvm::{
    cli::{
        exit::Failure,
        table::{Cell, Screen, Style, Table},
    },
    value::{ErrorCode, plain, shown},
};

pub fn check(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let short = shown(&text);
    assert!(!short.chars().any(char::is_control) && short.chars().count() <= 64 * 10 + 1);
    let tame = plain(&text);
    assert!(!tame.chars().any(char::is_control), "{tame:?}");
    assert_eq!(plain(&tame), tame, "not the same the second time");
    if !text.contains(|c: char| {
        c.is_control()
            || ('\u{202a}'..='\u{202e}').contains(&c)
            || ('\u{2066}'..='\u{2069}').contains(&c)
    }) {
        assert_eq!(tame, text, "changed without need");
    }
    for width in [None, Some(40), Some(100)] {
        let mono = Screen { colours: false, width };
        let coloured = Screen { colours: true, width };
        let failure =
            Failure::new(ErrorCode::Other, text.clone()).hint(Some(text.clone().into_owned()));
        super::is_tame(&failure.shown(mono));
        assert_eq!(bare(&failure.shown(coloured)), failure.shown(mono));
        let mut table = Table::new(["NAME", "STATE", "WHY"]);
        let cell = |style| Cell::from(text.clone()).style(style);
        let below = if bytes.len() % 2 == 1 { vec![text.clone().into_owned()] } else { vec![] };
        table.row(vec![cell(Style::Plain), cell(Style::Bad).right(), "x".into()], below.clone());
        let (one, other) = (table.text(mono), table.text(coloured));
        super::is_tame(&one);
        assert_eq!(bare(&other), one);
        if width.is_none() {
            assert_eq!(one.lines().count(), 2 + below.len(), "a line more than there are rows");
        }
    }
}

/// Removes the colors of the table, and the spaces that `trim_end` cannot remove behind them.
fn bare(text: &str) -> String {
    let codes = ["32", "33", "31", "2", "0"];
    codes.iter().fold(text.to_owned(), |text, code| text.replace(&format!("\x1b[{code}m"), ""))
}
