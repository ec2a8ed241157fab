//! `qvm log`: what the serial console said, of this run and of those before.

use std::io;

use jiff::{Timestamp, tz::TimeZone};
use tokio::{io::AsyncReadExt, net::UnixStream};

use crate::{
    exit::{self, Failure},
    host::log_reader::{LogReader, Part, Stamp},
    plan::layout::Layout,
    value::VmName,
};

/// What `qvm log` takes.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// The VM
    name: VmName,
    /// Go on with what the console says, until the VM is down
    #[arg(short, long)]
    follow: bool,
    /// Only so many of the last lines
    #[arg(short = 'n', long, value_name = "LINES")]
    lines: Option<usize>,
    /// Only what the guest said since it booted the last time
    #[arg(short = 'b', long)]
    since_boot: bool,
    /// Before each line, when it began
    #[arg(short, long)]
    timestamps: bool,
}

/// Prints the log, with times of `zone`.
///
/// # Errors
/// There is none, or it cannot be read; with `-f`, the VM is not running.
pub async fn run(args: &Args, layout: &Layout, zone: TimeZone) -> Result<(), Failure> {
    let path = layout.vm(&args.name).console_log();
    let cannot = |error: io::Error| {
        let text = format!("cannot read `{}`: {error}", path.display());
        Failure::new(exit::FAILED, text).about(&args.name)
    };
    // Before the log is read: what comes later wakes us.
    let attached = if args.follow { Some(attach(&args.name, layout).await) } else { None };
    let mut log = LogReader::new(path.clone());
    let mut part = log.read().map_err(cannot)?;
    if !log.found() && attached.is_none() {
        let failure = super::not_running(layout, &args.name);
        return Err(match layout.vm_file(&args.name).symlink_metadata() {
            Ok(_) => Failure::new(exit::NOT_RUNNING, "its console has said nothing yet")
                .about(&args.name),
            Err(_) => failure,
        });
    }
    if args.since_boot {
        let boot = part.stamps.iter().rfind(|stamp| stamp.boot);
        let from = boot.map_or(0, |stamp| stamp.at);
        part = behind(part, from);
    }
    if let Some(lines) = args.lines {
        let from = last(&part.bytes, lines);
        part = behind(part, from);
    }
    let mut shown = Shown { zone: args.timestamps.then_some(zone), at_line: true, second: None };
    super::print_bytes(&shown.text(part))?;
    let Some(attached) = attached else { return Ok(()) };
    let mut console = attached?;
    let mut bytes = vec![0; 16 << 10];
    // The supervisor writes the log first and then tells its viewers: that there is something is taken from the
    // console, and what it is from the log. So nothing is missed between the two, or said twice.
    while let Ok(1..) = console.read(&mut bytes).await {
        super::print_bytes(&shown.text(log.read().map_err(cannot)?))?;
    }
    super::print_bytes(&shown.text(log.read().map_err(cannot)?))
}

async fn attach(name: &VmName, layout: &Layout) -> Result<UnixStream, Failure> {
    let client = super::connect(layout, name).await?;
    client.console(true, 0).await.map_err(|error| super::refused(&error, layout, name))
}

/// What comes from byte `from` on.
fn behind(part: Part, from: usize) -> Part {
    let before = part.stamps.iter().rfind(|stamp| stamp.at <= from).copied();
    let later = part.stamps.iter().filter(|stamp| stamp.at > from);
    let stamps = before.iter().map(|stamp| Stamp { at: from, ..*stamp }).chain(later.copied());
    let stamps = stamps.map(|stamp| Stamp { at: stamp.at - from, ..stamp }).collect();
    Part { bytes: part.bytes[from..].to_vec(), stamps }
}

/// How the log is shown.
struct Shown {
    /// Where the operator is, if there are to be times.
    zone: Option<TimeZone>,
    at_line: bool,
    second: Option<i64>,
}

impl Shown {
    /// The part, with the time at the beginning of each line.
    fn text(&mut self, part: Part) -> Vec<u8> {
        let Some(zone) = self.zone.clone() else { return part.bytes };
        let mut stamps = part.stamps.iter().peekable();
        let mut out = Vec::with_capacity(part.bytes.len() * 2);
        for (at, byte) in part.bytes.iter().enumerate() {
            while let Some(stamp) = stamps.next_if(|stamp| stamp.at <= at) {
                self.second = Some(stamp.second);
            }
            if self.at_line {
                let time = self.second.and_then(|second| Timestamp::from_second(second).ok());
                let shown = time.map(|time| {
                    time.to_zoned(zone.clone()).strftime("%Y-%m-%d %H:%M:%S").to_string()
                });
                // Of a log that an older qvm wrote, or that was damaged.
                out.extend(format!("{:19}  ", shown.unwrap_or_default()).into_bytes());
            }
            out.push(*byte);
            self.at_line = *byte == b'\n';
        }
        out
    }
}

/// Where the last `lines` lines begin; a last line without its end is one.
fn last(text: &[u8], lines: usize) -> usize {
    if lines == 0 {
        return text.len();
    }
    let body = text.strip_suffix(b"\n").unwrap_or(text);
    let mut starts = (0..body.len()).rev().filter(|at| body[*at] == b'\n');
    starts.nth(lines - 1).map_or(0, |at| at + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines() {
        let last = |text: &'static [u8], lines| &text[last(text, lines)..];
        assert_eq!(last(b"a\nb\nc\n", 2), b"b\nc\n");
        assert_eq!(last(b"a\nb\nc", 1), b"c");
        assert_eq!(last(b"a\n", 9), b"a\n");
        assert_eq!(last(b"a\n", 0), b"");
        assert_eq!(last(b"", 3), b"");
        assert_eq!(last(b"\n\n", 1), b"\n");
    }

    #[test]
    fn each_line_has_the_time_at_which_it_began() {
        let stamp = |at, second| Stamp { at, second, boot: false };
        let mut shown = Shown { zone: Some(TimeZone::UTC), at_line: true, second: None };
        let part = Part { bytes: b"a\nb\nc".to_vec(), stamps: vec![stamp(2, 1), stamp(4, 3601)] };
        let text = String::from_utf8(shown.text(part)).unwrap();
        assert_eq!(text, "                     a\n1970-01-01 00:00:01  b\n1970-01-01 01:00:01  c");
        // The line goes on: its time was told.
        let part = Part { bytes: b"c\nd".to_vec(), stamps: vec![stamp(2, 3602)] };
        assert_eq!(shown.text(part), b"c\n1970-01-01 01:00:02  d");
    }

    #[test]
    fn what_is_cut_off_takes_its_times_with_it() {
        let stamp = |at, second| Stamp { at, second, boot: false };
        let part = Part { bytes: b"a\nb\nc".to_vec(), stamps: vec![stamp(0, 1), stamp(4, 2)] };
        let left = behind(part, 2);
        assert_eq!(left, Part { bytes: b"b\nc".to_vec(), stamps: vec![stamp(0, 1), stamp(2, 2)] });
    }
}
