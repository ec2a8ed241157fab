//! `qvm list`: every VM in one line.

use jiff::Timestamp;

use crate::{
    control::types::{State, Status},
    exit::Failure,
    plan::layout::Layout,
    run::inventory::{Entry, inventory},
    value::shown,
};

/// What `qvm list` takes.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// The objects that `qvm status --json` prints
    #[arg(long)]
    json: bool,
}

/// Prints the table as of `now`.
///
/// # Errors
/// It cannot be printed.
pub async fn run(args: &Args, layout: &Layout, now: Timestamp) -> Result<(), Failure> {
    let entries = inventory(layout, &[]).await;
    if args.json {
        let all: Vec<&Status> = entries.iter().map(|entry| &entry.status).collect();
        let json = serde_json::to_string_pretty(&all).map_err(|error| Failure::of(&error))?;
        return super::print(&format!("{json}\n"));
    }
    super::print(&table(&entries, now))
}

fn table(entries: &[Entry], now: Timestamp) -> String {
    let head = ["NAME", "STATE", "VCPU", "MEM", "IP", "UPTIME", "PENDING"];
    let mut rows = vec![head.map(str::to_owned)];
    rows.extend(entries.iter().map(|entry| row(entry, now)));
    let width = |column: usize| rows.iter().map(|r| r[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let mut text = String::new();
    for (nr, row) in rows.iter().enumerate() {
        let cells: Vec<String> =
            row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
        let entry = nr.checked_sub(1).and_then(|nr| entries.get(nr));
        let problem = entry.and_then(|entry| entry.problem.as_deref());
        if let Some(line) = problem.and_then(|problem| problem.lines().next()) {
            text.push_str(&format!("  {line}\n"));
        }
        if let Some(orphan) = entry.and_then(Entry::orphan) {
            text.push_str(&format!("  {orphan}\n"));
        }
    }
    text
}

fn row(entry: &Entry, now: Timestamp) -> [String; 7] {
    let (status, none) = (&entry.status, || "-".to_owned());
    let state = match (&entry.problem, status.state) {
        // A supervisor that does not answer is taken for running.
        (Some(_), State::Running) => "no answer",
        (Some(_), _) => "invalid",
        (None, state) => state.word(),
    };
    let known = status.vcpu > 0;
    let started = status.started_at.as_ref().filter(|_| entry.answers);
    [
        shown(&entry.name),
        state.to_owned(),
        if known { status.vcpu.to_string() } else { none() },
        if known { super::size(status.mem_bytes) } else { none() },
        status.ip.clone().unwrap_or_else(none),
        started.and_then(|at| super::age(at, now)).unwrap_or_else(none),
        match status.pending.len() {
            0 => none(),
            count => count.to_string(),
        },
    ]
}
