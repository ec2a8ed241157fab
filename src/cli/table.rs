//! Tables and wrapped lines for a terminal: aligned columns, and colors if the terminal has them.

use std::{
    ffi::{OsStr, OsString},
    fmt::Write,
    os::fd::AsFd,
};

use crate::value::plain;

/// The style of a cell on a terminal with colors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Style {
    #[default]
    /// The terminal's default.
    Plain,
    /// All is well.
    Good,
    /// Needs attention.
    Doubtful,
    /// An error.
    Bad,
    /// Of little importance.
    Faint,
}

impl Style {
    /// Returns the escape sequence (ECMA-48, SGR).
    fn code(self) -> Option<&'static str> {
        match self {
            Self::Plain => None,
            Self::Good => Some("32"),
            Self::Doubtful => Some("33"),
            Self::Bad => Some("31"),
            Self::Faint => Some("2"),
        }
    }

    /// Returns the text in this style.
    pub fn paint(self, text: &str, colours: bool) -> String {
        match self.code().filter(|_| colours && !text.is_empty()) {
            Some(code) => format!("\x1b[{code}m{text}\x1b[0m"),
            None => text.to_owned(),
        }
    }
}

/// The output: a terminal, or a file or pipe.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Screen {
    /// Whether the output has colors.
    pub colours: bool,
    /// The width of the terminal in columns; `None` if the output is not a terminal.
    pub width: Option<usize>,
}

/// The maximum line width for wrapping, in columns.
const WIDEST: usize = 100;
/// Below this width lines are not wrapped, in columns.
const NARROWEST: usize = 40;

impl Screen {
    /// Returns the properties of a descriptor. Colors require a terminal that supports them, and no
    /// `NO_COLOR` (<https://no-color.org>).
    pub fn detect(to: &impl AsFd, env: &dyn Fn(&str) -> Option<OsString>) -> Self {
        if !rustix::termios::isatty(to) {
            return Self::default();
        }
        let minded = env("NO_COLOR").is_some_and(|value| !value.is_empty());
        let dumb = env("TERM").is_none_or(|term| term == OsStr::new("dumb"));
        let columns = rustix::termios::tcgetwinsize(to).map_or(0, |size| usize::from(size.ws_col));
        Self {
            colours: !minded && !dumb,
            width: Some(columns.min(WIDEST)).filter(|columns| *columns >= NARROWEST),
        }
    }

    /// Wraps a text that begins in column `indent` between words.
    pub fn folded(&self, text: &str, indent: usize) -> String {
        let room = self.width.map(|width| width.saturating_sub(indent).max(NARROWEST / 2));
        let Some(room) = room else { return text.to_owned() };
        let (mut out, mut column) = (String::new(), 0);
        for word in text.split(' ') {
            let length = word.chars().count();
            if column > 0 && column + 1 + length > room {
                out.push('\n');
                out.push_str(&" ".repeat(indent));
                column = 0;
            } else if column > 0 {
                out.push(' ');
                column += 1;
            }
            out.push_str(word);
            column += length;
        }
        out
    }
}

/// A cell. Control characters in its text are escaped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cell {
    text: String,
    style: Style,
    right: bool,
}

impl Cell {
    /// Sets the style.
    #[must_use]
    pub fn style(self, style: Style) -> Self {
        Self { style, ..self }
    }

    /// Aligns a number to the right.
    #[must_use]
    pub fn right(self) -> Self {
        Self { right: true, ..self }
    }
}

impl<T: Into<String>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self { text: plain(&text.into()), style: Style::Plain, right: false }
    }
}

/// Rows below a head. A row may have lines of any length below it.
#[derive(Debug, Clone, Default)]
pub struct Table {
    rows: Vec<(Vec<Cell>, Vec<String>)>,
}

/// The separator of two columns.
const GAP: &str = "  ";

impl Table {
    /// Creates a table with this head.
    pub fn new<const N: usize>(head: [&str; N]) -> Self {
        let head = head.map(|text| Cell::from(text).style(Style::Faint)).to_vec();
        Self { rows: vec![(head, vec![])] }
    }

    /// Adds a row and the lines below it.
    pub fn row(&mut self, cells: Vec<Cell>, below: Vec<String>) {
        self.rows.push((cells, below));
    }

