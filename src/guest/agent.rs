//! What is done in a guest by its agent: a connection to the VM's supervisor, and the agent's own commands one by one.

use std::{io, time::Duration};

use serde_json::{Value, json};
use tokio::{sync::mpsc, time::Instant};

use crate::{
    control::client::{self, Client},
    store::{layout::VmPaths, running},
    sys::{
        file,
        session::{Session, SessionEnd},
        terminal::{self, Input},
    },
    value::{Explain, base64, to_base64},
};

/// How much of a file goes in one call, in bytes: in base64 it fits into what the control socket takes.
const CHUNK: usize = 512 << 10;
/// How long the first call may take, which finds out whether an agent runs; then how long any other may.
const FIRST_CALL: Duration = Duration::from_secs(10);
const CALL: Duration = Duration::from_secs(60);
/// The least and the most time between two looks at a command that runs.
pub(super) const LEAST_PAUSE: Duration = Duration::from_millis(10);
pub(super) const MOST_PAUSE: Duration = Duration::from_millis(500);
/// Between two tries while the guest's file systems are frozen.
const FROZEN_PAUSE: Duration = Duration::from_secs(1);
/// How long the next supervisor may take to be there, behind one that has gone.
const NEXT: Duration = Duration::from_secs(60);
/// How long a program that only helps may take.
const HELPER: Duration = Duration::from_secs(60);

