//! A log file that cannot fill the disk: two halves of a bounded size, the older one renamed to `NAME.1`.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

/// The largest size of each half, in bytes: together they are the console's last MiB.
pub const HALF_BYTES: u64 = 512 << 10;

/// The log; the file is opened with the first byte.
#[derive(Debug)]
pub struct LogFile {
    path: PathBuf,
    open: Option<(File, u64)>,
}

impl LogFile {
    /// A log at `path`; nothing is touched yet.
    pub fn new(path: PathBuf) -> Self {
        Self { path, open: None }
    }

    /// Where the older half of the log at `path` is.
    pub fn older(path: &Path) -> PathBuf {
        let mut name = path.as_os_str().to_owned();
        name.push(".1");
        PathBuf::from(name)
    }

    /// Writes `bytes` at the end.
    ///
    /// # Errors
    /// The file cannot be opened, written or renamed; the next call tries afresh.
    pub fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        let result = self.try_append(bytes);
        if result.is_err() {
            self.open = None;
        }
        result
    }

    fn try_append(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.open.as_ref().is_some_and(|(_, size)| size + bytes.len() as u64 > HALF_BYTES) {
            self.open = None;
            std::fs::rename(&self.path, Self::older(&self.path))?;
        }
        let (file, size) = match &mut self.open {
            Some(open) => open,
            None => {
                let file =
                    OpenOptions::new().append(true).create(true).mode(0o600).open(&self.path)?;
                let size = file.metadata()?.len();
                self.open.insert((file, size))
            }
        };
        file.write_all(bytes)?;
        *size += bytes.len() as u64;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_the_newest_mebibyte_and_no_more() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console.log");
        let mut log = LogFile::new(path.clone());
        for number in 0..300_000 {
            log.append(format!("line {number}\n").as_bytes()).unwrap();
        }
        let (newer, older) =
            (path.metadata().unwrap().len(), LogFile::older(&path).metadata().unwrap().len());
        assert!(newer <= HALF_BYTES && older <= HALF_BYTES && newer + older > HALF_BYTES);
        assert!(std::fs::read_to_string(&path).unwrap().ends_with("line 299999\n"));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2);
    }

    #[test]
    fn goes_on_where_an_earlier_supervisor_stopped() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console.log");
        LogFile::new(path.clone()).append(b"one ").unwrap();
        LogFile::new(path.clone()).append(b"two").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"one two");
    }

    #[test]
    fn tries_afresh_after_a_failure() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("gone").join("console.log");
        let mut log = LogFile::new(path.clone());
        assert!(log.append(b"x").is_err());
        std::fs::create_dir(path.parent().unwrap()).unwrap();
        log.append(b"y").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"y");
    }
}
