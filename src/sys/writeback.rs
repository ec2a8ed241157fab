//! Writing a large file back to its disk while it is still being written, so that the last fsync has little to do.
//!
//! The kernel begins to write back after seconds, or when a tenth of the memory is dirty. A disk of 1 GiB is copied
//! into the page cache sooner than that, and the fsync that must follow would then wait for all of it.

use std::{
    fs::File,
    io,
    sync::mpsc::{SyncSender, sync_channel},
    thread::JoinHandle,
};

/// How many bytes are written before they are written back.
const STEP: u64 = 32 << 20;

/// One file's writing back. Dropped without [`WriteBack::end`], it is left to itself: who calls a copy off does
/// not wait for the disk.
pub struct WriteBack {
    due: SyncSender<()>,
    thread: JoinHandle<io::Result<()>>,
    sent: u64,
}

impl WriteBack {
    /// Begins.
    ///
    /// # Errors
    /// No more descriptors, or no thread.
    pub fn of(file: &File) -> io::Result<Self> {
        let file = file.try_clone()?;
        let (due, steps) = sync_channel(1);
        let thread = std::thread::Builder::new().name("write-back".into()).spawn(move || {
            // An error is told once by the kernel: it must not be lost here.
            steps.into_iter().try_for_each(|()| file.sync_data())
        })?;
        Ok(Self { due, thread, sent: 0 })
    }

    /// So many bytes are written by now.
    pub fn wrote(&mut self, bytes: u64) {
        if bytes.saturating_sub(self.sent) >= STEP {
            self.sent = bytes;
            // While it is still at the last step, this one is covered by the next.
            let _ = self.due.try_send(());
        }
    }

    /// All is written; the caller's fsync comes next.
    ///
    /// # Errors
    /// Something could not be written back.
    pub fn end(self) -> io::Result<()> {
        drop(self.due);
        self.thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread died")))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn ends_when_all_is_written() {
        let mut file = tempfile::tempfile().unwrap();
        let mut back = WriteBack::of(&file).unwrap();
        file.write_all(&[7; 4096]).unwrap();
        back.wrote(4096);
        back.wrote(STEP);
        back.wrote(3 * STEP);
        back.end().unwrap();
    }

    #[test]
    fn an_error_comes_out_at_the_end() {
        // fsync(2): EINVAL for what cannot be synced.
        let (_reader, writer) = io::pipe().unwrap();
        let mut back = WriteBack::of(&File::from(std::os::fd::OwnedFd::from(writer))).unwrap();
        back.wrote(STEP);
        assert!(back.end().is_err());
    }
}
