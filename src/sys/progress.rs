//! Progress reports and cancellation of long operations.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressStyle};

/// A cancellation flag. The operation checks it at least every 100 ms.
#[derive(Debug, Clone, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// Requests cancellation.
    pub fn set(&self) {
        self.0.store(true, Ordering::Release);
    }

    /// Returns true if cancellation was requested.
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// The kind of operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Doing {
    /// Another process downloads the image.
    Waiting,
    /// Downloading, or decompressing a file.
    Fetching,
    /// Computing the digest of a file.
    Verifying,
    /// Copying a disk from its image.
    Copying,
    /// Converting a disk from its image; the progress is unknown.
    Converting,
    /// Writing a disk to an archive.
    Exporting,
    /// Reading a disk from an archive.
    Importing,
    /// Merging the files of a removed snapshot; the progress is unknown.
    Merging,
}

impl Doing {
    /// Returns the verb phrase of a progress line, before the object.
    pub const fn verb(self) -> &'static str {
        match self {
            Self::Waiting => "waiting for",
            Self::Fetching => "fetching",
            Self::Verifying => "verifying",
            Self::Copying => "copying",
            Self::Converting => "converting",
            Self::Exporting => "exporting",
            Self::Importing => "importing",
            Self::Merging => "merging",
        }
    }
}

/// The progress of an operation. `done` increases while work progresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct At<'a> {
    /// The kind of operation.
    pub doing: Doing,
    /// The object of the operation.
    pub what: &'a str,
    /// The number of bytes processed.
    pub done: u64,
    /// The total number of bytes, if known.
    pub total: Option<u64>,
}

/// A receiver of progress reports. A supervisor extends systemd's timeout and sets its status; a
/// verb draws a bar.
pub trait Progress {
    /// Called about every 100 ms, also without progress.
    fn at(&mut self, at: &At<'_>);

    /// A single event that is worth a line: a retry, a wait for another process.
    fn note(&mut self, text: &str);
}

/// Discards all reports.
#[derive(Debug, Default)]
pub struct Quiet;

impl Progress for Quiet {
    fn at(&mut self, _: &At<'_>) {}
    fn note(&mut self, _: &str) {}
}

/// Reports on standard error: a bar on a terminal, otherwise a line every few seconds.
#[derive(Debug)]
pub struct TerminalProgress {
    bar: Option<ProgressBar>,
    terminal: bool,
    every: Duration,
    last: Instant,
}

impl TerminalProgress {
    /// Returns a reporter; `terminal` is true if standard error is a terminal.
    pub fn new(terminal: bool) -> Self {
        Self { bar: None, terminal, every: Duration::from_secs(5), last: Instant::now() }
    }
}

impl Progress for TerminalProgress {
    fn at(&mut self, at: &At<'_>) {
        if !self.terminal {
            if self.last.elapsed() >= self.every {
                self.last = Instant::now();
                eprintln!("{}", line(at));
            }
            return;
        }
        let bar = self.bar.get_or_insert_with(|| {
            let template = "{msg} {bytes}/{total_bytes} [{wide_bar}] {binary_bytes_per_sec} {eta}";
            let style = ProgressStyle::with_template(template);
            ProgressBar::no_length().with_style(style.unwrap_or(ProgressStyle::default_bar()))
        });
        bar.set_message(format!("{} {}", at.doing.verb(), at.what));
        match at.total {
            Some(total) => bar.set_length(total),
            None => bar.unset_length(),
        }
        bar.set_position(at.done);
    }

    fn note(&mut self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| eprintln!("{text}")),
            None => eprintln!("{text}"),
        }
    }
}

impl Drop for TerminalProgress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// Formats a report as one line: `fetching https://… 12 of 345 MiB`.
pub fn line(at: &At<'_>) -> String {
    let mib = |bytes: u64| bytes >> 20;
    let (verb, what) = (at.doing.verb(), at.what);
    match (at.done, at.total) {
        (0, None) => format!("{verb} {what}"),
        (done, None) => format!("{verb} {what}: {} MiB", mib(done)),
        (done, Some(total)) => {
            format!("{verb} {what}: {} of {} MiB", mib(done), total.div_ceil(1 << 20))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_have_known_amounts() {
        let mut at = At { doing: Doing::Fetching, what: "x", done: 0, total: None };
        assert_eq!(line(&at), "fetching x");
        (at.done, at.total) = (3 << 20, Some(7 << 20));
        assert_eq!(line(&at), "fetching x: 3 of 7 MiB");
    }
}
