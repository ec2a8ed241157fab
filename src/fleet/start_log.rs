//! The log of a supervisor that is started without systemd, and the part that `qvm start` shows.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{FileExt, OpenOptionsExt},
};

use rustix::{
    fs::{FallocateFlags, MemfdFlags, SealFlags, fallocate, fcntl_add_seals, memfd_create},
    io::Errno,
};

use crate::{store::layout::VmPaths, sys::file};

/// The mode of the log: the group may read it.
const MODE: u32 = 0o640;
/// From this size on the log is rotated, in bytes.
const MAX_SIZE: u64 = 1 << 20;
/// The space that the file system must have for a start's messages, in bytes.
const REQUIRED_SPACE: u64 = 4 << 10;
/// The largest part that is shown of what a supervisor wrote, in bytes.
const TAIL: u64 = 8 << 10;

/// The log, open for writing.
#[derive(Debug)]
pub(crate) struct StartLog {
    file: File,
    /// The size of the log when it was opened, in bytes.
    before: u64,
}

impl StartLog {
    /// Opens the log of a VM's supervisor. If its file system has no space for the reason of a
    /// failed start, the log is in memory, with [`TAIL`] bytes.
    ///
    /// # Errors
    /// The log cannot be opened.
    pub(crate) fn open(paths: &VmPaths) -> Result<Self, file::Error> {
        let opened = Self::on_disk(paths);
        let is_full = match &opened {
            Ok(log) => log.is_full(),
            Err(error) => error.kind() == io::ErrorKind::StorageFull,
        };
        match is_full.then(Self::in_memory) {
            Some(Ok(log)) => Ok(log),
            Some(Err(_)) | None => opened,
        }
    }

    fn on_disk(paths: &VmPaths) -> Result<Self, file::Error> {
        file::make_dir(&paths.state)?;
        let log = paths.supervisor_log();
        // At the beginning of a start no process writes to the log.
        if file::metadata(&log)?.is_some_and(|meta| meta.len() > MAX_SIZE) {
            let older = crate::sys::log::older_log(&log);
            fs::rename(&log, &older).map_err(file::Error::on("rename", &log))?;
        }
        let mut options = OpenOptions::new();
        let options = options.read(true).append(true).create(true).mode(MODE);
        let file = options.open(&log).map_err(file::Error::on("open", &log))?;
        let before = file.metadata().map_err(file::Error::on("look at", &log))?.len();
        if before == 0 {
            // The umask may have removed the group's permission.
            file::set_mode(&log, MODE)?;
        }
        Ok(Self { file, before })
    }

    fn is_full(&self) -> bool {
        let reserved =
            fallocate(&self.file, FallocateFlags::KEEP_SIZE, self.before, REQUIRED_SPACE);
        // A file system without `fallocate` returns another error.
        matches!(reserved, Err(Errno::NOSPC | Errno::DQUOT))
    }

    fn in_memory() -> io::Result<Self> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = File::from(memfd_create("supervisor.log", flags)?);
        // The log lives as long as the supervisor, so it must not grow.
        file.set_len(TAIL)?;
        fcntl_add_seals(&file, SealFlags::GROW | SealFlags::SEAL)?;
        Ok(Self { file, before: 0 })
    }

    /// Returns the file for the supervisor.
    ///
    /// # Errors
    /// The process is out of descriptors.
    pub(crate) fn file(&self) -> io::Result<File> {
        self.file.try_clone()
    }

    /// Returns the end of what was written since the log was opened. Blocks as long as the storage
    /// does.
    pub(crate) fn written(&self) -> String {
        let read = || -> io::Result<Vec<u8>> {
            let end = self.file.metadata()?.len();
            let from = self.before.max(end.saturating_sub(TAIL));
            let mut bytes = vec![0; usize::try_from(end.saturating_sub(from)).unwrap_or(0)];
            self.file.read_exact_at(&mut bytes, from)?;
            Ok(bytes)
        };
        let bytes = read().unwrap_or_default();
        // A log in memory has its full length from the beginning.
        String::from_utf8_lossy(&bytes).trim_end_matches(['\0', '\n']).trim_end().to_owned()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn new_end_of_log_is_shown() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("web");
        let paths = VmPaths { state, runtime: dir.path().join("r") };
        let old = StartLog::open(&paths).unwrap();
        old.file().unwrap().write_all(b"old\nerror: first\n").unwrap();
        assert_eq!(old.written(), "old\nerror: first");
        let new = StartLog::open(&paths).unwrap();
        assert_eq!(new.written(), "");
        new.file().unwrap().write_all(b"error: new\n").unwrap();
        assert_eq!(new.written(), "error: new");
        new.file().unwrap().write_all("x".repeat(20_000).as_bytes()).unwrap();
        assert_eq!(new.written().len(), 8192);
    }

    #[test]
    fn log_in_memory_is_bounded() {
        let log = StartLog::in_memory().unwrap();
        let mut file = log.file().unwrap();
        file.write_all(b"error: full\n").unwrap();
        assert_eq!(log.written(), "error: full");
        assert!(file.write_all("x".repeat(20_000).as_bytes()).is_err());
        assert!(log.written().len() <= 8192);
    }
}
