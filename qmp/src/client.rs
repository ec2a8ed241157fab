//! The transport: one task reads, one task writes, and callers wait for the reply with their id.
//!
//! The peer is not trusted: both queues are bounded. At most [`COMMAND_QUEUE`] commands wait for a
//! peer that does not read; further calls fail. A peer that sends events faster than they are
//! handled is disconnected; after reconnecting, the caller queries the state.

use std::{
    collections::HashMap,
    os::fd::OwnedFd,
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use qapi::{Command, Execute};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufRead, AsyncBufReadExt, AsyncRead, AsyncWrite, BufReader},
    net::UnixStream,
    sync::{mpsc, oneshot},
    task::AbortHandle,
};
use tracing::{trace, warn};

use crate::{
    Error, Event, Line, MAX_LINE,
    outlet::{Outlet, Plain},
    parse,
};

/// The capacity of the event queue. If it is half full, events without state changes are dropped;
/// if it is full, an event with a state change closes the connection.
pub const EVENT_QUEUE: usize = 1024;
/// The number of turns for the event reader before a full queue closes the connection.
const READER_TURNS: u32 = 64;
/// The maximum number of queued commands for a peer that does not read.
pub const COMMAND_QUEUE: usize = 64;

type Answer = Result<Value, (String, String)>;

/// A connection that is ready for commands.
#[derive(Debug)]
pub struct Session {
    /// The client for calls; can be cloned.
    pub client: Client,
    /// The events from QEMU.
    pub events: Events,
    /// The greeting of QEMU.
    pub greeting: Greeting,
}

/// The version information of QEMU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Greeting {
    /// Major, minor and micro version.
    pub version: (u64, u64, u64),
    /// The version of the distribution's package.
    pub package: String,
}

/// The calling side; clones share one connection.
#[derive(Debug, Clone)]
pub struct Client {
    shared: Arc<Shared>,
    lines: mpsc::Sender<Outgoing>,
    _tasks: Arc<Tasks>,
}

/// The tasks of a connection. They end when the last client and the listening side are dropped.
#[derive(Debug)]
struct Tasks([AbortHandle; 2]);

impl Drop for Tasks {
    fn drop(&mut self) {
        self.0.iter().for_each(AbortHandle::abort);
    }
}

/// A line, with an optional descriptor.
type Outgoing = (String, Option<OwnedFd>);

#[derive(Debug, Default)]
struct Shared {
    waiting: Mutex<Waiting>,
    next: AtomicU64,
    /// The number of events dropped because the queue was full.
    dropped: AtomicUsize,
}

#[derive(Debug, Default)]
struct Waiting {
    closed: bool,
    calls: HashMap<u64, oneshot::Sender<Answer>>,
}

impl Shared {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        // No holder of the lock can panic during a change.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn answer(&self, id: Option<u64>, answer: Answer) {
        match id.and_then(|id| self.waiting().calls.remove(&id)) {
            Some(caller) => drop(caller.send(answer)),
            None => trace!("discarding a reply without a waiting caller"),
        }
    }

    fn close(&self) {
        let mut waiting = self.waiting();
        waiting.closed = true;
        waiting.calls.clear();
    }
}

/// The receiver of events.
#[derive(Debug)]
pub struct Events {
    queue: mpsc::Receiver<Event>,
    shared: Arc<Shared>,
    _tasks: Arc<Tasks>,
}

impl Events {
    /// Returns the next event. `None` means that the connection is closed: by the peer, or since
    /// the queue of events overflowed.
    pub async fn next(&mut self) -> Option<Event> {
        self.queue.recv().await
    }

    /// Returns the number of events that were dropped because the queue was full.
    pub fn dropped(&self) -> usize {
        self.shared.dropped.load(Ordering::Relaxed)
    }
}

/// Connects to a QMP socket and negotiates capabilities.
///
/// # Errors
/// No process listens, the peer is not QMP, or it does not respond within `limit`.
pub async fn connect(path: &Path, limit: Duration) -> Result<Session, Error> {
    let stream = UnixStream::connect(path)
        .await
        .map_err(|source| Error::Connect { path: path.to_owned(), source })?;
    let (reader, writer) = stream.into_split();
    begin(reader, writer, limit).await
}

