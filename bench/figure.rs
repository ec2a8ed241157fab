//! What a figure is: what was measured, what it may be, what it is.

use std::{error, fmt, time::Duration};

pub(crate) type Outcome<T> = Result<T, Box<dyn error::Error>>;

/// One row of the table.
#[derive(Debug)]
pub(crate) struct Figure {
    pub(crate) what: &'static str,
    /// The bound as text; DESIGN.md of the project has the same.
    pub(crate) bound: &'static str,
    /// The result of the other binary, where one is compared.
    pub(crate) before: String,
    /// The result of qvm.
    pub(crate) measured: String,
    /// What is compared with, and its result.
    pub(crate) beside: String,
    /// The ratio or the difference, where the bound is one.
    pub(crate) over: String,
    /// The result of libvirt, where it runs and does the same.
    pub(crate) libvirt: Option<Sample>,
    pub(crate) met: bool,
    /// The bound is not one of the agreed ones: such rows follow them.
    pub(crate) is_extra: bool,
}

impl Figure {
    /// A figure with an absolute bound.
    pub(crate) fn alone(
        what: &'static str,
        bound: &'static str,
        measured: String,
        met: bool,
    ) -> Self {
        Self {
            what,
            bound,
            before: String::new(),
            measured,
            beside: String::new(),
            over: String::new(),
            libvirt: None,
            met,
            is_extra: false,
        }
    }

    /// A figure whose bound is a multiple of what is compared with.
    pub(crate) fn times(
        what: &'static str,
        (bound, most): (&'static str, f64),
        measured: &Sample,
        (beside, other): (&str, &Sample),
    ) -> Self {
        let ratio = measured.median().as_secs_f64() / other.median().as_secs_f64();
        Self {
            beside: format!("{beside} {other}"),
            over: format!("{ratio:.2} ×"),
            ..Self::alone(what, bound, measured.to_string(), ratio <= most)
        }
    }

    /// Adds the result of the other binary.
    pub(crate) fn before(self, before: Option<&Sample>) -> Self {
        Self { before: before.map(Sample::to_string).unwrap_or_default(), ..self }
    }

    /// Marks a row beyond the agreed bounds.
    pub(crate) fn extra(self) -> Self {
        Self { is_extra: true, ..self }
    }
}

/// Times of the same thing, done again and again.
#[derive(Debug, Default, Clone)]
pub(crate) struct Sample(Vec<Duration>);

impl Sample {
    pub(crate) fn push(&mut self, time: Duration) {
        self.0.push(time);
        self.0.sort();
    }

    pub(crate) fn median(&self) -> Duration {
        self.0.get(self.0.len() / 2).copied().unwrap_or_default()
    }
}

/// The median.
impl fmt::Display for Sample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&time(self.median()))
    }
}

/// Three digits and a unit.
pub(crate) fn time(time: Duration) -> String {
    let ms = time.as_secs_f64() * 1e3;
    match ms {
        0.0..10.0 => format!("{ms:.2} ms"),
        10.0..100.0 => format!("{ms:.1} ms"),
        100.0..10_000.0 => format!("{ms:.0} ms"),
        _ => format!("{:.1} s", ms / 1e3),
    }
}

/// The rows as a Markdown table, padded so that the source is readable as well; a column without
/// results is left out.
pub(crate) fn table(figures: &[Figure]) -> String {
    let head = ["what", "bound", "before", "qvm", "compared with", "over it", "libvirt", "met"];
    let row = |f: &Figure| {
        let met = if f.met { "yes" } else { "NO" };
        let libvirt = f.libvirt.as_ref().map(Sample::to_string).unwrap_or_default();
        let cells = [f.what, f.bound, &f.before, &f.measured, &f.beside, &f.over, &libvirt, met];
        cells.map(str::to_owned)
    };
    let results: Vec<_> = figures.iter().map(row).collect();
    let columns: Vec<usize> = (0..head.len())
        .filter(|column| results.iter().any(|row| !row[*column].is_empty()))
        .collect();
    let rows: Vec<_> = std::iter::once(head.map(str::to_owned)).chain(results).collect();
    let width = |column: usize| rows.iter().map(|r| r[column].chars().count()).max().unwrap_or(0);
    let mut text = String::new();
    for (nr, row) in rows.iter().enumerate() {
        let cell = |column: &usize| format!("{:width$}", row[*column], width = width(*column));
        let cells: Vec<String> = columns.iter().map(cell).collect();
        text.push_str(&format!("| {} |\n", cells.join(" | ")));
        if nr == 0 {
            let rule: Vec<_> = columns.iter().map(|c| "-".repeat(width(*c) + 2)).collect();
            text.push_str(&format!("|{}|\n", rule.join("|")));
        }
    }
    text
}
