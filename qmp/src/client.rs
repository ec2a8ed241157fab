//! The transport: one task reads, one writes, and callers wait for the reply with their id.
//!
//! The peer is not trusted: both queues are bounded. A peer that reads no commands gets
//! [`COMMAND_QUEUE`] of them, and further calls fail. A peer that sends events faster than they are
//! taken loses its connection; whoever connects anew asks for the state that the lost events told of.

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

/// How many events wait for a reader. If the queue is half full, an event that may be missed is dropped;
/// if the queue is full, an event that must not be missed closes the connection.
pub const EVENT_QUEUE: usize = 1024;
/// How often the reader of events gets a turn before a full queue closes the connection.
const READER_TURNS: u32 = 64;
/// How many commands, with their descriptors, wait for a peer that does not read.
pub const COMMAND_QUEUE: usize = 64;

type Answer = Result<Value, (String, String)>;

/// A connection that is ready for commands.
#[derive(Debug)]
pub struct Session {
    /// For calls; may be cloned.
    pub client: Client,
    /// What QEMU tells.
    pub events: Events,
    /// Who answers.
    pub greeting: Greeting,
}

/// What QEMU says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Greeting {
    /// Major, minor and micro version.
    pub version: (u64, u64, u64),
    /// The distribution's own version.
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

/// A line, and a descriptor that goes with it.
type Outgoing = (String, Option<OwnedFd>);

#[derive(Debug, Default)]
struct Shared {
    waiting: Mutex<Waiting>,
    next: AtomicU64,
    /// Events that were not taken since the queue was full.
    dropped: AtomicUsize,
}

#[derive(Debug, Default)]
struct Waiting {
    closed: bool,
    calls: HashMap<u64, oneshot::Sender<Answer>>,
}

impl Shared {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        // Nothing that holds the lock can panic half-way through a change.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn answer(&self, id: Option<u64>, answer: Answer) {
        match id.and_then(|id| self.waiting().calls.remove(&id)) {
            Some(caller) => drop(caller.send(answer)),
            None => trace!("a reply that nobody waits for any more"),
        }
    }

    fn close(&self) {
        let mut waiting = self.waiting();
        waiting.closed = true;
        waiting.calls.clear();
    }
}

/// The listening side.
#[derive(Debug)]
pub struct Events {
    queue: mpsc::Receiver<Event>,
    shared: Arc<Shared>,
    _tasks: Arc<Tasks>,
}

impl Events {
    /// Returns the next event. `None` means that the connection is closed: by the peer, or since the
    /// queue of events overflowed.
    pub async fn next(&mut self) -> Option<Event> {
        self.queue.recv().await
    }

    /// Returns the number of events that were dropped because the queue was full.
    pub fn dropped(&self) -> usize {
        self.shared.dropped.load(Ordering::Relaxed)
    }
}

/// Connects to a QMP socket and makes it ready for commands.
///
/// # Errors
/// Nothing listens there, it is not QMP, or it does not answer within `limit`.
pub async fn connect(path: &Path, limit: Duration) -> Result<Session, Error> {
    let stream = UnixStream::connect(path)
        .await
        .map_err(|source| Error::Connect { path: path.to_owned(), source })?;
    let (reader, writer) = stream.into_split();
    begin(reader, writer, limit).await
}

/// The same over a stream that is there already.
///
/// # Errors
/// It is not QMP, or it does not answer within `limit`.
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

/// A line without its end; `None` where the peer closed, failed, or never ends its line.
async fn read_line<R: AsyncBufRead + Unpin>(reader: &mut R) -> Option<Vec<u8>> {
    let mut line = vec![];
    loop {
        // ECONNRESET is how a socket ends when QEMU goes with our bytes unread: an end, not a fault.
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
            warn!(
                "the monitor sent a line of more than {MAX_LINE} bytes; its connection is given up"
            );
            return None;
        }
    }
}

/// `_reading` is dropped with the task: the writing task ends then, and the peer sees the end of the
/// connection although clients still exist.
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
            None => warn!("unreadable line from the monitor, {} bytes", line.len()),
        }
    }
    shared.close();
}

/// Queues an event; `false` if the connection must be closed because an event that must not be missed
/// finds the queue full, and its reader takes nothing meanwhile.
async fn offer(events: &mpsc::Sender<Event>, shared: &Shared, mut event: Event) -> bool {
    // Half of the queue is for events that must not be missed.
    if !event.matters() && events.capacity() <= EVENT_QUEUE / 2 {
        let dropped = shared.dropped.fetch_add(1, Ordering::Relaxed) + 1;
        if dropped.is_power_of_two() {
            warn!("{dropped} events were dropped, the last one {}", event.name);
        }
        return true;
    }
    for _ in 0..READER_TURNS {
        event = match events.try_send(event) {
            // Nobody listens: replies are still wanted.
            Ok(()) | Err(mpsc::error::TrySendError::Closed(_)) => return true,
            Err(mpsc::error::TrySendError::Full(event)) => event,
        };
        tokio::task::yield_now().await;
    }
    warn!(
        "the monitor sends events faster than they can be handled ({EVENT_QUEUE} wait); closing its \
         connection at event {}",
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

/// Forgets a call whose caller has gone, so that a late reply finds nobody.
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
    /// Runs a command of the schema.
    ///
    /// # Errors
    /// See [`Error`]; after a timeout the connection stays good.
    pub async fn run<C: Command>(&self, command: C, limit: Duration) -> Result<C::Ok, Error> {
        let name = || C::NAME.to_owned();
        let body = serde_json::to_value(Execute::<_, u64>::new(command, None))
            .map_err(|source| Error::Encode { command: name(), source })?;
        let value = self.call(C::NAME, body, None, limit).await?;
        serde_json::from_value(value).map_err(|source| Error::Reply { command: name(), source })
    }

    /// Runs a command by name, for what the schema says too loosely or not yet.
    ///
    /// # Errors
    /// See [`Error`]; after a timeout the connection stays good.
    pub async fn raw(&self, name: &str, arguments: Value, limit: Duration) -> Result<Value, Error> {
        self.call(name, json!({ "execute": name, "arguments": arguments }), None, limit).await
    }

    /// The same, with a descriptor for the peer; only over a Unix socket.
    ///
    /// # Errors
    /// See [`Error`]; after a timeout the connection stays good.
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
