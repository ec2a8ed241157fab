//! Downloads with retries and resumption.

pub(crate) mod attempt;
pub(crate) mod error;
pub(crate) mod part;
pub(crate) mod patience;
pub(crate) mod small;

pub use self::patience::Patience;

use std::{
    fs::File,
    io::Seek,
    path::Path,
    time::{Duration, Instant},
};

use self::attempt::{Failed, Soft};
use self::error::mib;
pub use self::error::{Error, Received};
pub(crate) use self::part::forget;
use self::part::{Part, about_path};
pub(crate) use self::small::{bytes, redirect_target};

use super::writer::{self, ImageWriter, WrittenImage, open_part};
use super::{
    download::{self, Answer},
    reference::{content_range, strong_validator, unsatisfied_range, without_password},
};
use crate::sys::progress::{At, Cancel, Doing, Progress};
use crate::{
    sys::{file, writeback::WriteBack},
    value::Algorithm,
};

/// The maximum number of attempts, even if each makes progress.
const MOST_ATTEMPTS: u32 = 200;

/// A download.
pub(crate) struct Job<'a> {
    pub(crate) url: &'a str,
    /// `KEY.part`.
    pub(crate) part: &'a Path,
    /// The path of the decompressed file.
    pub(crate) unpacked: &'a Path,
    pub(crate) algorithm: Algorithm,
    /// The digest is known and will detect mismatched parts. Without a digest, the partial file of
    /// an earlier process is discarded: a crash of the host may have damaged it.
    pub(crate) known: bool,
    pub(crate) patience: Patience,
}

struct Fetch<'a, 'p> {
    job: &'a Job<'a>,
    shown: String,
    file: File,
    length: u64,
    /// The maximum progress of all attempts of this run.
    received: Received,
    /// The file changed during this run.
    changed: bool,
    about: Part,
    intake: Option<ImageWriter>,
    progress: &'p mut dyn Progress,
    cancel: &'p Cancel,
}

/// Bytes of an earlier process were used.
pub(crate) struct Fetched {
    pub(crate) taken: WrittenImage,
    pub(crate) resumed: bool,
}

/// Downloads a file; the caller holds the lock of the image.
///
/// # Errors
/// See [`Error`]. A resumable partial file is kept, otherwise it is removed.
pub(crate) fn fetch(
    job: &Job<'_>,
    progress: &mut dyn Progress,
    cancel: &Cancel,
) -> Result<Fetched, Error> {
    let about = file::read(&about_path(job.part))?
        .and_then(|json| serde_json::from_slice::<Part>(&json).ok())
        .filter(|p| job.known && p.url == job.url && p.validator.is_some());
    let resumed = about.is_some();
    let about = match about {
        Some(about) => about,
        None => {
            forget(job.part)?;
            Part { url: job.url.to_owned(), validator: None, total: None }
        }
    };
    let (file, length) = open_part(job.part)?;
    let shown = without_password(job.url);
    let received = Received { bytes: length, total: about.total };
    let mut fetch = Fetch {
        job,
        shown,
        file,
        length,
        received,
        changed: false,
        about,
        intake: None,
        progress,
        cancel,
    };
    let ended = fetch.persist();
    let resumed = resumed && length > 0;
    let ended = match (ended, fetch.intake.take()) {
        (Ok(()), Some(intake)) => intake.end().map_err(Error::from),
        (Ok(()), None) => Err(writer::Error::Lost.into()),
        (Err(e), intake) => {
            drop(intake);
            Err(e)
        }
    };
    let useful = fetch.length > 0 && fetch.about.validator.is_some() && job.known;
    drop(fetch);
    // A partial file is not kept on a full disk.
    let ours = matches!(&ended, Err(Error::NoRoom { .. } | Error::Writer(_)));
    if ended.is_err() && (ours || !useful) {
        forget(job.part)?;
    }
    ended.map(|taken| Fetched { taken, resumed })
}

