//! How long work is told about, and how it is called off.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressStyle};

/// Set once, by whoever wants the work to end; looked at at least every 100 ms by whoever does it.
#[derive(Debug, Clone, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// Calls the work off.
    pub fn set(&self) {
        self.0.store(true, Ordering::Release);
    }

    /// It was called off.
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// What is being done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Doing {
    /// Another process fetches the image.
    Waiting,
    /// Bytes come over the network, or from a file that must be unpacked.
    Fetching,
    /// A file's digest is worked out.
    Verifying,
    /// A disk is copied from its image.
    Copying,
    /// A disk is converted from its image; how far is not known.
    Converting,
    /// A disk is written into an archive.
    Exporting,
    /// A disk is read out of an archive.
    Importing,
}

impl Doing {
    /// The beginning of a sentence that goes on with what it is done to.
    pub const fn verb(self) -> &'static str {
        match self {
            Self::Waiting => "waiting for",
            Self::Fetching => "fetching",
            Self::Verifying => "verifying",
            Self::Copying => "copying",
            Self::Converting => "converting",
            Self::Exporting => "exporting",
            Self::Importing => "importing",
        }
    }
}

/// Where the work stands. While `done` rises, it makes progress.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct At<'a> {
    /// What is being done.
    pub doing: Doing,
    /// To what.
    pub what: &'a str,
    /// So many bytes of it.
    pub done: u64,
    /// Of so many, where that is known.
    pub total: Option<u64>,
}

/// Whoever is told. A supervisor extends systemd's timeout and sets its status; a verb draws a bar.
pub trait Progress {
    /// Called at least every 100 ms or so, whether or not anything moved.
    fn at(&mut self, at: &At<'_>);

    /// Something that happened once and is worth a line: a retry, a wait for another process.
    fn note(&mut self, text: &str);
}

/// Tells nobody.
#[derive(Debug, Default)]
pub struct Quiet;

impl Progress for Quiet {
    fn at(&mut self, _: &At<'_>) {}
    fn note(&mut self, _: &str) {}
}

/// On standard error: a bar where that is a terminal, elsewhere a line every few seconds.
#[derive(Debug)]
pub struct Shown {
    bar: Option<ProgressBar>,
    terminal: bool,
    every: Duration,
    last: Instant,
}

impl Shown {
    /// For standard error, which is a terminal or is not.
    pub fn new(terminal: bool) -> Self {
        Self { bar: None, terminal, every: Duration::from_secs(5), last: Instant::now() }
    }
}

impl Progress for Shown {
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

impl Drop for Shown {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// Where the work stands, as one line: `fetching https://… 12 of 345 MiB`.
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
    fn lines() {
        let mut at = At { doing: Doing::Fetching, what: "x", done: 0, total: None };
        assert_eq!(line(&at), "fetching x");
        (at.done, at.total) = (3 << 20, Some(7 << 20));
        assert_eq!(line(&at), "fetching x: 3 of 7 MiB");
    }
}
