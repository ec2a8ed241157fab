//! Runs a command in a guest with its standard streams: if the guest has a shell, the streams are
//! files, which are read as they grow.

use std::time::Duration;

use tokio::{sync::mpsc, time::Instant};

use super::agent::{Done, Guest, LEAST_PAUSE, MOST_PAUSE, input_error, next, unread};
use super::error::Error;
use crate::{
    control::client,
    sys::terminal::{Input, Output},
};

/// The bytes of read output after which its space is released: the guest's temporary directory may
/// be small.
const GIVE_BACK: u64 = 16 << 20;

/// In a separate session if setsid(1) exists, so that child processes can be ended too.
const RUN: &str = r#"if command -v setsid >/dev/null 2>&1; then s=setsid; else s=; fi
exec $s "$@" >"$0/out" 2>"$0/err" <"#;
/// Sends SIGTERM and after five seconds SIGKILL.
const END: &str = r#"kill -TERM "-$0" || kill -TERM "$0"
n=0
while [ "$n" -lt 50 ] && kill -0 "$0"; do sleep 0.1 || sleep 1; n=$((n + 1)); done
kill -KILL "-$0" || kill -KILL "$0"
rm -rf "$1""#;

/// The standard streams of a command.
#[derive(Debug)]
pub struct Streams {
    /// Standard input, which is read to its end before the command starts; `None` means empty.
    pub input: Option<mpsc::Receiver<Input>>,
    /// Standard output.
    pub out: Output,
    /// Standard error.
    pub err: Output,
}

/// The temporary directory in the guest, with the open files.
struct StreamFiles {
    dir: String,
    /// Standard output and standard error.
    handles: [i64; 2],
}

/// Runs `argv` in the guest; returns its exit code, or 128 plus the number of the signal that ended
/// it.
///
/// # Errors
/// The agent fails, or the command was ended: by a signal to this process, by `limit`, or because
/// the output has no reader.
pub async fn exec(
    guest: &mut Guest,
    argv: &[String],
    streams: Streams,
    limit: Option<Duration>,
) -> Result<i64, Error> {
    let argv: Vec<&str> = argv.iter().map(String::as_str).collect();
    guest.deadline = limit.map(|limit| {
        let program = argv.first().copied().unwrap_or_default().to_owned();
        (Instant::now() + limit, limit, program)
    });
    let place = match StreamFiles::create(guest).await {
        Ok(place) => place,
        // A guest without a shell, or an agent that may not open files.
        Err(Error::Client(client::Error::Guest { .. }) | Error::Guest { .. }) => {
            return at_its_end(guest, &argv, streams).await;
        }
        Err(error) => return Err(error),
    };
    let mut pid = None;
    let done = streamed(guest, &place, &argv, streams, &mut pid).await;
    let handles = place.handles;
    guest
        .end(async |guest| {
            match (&done, pid) {
                (Err(_), Some(pid)) => {
                    let text = i64::to_string(&pid);
                    let _ = guest.run(&["sh", "-c", END, &text, &place.dir]).await;
                    // The agent keeps the status until it is queried.
                    let _ = guest.ended(pid).await;
                }
                _ => drop(guest.run(&["rm", "-rf", &place.dir]).await),
            }
            for handle in handles {
                let _ = guest.close(handle).await;
            }
        })
        .await;
    done
}

impl StreamFiles {
    async fn create(guest: &mut Guest) -> Result<Self, Error> {
        let made = guest.need("create a directory", &["mktemp", "-d"]).await?;
        let dir = String::from_utf8_lossy(&made).trim_end_matches('\n').to_owned();
        let opened = async {
            let out = guest.open(&format!("{dir}/out"), "w+").await?;
            let err = guest.open(&format!("{dir}/err"), "w+").await?;
            Ok(Self { dir: dir.clone(), handles: [out, err] })
        };
        let opened = opened.await;
        if opened.is_err() {
            let _ = guest.run(&["rm", "-rf", &dir]).await;
        }
        opened
    }
}

async fn streamed(
    guest: &mut Guest,
    place: &StreamFiles,
    argv: &[&str],
    streams: Streams,
    started: &mut Option<i64>,
) -> Result<i64, Error> {
    let Streams { input, out, err } = streams;
    let input = match input {
        Some(input) => give(guest, place, input).await?,
        None => false,
    };
    let script = format!("{RUN}{}", if input { "\"$0/in\"" } else { "/dev/null" });
    guest.check()?;
    let argv = [&["sh", "-c", &script, &place.dir], argv].concat();
    let pid = guest.start(&argv, None, false).await?;
    *started = Some(pid);
    let mut all =
        [("out", out), ("err", err)].map(|(name, to)| Stream { name, to, read: 0, kept: 0 });
    let (mut pause, mut done) = (LEAST_PAUSE, None);
    loop {
        guest.check()?;
        match look(guest, place, pid, &mut all, &mut done).await {
            Ok(moved) => {
                if let Some(done) = done {
                    for stream in all {
                        guest.wait_for(stream.to.finish()).await?.map_err(unread)?;
                    }
                    return Ok(done.code);
                }
                if moved {
                    pause = LEAST_PAUSE;
                } else {
                    guest.pause(pause).await?;
                    pause = (pause * 2).min(MOST_PAUSE);
                }
            }
            // The data of an interrupted read is lost, but the file still exists.
            Err(Error::Client(client::Error::Closed)) => {
                guest.again().await?;
                for (stream, handle) in all.iter().zip(place.handles) {
                    guest.seek(handle, stream.read).await?;
                }
            }
            Err(error) => return Err(error),
        }
    }
}

