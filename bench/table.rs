//! A row of the table, and medians.

use std::time::Duration;

/// A figure.
#[derive(Debug)]
pub(crate) struct Row {
    /// What was measured.
    pub(crate) what: &'static str,
    /// Ours.
    pub(crate) qvm: String,
    /// What it is held against.
    pub(crate) beside: String,
    /// libvirt's, where it is installed.
    pub(crate) libvirt: Option<String>,
    /// The two together, as the bound has them.
    pub(crate) figure: String,
    /// The bound.
    pub(crate) bound: &'static str,
    /// Whether it holds.
    pub(crate) holds: bool,
}

impl Row {
    /// So many times as long as something else.
    pub(crate) fn ratio(
        what: &'static str,
        qvm: &[Duration],
        beside: (&str, &[Duration]),
        bound: (&'static str, f64),
    ) -> Self {
        let (ours, theirs) = (median(qvm), median(beside.1));
        let ratio = ours.as_secs_f64() / theirs.as_secs_f64();
        Self {
            what,
            qvm: shown(ours),
            beside: format!("{} {}", beside.0, shown(theirs)),
            libvirt: None,
            figure: format!("{ratio:.2} ×"),
            bound: bound.0,
            holds: ratio <= bound.1,
        }
    }

    /// At most so long.
    pub(crate) fn at_most(
        what: &'static str,
        qvm: &[Duration],
        bound: (&'static str, Duration),
    ) -> Self {
        let ours = median(qvm);
        Self {
            what,
            qvm: shown(ours),
            beside: String::new(),
            libvirt: None,
            figure: shown(ours),
            bound: bound.0,
            holds: ours <= bound.1,
        }
    }

    /// With libvirt's figure beside it.
    pub(crate) fn libvirt(self, libvirt: Option<Duration>) -> Self {
        Self { libvirt: libvirt.map(shown), ..self }
    }
}

pub(crate) fn median(times: &[Duration]) -> Duration {
    let mut times = times.to_vec();
    times.sort_unstable();
    times[times.len() / 2]
}

pub(crate) fn shown(time: Duration) -> String {
    let ms = time.as_secs_f64() * 1e3;
    match ms {
        ms if ms >= 1e3 => format!("{:.2} s", ms / 1e3),
        ms if ms >= 100.0 => format!("{ms:.0} ms"),
        ms => format!("{ms:.1} ms"),
    }
}

/// The table in Markdown.
pub(crate) fn text(rows: &[Row]) -> String {
    let mut text = String::from(
        "| what | qvm | beside | libvirt | figure | bound | |\n|---|---|---|---|---|---|---|\n",
    );
    for row in rows {
        text.push_str(&format!(
            "| {} | {} | {} | {} | {} | {} | {} |\n",
            row.what,
            row.qvm,
            row.beside,
            row.libvirt.as_deref().unwrap_or("-"),
            row.figure,
            row.bound,
            if row.holds { "holds" } else { "**missed**" }
        ));
    }
    text
}