/// Like [`connect`], over an existing stream.
///
/// # Errors
/// The peer is not QMP, or it does not respond within `limit`.
pub async fn over<S>(stream: S, limit: Duration) -> Result<Session, Error>
where
    S: AsyncRead + AsyncWrite + Send + 'static,
{
    let (reader, writer) = tokio::io::split(stream);
    begin(reader, Plain(writer), limit).await
}

async fn begin<R, W>(reader: R, writer: W, limit: Duration) -> Result<Session, Error>
where
    R: AsyncRead + Send + Unpin + 'static,
    W: Outlet,
{
    let mut reader = BufReader::new(reader);
    let greeting = tokio::time::timeout(limit, greeting(&mut reader))
        .await
        .map_err(|_| Error::Timeout { command: "greeting".into(), limit })??;
    let (lines, to_write) = mpsc::channel(COMMAND_QUEUE);
    let shared = Arc::new(Shared::default());
    let (events, queue) = mpsc::channel(EVENT_QUEUE);
    let (reading, read) = oneshot::channel();
    let writing = tokio::spawn(write_lines(writer, to_write, shared.clone(), read));
    let reading = tokio::spawn(read_lines(reader, shared.clone(), events, reading));
    let tasks = Arc::new(Tasks([writing.abort_handle(), reading.abort_handle()]));
    let client = Client { shared: shared.clone(), lines, _tasks: tasks.clone() };
    client.raw("qmp_capabilities", json!({}), limit).await?;
    Ok(Session { client, events: Events { queue, shared, _tasks: tasks }, greeting })
}

async fn greeting<R: AsyncBufRead + Unpin>(reader: &mut R) -> Result<Greeting, Error> {
    let line = read_line(reader).await.ok_or(Error::Closed)?;
    let Some(Line::Greeting(value)) = parse(&line) else {
        let start = String::from_utf8_lossy(&line[..line.len().min(64)]).into_owned();
        return Err(Error::NotQmp(start.escape_debug().to_string()));
    };
    let version = &value["version"];
    let number = |key: &str| version["qemu"][key].as_u64().unwrap_or_default();
    Ok(Greeting {
        version: (number("major"), number("minor"), number("micro")),
        package: version["package"].as_str().unwrap_or_default().to_owned(),
    })
}

/// Reads a line without its end; `None` if the peer closes, fails, or sends a too long line.
async fn read_line<R: AsyncBufRead + Unpin>(reader: &mut R) -> Option<Vec<u8>> {
    let mut line = vec![];
    loop {
        // A socket returns ECONNRESET if QEMU exits with unread data, which is a normal end.
        let available = reader.fill_buf().await.ok().filter(|bytes| !bytes.is_empty())?;
        let end = available.iter().position(|byte| *byte == b'\n');
        let taken = end.map_or(available.len(), |at| at + 1);
        line.extend_from_slice(&available[..taken]);
        reader.consume(taken);
        if end.is_some() {
            line.pop();
            return Some(line);
        }
        if line.len() > MAX_LINE {
            warn!("the monitor sent a line of more than {MAX_LINE} bytes; closing the connection");
            return None;
        }
    }
}

/// `_reading` is dropped with the task: the writing task ends then, and the peer sees the end of
/// the connection although clients still exist.
async fn read_lines<R: AsyncBufRead + Unpin>(
    mut reader: R,
    shared: Arc<Shared>,
    events: mpsc::Sender<Event>,
    _reading: oneshot::Sender<()>,
) {
    while let Some(line) = read_line(&mut reader).await {
        trace!("<- {}", String::from_utf8_lossy(&line));
        match parse(&line) {
            Some(Line::Return { id, value }) => shared.answer(id, Ok(value)),
            Some(Line::Refused { id, class, desc }) => shared.answer(id, Err((class, desc))),
            Some(Line::Event(event)) => {
                if !offer(&events, &shared, event.bounded(&line)).await {
                    break;
                }
            }
            Some(Line::Greeting(_)) => {}
            None => warn!("cannot parse a line from the monitor, {} bytes", line.len()),
        }
    }
    shared.close();
}