impl Fetch<'_, '_> {
    /// Retries until the download completes or the retry limit is reached.
    ///
    /// An attempt is progress if it exceeds all earlier ones: a server that always disconnects at
    /// the same byte, or changes the file each time, reaches the limit. Very slow transfers are no
    /// progress either.
    fn persist(&mut self) -> Result<(), Error> {
        let (mut in_row, mut attempts) = (0, 0);
        loop {
            attempts += 1;
            let soft = match self.attempt() {
                Ok(()) => return Ok(()),
                Err(Failed::Hard(e)) => return Err(e),
                Err(Failed::Soft(soft)) => soft,
            };
            let further = self.length > self.received.bytes;
            self.received.bytes = self.received.bytes.max(self.length);
            self.received.total = self.about.total.or(self.received.total);
            let slow = matches!(&soft, Soft::Download(error) if error.is_slowness());
            in_row = if further && !slow { 1 } else { in_row + 1 };
            let (passes, why) = (soft.passes(), soft.why());
            if self.cancel.is_set() {
                return Err(Error::Canceled);
            }
            if !passes || in_row >= self.job.patience.attempts || attempts >= MOST_ATTEMPTS {
                return Err(soft.into_error(self.shown.clone(), attempts, self.received));
            }
            let pause = self.job.patience.pause * 2u32.pow((in_row - 1).min(5));
            let pause = pause.min(Duration::from_secs(30));
            self.progress.note(&format!(
                "{}: {why}; retrying in {} s, from {}",
                self.shown,
                pause.as_secs_f32(),
                mib(self.length)
            ));
            self.rest(pause)?;
        }
    }

    fn rest(&mut self, pause: Duration) -> Result<(), Error> {
        let since = Instant::now();
        while since.elapsed() < pause {
            if self.cancel.is_set() {
                return Err(Error::Canceled);
            }
            self.tell();
            std::thread::sleep(download::POLL_INTERVAL.min(pause));
        }
        Ok(())
    }

    fn tell(&mut self) {
        self.progress.at(&At {
            doing: Doing::Fetching,
            what: &self.shown,
            done: self.length,
            total: self.about.total,
        });
    }

    fn attempt(&mut self) -> Result<(), Failed> {
        let resume = self.about.validator.clone().filter(|_| self.length > 0);
        if resume.is_none() && self.length > 0 {
            self.restart()?;
        }
        self.read_back()?;
        // A run that was killed before the rename has all bytes.
        if resume.is_some() && self.about.total == Some(self.length) {
            return Ok(());
        }
        let request = download::Request {
            url: self.job.url.to_owned(),
            resume: resume.map(|validator| (self.length, validator)),
            // A known digest makes the transport irrelevant; some mirrors use plain http.
            stay_encrypted: self.job.url.starts_with("https:") && !self.job.known,
            silence: self.job.patience.silence,
        };
        let mut answer = self.ask(&request)?;
        match (answer.status, &request.resume) {
            (206, Some((from, _))) => self.accept_rest(&answer, *from)?,
            (200, resume) => {
                if let Some((_, validator)) = resume {
                    let same = strong_validator(&answer.headers).as_ref() == Some(validator);
                    let why = if same {
                        "the server does not support ranges"
                    } else {
                        "the file has changed"
                    };
                    let text = format!("{}: {why}; restarting", self.shown);
                    self.progress.note(&text);
                    self.restart()?;
                    self.read_back()?;
                    // A changed file counts as new progress only once.
                    if !same && !std::mem::replace(&mut self.changed, true) {
                        self.received = Received::default();
                    }
                }
                self.accept_whole(&answer)?;
            }
            (416, Some((from, _))) => {
                let has = answer.content_range.as_deref().and_then(unsatisfied_range);
                let has = has.map(|has| format!("; the file has {has} bytes")).unwrap_or_default();
                let why = format!("the server has no data from byte {from} on{has}");
                self.restart()?;
                return Err(Failed::Soft(Soft::Anew(why)));
            }
            (status, _) => return Err(Failed::Soft(Soft::Status(status, answer.proxy))),
        }
        let free = file::available(self.job.part.parent().unwrap_or(Path::new("/")))?;
        if let Some(needed) = answer.length.filter(|n| *n > free) {
            let dir = self.job.part.parent().unwrap_or(Path::new("/")).to_owned();
            return Err(Error::NoRoom { url: self.shown.clone(), needed, free, dir }.into());
        }
        self.pour(&mut answer)
    }

    fn ask(&mut self, request: &download::Request) -> Result<Answer, Failed> {
        let answer = download::get(request, &mut || {
            self.tell();
            !self.cancel.is_set()
        });
        answer.map_err(|e| Failed::Soft(Soft::Download(e)))
    }