/// Forwards the output of the command and, after its exit, all the rest; returns whether there was
/// any.
async fn look(
    guest: &mut Guest,
    place: &StreamFiles,
    pid: i64,
    all: &mut [Stream; 2],
    done: &mut Option<Done>,
) -> Result<bool, Error> {
    // Queried first, so that the output read after the exit is complete. The agent reports it only
    // once.
    if done.is_none() {
        *done = guest.ended(pid).await?;
    }
    let mut moved = false;
    for (stream, handle) in all.iter_mut().zip(place.handles) {
        loop {
            let (bytes, eof) = guest.read(handle).await?;
            moved |= !bytes.is_empty();
            stream.pass_on(guest, place, bytes).await?;
            // Both streams are read in turn while the command runs.
            if eof || done.is_none() {
                break;
            }
        }
    }
    Ok(moved)
}

/// An output stream of the command.
struct Stream {
    name: &'static str,
    to: Output,
    read: u64,
    /// The offset up to which its space was released.
    kept: u64,
}

impl Stream {
    async fn pass_on(
        &mut self,
        guest: &mut Guest,
        place: &StreamFiles,
        bytes: Vec<u8>,
    ) -> Result<(), Error> {
        if bytes.is_empty() {
            return Ok(());
        }
        self.read += bytes.len() as u64;
        guest.wait_for(self.to.write(bytes)).await?.map_err(unread)?;
        if self.read.saturating_sub(self.kept) >= GIVE_BACK {
            self.kept = self.read;
            let (end, file) = (self.read.to_string(), format!("{}/{}", place.dir, self.name));
            // Without fallocate(1), or if it cannot punch holes, the guest needs space for all
            // output.
            let given = guest.run(&["fallocate", "-p", "-o", "0", "-l", &end, &file]).await;
            if !given.is_ok_and(|done| done.code == 0) {
                self.kept = u64::MAX;
            }
        }
        Ok(())
    }
}

/// Returns the next bytes of standard input.
async fn typed(guest: &mut Guest, input: &mut mpsc::Receiver<Input>) -> Result<Vec<u8>, Error> {
    next(guest, input)
        .await?
        .map_err(|error| input_error(error, |error| Error::Stream("read standard input", error)))
}

/// Writes standard input to a file in the guest; returns whether there was any.
async fn give(
    guest: &mut Guest,
    place: &StreamFiles,
    mut input: mpsc::Receiver<Input>,
) -> Result<bool, Error> {
    let mut bytes = typed(guest, &mut input).await?;
    if bytes.is_empty() {
        return Ok(false);
    }
    let handle = guest.open(&format!("{}/in", place.dir), "w").await?;
    let mut given = Ok(());
    while given.is_ok() && !bytes.is_empty() {
        given = guest.write(handle, &bytes).await;
        match typed(guest, &mut input).await {
            Ok(more) => bytes = more,
            Err(error) => given = Err(error),
        }
    }
    // Closing writes buffered data, which may fail without space.
    let closed = guest.close(handle).await;
    given.and(closed).map(|()| true)
}

/// Runs a command with any agent: standard input is part of the call, and the output is returned
/// after the exit.
async fn at_its_end(guest: &mut Guest, argv: &[&str], streams: Streams) -> Result<i64, Error> {
    let Streams { input, mut out, mut err } = streams;
    let mut all = None;
    if let Some(mut input) = input {
        let bytes = typed(guest, &mut input).await?;
        if !typed(guest, &mut input).await?.is_empty() {
            return Err(Error::TooMuch("this guest supports at most 500 KiB of standard input"));
        }
        all = Some(bytes).filter(|bytes| !bytes.is_empty());
    }
    guest.check()?;
    let pid = guest.start(argv, all.as_deref(), true).await?;
    let mut pause = LEAST_PAUSE;
    let done = loop {
        let looked = async {
            guest.check()?;
            let done = guest.ended(pid).await?;
            if done.is_none() {
                guest.pause(pause).await?;
            }
            Ok(done)
        };
        match looked.await {
            Ok(Some(done)) => break done,
            Ok(None) => pause = (pause * 2).min(MOST_PAUSE),
            Err(error) => {
                let pid = pid.to_string();
                guest
                    .end(async |guest| {
                        // Whichever command the guest has.
                        let _ = guest.run(&["kill", &pid]).await;
                        let _ = guest.run(&["taskkill", "/T", "/F", "/PID", &pid]).await;
                    })
                    .await;
                return Err(error);
            }
        }
    };
    for (to, bytes) in [(&mut out, done.out), (&mut err, done.err)] {
        guest.wait_for(to.write(bytes)).await?.map_err(unread)?;
    }
    for to in [out, err] {
        guest.wait_for(to.finish()).await?.map_err(unread)?;
    }
    if done.truncated {
        return Err(Error::TooMuch("the agent stores at most 16 MiB of output; the rest is lost"));
    }
    Ok(done.code)
}
