//! Runs agent commands in a guest over a connection to the VM's supervisor.

use std::{io, time::Duration};

use serde_json::{Value, json};
use tokio::{sync::mpsc, time::Instant};

use super::error::Error;
use crate::{
    control::client::{self, Client},
    store::{layout::VmPaths, running},
    sys::{
        session::{Session, SessionEnd},
        terminal::{self, Input},
    },
    value::{base64, to_base64},
};

/// The bytes of a file in one call: as base64 they fit the limit of the control socket.
const CHUNK: usize = 512 << 10;
/// The timeouts of the first call, which detects whether an agent runs, and of all others.
const FIRST_CALL: Duration = Duration::from_secs(10);
const CALL: Duration = Duration::from_secs(60);
/// The minimum and maximum interval between two polls of a running command.
pub(super) const LEAST_PAUSE: Duration = Duration::from_millis(10);
pub(super) const MOST_PAUSE: Duration = Duration::from_millis(500);
/// The retry interval while the guest's file systems are frozen.
const FROZEN_PAUSE: Duration = Duration::from_secs(1);
/// The time limit for the next supervisor to appear after one has exited.
const NEXT: Duration = Duration::from_secs(60);
/// The time limit of helper programs.
const HELPER: Duration = Duration::from_secs(60);

/// An exited program of the guest.
#[derive(Debug)]
pub(super) struct Done {
    pub(super) code: i64,
    pub(super) out: Vec<u8>,
    pub(super) err: Vec<u8>,
    pub(super) truncated: bool,
}

/// A guest with an agent. A call is never interrupted: signals are checked between calls.
#[derive(Debug)]
pub struct Guest {
    paths: VmPaths,
    client: Client,
    session: Session,
    /// A command was started: wait while file systems are frozen.
    begun: bool,
    /// The cleanup has started: signals and deadlines are ignored.
    ending: bool,
    pub(super) deadline: Option<(Instant, Duration, String)>,
}

impl Guest {
    /// Connects to the VM's supervisor.
    ///
    /// # Errors
    /// The VM is not running.
    pub async fn connect(paths: VmPaths, session: Session) -> Result<Self, Error> {
        let client = Client::connect(&paths.control_socket()).await?;
        Ok(Self { paths, client, session, begun: false, ending: false, deadline: None })
    }

    /// Reconnects to the next supervisor, as long as the guest runs. Open files in the guest remain
    /// open.
    ///
    /// # Errors
    /// The guest has ended, or no supervisor adopts it.
    pub(super) async fn again(&mut self) -> Result<(), Error> {
        let until = Instant::now() + NEXT;
        loop {
            if let Ok(client) = Client::connect(&self.paths.control_socket()).await {
                self.client = client;
                match self.client.agent("guest-ping", json!({}), FIRST_CALL).await {
                    Ok(_) | Err(client::Error::Frozen { .. }) => return Ok(()),
                    // A supervisor is adopting QEMU, or does not respond yet.
                    Err(_) => {}
                }
            }
            let runs = running::find(&self.paths).map_or(true, |found| found.is_running());
            if !runs || Instant::now() > until {
                return Err(client::Error::Closed.into());
            }
            self.pause(MOST_PAUSE).await?;
        }
    }

    /// Fails if a signal or the deadline requires the end.
    pub(super) fn check(&mut self) -> Result<(), Error> {
        if self.ending {
            return Ok(());
        }
        if let Some(vanished) = self.session.ended() {
            return Err(vanished.into());
        }
        match &self.deadline {
            Some((at, limit, program)) if *at <= Instant::now() => {
                Err(Error::TooLong { program: program.clone(), limit: *limit })
            }
            _ => Ok(()),
        }
    }

