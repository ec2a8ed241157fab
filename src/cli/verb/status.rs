//! `qvm status`: the detailed status of VMs.

use std::{fmt::Write, path::Path};

use jiff::{Timestamp, tz::TimeZone};

use crate::{
    cli::{
        exit::{self, Failure},
        table::{Screen, Style},
    },
    control::isolation::Isolation,
    control::types::{DiskLimit, Ready, State, Status},
    fleet::{
        cpu_share::weigh,
        inventory::{Entry, inventory},
        usage,
    },
    spec::{LIMIT_KINDS, amount},
    store::layout::Layout,
    sys::storage_reader::StorageReader,
    value::{Note, VmName, plain, shown},
};

/// The arguments of `qvm status`.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Names of VMs; without names, all VMs
    #[arg(value_name = "NAME")]
    names: Vec<VmName>,
    /// Print a JSON array of objects
    #[arg(long)]
    json: bool,
}

/// How times are shown.
#[derive(Debug, Clone)]
pub struct Clock {
    /// The current time.
    pub now: Timestamp,
    /// The operator's time zone.
    pub zone: TimeZone,
    /// The properties of standard output.
    pub screen: Screen,
}

impl Clock {
    /// Formats a time of RFC 3339: `2026-01-02 03:04:05 UTC, 6m 7s ago`.
    fn shown(&self, at: &str) -> String {
        match (at.parse::<Timestamp>(), super::age(at, self.now)) {
            (Ok(time), Some(age)) => {
                let time = time.to_zoned(self.zone.clone());
                format!("{}, {age} ago", time.strftime("%Y-%m-%d %H:%M:%S %Z"))
            }
            _ => at.to_owned(),
        }
    }
}

/// Prints the status, also of stopped VMs; `proc` is `/proc`.
///
/// # Errors
/// A VM in `names` is not running or does not exist: exit code 3, after the output; 75 if its state
/// is unknown.
pub async fn run(args: &Args, layout: &Layout, clock: &Clock, proc: &Path) -> Result<(), Failure> {
    let mut entries = inventory(&StorageReader::default(), layout, &args.names).await;
    weigh(&mut entries, proc);
    usage::fill_in(&mut entries, proc);
    let known: Vec<&Entry> = entries.iter().filter(|entry| entry.known).collect();
    if args.json {
        let all: Vec<&Status> = known.iter().map(|entry| &entry.status).collect();
        let json =
            serde_json::to_string_pretty(&all).map_err(|error| Failure::from_error(&error))?;
        super::print(&format!("{json}\n"))?;
    } else {
        let all: Vec<String> = known.iter().map(|entry| details(&entry.status, clock)).collect();
        super::print(&all.join("\n"))?;
    }
    let mut failures = Vec::new();
    for (entry, name) in entries.iter().zip(&args.names) {
        if !entry.known {
            failures.push(super::not_running(layout, name).await);
        } else if entry.status.state == State::Unknown {
            failures.push(Failure::quiet(exit::HOST));
        } else if matches!(entry.status.state, State::Stopped | State::Failed) {
            failures.push(Failure::quiet(exit::NOT_RUNNING));
        }
    }
    Failure::all(failures)
}

/// `300, in effect 77, 37.5% of the host under full load`.
fn weight(status: &Status) -> String {
    let mut text = status.cpu_weight.to_string();
    if let Some(other) = status.cpu_weight_effective.filter(|own| *own != status.cpu_weight) {
        let _ = write!(text, ", in effect {other}");
    }
    if let Some(share) = status.cpu_share {
        let _ = write!(text, ", {:.1}% of the host under full load", share * 100.0);
    }
    text
}

/// `data: iopsRead 100, burst 200 for 3 s`.
fn disk_limit(limit: &DiskLimit) -> String {
    let kind = LIMIT_KINDS.into_iter().find(|kind| kind.key == limit.limit);
    let amount = |rate| amount(rate, kind.is_some_and(|kind| kind.is_bytes));
    let mut text = format!("{}: {} {}", limit.disk, limit.limit, amount(limit.per_second));
    if let Some(burst) = limit.burst {
        let _ = write!(text, ", burst {} for {} s", amount(burst), limit.burst_sec.unwrap_or(1));
    }
    text
}

/// The column of the values.
const KEYS: usize = 13;

fn details(status: &Status, clock: &Clock) -> String {
    let look = match status.state {
        State::Running => Style::Good,
        State::Failed | State::Unknown => Style::Bad,
        State::Stopped => Style::Plain,
        State::Starting | State::Paused | State::Stopping => Style::Doubtful,
    };
    let state = status.state.word();
    let mut text = String::new();
    let mut line = |key: &str, value: Option<&str>| {
        if let Some(value) = value {
            let mut shown = clock.screen.folded(&plain(value), KEYS);
            if key == "state:" {
                shown = shown.replacen(state, &look.paint(state, clock.screen.colours), 1);
            }
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{key:12} {shown}");
        }
    };
    let since = status.since.as_ref().map(|since| format!("{state} since {}", clock.shown(since)));
    let started = status.started_at.as_ref().map(|started| clock.shown(started));
    let number = |number: Option<u32>| number.map(|number| number.to_string());
    let mut mem = super::size(status.mem_bytes);
    if let Some(actual) = status.mem_actual_bytes.filter(|actual| *actual != status.mem_bytes) {
        mem.push_str(&format!(" ({} now)", super::size(actual)));
    }
    if let Some(used) = status.mem_resident_bytes {
        mem.push_str(&format!(", {}M resident", used >> 20));
    }
    let cpu = status.cpu_seconds.map(|used| format!("{used:.1} s used"));
    // A file whose name is not a valid VM name.
    line("name:", Some(&shown(&status.name)));
    line("description:", status.description.as_deref());
    line("state:", Some(since.as_deref().unwrap_or(state)));
    line("ready:", status.ready.map(Ready::word));
    line("started:", started.as_deref());
    line("pid:", number(status.pid).as_deref());
    line("supervisor:", number(status.supervisor_pid).as_deref());
    if status.vcpu > 0 {
        line("vcpu:", Some(&status.vcpu.to_string()));
        line("mem:", Some(&mem));
        line("cpu:", cpu.as_deref());
        line("cpuWeight:", Some(&weight(status)));
        line("autostart:", Some(if status.autostart { "yes" } else { "no" }));
    }
    line("mac:", status.mac.as_deref());
    line("ip:", status.ip.as_deref());
    line("tap:", status.tap.as_deref());
    line("forward:", (!status.forward.is_empty()).then(|| status.forward.join(", ")).as_deref());
    line("vnc:", status.vnc.as_deref());
    for limit in &status.disk_limits {
        line("diskLimit:", Some(&disk_limit(limit)));
    }
    line("accel:", status.accel.as_deref());
    line("qemu:", status.qemu_version.as_deref());
    line("isolation:", status.isolation.as_ref().map(Isolation::describe).as_deref());
    line("machine:", status.machine.as_deref());
    line("console:", status.console.as_deref());
    for pending in &status.pending {
        line("pending:", Some(&super::change(pending)));
    }
    for note in status.notes.iter().map(Note::to_string) {
        for text in note.lines() {
            line("note:", Some(text));
        }
    }
    for end in &status.ends {
        line("end:", Some(&format!("{}: {}", clock.shown(&end.at), end.reason)));
        for text in end.detail.lines() {
            line("", Some(text));
        }
        for text in &end.console {
            line("", Some(&format!("| {text}")));
        }
    }
    text
}
