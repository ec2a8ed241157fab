//! Writes a large file back to disk while it is being written, so that the final fsync is short.
//!
//! The kernel starts writeback after seconds, or when a tenth of the memory is dirty. A disk of 1
//! GiB is copied into the page cache before that, and the final fsync would wait for all of it.

use std::{
    fs::File,
    io,
    sync::mpsc::{SyncSender, sync_channel},
    thread::JoinHandle,
};

/// The number of bytes between two writebacks.
const STEP: u64 = 32 << 20;

/// The writeback of one file. Dropping it without [`WriteBack::end`] does not wait for the disk: a
/// canceled copy ends at once.
pub struct WriteBack {
    due: SyncSender<()>,
    thread: JoinHandle<io::Result<()>>,
    sent: u64,
}

impl WriteBack {
    /// Starts the thread.
    ///
    /// # Errors
    /// No free descriptor, or no thread can be started.
    pub fn of(file: &File) -> io::Result<Self> {
        let file = file.try_clone()?;
        let (due, steps) = sync_channel(1);
        let thread = std::thread::Builder::new().name("write-back".into()).spawn(move || {
            // The kernel reports an error only once, so it must not be lost here.
            steps.into_iter().try_for_each(|()| file.sync_data())
        })?;
        Ok(Self { due, thread, sent: 0 })
    }

    /// Reports the number of bytes written so far.
    pub fn wrote(&mut self, bytes: u64) {
        if bytes.saturating_sub(self.sent) >= STEP {
            self.sent = bytes;
            // If the thread is still busy, the next step includes this one.
            let _ = self.due.try_send(());
        }
    }

    /// Waits for the writeback; the caller's fsync comes next.
    ///
    /// # Errors
    /// Data could not be written back.
    pub fn end(self) -> io::Result<()> {
        drop(self.due);
        self.thread.join().unwrap_or_else(|_| {
            Err(io::Error::other(
                "the writeback thread \
            panicked",
            ))
        })
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn end_waits_for_all_data() {
        let mut file = tempfile::tempfile().unwrap();
        let mut back = WriteBack::of(&file).unwrap();
        file.write_all(&[7; 4096]).unwrap();
        back.wrote(4096);
        back.wrote(STEP);
        back.wrote(3 * STEP);
        back.end().unwrap();
    }

    #[test]
    fn end_returns_errors() {
        // fsync(2) returns EINVAL for a pipe.
        let (_reader, writer) = io::pipe().unwrap();
        let mut back = WriteBack::of(&File::from(std::os::fd::OwnedFd::from(writer))).unwrap();
        back.wrote(STEP);
        assert!(back.end().is_err());
    }
}
