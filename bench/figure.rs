//! What a figure is: what was measured, what it may be, what it is.

use std::{error, fmt, time::Duration};

pub(crate) type Outcome<T> = Result<T, Box<dyn error::Error>>;

/// One row of the table.
#[derive(Debug)]
pub(crate) struct Figure {
    pub(crate) what: &'static str,
    /// What is promised.
    pub(crate) bound: &'static str,
    /// What qvm needs.
    pub(crate) measured: String,
    /// What stands beside it, and what that needs.
    pub(crate) beside: String,
    /// By how much, where that is the bound's measure.
    pub(crate) over: String,
    /// What libvirt needs, where it is installed and does the same.
    pub(crate) libvirt: Option<Sample>,
    pub(crate) met: bool,
}

impl Figure {
    /// A figure that is bound by itself.
    pub(crate) fn alone(
        what: &'static str,
        bound: &'static str,
        measured: String,
        met: bool,
    ) -> Self {
        Self {
            what,
            bound,
            measured,
            beside: String::new(),
            over: String::new(),
            libvirt: None,
            met,
        }
    }

    /// A figure that may be so many times what stands beside it.
    pub(crate) fn times(
        what: &'static str,
        (bound, most): (&'static str, f64),
        measured: &Sample,
        (beside, other): (&str, &Sample),
    ) -> Self {
        let ratio = measured.median().as_secs_f64() / other.median().as_secs_f64();
        Self {
            what,
            bound,
            measured: measured.to_string(),
            beside: format!("{beside} {other}"),
            over: format!("{ratio:.2} ×"),
            libvirt: None,
            met: ratio <= most,
        }
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

/// The rows as a table in Markdown that can also be read as it is.
pub(crate) fn table(figures: &[Figure]) -> String {
    let head =
        ["what", "bound", "qvm", "beside it", "over it", "libvirt", "met"].map(str::to_owned);
    let row = |f: &Figure| {
        let met = if f.met { "yes" } else { "NO" };
        let libvirt = f.libvirt.as_ref().map(Sample::to_string).unwrap_or_default();
        [f.what, f.bound, &f.measured, &f.beside, &f.over, &libvirt, met].map(str::to_owned)
    };
    let mut rows = vec![head];
    rows.extend(figures.iter().map(row));
    let width = |column: usize| rows.iter().map(|r| r[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..7).map(width).collect();
    let mut text = String::new();
    for (nr, row) in rows.iter().enumerate() {
        let cells: Vec<String> =
            row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        text.push_str(&format!("| {} |\n", cells.join(" | ")));
        if nr == 0 {
            let rule: Vec<String> = widths.iter().map(|width| "-".repeat(width + 2)).collect();
            text.push_str(&format!("|{}|\n", rule.join("|")));
        }
    }
    text
}
