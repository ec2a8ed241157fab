//! The text of a console's log as `qvm log` shows it: from the last boot on, the last lines, the time before each line.
//!
//! The times of a half of the log are a file of their own: its first line is `inode N`, and each other `BYTE SECOND` or
//! `BYTE SECOND boot`.

use jiff::{Timestamp, tz::TimeZone};

/// What was read of a log.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Part {
    /// The bytes.
    pub bytes: Vec<u8>,
    /// When they came, in the order of the bytes.
    pub stamps: Vec<Stamp>,
}

/// A time of a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    /// From which of the bytes on.
    pub at: usize,
    /// Seconds since 1970.
    pub second: i64,
    /// A machine began there.
    pub boot: bool,
}

/// A time of a half, by the byte of it: byte, second, whether a machine began there.
pub type Time = (u64, i64, bool);

/// The times in the text of such a file; what is no time is passed over. None where it is of another half than that of `inode`.
pub fn times(text: &str, inode: u64) -> Option<Vec<Time>> {
    let rest = text.strip_prefix(&format!("inode {inode}\n"))?;
    let time = |line: &str| {
        let mut words = line.split(' ');
        let (at, second) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
        Some((at, second, words.next() == Some("boot")))
    };
    Some(rest.lines().filter_map(time).collect())
}

impl Part {
    /// What comes since a machine began the last time; everything where that is not known.
    pub fn since_boot(self) -> Self {
        let from = self.stamps.iter().rfind(|stamp| stamp.boot).map_or(0, |stamp| stamp.at);
        self.behind(from)
    }

    /// The last lines; a last line without its end is one.
    pub fn last(self, lines: usize) -> Self {
        let from = last(&self.bytes, lines);
        self.behind(from)
    }

    /// What comes from byte `from` on.
    fn behind(self, from: usize) -> Self {
        let before = self.stamps.iter().rfind(|stamp| stamp.at <= from).copied();
        let later = self.stamps.iter().filter(|stamp| stamp.at > from);
        let stamps = before.iter().map(|stamp| Stamp { at: from, ..*stamp }).chain(later.copied());
        let stamps = stamps.map(|stamp| Stamp { at: stamp.at - from, ..stamp }).collect();
        Self { bytes: self.bytes.get(from..).unwrap_or_default().to_vec(), stamps }
    }
}

/// How a log is shown, part after part.
#[derive(Debug)]
pub struct Shown {
    /// Where the operator is, if there are to be times.
    zone: Option<TimeZone>,
    at_line: bool,
    second: Option<i64>,
}

impl Shown {
    /// With times of this zone, or without.
    pub const fn new(zone: Option<TimeZone>) -> Self {
        Self { zone, at_line: true, second: None }
    }

    /// The part, with the time at the beginning of each line, in the first 21 columns.
    pub fn text(&mut self, part: Part) -> Vec<u8> {
        let Some(zone) = self.zone.clone() else { return part.bytes };
        let mut stamps = part.stamps.iter().peekable();
        let mut out = Vec::with_capacity(part.bytes.len() * 2);
        for (at, byte) in part.bytes.iter().enumerate() {
            while let Some(stamp) = stamps.next_if(|stamp| stamp.at <= at) {
                self.second = Some(stamp.second);
            }
            if self.at_line {
                // No line came before 1970, and a year may have more than four digits then.
                let second = self.second.filter(|second| *second >= 0);
                let time = second.and_then(|second| Timestamp::from_second(second).ok());
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
        let mut shown = Shown::new(Some(TimeZone::UTC));
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
        let left = part.behind(2);
        assert_eq!(left, Part { bytes: b"b\nc".to_vec(), stamps: vec![stamp(0, 1), stamp(2, 2)] });
    }
}
