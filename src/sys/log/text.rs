//! Formats a console log for `qvm log`: since the last boot, the last lines, with times.
//!
//! The file of times has the first line `inode N` and then lines `BYTE SECOND` or `BYTE SECOND
//! boot`.

use jiff::{Timestamp, tz::TimeZone};

/// A part of a log.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Part {
    /// The bytes.
    pub bytes: Vec<u8>,
    /// Their times, ordered by position.
    pub stamps: Vec<Stamp>,
}

/// The time of a position in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    /// The index of the first byte that has this time.
    pub at: usize,
    /// Seconds since 1970.
    pub second: i64,
    /// A machine started at this position.
    pub boot: bool,
}

/// A time of a half: byte offset, seconds since 1970, whether a machine started there.
pub type Time = (u64, i64, bool);

/// Parses a file of times and skips invalid lines. `None` if the file belongs to another half than
/// `inode`.
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
    /// Returns the part since the last machine start; everything if no start is recorded.
    pub fn since_boot(self) -> Self {
        let from = self.stamps.iter().rfind(|stamp| stamp.boot).map_or(0, |stamp| stamp.at);
        self.behind(from)
    }

    /// Returns the last `lines` lines; an unterminated last line counts.
    pub fn last(self, lines: usize) -> Self {
        let from = last(&self.bytes, lines);
        self.behind(from)
    }

    /// Returns the part from byte `from` on.
    fn behind(self, from: usize) -> Self {
        let before = self.stamps.iter().rfind(|stamp| stamp.at <= from).copied();
        let later = self.stamps.iter().filter(|stamp| stamp.at > from);
        let stamps = before.iter().map(|stamp| Stamp { at: from, ..*stamp }).chain(later.copied());
        let stamps = stamps.map(|stamp| Stamp { at: stamp.at - from, ..stamp }).collect();
        Self { bytes: self.bytes.get(from..).unwrap_or_default().to_vec(), stamps }
    }
}

/// Formats a log, part after part.
#[derive(Debug)]
pub struct LogFormatter {
    /// The operator's time zone; `None` for output without times.
    zone: Option<TimeZone>,
    at_line: bool,
    second: Option<i64>,
}

impl LogFormatter {
    /// Formats with times of this zone, or without times.
    pub const fn new(zone: Option<TimeZone>) -> Self {
        Self { zone, at_line: true, second: None }
    }

    /// Returns the part with the time before each line, in the first 21 columns.
    pub fn text(&mut self, part: Part) -> Vec<u8> {
        let Some(zone) = self.zone.clone() else { return part.bytes };
        let mut stamps = part.stamps.iter().peekable();
        let mut out = Vec::with_capacity(part.bytes.len() * 2);
        for (at, byte) in part.bytes.iter().enumerate() {
            while let Some(stamp) = stamps.next_if(|stamp| stamp.at <= at) {
                self.second = Some(stamp.second);
            }
            if self.at_line {
                // Times before 1970 are invalid, and years may have more than four digits.
                let second = self.second.filter(|second| *second >= 0);
                let time = second.and_then(|second| Timestamp::from_second(second).ok());
                let shown = time.map(|time| {
                    time.to_zoned(zone.clone()).strftime("%Y-%m-%d %H:%M:%S").to_string()
                });
                // Blank for logs of an older qvm and damaged files of times.
                out.extend(format!("{:19}  ", shown.unwrap_or_default()).into_bytes());
            }
            out.push(*byte);
            self.at_line = *byte == b'\n';
        }
        out
    }
}

/// Returns the offset of the last `lines` lines; an unterminated last line counts.
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
    fn last_lines_are_found() {
        let last = |text: &'static [u8], lines| &text[last(text, lines)..];
        assert_eq!(last(b"a\nb\nc\n", 2), b"b\nc\n");
        assert_eq!(last(b"a\nb\nc", 1), b"c");
        assert_eq!(last(b"a\n", 9), b"a\n");
        assert_eq!(last(b"a\n", 0), b"");
        assert_eq!(last(b"", 3), b"");
        assert_eq!(last(b"\n\n", 1), b"\n");
    }

    #[test]
    fn each_line_has_its_start_time() {
        let stamp = |at, second| Stamp { at, second, boot: false };
        let mut shown = LogFormatter::new(Some(TimeZone::UTC));
        let part = Part { bytes: b"a\nb\nc".to_vec(), stamps: vec![stamp(2, 1), stamp(4, 3601)] };
        let text = String::from_utf8(shown.text(part)).unwrap();
        assert_eq!(text, "                     a\n1970-01-01 00:00:01  b\n1970-01-01 01:00:01  c");
        // The line continues: its time is already written.
        let part = Part { bytes: b"c\nd".to_vec(), stamps: vec![stamp(2, 3602)] };
        assert_eq!(shown.text(part), b"c\n1970-01-01 01:00:02  d");
    }

    #[test]
    fn times_are_cut_with_their_bytes() {
        let stamp = |at, second| Stamp { at, second, boot: false };
        let part = Part { bytes: b"a\nb\nc".to_vec(), stamps: vec![stamp(0, 1), stamp(4, 2)] };
        let left = part.behind(2);
        assert_eq!(left, Part { bytes: b"b\nc".to_vec(), stamps: vec![stamp(0, 1), stamp(2, 2)] });
    }
}
