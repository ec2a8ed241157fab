//! A log of bounded size: two halves, the older one renamed to `NAME.1`. A second file for each
//! half has the times of its lines.
//!
//! ```text
//! inode 4711            of the half of the log, so that a crash between two renames does no harm
//! 0 1767225600          time in seconds since 1970, from this byte on (the start of a line)
//! 52 1767225607 boot    the machine started here
//! ```

use std::{
    fs::{File, OpenOptions},
    io::{self, Read, Seek, SeekFrom, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use super::{older_log, times_of_log};

/// The maximum size of each half in bytes, so the log keeps at least the last 512 KiB. The same
/// limit applies to the files of times.
pub const HALF_BYTES: u64 = 512 << 10;

/// The log. Its files are opened by the first write.
#[derive(Debug)]
pub struct LogFile {
    path: PathBuf,
    open: Option<Half>,
}

#[derive(Debug)]
struct Half {
    log: File,
    size: u64,
    times: File,
    times_size: u64,
    /// The latest time written, in seconds since 1970.
    stamped: i64,
    /// The next byte begins a line.
    at_line: bool,
}

impl Half {
    fn open(path: &Path) -> io::Result<Self> {
        let open =
            |path: &Path| OpenOptions::new().append(true).create(true).mode(0o600).open(path);
        let log = open(path)?;
        let found = log.metadata()?;
        let times_path = times_of_log(path);
        let head = format!("inode {}\n", found.ino());
        let kept = std::fs::read(&times_path).is_ok_and(|bytes| bytes.starts_with(head.as_bytes()));
        let mut times = open(&times_path)?;
        if !kept {
            times.set_len(0)?;
            times.write_all(head.as_bytes())?;
        }
        let times_size = times.metadata()?.len();
        Ok(Self { log, size: found.len(), times, times_size, stamped: 0, at_line: true })
    }

    fn stamp(&mut self, at: u64, second: i64, what: &str) -> io::Result<()> {
        let line = format!("{at} {second}{what}\n");
        self.times.write_all(line.as_bytes())?;
        self.times_size += line.len() as u64;
        self.stamped = second;
        Ok(())
    }
}

impl LogFile {
    /// Returns a log at `path` without opening a file.
    pub fn new(path: PathBuf) -> Self {
        Self { path, open: None }
    }

    /// Appends `bytes`, received at `second` (seconds since 1970).
    ///
    /// # Errors
    /// A file cannot be opened, written or renamed. The next call opens the files again.
    pub fn append(&mut self, bytes: &[u8], second: i64) -> io::Result<()> {
        let result = self.try_append(bytes, second);
        if result.is_err() {
            self.open = None;
        }
        result
    }

    /// Records the start of a machine.
    ///
    /// # Errors
    /// As for [`LogFile::append`].
    pub fn mark_boot(&mut self, second: i64) -> io::Result<()> {
        let result = self.half(0).and_then(|half| half.stamp(half.size, second, " boot"));
        if result.is_err() {
            self.open = None;
        }
        result
    }

    /// Closes the files; the next write opens them again.
    pub fn close(&mut self) {
        self.open = None;
    }

    fn try_append(&mut self, bytes: &[u8], second: i64) -> io::Result<()> {
        let half = self.half(bytes.len())?;
        // The first line that begins in these bytes. Its time is written before the bytes, so that
        // readers find it.
        let first = match half.at_line {
            true => Some(0),
            false => bytes.iter().position(|byte| *byte == b'\n').map(|end| end + 1),
        };
        if let Some(first) = first.filter(|first| *first < bytes.len() && second != half.stamped) {
            half.stamp(half.size + first as u64, second, "")?;
        }
        half.log.write_all(bytes)?;
        half.size += bytes.len() as u64;
        half.at_line = bytes.last().is_none_or(|byte| *byte == b'\n');
        Ok(())
    }

    /// Returns a half with room for `more` bytes.
    fn half(&mut self, more: usize) -> io::Result<&mut Half> {
        let full =
            |half: &Half| half.size + more as u64 > HALF_BYTES || half.times_size > HALF_BYTES;
        if self.open.as_ref().is_some_and(full) {
            self.open = None;
            let older = older_log(&self.path);
            std::fs::rename(&self.path, &older)?;
            std::fs::rename(times_of_log(&self.path), times_of_log(&older))?;
        }
        match self.open.take() {
            Some(half) => Ok(self.open.insert(half)),
            None => Ok(self.open.insert(Half::open(&self.path)?)),
        }
    }

    /// Returns at most the last `most` bytes, starting at the beginning of a line.
    pub fn tail(&self, most: u64) -> Vec<u8> {
        let newer = end_of(&self.path, most);
        let rest = most.saturating_sub(newer.len() as u64);
        let mut bytes = if rest > 0 { end_of(&older_log(&self.path), rest) } else { vec![] };
        bytes.extend(newer);
        if bytes.len() as u64 == most {
            let line = bytes.iter().position(|byte| *byte == b'\n').map_or(0, |end| end + 1);
            bytes.drain(..line);
        }
        bytes
    }
}

/// Returns the last `most` bytes of a file; empty if it does not exist.
fn end_of(path: &Path, most: u64) -> Vec<u8> {
    let read = || -> io::Result<Vec<u8>> {
        let mut file = File::open(path)?;
        let size = file.metadata()?.len();
        file.seek(SeekFrom::Start(size.saturating_sub(most)))?;
        let mut bytes = vec![];
        file.take(most).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    read().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_size_is_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console.log");
        let mut log = LogFile::new(path.clone());
        for number in 0..300_000 {
            log.append(format!("line {number}\n").as_bytes(), number / 1000).unwrap();
        }
        let (newer, older) =
            (path.metadata().unwrap().len(), older_log(&path).metadata().unwrap().len());
        assert!(newer <= HALF_BYTES && older <= HALF_BYTES && newer + older > HALF_BYTES);
        assert!(std::fs::read_to_string(&path).unwrap().ends_with("line 299999\n"));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 4);
        let tail = log.tail(30);
        assert_eq!(String::from_utf8(tail).unwrap(), "line 299998\nline 299999\n");
        let whole_lines =
            |bytes: &[u8]| bytes.len().is_multiple_of(12) && bytes.ends_with(b"line 299999\n");
        assert!(whole_lines(&log.tail(600_005)));
    }

    #[test]
    fn times_file_size_is_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console.log");
        let mut log = LogFile::new(path.clone());
        for second in 0..100_000 {
            log.append(b"\n", second).unwrap();
        }
        let sizes = [times_of_log(&path), times_of_log(&older_log(&path))]
            .map(|path| path.metadata().unwrap().len());
        assert!(sizes.iter().all(|size| *size <= HALF_BYTES + 64), "{sizes:?}");
    }

    #[test]
    fn log_of_earlier_supervisor_is_continued() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console.log");
        LogFile::new(path.clone()).append(b"one ", 1).unwrap();
        LogFile::new(path.clone()).append(b"two", 2).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"one two");
    }

    #[test]
    fn append_recovers_after_a_failure() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("gone").join("console.log");
        let mut log = LogFile::new(path.clone());
        assert!(log.append(b"x", 1).is_err());
        std::fs::create_dir(path.parent().unwrap()).unwrap();
        log.append(b"y", 1).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"y");
    }
}
