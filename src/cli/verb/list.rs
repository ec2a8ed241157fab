//! `qvm list`: one line for each VM.

use std::{collections::BTreeMap, io::IsTerminal, path::Path, time::Duration};

use jiff::Timestamp;

use crate::{
    cli::{
        exit::Failure,
        table::{Cell, Screen, Style, Table},
    },
    control::types::{Ready, State, Status},
    fleet::{
        inventory::{Entry, inventory},
        usage,
    },
    store::layout::Layout,
    sys::storage_reader::StorageReader,
    value::shown,
};

/// The arguments of `qvm list`.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Print the objects that `qvm status --json` prints
    #[arg(long, conflicts_with = "watch")]
    json: bool,
    /// Print the table again every SEC seconds
    #[arg(
        short,
        long,
        value_name = "SEC",
        num_args = 0..=1,
        default_missing_value = "2",
        value_parser = clap::value_parser!(u32).range(1..=3600)
    )]
    watch: Option<u32>,
}

/// The context of the output.
pub struct Shown<'a> {
    /// The current time.
    pub now: fn() -> Timestamp,
    /// The properties of standard output.
    pub screen: Screen,
    /// `/proc`.
    pub proc: &'a Path,
}

/// The CPU seconds of each VM at the previous update.
struct Before {
    at: Timestamp,
    cpu: BTreeMap<String, f64>,
}

/// Prints the table. CPU% is in percent of one CPU since the VM was started, with `--watch` since
/// the previous update. MEM is the guest's memory, RSS the host memory that QEMU uses.
/// # Errors
/// Standard output cannot be written.
pub async fn run(args: &Args, layout: &Layout, how: &Shown<'_>) -> Result<(), Failure> {
    match args.watch {
        Some(_) => super::shown(show(args, layout, how)).await,
        None => show(args, layout, how).await,
    }
}

async fn show(args: &Args, layout: &Layout, how: &Shown<'_>) -> Result<(), Failure> {
    let (storage, mut before) = (StorageReader::default(), None::<Before>);
    loop {
        let mut entries = inventory(&storage, layout, &[]).await;
        usage::fill_in(&mut entries, how.proc);
        if args.json {
            let all: Vec<&Status> = entries.iter().map(|entry| &entry.status).collect();
            let json =
                serde_json::to_string_pretty(&all).map_err(|error| Failure::from_error(&error))?;
            return super::print(&format!("{json}\n"));
        }
        let now = (how.now)();
        let text = table(&entries, now, before.as_ref()).text(how.screen) + &footer(&entries);
        let Some(seconds) = args.watch else { return super::print(&text) };
        // Cursor home, and clear: the previous table may be longer.
        let clear = if std::io::stdout().is_terminal() { "\x1b[H\x1b[2J" } else { "" };
        super::print(&format!("{clear}{text}"))?;
        let cpu = |entry: &Entry| Some((entry.name.clone(), entry.status.cpu_seconds?));
        before = Some(Before { at: now, cpu: entries.iter().filter_map(cpu).collect() });
        tokio::time::sleep(Duration::from_secs(seconds.into())).await;
    }
}

fn table(entries: &[Entry], now: Timestamp, before: Option<&Before>) -> Table {
    let head = ["NAME", "STATE", "WHY", "VCPU", "MEM", "RSS", "CPU%", "IP", "UPTIME", "PEND"];
    let mut table = Table::new(head);
    for entry in entries {
        let problem = entry.problem.as_deref().and_then(|problem| problem.lines().next());
        table.row(row(entry, now, before), problem.into_iter().map(str::to_owned).collect());
    }
    table
}

/// The marker of a VM without a VM file.
const ORPHAN: char = '*';

/// The legend of the markers in the table; empty if no VM has one.
fn footer(entries: &[Entry]) -> String {
    if entries.iter().any(|entry| entry.status.orphan) {
        format!(
            "\n{ORPHAN} no VM file: `qvm gc` stops such VMs, `qvm gc --disks` deletes their data\n"
        )
    } else {
        String::new()
    }
}

fn row(entry: &Entry, now: Timestamp, before: Option<&Before>) -> Vec<Cell> {
    let (status, none) = (&entry.status, || "-".to_owned());
    let (state, look) = match (&entry.problem, status.state) {
        // A supervisor that does not answer counts as running.
        (Some(_), State::Running) => ("no answer", Style::Bad),
        (_, State::Unknown) => (State::Unknown.word(), Style::Bad),
        (Some(_), _) => ("invalid", Style::Bad),
        (None, State::Running) => (State::Running.word(), Style::Good),
        (None, State::Failed) => (State::Failed.word(), Style::Bad),
        (None, state @ State::Stopped) => (state.word(), Style::Faint),
        (None, state) => (state.word(), Style::Doubtful),
    };
    let known = status.vcpu > 0;
    let started = status.started_at.as_ref().filter(|_| entry.answers);
    let ip = status.ip.as_deref().map(|ip| ip.split('/').next().unwrap_or(ip).to_owned());
    let marker = if status.orphan { ORPHAN.to_string() } else { String::new() };
    let rss = status.mem_resident_bytes.map(|bytes| format!("{}M", bytes >> 20));
    vec![
        (shown(&entry.name) + &marker).into(),
        Cell::from(state).style(look),
        why(status).unwrap_or("-").into(),
        Cell::from(if known { status.vcpu.to_string() } else { none() }).right(),
        Cell::from(if known { memory(status) } else { none() }).right(),
        Cell::from(rss.unwrap_or_else(none)).right(),
        Cell::from(cpu(status, now, before).unwrap_or_else(none)).right(),
        ip.unwrap_or_else(none).into(),
        started.and_then(|at| super::age(at, now)).unwrap_or_else(none).into(),
        Cell::from(match status.pending.len() {
            0 => none(),
            count => count.to_string(),
        })
        .right(),
    ]
}

/// Returns the reason of the state in a word or two.
fn why(status: &Status) -> Option<&str> {
    if status.trouble.is_some() {
        return status.trouble.as_deref();
    }
    match (status.state, status.ready) {
        (State::Stopped | State::Failed, _) => Some(status.last_stop.as_ref()?.reason.as_str()),
        (State::Running, Some(Ready::Waiting)) => Some("not ready yet"),
        (State::Running, Some(Ready::No)) => Some("not ready"),
        _ => None,
    }
}

/// Returns the guest's memory: the balloon's current size, else the size in the VM file.
fn memory(status: &Status) -> String {
    super::size(status.mem_actual_bytes.unwrap_or(status.mem_bytes))
}

/// Returns the usage in percent of one CPU.
fn cpu(status: &Status, now: Timestamp, before: Option<&Before>) -> Option<String> {
    let used = status.cpu_seconds?;
    let then = before.and_then(|before| Some((before.at, *before.cpu.get(&status.name)?)));
    let (since, used) = match then {
        // A new QEMU process has counted from zero.
        Some((at, cpu)) if cpu <= used => (at, used - cpu),
        _ => (status.started_at.as_ref()?.parse().ok()?, used),
    };
    let seconds = now.duration_since(since).as_secs_f64();
    (seconds > 0.0).then(|| format!("{:.0}", used / seconds * 100.0))
}