    /// Receives the body to its end.
    fn pour(&mut self, answer: &mut Answer) -> Result<(), Failed> {
        let on = |e| Error::from(file::Error::on("write", self.job.part)(e));
        let mut back = WriteBack::of(&self.file).map_err(on)?;
        let poured = self.pour_through(answer, &mut back);
        // Bytes that the disk refused cannot be resumed, whatever the state of the connection.
        if !self.cancel.is_set() {
            back.end().map_err(|e| Error::from(file::Error::on("write", self.job.part)(e)))?;
        }
        poured
    }

    fn pour_through(&mut self, answer: &mut Answer, back: &mut WriteBack) -> Result<(), Failed> {
        let before = self.length;
        loop {
            let chunk = answer.next(&mut || {
                self.tell();
                !self.cancel.is_set()
            });
            match chunk {
                Err(e) => return Err(Failed::Soft(Soft::Download(e))),
                // The rest of another file, or an incorrect length from the server.
                Ok(Some(chunk))
                    if self.about.total.is_some_and(|t| self.length + chunk.len() as u64 > t) =>
                {
                    self.restart()?;
                    let why = "the server sends more bytes than announced".to_owned();
                    return Err(Failed::Soft(Soft::Anew(why)));
                }
                Ok(Some(chunk)) => {
                    let bytes = chunk.len() as u64;
                    let intake = self.intake.as_mut().ok_or(writer::Error::Lost)?;
                    intake.take(chunk, Some((&self.file, self.job.part)))?;
                    self.length += bytes;
                    back.wrote(self.length - before);
                }
                Ok(None) if self.about.total.is_none_or(|t| t == self.length) => return Ok(()),
                Ok(None) => {
                    let short = download::Error::Broken("the connection was closed early".into());
                    return Err(Failed::Soft(Soft::Download(short)));
                }
            }
        }
    }

    fn accept_rest(&mut self, answer: &Answer, from: u64) -> Result<(), Failed> {
        let range = answer.content_range.as_deref().and_then(content_range);
        let fits = range.is_some_and(|(first, total)| {
            first == from && (total.is_none() || self.about.total.is_none_or(|t| total == Some(t)))
        });
        if !fits {
            let has = answer.content_range.clone().unwrap_or_else(|| "no range".to_owned());
            let why = format!(
                "the server sends another range than requested: `{}`, not from byte {from} on",
                crate::value::shown(&has)
            );
            self.restart()?;
            return Err(Failed::Soft(Soft::Anew(why)));
        }
        // The first response may have had no length (chunked).
        self.about.total = self.about.total.or(range.and_then(|(_, total)| total));
        Ok(())
    }

    fn accept_whole(&mut self, answer: &Answer) -> Result<(), Error> {
        self.about.validator = strong_validator(&answer.headers);
        self.about.total = answer.length;
        if self.job.known && self.about.validator.is_some() {
            let json = serde_json::to_vec(&self.about).unwrap_or_default();
            file::write(&about_path(self.job.part), &json, 0o600)?;
        }
        Ok(())
    }

    fn restart(&mut self) -> Result<(), Error> {
        self.intake = None;
        file::remove(&about_path(self.job.part))?;
        let cut = self.file.set_len(0).and_then(|()| self.file.rewind());
        cut.map_err(file::Error::on("truncate", self.job.part))?;
        self.received.bytes = self.received.bytes.max(self.length);
        self.received.total = self.about.total.or(self.received.total);
        (self.length, self.about.validator, self.about.total) = (0, None, None);
        Ok(())
    }

    /// Starts the pass with the partial file of an earlier process.
    fn read_back(&mut self) -> Result<(), Error> {
        if self.intake.is_some() {
            return Ok(());
        }
        let mut intake =
            ImageWriter::begin(self.job.algorithm, Some(self.job.unpacked.to_owned()))?;
        intake.take_back(self.job.part, |done| {
            let what = &self.shown;
            let total = Some(self.length);
            self.progress.at(&At { doing: Doing::Verifying, what, done, total });
            !self.cancel.is_set()
        })?;
        if self.cancel.is_set() {
            return Err(Error::Canceled);
        }
        self.intake = Some(intake);
        Ok(())
    }
}