    /// Waits for local work, unless a signal or the deadline requires the end.
    pub(super) async fn wait_for<T>(&mut self, work: impl Future<Output = T>) -> Result<T, Error> {
        self.check()?;
        if self.ending {
            return Ok(work.await);
        }
        let late = async {
            match &self.deadline {
                Some((at, limit, program)) => {
                    tokio::time::sleep_until(*at).await;
                    Error::TooLong { program: program.clone(), limit: *limit }
                }
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            done = work => Ok(done),
            vanished = self.session.end() => Err(vanished.into()),
            error = late => Err(error),
        }
    }

    pub(super) async fn pause(&mut self, pause: Duration) -> Result<(), Error> {
        self.wait_for(tokio::time::sleep(pause)).await
    }

    async fn call(&mut self, command: &str, arguments: Value) -> Result<Value, Error> {
        let limit = if self.begun { CALL } else { FIRST_CALL };
        if !self.begun && !self.ending {
            // Without an agent there is no answer. Only this call may be interrupted: it changes
            // nothing.
            let ping = self.client.agent("guest-ping", json!({}), limit);
            tokio::select! {
                reply = ping => match reply {
                    Ok(_) | Err(client::Error::Guest { .. }) => {}
                    Err(error) => return Err(error.into()),
                },
                vanished = self.session.end() => return Err(vanished.into()),
            }
        }
        loop {
            match self.client.agent(command, arguments.clone(), limit).await {
                Err(client::Error::Frozen { .. }) if self.begun && !self.ending => {
                    self.pause(FROZEN_PAUSE).await?;
                }
                reply => {
                    self.begun |= reply.is_ok();
                    return Ok(reply?);
                }
            }
        }
    }

    /// Starts a program; returns its PID.
    pub(super) async fn start(
        &mut self,
        argv: &[&str],
        input: Option<&[u8]>,
        capture: bool,
    ) -> Result<i64, Error> {
        let (path, arguments) = argv.split_first().unwrap_or((&"", &[]));
        let mut call = json!({ "path": path, "arg": arguments, "capture-output": capture });
        if let Some(input) = input {
            call["input-data"] = to_base64(input).into();
        }
        let reply = self.call("guest-exec", call).await?;
        reply["pid"].as_i64().ok_or(Error::Answer("guest-exec"))
    }

    /// Returns the exit status, if it has exited: the agent reports it only once.
    pub(super) async fn ended(&mut self, pid: i64) -> Result<Option<Done>, Error> {
        let reply = self.call("guest-exec-status", json!({ "pid": pid })).await?;
        if reply["exited"].as_bool() != Some(true) {
            return Ok(None);
        }
        let bytes = |key: &str| match reply[key].as_str() {
            Some(text) => base64(text).ok_or(Error::Answer("guest-exec-status")),
            None => Ok(vec![]),
        };
        let signal = reply["signal"].as_i64().map(|signal| 128 + signal);
        Ok(Some(Done {
            code: reply["exitcode"].as_i64().or(signal).unwrap_or(-1),
            out: bytes("out-data")?,
            err: bytes("err-data")?,
            truncated: ["out-truncated", "err-truncated"].iter().any(|key| reply[key] == true),
        }))
    }

    /// Runs a short program.
    pub(super) async fn run(&mut self, argv: &[&str]) -> Result<Done, Error> {
        let pid = self.start(argv, None, true).await?;
        let begun = Instant::now();
        let mut pause = LEAST_PAUSE;
        loop {
            if let Some(done) = self.ended(pid).await? {
                return Ok(done);
            }
            if begun.elapsed() > HELPER {
                let program = argv.first().copied().unwrap_or_default().to_owned();
                return Err(Error::TooLong { program, limit: HELPER });
            }
            // Not interrupted by a signal: its partial result would be unknown.
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(MOST_PAUSE);
        }
    }

    /// [`Self::run`] for a program that must succeed; returns its output.
    pub(super) async fn need(&mut self, doing: &str, argv: &[&str]) -> Result<Vec<u8>, Error> {
        let done = self.run(argv).await?;
        if done.code == 0 {
            return Ok(done.out);
        }
        let stderr = String::from_utf8_lossy(&done.err);
        let stderr = match stderr.trim() {
            "" => format!("exit code {}", done.code),
            stderr => stderr.replace('\n', "; "),
        };
        Err(Error::Guest { doing: doing.to_owned(), stderr })
    }

    pub(super) async fn open(&mut self, path: &str, mode: &str) -> Result<i64, Error> {
        let reply = self.call("guest-file-open", json!({ "path": path, "mode": mode })).await?;
        reply.as_i64().ok_or(Error::Answer("guest-file-open"))
    }

    /// Reads the next bytes of a file, and whether its end was reached.
    pub(super) async fn read(&mut self, handle: i64) -> Result<(Vec<u8>, bool), Error> {
        let call = json!({ "handle": handle, "count": CHUNK });
        let reply = self.call("guest-file-read", call).await?;
        let bytes = reply["buf-b64"].as_str().and_then(base64);
        let bytes = bytes.ok_or(Error::Answer("guest-file-read"))?;
        Ok((bytes, reply["eof"].as_bool() == Some(true)))
    }

    /// Sets the offset of the next [`Self::read`].
    pub(super) async fn seek(&mut self, handle: i64, to: u64) -> Result<(), Error> {
        let call = json!({ "handle": handle, "offset": to, "whence": "set" });
        self.call("guest-file-seek", call).await.map(drop)
    }

    pub(super) async fn write(&mut self, handle: i64, bytes: &[u8]) -> Result<(), Error> {
        let call = json!({ "handle": handle, "buf-b64": to_base64(bytes) });
        let reply = self.call("guest-file-write", call).await?;
        match reply["count"].as_u64() {
            Some(count) if count == bytes.len() as u64 => Ok(()),
            _ => Err(Error::Guest {
                doing: "write the file".into(),
                stderr: format!("only {} of {} bytes were written", reply["count"], bytes.len()),
            }),
        }
    }

    pub(super) async fn close(&mut self, handle: i64) -> Result<(), Error> {
        self.call("guest-file-close", json!({ "handle": handle })).await.map(drop)
    }

    /// Runs the cleanup on a fresh connection. A second signal interrupts it.
    pub(super) async fn end<T>(&mut self, work: impl AsyncFnOnce(&mut Self) -> T) -> Option<T> {
        self.ending = true;
        // The future that waits for a signal must not borrow what the work needs.
        let mut session = std::mem::replace(&mut self.session, Session::never());
        let work = async {
            match Client::connect(&self.paths.control_socket()).await {
                Ok(client) => self.client = client,
                // If the guest has ended, there is nothing to clean up, which is detected at once.
                Err(_) => drop(self.again().await),
            }
            work(self).await
        };
        tokio::select! {
            done = work => Some(done),
            _ = session.end() => None,
        }
    }
}

/// Returns the bytes of a stream for one call; empty at the end.
pub(super) async fn next(
    guest: &mut Guest,
    from: &mut mpsc::Receiver<Input>,
) -> Result<io::Result<Vec<u8>>, Error> {
    let mut bytes: Vec<u8> = Vec::new();
    while bytes.len() + terminal::PIECE <= CHUNK {
        match guest.wait_for(from.recv()).await? {
            Some(Ok(more)) => bytes.extend_from_slice(&more),
            Some(Err(error)) => return Ok(Err(error)),
            None => break,
        }
    }
    Ok(Ok(bytes))
}

pub(super) fn unread(error: io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::BrokenPipe => Error::NoReader,
        // The terminal hung up.
        _ if error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error()) => {
            SessionEnd::HungUp.into()
        }
        _ => Error::Stream("write the output", error),
    }
}

/// Returns the error of a failed read of standard input: the end of the session if its terminal
/// hung up. isatty(3) fails after a hangup, so the terminal is recognized as a character device.
pub(super) fn input_error(error: io::Error, otherwise: impl FnOnce(io::Error) -> Error) -> Error {
    let is_device = || {
        rustix::fs::fstat(io::stdin()).is_ok_and(|stat| {
            rustix::fs::FileType::from_raw_mode(stat.st_mode)
                == rustix::fs::FileType::CharacterDevice
        })
    };
    match error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error()) && is_device() {
        true => SessionEnd::HungUp.into(),
        false => otherwise(error),
    }
}