/// Queues an event; returns `false` if the connection must be closed, because the queue is full and
/// the event must not be lost.
async fn offer(events: &mpsc::Sender<Event>, shared: &Shared, mut event: Event) -> bool {
    // Half of the queue is reserved for events that must not be lost.
    if !event.matters() && events.capacity() <= EVENT_QUEUE / 2 {
        let dropped = shared.dropped.fetch_add(1, Ordering::Relaxed) + 1;
        if dropped.is_power_of_two() {
            warn!("dropped {dropped} events, the last one {}", event.name);
        }
        return true;
    }
    for _ in 0..READER_TURNS {
        event = match events.try_send(event) {
            // The receiver was dropped; replies are still needed.
            Ok(()) | Err(mpsc::error::TrySendError::Closed(_)) => return true,
            Err(mpsc::error::TrySendError::Full(event)) => event,
        };
        tokio::task::yield_now().await;
    }
    warn!(
        "the monitor sends events faster than they can be handled ({EVENT_QUEUE} wait); closing \
         its connection at event {}",
        event.name
    );
    false
}

async fn write_lines<W: Outlet>(
    mut writer: W,
    mut lines: mpsc::Receiver<Outgoing>,
    shared: Arc<Shared>,
    mut reading: oneshot::Receiver<()>,
) {
    let write = async {
        while let Some((line, fd)) = lines.recv().await {
            trace!("-> {}", line.trim_end());
            if writer.send(line.as_bytes(), fd).await.is_err() {
                break;
            }
        }
    };
    tokio::select! {
        () = write => {}
        _ = &mut reading => {}
    }
    shared.close();
}

/// Removes a call whose caller has gone, so that a late reply is discarded.
struct Forget<'a> {
    shared: &'a Shared,
    id: u64,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.shared.waiting().calls.remove(&self.id);
    }
}

impl Client {
    /// Runs a typed command of the schema.
    ///
    /// # Errors
    /// See [`Error`]; after a timeout the connection remains usable.
    pub async fn run<C: Command>(&self, command: C, limit: Duration) -> Result<C::Ok, Error> {
        let name = || C::NAME.to_owned();
        let body = serde_json::to_value(Execute::<_, u64>::new(command, None))
            .map_err(|source| Error::Encode { command: name(), source })?;
        let value = self.call(C::NAME, body, None, limit).await?;
        serde_json::from_value(value).map_err(|source| Error::Reply { command: name(), source })
    }

    /// Runs a command by name, if the schema lacks it or its types are too loose.
    ///
    /// # Errors
    /// See [`Error`]; after a timeout the connection remains usable.
    pub async fn raw(&self, name: &str, arguments: Value, limit: Duration) -> Result<Value, Error> {
        self.call(name, json!({ "execute": name, "arguments": arguments }), None, limit).await
    }

    /// Like [`Client::raw`], and passes a descriptor; only over a Unix socket.
    ///
    /// # Errors
    /// See [`Error`]; after a timeout the connection remains usable.
    pub async fn raw_with(
        &self,
        name: &str,
        arguments: Value,
        fd: OwnedFd,
        limit: Duration,
    ) -> Result<Value, Error> {
        self.call(name, json!({ "execute": name, "arguments": arguments }), Some(fd), limit).await
    }

    async fn call(
        &self,
        name: &str,
        mut body: Value,
        fd: Option<OwnedFd>,
        limit: Duration,
    ) -> Result<Value, Error> {
        let id = self.shared.next.fetch_add(1, Ordering::Relaxed);
        body["id"] = id.into();
        let (reply, answer) = oneshot::channel();
        {
            let mut waiting = self.shared.waiting();
            if waiting.closed {
                return Err(Error::Closed);
            }
            waiting.calls.insert(id, reply);
        }
        let _forget = Forget { shared: &self.shared, id };
        self.lines.try_send((format!("{body}\n"), fd)).map_err(|error| match error {
            mpsc::error::TrySendError::Closed(_) => Error::Closed,
            mpsc::error::TrySendError::Full(_) => {
                Error::QueueFull { command: name.to_owned(), waiting: COMMAND_QUEUE }
            }
        })?;
        match tokio::time::timeout(limit, answer).await {
            Err(_) => Err(Error::Timeout { command: name.to_owned(), limit }),
            Ok(Err(_)) => Err(Error::Closed),
            Ok(Ok(Err((class, desc)))) => {
                Err(Error::Refused { command: name.to_owned(), class, desc })
            }
            Ok(Ok(Ok(value))) => Ok(value),
        }
    }
}
