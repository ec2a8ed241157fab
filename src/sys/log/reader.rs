//! Reads a log of two halves with the times of its lines, from the older half on and across
//! rotations.

use std::{
    fs::File,
    io::{self, Read, Seek},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use super::text::{Part, Stamp, Time, times};
use super::{older_log, times_of_log};

/// The reader. It returns each byte exactly once.
#[derive(Debug)]
pub struct LogReader {
    path: PathBuf,
    /// The half that is being read. While it is open, its inode is not reused.
    open: Option<File>,
}

impl LogReader {
    /// Returns a reader of the log at `path` without opening a file.
    pub fn new(path: PathBuf) -> Self {
        Self { path, open: None }
    }

    /// Returns true if the log had content.
    pub fn found(&self) -> bool {
        self.open.is_some()
    }

    /// Reads the next part.
    ///
    /// # Errors
    /// An existing file cannot be read.
    pub fn read(&mut self) -> io::Result<Part> {
        let mut part = Part::default();
        loop {
            let Some(file) = &mut self.open else {
                self.open = match open(&older_log(&self.path))? {
                    Some(older) => Some(older),
                    None => open(&self.path)?,
                };
                if self.open.is_none() {
                    return Ok(part);
                }
                continue;
            };
            // Checked before reading the rest: once a next file exists, nothing is appended to this
            // one.
            let next = after(file, &self.path)?;
            let (from, before) = (file.stream_position()?, part.bytes.len());
            file.read_to_end(&mut part.bytes)?;
            let read = part.bytes.len() - before;
            for (at, second, boot) in stamps(&self.path, file) {
                let at = at.checked_sub(from).and_then(|at| usize::try_from(at).ok());
                // A time at the very end belongs to the next part and is returned with it.
                if let Some(at) = at.filter(|at| *at <= read) {
                    part.stamps.push(Stamp { at: before + at, second, boot });
                }
            }
            match next {
                Some(next) => self.open = Some(next),
                None => return Ok(part),
            }
        }
    }
}

/// Returns the file that follows this one, after one or two rotations.
fn after(file: &File, path: &Path) -> io::Result<Option<File>> {
    let id = |file: &File| file.metadata().map(|meta| (meta.dev(), meta.ino()));
    let Some(newer) = open(path)? else { return Ok(None) };
    if id(&newer)? == id(file)? {
        return Ok(None);
    }
    match open(&older_log(path))? {
        Some(older) if id(&older)? != id(file)? => Ok(Some(older)),
        Some(_) | None => Ok(Some(newer)),
    }
}

fn open(path: &Path) -> io::Result<Option<File>> {
    match File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Returns the times of a half; empty if they are lost.
fn stamps(path: &Path, log: &File) -> Vec<Time> {
    let Ok(inode) = log.metadata().map(|found| found.ino()) else { return vec![] };
    let halves = [path.to_owned(), older_log(path)].map(|half| times_of_log(&half));
    let text = |path: &PathBuf| std::fs::read_to_string(path).ok();
    halves.iter().find_map(|path| times(&text(path)?, inode)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::sys::log::file::LogFile;

    #[test]
    fn times_and_boots_have_their_positions() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console.log");
        let (mut writer, mut log) = (LogFile::new(path.clone()), LogReader::new(path.clone()));
        writer.mark_boot(5).unwrap();
        writer.append(b"one\ntw", 5).unwrap();
        writer.append(b"o\nthree\n", 6).unwrap();
        writer.append(b"four\n", 6).unwrap();
        writer.mark_boot(7).unwrap();
        let stamp = |at, second, boot| Stamp { at, second, boot };
        let part = log.read().unwrap();
        // A boot has the second of the next line.
        assert_eq!(part.stamps, [stamp(0, 5, true), stamp(8, 6, false), stamp(19, 7, true)]);
        writer.append(b"five\n", 9).unwrap();
        let part = log.read().unwrap();
        assert_eq!(part.stamps, [stamp(0, 7, true), stamp(0, 9, false)]);
        // Times of another file with the same name are ignored.
        fs::remove_file(&path).unwrap();
        fs::write(&path, "new\n").unwrap();
        assert_eq!(LogReader::new(path.clone()).read().unwrap().stamps, []);
        fs::write(times_of_log(&path), "inode x\n\u{0}\u{1}\n7").unwrap();
        assert_eq!(LogReader::new(path).read().unwrap().stamps, []);
    }

    #[test]
    fn older_part_first() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console.log");
        let mut log = LogReader::new(path.clone());
        assert_eq!(log.read().unwrap().bytes, b"");
        assert!(!log.found());
        fs::write(&path, "new\n").unwrap();
        fs::write(dir.path().join("console.log.1"), "old\n").unwrap();
        assert_eq!(log.read().unwrap().bytes, b"old\nnew\n");
        assert_eq!(log.read().unwrap().bytes, b"");
    }

    /// Random reads return exactly the written bytes across many rotations.
    #[test]
    fn each_byte_is_read_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console.log");
        let mut writer = LogFile::new(path.clone());
        let mut log = LogReader::new(path);
        let (mut written, mut read) = (vec![], vec![]);
        for nr in 0_usize..400 {
            let line = format!("{nr} {}\n", "x".repeat(nr * 37 % 9000));
            writer.append(line.as_bytes(), nr as i64 / 9).unwrap();
            written.extend(line.into_bytes());
            if nr % 7 == 0 || nr % 61 < 20 {
                read.extend(log.read().unwrap().bytes);
            }
        }
        read.extend(log.read().unwrap().bytes);
        assert!(written.len() > 5 << 18, "{}", written.len());
        assert!(read == written);
    }

    #[test]
    fn two_rotations_lose_only_one_half() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console.log");
        let mut log = LogReader::new(path.clone());
        fs::write(&path, "1").unwrap();
        assert_eq!(log.read().unwrap().bytes, b"1");
        for text in ["2", "3", "4"] {
            fs::rename(&path, older_log(&path)).unwrap();
            fs::write(&path, text).unwrap();
        }
        assert_eq!(log.read().unwrap().bytes, b"34");
    }
}