    /// Returns the text, with a newline after each line.
    pub fn text(&self, screen: Screen) -> String {
        let colours = screen.colours;
        let columns = self.rows.iter().map(|(cells, _)| cells.len()).max().unwrap_or(0);
        let wide = |cell: Option<&Cell>| cell.map_or(0, |cell| cell.text.chars().count());
        let widths: Vec<usize> = (0..columns)
            .map(|nr| self.rows.iter().map(|(cells, _)| wide(cells.get(nr))).max().unwrap_or(0))
            .collect();
        // The head of a right-aligned column is right-aligned too.
        let is_right: Vec<bool> = (0..columns)
            .map(|nr| self.rows.get(1).and_then(|(row, _)| row.get(nr)).is_some_and(|c| c.right))
            .collect();
        let mut text = String::new();
        for (cells, below) in &self.rows {
            let mut line = String::new();
            for (nr, cell) in cells.iter().enumerate() {
                let blanks = " ".repeat(widths[nr] - wide(Some(cell)));
                let (before, after) =
                    if is_right[nr] { (blanks.as_str(), "") } else { ("", blanks.as_str()) };
                // Writing to a String cannot fail.
                let _ =
                    write!(line, "{before}{}{after}{GAP}", cell.style.paint(&cell.text, colours));
            }
            text.push_str(line.trim_end());
            text.push('\n');
            for line in below {
                let _ = writeln!(text, "  {}", screen.folded(&plain(line), GAP.len()));
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_with_and_without_colours() {
        let mut table = Table::new(["NAME", "CPU%", "STATE"]);
        table.row(
            vec!["web".into(), Cell::from("3").right(), Cell::from("running").style(Style::Good)],
            vec!["and more of it".to_owned()],
        );
        table.row(vec!["a-ä".into(), Cell::from("100").right(), "x".into()], vec![]);
        let plain = table.text(Screen::default());
        assert_eq!(
            plain,
            "NAME  CPU%  STATE\nweb      3  running\n  and more of it\na-ä    100  x\n"
        );
        let coloured = table.text(Screen { colours: true, width: None });
        assert!(coloured.contains("\x1b[32mrunning\x1b[0m\n"), "{coloured:?}");
        let bare = ["32", "2", "0"]
            .iter()
            .fold(coloured, |text, code| text.replace(&format!("\x1b[{code}m"), ""));
        assert_eq!(bare, plain);
    }

    #[test]
    fn cell_is_one_line_without_control_characters() {
        let mut table = Table::new(["A"]);
        table.row(vec!["x\u{1b}[2J\ny".into()], vec!["z\r\u{9b}2J".to_owned()]);
        let text = table.text(Screen::default());
        assert_eq!(text, "A\nx\\u{1b}[2J\\ny\n  z\\r\\u{9b}2J\n");
    }

    #[test]
    fn pipe_has_no_colors_and_no_width() {
        let (_, write) = std::io::pipe().unwrap();
        let env = |key: &str| (key == "TERM").then(|| "xterm".into());
        assert_eq!(Screen::detect(&write, &env), Screen::default());
    }

    #[test]
    fn terminal_has_colors_unless_disabled() {
        let size = nix::pty::Winsize { ws_row: 24, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 };
        let pty = nix::pty::openpty(Some(&size), None).unwrap();
        let to = pty.slave;
        let of = |term: &'static str, no_color: Option<&'static str>| {
            Screen::detect(&to, &move |key| match key {
                "TERM" => Some(term.into()),
                "NO_COLOR" => no_color.map(Into::into),
                _ => None,
            })
        };
        assert_eq!(of("xterm", None), Screen { colours: true, width: Some(80) });
        assert!(of("xterm", Some("")).colours);
        assert!(!of("xterm", Some("1")).colours && !of("dumb", None).colours);
    }

    #[test]
    fn long_lines_are_folded_between_words() {
        let screen = Screen { colours: false, width: Some(40) };
        let text = "one two three four five six seven eight nine ten";
        let folded = screen.folded(text, 10);
        assert_eq!(folded, "one two three four five six\n          seven eight nine ten");
        assert_eq!(Screen::default().folded(text, 10), text);
        let long = "x".repeat(90);
        assert_eq!(screen.folded(&long, 4), long);
    }
}