/// Why it was not done.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The supervisor or the agent.
    #[error(transparent)]
    Client(#[from] client::Error),
    /// The agent says what it should not.
    #[error("guest agent: the answer to `{0}` cannot be read")]
    Answer(&'static str),
    /// A program of the guest's.
    #[error("cannot {doing} in the guest: {said}")]
    Guest {
        /// What for.
        doing: String,
        /// What it said.
        said: String,
    },
    /// A file of the host's.
    #[error(transparent)]
    File(#[from] file::Error),
    /// Standard input or output.
    #[error("cannot {0}")]
    Stream(&'static str, #[source] io::Error),
    /// Nobody reads what comes any more.
    #[error("nobody reads the output any more")]
    NoReader,
    /// More came than such a guest takes, or gives.
    #[error("{0}")]
    TooMuch(&'static str),
    /// It took longer than it may.
    #[error("`{program}` did not end within {limit:?}, and was ended")]
    TooLong {
        /// What.
        program: String,
        /// How long.
        limit: Duration,
    },
    /// A signal ended it.
    #[error("ended by signal {0}")]
    Interrupted(i32),
    /// What is to be copied.
    #[error("`{0}` is a directory")]
    Directory(String, String),
}

impl From<SessionEnd> for Error {
    fn from(vanished: SessionEnd) -> Self {
        match vanished {
            SessionEnd::NoReader => Self::NoReader,
            vanished => Self::Interrupted(vanished.signal()),
        }
    }
}

impl Explain for Error {
    fn wrapped(&self) -> Option<&dyn Explain> {
        match self {
            Self::Client(error) => Some(error),
            Self::File(error) => Some(error),
            _ => None,
        }
    }

    fn own_hint(&self) -> Option<String> {
        match self {
            Self::Directory(_, hint) => Some(hint.clone()),
            Self::TooMuch(_) => Some(
                "a guest with `sh` and `mktemp`, whose agent may open files, has no such bound"
                    .into(),
            ),
            _ => None,
        }
    }
}

/// A program of the guest's that has ended.
#[derive(Debug)]
pub(super) struct Done {
    pub(super) code: i64,
    pub(super) out: Vec<u8>,
    pub(super) err: Vec<u8>,
    pub(super) truncated: bool,
}

/// A guest that is reached by its agent. A call is never left half-way: signals are looked at between two.
#[derive(Debug)]
pub struct Guest {
    paths: VmPaths,
    client: Client,
    session: Session,
    /// Something was begun in the guest: a freeze is waited out.
    begun: bool,
    /// The end has begun: signals and deadlines have had their say.
    ending: bool,
    pub(super) deadline: Option<(Instant, Duration, String)>,
}

impl Guest {
    /// Connects to the VM's supervisor.
    ///
    /// # Errors
    /// It does not run.
    pub async fn connect(paths: VmPaths, session: Session) -> Result<Self, Error> {
        let client = Client::connect(&paths.control_socket()).await?;
        Ok(Self { paths, client, session, begun: false, ending: false, deadline: None })
    }

    /// Behind a supervisor that has gone: waits for the next one, for as long as the guest runs. What was open in the guest is so still.
    ///
    /// # Errors
    /// The guest has gone, or nobody takes it over.
    pub(super) async fn again(&mut self) -> Result<(), Error> {
        let until = Instant::now() + NEXT;
        loop {
            if let Ok(client) = Client::connect(&self.paths.control_socket()).await {
                self.client = client;
                match self.client.agent("guest-ping", json!({}), FIRST_CALL).await {
                    Ok(_) | Err(client::Error::Frozen { .. }) => return Ok(()),
                    // It is taking over, or does not answer yet.
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

    /// Whether it is time to end.
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

    /// Waits for something that is not the guest's, unless it is time to end.
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
            // Where no agent runs, no answer comes. This is the one call that may be left half-way: it changes nothing.
            let ping = self.client.agent("guest-ping", json!({}), limit);
            tokio::select! {
                told = ping => match told {
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
                told => {
                    self.begun |= told.is_ok();
                    return Ok(told?);
                }
            }
        }
    }

    /// Begins to run a program; its pid.
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
        let told = self.call("guest-exec", call).await?;
        told["pid"].as_i64().ok_or(Error::Answer("guest-exec"))
    }

    /// How it ended, if it has: the agent tells that once.
    pub(super) async fn ended(&mut self, pid: i64) -> Result<Option<Done>, Error> {
        let told = self.call("guest-exec-status", json!({ "pid": pid })).await?;
        if told["exited"].as_bool() != Some(true) {
            return Ok(None);
        }
        let bytes = |key: &str| match told[key].as_str() {
            Some(text) => base64(text).ok_or(Error::Answer("guest-exec-status")),
            None => Ok(vec![]),
        };
        let signal = told["signal"].as_i64().map(|signal| 128 + signal);
        Ok(Some(Done {
            code: told["exitcode"].as_i64().or(signal).unwrap_or(-1),
            out: bytes("out-data")?,
            err: bytes("err-data")?,
            truncated: ["out-truncated", "err-truncated"].iter().any(|key| told[key] == true),
        }))
    }

    /// Runs a program that takes no time to speak of.
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
            // Not given up for a signal: what it has made by then would not be known.
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(MOST_PAUSE);
        }
    }

    /// [`Self::run`] for a program that has to succeed; what it said.
    pub(super) async fn need(&mut self, doing: &str, argv: &[&str]) -> Result<Vec<u8>, Error> {
        let done = self.run(argv).await?;
        if done.code == 0 {
            return Ok(done.out);
        }
        let said = String::from_utf8_lossy(&done.err);
        let said = match said.trim() {
            "" => format!("exit code {}", done.code),
            said => said.replace('\n', "; "),
        };
        Err(Error::Guest { doing: doing.to_owned(), said })
    }

    pub(super) async fn open(&mut self, path: &str, mode: &str) -> Result<i64, Error> {
        let told = self.call("guest-file-open", json!({ "path": path, "mode": mode })).await?;
        told.as_i64().ok_or(Error::Answer("guest-file-open"))
    }

    /// What follows in a file, and whether that is all for now.
    pub(super) async fn read(&mut self, handle: i64) -> Result<(Vec<u8>, bool), Error> {
        let call = json!({ "handle": handle, "count": CHUNK });
        let told = self.call("guest-file-read", call).await?;
        let bytes = told["buf-b64"].as_str().and_then(base64);
        let bytes = bytes.ok_or(Error::Answer("guest-file-read"))?;
        Ok((bytes, told["eof"].as_bool() == Some(true)))
    }

    /// Has the next [`Self::read`] begin there.
    pub(super) async fn seek(&mut self, handle: i64, to: u64) -> Result<(), Error> {
        let call = json!({ "handle": handle, "offset": to, "whence": "set" });
        self.call("guest-file-seek", call).await.map(drop)
    }

    pub(super) async fn write(&mut self, handle: i64, bytes: &[u8]) -> Result<(), Error> {
        let call = json!({ "handle": handle, "buf-b64": to_base64(bytes) });
        let told = self.call("guest-file-write", call).await?;
        match told["count"].as_u64() {
            Some(count) if count == bytes.len() as u64 => Ok(()),
            _ => Err(Error::Guest {
                doing: "write all".into(),
                said: format!("{} of {} bytes were written", told["count"], bytes.len()),
            }),
        }
    }

    pub(super) async fn close(&mut self, handle: i64) -> Result<(), Error> {
        self.call("guest-file-close", json!({ "handle": handle })).await.map(drop)
    }

    /// Begins the end, on a connection that nothing is left on. A second signal ends that too.
    pub(super) async fn end<T>(&mut self, work: impl AsyncFnOnce(&mut Self) -> T) -> Option<T> {
        self.ending = true;
        // What waits for a signal must not hold what the work needs.
        let mut session = std::mem::replace(&mut self.session, Session::never());
        let work = async {
            match Client::connect(&self.paths.control_socket()).await {
                Ok(client) => self.client = client,
                // Where the guest has gone there is nothing to tidy up, and that is found out at once.
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

/// As much of a stream as fits into one call, or all that is left; empty at the end.
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
        // A terminal that is hung up.
        _ if error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error()) => {
            SessionEnd::HungUp.into()
        }
        _ => Error::Stream("write the output", error),
    }
}
