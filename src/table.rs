//! Tables for a terminal: aligned columns, and colours where they are wanted.

use std::{
    ffi::OsStr,
    fmt::Write,
    io::{self, IsTerminal},
};

/// How a cell looks on a terminal that has colours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Look {
    /// As all text.
    #[default]
    Plain,
    /// All is well.
    Good,
    /// Worth a look.
    Doubtful,
    /// Wrong.
    Bad,
    /// Of little weight.
    Faint,
}

impl Look {
    /// The sequence that begins it (ECMA-48, SGR).
    fn code(self) -> Option<&'static str> {
        match self {
            Self::Plain => None,
            Self::Good => Some("32"),
            Self::Doubtful => Some("33"),
            Self::Bad => Some("31"),
            Self::Faint => Some("2"),
        }
    }

    /// The text in this look.
    pub fn paint(self, text: &str, colours: bool) -> String {
        match self.code().filter(|_| colours && !text.is_empty()) {
            Some(code) => format!("\x1b[{code}m{text}\x1b[0m"),
            None => text.to_owned(),
        }
    }
}

/// Whether standard output takes colours: it is a terminal that knows them, and nobody minds (<https://no-color.org>).
pub fn colours(env: &dyn Fn(&str) -> Option<std::ffi::OsString>) -> bool {
    let minded = env("NO_COLOR").is_some_and(|value| !value.is_empty());
    let dumb = env("TERM").is_none_or(|term| term == OsStr::new("dumb"));
    !minded && !dumb && io::stdout().is_terminal()
}

/// A cell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cell {
    text: String,
    look: Look,
    right: bool,
}

impl Cell {
    /// With this look.
    #[must_use]
    pub fn look(self, look: Look) -> Self {
        Self { look, ..self }
    }

    /// A number: to the right.
    #[must_use]
    pub fn right(self) -> Self {
        Self { right: true, ..self }
    }
}

impl<T: Into<String>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self { text: text.into(), look: Look::Plain, right: false }
    }
}

/// Rows below a head. A row may have lines of its own below it, which are as long as they like.
#[derive(Debug, Clone, Default)]
pub struct Table {
    rows: Vec<(Vec<Cell>, Vec<String>)>,
}

/// What stands between two columns.
const GAP: &str = "  ";

impl Table {
    /// A table with this head.
    pub fn new<const N: usize>(head: [&str; N]) -> Self {
        let head = head.map(|text| Cell::from(text).look(Look::Faint)).to_vec();
        Self { rows: vec![(head, vec![])] }
    }

    /// A row, and the lines below it.
    pub fn row(&mut self, cells: Vec<Cell>, below: Vec<String>) {
        self.rows.push((cells, below));
    }

    /// The text, each line with its end.
    pub fn text(&self, colours: bool) -> String {
        let columns = self.rows.iter().map(|(cells, _)| cells.len()).max().unwrap_or(0);
        let wide = |cell: Option<&Cell>| cell.map_or(0, |cell| cell.text.chars().count());
        let widths: Vec<usize> = (0..columns)
            .map(|nr| self.rows.iter().map(|(cells, _)| wide(cells.get(nr))).max().unwrap_or(0))
            .collect();
        // A column of numbers has its head to the right as well.
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
                // Into a String it cannot fail.
                let _ =
                    write!(line, "{before}{}{after}{GAP}", cell.look.paint(&cell.text, colours));
            }
            text.push_str(line.trim_end());
            text.push('\n');
            for line in below {
                let _ = writeln!(text, "  {line}");
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
            vec!["web".into(), Cell::from("3").right(), Cell::from("running").look(Look::Good)],
            vec!["and more of it".to_owned()],
        );
        table.row(vec!["a-ä".into(), Cell::from("100").right(), "x".into()], vec![]);
        let plain = table.text(false);
        assert_eq!(
            plain,
            "NAME  CPU%  STATE\nweb      3  running\n  and more of it\na-ä    100  x\n"
        );
        let coloured = table.text(true);
        assert!(coloured.contains("\x1b[32mrunning\x1b[0m\n"), "{coloured:?}");
        let bare = ["32", "2", "0"]
            .iter()
            .fold(coloured, |text, code| text.replace(&format!("\x1b[{code}m"), ""));
        assert_eq!(bare, plain);
    }

    #[test]
    fn a_pipe_has_no_colours_whatever_is_wished() {
        let env = |key: &str| (key == "TERM").then(|| "xterm".into());
        assert!(!colours(&|key| (key == "NO_COLOR").then(|| "1".into())));
        assert_eq!(colours(&env), io::stdout().is_terminal());
    }
}
