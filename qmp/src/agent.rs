//! The guest agent: the same JSON, without ids, behind a channel that keeps what an earlier caller left unread.
//!
//! Every call begins with `guest-sync-delimited`: a 0xFF, a number of the caller's, and everything before the answer with that number
//! is thrown away. So a late reply is never taken for another call's. Where no agent runs nothing ever answers, which only a
//! deadline can tell. The guest is not trusted: what it says is bounded.
//!
//! The channel stays open behind a call that went well: an agent that sees it closed sleeps for 100 ms before it looks again (qga/main.c,
//! `channel_event_cb`), ten times a second for as long as nobody opens it. Behind one that failed it is closed, and what was still to
//! come is lost with it.
//!
//! QEMU's chardev takes one connection at a time: a second one is accepted by the kernel, but nothing of it is read until the
//! first is closed (chardev/char-socket.c, `tcp_chr_disconnect_locked`). Calls therefore take turns here, and the time that one waits
//! for its turn is not held against the guest.

use std::{path::PathBuf, sync::Arc, time::Duration};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    sync::{Mutex, OwnedSemaphorePermit, Semaphore},
};

use crate::Error;

/// The longest answer that is read: `guest-exec-status` brings up to 16 MiB of each stream in base64 (qga/commands.c).
const MAX_ANSWER: usize = 48 << 20;

/// How many calls wait for their turn, or have it; a further call fails at once.
pub const CALL_QUEUE: usize = 64;

/// The channel's address. One call at a time: its clones take turns, in the order in which they came.
#[derive(Debug, Clone)]
pub struct Agent {
    socket: PathBuf,
    /// The open channel, behind a call that went well.
    kept: Arc<Mutex<Option<Channel>>>,
    /// A permit is a call that waits for its turn, or has it.
    calls: Arc<Semaphore>,
}

/// What became of a command in the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Executed {
    /// Its exit code; 128 and the signal where a signal ended it.
    pub exit_code: i64,
    /// Standard output in base64, as the agent sends it.
    pub out: String,
    /// Standard error in base64.
    pub err: String,
}

/// An address of a guest's interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// The address.
    pub address: std::net::IpAddr,
    /// How many of its bits are the net's.
    pub prefix: u8,
    /// What the guest calls the interface.
    pub interface: String,
    /// The interface's hardware address, as the guest writes it.
    pub mac: Option<String>,
}

impl Agent {
    /// The agent behind this socket; nothing is opened yet.
    pub fn new(socket: PathBuf) -> Self {
        Self { socket, kept: Arc::default(), calls: Arc::new(Semaphore::new(CALL_QUEUE)) }
    }

    /// Takes a place in the queue for `command`.
    fn queue(&self, command: &str) -> Result<OwnedSemaphorePermit, Error> {
        self.calls
            .clone()
            .try_acquire_owned()
            .map_err(|_| Error::QueueFull { command: command.to_owned(), waiting: CALL_QUEUE })
    }

    /// Whether an agent answers.
    ///
    /// # Errors
    /// `Timeout` where none does.
    pub async fn ping(&self, sync: u32, limit: Duration) -> Result<(), Error> {
        self.call("guest-ping", json!({}), sync, limit).await.map(drop)
    }

    /// Calls `name`, when its turn has come. `sync` is a number that no recent call had; `limit` is from the beginning of its turn.
    ///
    /// # Errors
    /// See [`Error`]; `Timeout` where no agent runs in the guest.
    pub async fn call(
        &self,
        name: &str,
        arguments: Value,
        sync: u32,
        limit: Duration,
    ) -> Result<Value, Error> {
        let late = |_| Error::Timeout { command: name.to_owned(), limit };
        let _place = self.queue(name)?;
        let mut kept = self.kept.lock().await;
        let talk = self.talk(kept.take(), name, arguments, sync);
        let (channel, told) = tokio::time::timeout(limit, talk).await.map_err(late)??;
        *kept = Some(channel);
        told
    }

    /// Asks the guest to shut down. The agent answers only where it fails, so silence behind the sync is success.
    ///
    /// # Errors
    /// `Timeout` where no agent runs in the guest, `Refused` where it cannot.
    pub async fn shutdown(&self, sync: u32, limit: Duration) -> Result<(), Error> {
        let late = |_| Error::Timeout { command: "guest-shutdown".into(), limit };
        let _place = self.queue("guest-shutdown")?;
        let mut kept = self.kept.lock().await;
        let synced = self.synced(kept.take(), sync);
        let mut channel = tokio::time::timeout(limit, synced).await.map_err(late)??;
        channel
            .say(&json!({ "execute": "guest-shutdown", "arguments": { "mode": "powerdown" } }))
            .await?;
        match tokio::time::timeout(limit, channel.answer("guest-shutdown")).await {
            Ok(Err(refused @ Error::Refused { .. })) => Err(refused),
            Ok(_) | Err(_) => Ok(()),
        }
    }

    /// Sets the guest's clock, as after it was held for long; `time` in nanoseconds since 1970. Not by the machine's own clock,
    /// which takes a program in the guest that many do not have.
    ///
    /// # Errors
    /// `Timeout` where no agent runs in the guest. `Refused` where it cannot, or where it could but not for the machine's clock too.
    pub async fn set_time(&self, time: i64, sync: u32, limit: Duration) -> Result<(), Error> {
        self.call("guest-set-time", json!({ "time": time }), sync, limit).await.map(drop)
    }

    /// Freezes every file system of the guest that can be; how many those are. None frozen is none to thaw.
    ///
    /// # Errors
    /// `Timeout` where no agent runs in the guest, or its disks take long; it may then freeze them all the same. `Refused` where one
    /// cannot be frozen: none is, then.
    pub async fn freeze(&self, sync: u32, limit: Duration) -> Result<u64, Error> {
        self.count("guest-fsfreeze-freeze", sync, limit).await
    }

    /// Thaws every file system of the guest; how many were frozen.
    ///
    /// # Errors
    /// See [`Error`]; `Timeout` where no agent runs in the guest.
    pub async fn thaw(&self, sync: u32, limit: Duration) -> Result<u64, Error> {
        self.count("guest-fsfreeze-thaw", sync, limit).await
    }

    async fn count(&self, name: &str, sync: u32, limit: Duration) -> Result<u64, Error> {
        let told = self.call(name, json!({}), sync, limit).await?;
        told.as_u64().ok_or_else(|| Error::NotQmp(told.to_string().chars().take(64).collect()))
    }

    /// Every address that the guest has, but for those of loopback interfaces.
    ///
    /// # Errors
    /// See [`Error`]; `Timeout` where no agent runs in the guest.
    pub async fn addresses(&self, sync: u32, limit: Duration) -> Result<Vec<Address>, Error> {
        let told = self.call("guest-network-get-interfaces", json!({}), sync, limit).await?;
        Ok(addresses(&told))
    }

    /// A refusal is an answer as well, and leaves the channel as it should be.
    async fn talk(
        &self,
        kept: Option<Channel>,
        name: &str,
        arguments: Value,
        sync: u32,
    ) -> Result<(Channel, Result<Value, Error>), Error> {
        let mut channel = self.synced(kept, sync).await?;
        channel.say(&json!({ "execute": name, "arguments": arguments })).await?;
        match channel.answer(name).await {
            Err(error) if !matches!(error, Error::Refused { .. }) => Err(error),
            told => Ok((channel, told)),
        }
    }

    /// The channel, when nothing of an earlier call can come on it any more.
    async fn synced(&self, kept: Option<Channel>, sync: u32) -> Result<Channel, Error> {
        if let Some(mut channel) = kept {
            match channel.sync(sync).await {
                // It was closed meanwhile; a new one may be had.
                Err(Error::Closed) => {}
                synced => return synced.map(|()| channel),
            }
        }
        let stream = UnixStream::connect(&self.socket)
            .await
            .map_err(|source| Error::Connect { path: self.socket.clone(), source })?;
        let mut channel = Channel { stream, unread: vec![] };
        channel.sync(sync).await?;
        Ok(channel)
    }

    /// Runs a program in the guest and waits for its end.
    ///
    /// # Errors
    /// See [`Error`]; `Unfinished` where the program runs longer than `limit`.
    pub async fn exec(
        &self,
        argv: &[String],
        mut sync: u32,
        limit: Duration,
    ) -> Result<Executed, Error> {
        const STEP: Duration = Duration::from_secs(10);
        let begun = tokio::time::Instant::now();
        let (path, arguments) = argv.split_first().map_or(("", &[][..]), |(p, a)| (p.as_str(), a));
        let call = json!({ "path": path, "arg": arguments, "capture-output": true });
        let started = self.call("guest-exec", call, sync, STEP.min(limit)).await?;
        let mut pause = Duration::from_millis(50);
        loop {
            sync = sync.wrapping_add(1);
            let query = json!({ "pid": started["pid"] });
            let status = self.call("guest-exec-status", query, sync, STEP).await?;
            if status["exited"].as_bool() == Some(true) {
                let text = |key: &str| status[key].as_str().unwrap_or_default().to_owned();
                let signal = status["signal"].as_i64().map(|s| 128 + s);
                let exit_code = status["exitcode"].as_i64().or(signal).unwrap_or(-1);
                return Ok(Executed { exit_code, out: text("out-data"), err: text("err-data") });
            }
            if begun.elapsed() + pause > limit {
                return Err(Error::Unfinished { program: path.to_owned(), limit });
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_secs(1));
        }
    }
}

/// What is no address is passed over: the guest is not trusted, and one of another kind may come some day.
fn addresses(told: &Value) -> Vec<Address> {
    let mut found = Vec::new();
    for interface in told.as_array().into_iter().flatten() {
        let text = |key: &str| interface[key].as_str().map(str::to_owned);
        for one in interface["ip-addresses"].as_array().into_iter().flatten() {
            let address = one["ip-address"].as_str().and_then(|address| address.parse().ok());
            let prefix = one["prefix"].as_u64().and_then(|prefix| u8::try_from(prefix).ok());
            let Some(address) = address.filter(|address: &std::net::IpAddr| !address.is_loopback())
            else {
                continue;
            };
            found.push(Address {
                address,
                prefix: prefix.unwrap_or_default(),
                interface: text("name").unwrap_or_default(),
                mac: text("hardware-address"),
            });
        }
    }
    found
}

#[derive(Debug)]
struct Channel {
    stream: UnixStream,
    unread: Vec<u8>,
}

impl Channel {
    async fn sync(&mut self, sync: u32) -> Result<(), Error> {
        self.write(&[0xff]).await?;
        self.say(&json!({ "execute": "guest-sync-delimited", "arguments": { "id": sync } }))
            .await?;
        loop {
            self.skip_to_sentinel().await?;
            // Garbage behind a sentinel is an earlier caller's; ours is still to come.
            if matches!(self.answer("guest-sync-delimited").await, Ok(id) if id == json!(sync)) {
                return Ok(());
            }
            if self.unread.is_empty() {
                self.fill().await?;
            }
        }
    }

    async fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.stream.write_all(bytes).await.map_err(|_| Error::Closed)
    }

    async fn say(&mut self, value: &Value) -> Result<(), Error> {
        self.write(format!("{value}\n").as_bytes()).await
    }

    async fn fill(&mut self) -> Result<(), Error> {
        let mut buffer = vec![0; 16 << 10];
        match self.stream.read(&mut buffer).await {
            Ok(count @ 1..) => self.unread.extend_from_slice(&buffer[..count]),
            Ok(0) | Err(_) => return Err(Error::Closed),
        }
        Ok(())
    }

    async fn skip_to_sentinel(&mut self) -> Result<(), Error> {
        loop {
            match self.unread.iter().position(|byte| *byte == 0xff) {
                Some(at) => {
                    self.unread.drain(..=at);
                    return Ok(());
                }
                None => self.unread.clear(),
            }
            self.fill().await?;
        }
    }

    async fn answer(&mut self, command: &str) -> Result<Value, Error> {
        let mut searched = 0;
        let line = loop {
            if let Some(at) = self.unread[searched..].iter().position(|byte| *byte == b'\n') {
                break self.unread.drain(..=searched + at).collect::<Vec<u8>>();
            }
            searched = self.unread.len();
            if searched > MAX_ANSWER {
                return Err(Error::NotQmp("an answer without an end".into()));
            }
            self.fill().await?;
        };
        match crate::parse(&line) {
            Some(crate::Line::Return { value, .. }) => Ok(value),
            Some(crate::Line::Refused { class, desc, .. }) => {
                Err(Error::Refused { command: command.to_owned(), class, desc })
            }
            Some(crate::Line::Event(_) | crate::Line::Greeting(_)) | None => {
                let start = String::from_utf8_lossy(&line[..line.len().min(64)]).into_owned();
                Err(Error::NotQmp(start.escape_debug().to_string()))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::UnixListener;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(20);

    /// An agent that says what `script` makes of each line it reads.
    fn agent(
        script: impl Fn(usize, &Value) -> Vec<u8> + Send + 'static,
    ) -> (tempfile::TempDir, Agent) {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("agent.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        tokio::spawn(async move {
            let mut number = 0;
            while let Ok((mut stream, _)) = listener.accept().await {
                let (mut text, mut buffer) = (vec![], [0; 4096]);
                while let Ok(count @ 1..) = stream.read(&mut buffer).await {
                    text.extend_from_slice(&buffer[..count]);
                    while let Some(at) = text.iter().position(|byte| *byte == b'\n') {
                        let line: Vec<u8> =
                            text.drain(..=at).filter(|byte| *byte != 0xff).collect();
                        let answer = script(number, &serde_json::from_slice(&line).unwrap());
                        number += 1;
                        if stream.write_all(&answer).await.is_err() {
                            break;
                        }
                    }
                }
            }
        });
        (dir, Agent::new(socket))
    }

    fn synced(call: &Value) -> Vec<u8> {
        [&[0xff][..], format!("{{\"return\": {}}}\n", call["arguments"]["id"]).as_bytes()].concat()
    }

    fn honest(call: &Value, answer: &str) -> Vec<u8> {
        if call["execute"] == "guest-sync-delimited" {
            synced(call)
        } else {
            format!("{answer}\n").into_bytes()
        }
    }

    #[tokio::test]
    async fn a_late_reply_of_another_call_is_thrown_away() {
        let (_dir, agent) = agent(|number, call| {
            let mut said = if number == 0 {
                b"{\"return\": \"late\"}\n\xff{\"return\": 1}\nrubbish\n".to_vec()
            } else {
                vec![]
            };
            said.extend(honest(call, "{\"return\": \"mine\"}"));
            said
        });
        assert_eq!(agent.call("guest-x", json!({}), 7, LIMIT).await.unwrap(), "mine");
    }

    /// To an agent that would take any number of connections, which QEMU's channel does not.
    #[tokio::test]
    async fn calls_take_turns() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("agent.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let (open, most) = (Arc::new(Mutex::new(0)), Arc::new(Mutex::new(0)));
        let most_seen = most.clone();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let (open, most) = (open.clone(), most.clone());
                tokio::spawn(async move {
                    *open.lock().await += 1;
                    let now = *open.lock().await;
                    let mut most = most.lock().await;
                    *most = now.max(*most);
                    drop(most);
                    let (mut text, mut buffer) = (vec![], [0; 4096]);
                    while let Ok(count @ 1..) = stream.read(&mut buffer).await {
                        text.extend_from_slice(&buffer[..count]);
                        while let Some(at) = text.iter().position(|byte| *byte == b'\n') {
                            let line: Vec<u8> =
                                text.drain(..=at).filter(|byte| *byte != 0xff).collect();
                            let call: Value = serde_json::from_slice(&line).unwrap();
                            tokio::task::yield_now().await;
                            let answer = format!("{{\"return\": {}}}", call["arguments"]);
                            let _ = stream.write_all(&honest(&call, &answer)).await;
                        }
                    }
                    *open.lock().await -= 1;
                });
            }
        });
        let agent = Agent::new(socket);
        let calls: Vec<_> = (0..20_u32)
            .map(|number| {
                let agent = agent.clone();
                tokio::spawn(async move {
                    agent.call("guest-x", json!(number), number, LIMIT).await.unwrap()
                })
            })
            .collect();
        for (number, call) in calls.into_iter().enumerate() {
            assert_eq!(call.await.unwrap(), json!(number));
        }
        assert_eq!(*most_seen.lock().await, 1);
    }

    /// The fake counts what it has read on all connections, and takes a second one when the first is closed.
    #[tokio::test]
    async fn a_channel_is_kept_behind_an_answer_and_closed_behind_silence() {
        let (_dir, agent) = agent(|number, call| match number {
            // Its sync is answered, and then the call is not.
            3 => vec![],
            _ => honest(call, "{\"error\": {\"class\": \"GenericError\", \"desc\": \"no\"}}"),
        });
        let refused = agent.call("guest-x", json!({}), 1, LIMIT).await.unwrap_err();
        assert!(matches!(refused, Error::Refused { .. }), "{refused}");
        assert!(agent.kept.lock().await.is_some());
        let silent = agent.call("guest-x", json!({}), 2, Duration::from_millis(50)).await;
        assert!(matches!(silent, Err(Error::Timeout { .. })), "{silent:?}");
        assert!(agent.kept.lock().await.is_none());
        assert!(matches!(agent.ping(3, LIMIT).await, Err(Error::Refused { .. })));
    }

    #[tokio::test]
    async fn a_further_call_fails_if_the_queue_is_full() {
        let (_dir, agent) = agent(|_, _| vec![]);
        let mut calls = tokio::task::JoinSet::new();
        for sync in 0..=u32::try_from(CALL_QUEUE).unwrap() {
            let agent = agent.clone();
            calls.spawn(async move { agent.ping(sync, LIMIT).await });
        }
        let first = calls.join_next().await.unwrap().unwrap();
        assert!(matches!(first, Err(Error::QueueFull { .. })), "{first:?}");
    }

    #[tokio::test]
    async fn a_kept_channel_that_was_closed_is_opened_anew() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("agent.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        tokio::spawn(async move {
            // Each connection serves one call, and is closed.
            while let Ok((mut stream, _)) = listener.accept().await {
                let (mut text, mut buffer, mut lines) = (vec![], [0; 4096], 0);
                while lines < 2 {
                    let count = stream.read(&mut buffer).await.unwrap();
                    text.extend(buffer[..count].iter().filter(|byte| **byte != 0xff));
                    while let Some(at) = text.iter().position(|byte| *byte == b'\n') {
                        let line: Vec<u8> = text.drain(..=at).collect();
                        let call = serde_json::from_slice(&line).unwrap();
                        stream.write_all(&honest(&call, "{\"return\": {}}")).await.unwrap();
                        lines += 1;
                    }
                }
            }
        });
        let agent = Agent::new(socket);
        for sync in 0..3 {
            agent.ping(sync, LIMIT).await.unwrap();
        }
    }

    #[tokio::test]
    async fn what_is_frozen_is_counted() {
        let (_dir, agent) = agent(|_, call| match call["execute"].as_str().unwrap() {
            "guest-fsfreeze-freeze" => honest(call, "{\"return\": 3}"),
            _ => honest(call, "{\"return\": {}}"),
        });
        assert_eq!(agent.freeze(7, LIMIT).await.unwrap(), 3);
        assert!(matches!(agent.thaw(8, LIMIT).await.unwrap_err(), Error::NotQmp(_)));
    }

    #[tokio::test]
    async fn an_agent_that_is_not_there_is_a_timeout() {
        let (_dir, agent) = agent(|_, _| vec![]);
        let error = agent.ping(7, Duration::from_millis(50)).await.unwrap_err();
        assert!(matches!(error, Error::Timeout { .. }), "{error}");
    }

    #[tokio::test]
    async fn garbage_is_refused_and_not_believed() {
        let (_dir, agent) = agent(|_, call| honest(call, "\u{1}not json"));
        let error = agent.ping(7, LIMIT).await.unwrap_err();
        assert!(matches!(error, Error::NotQmp(_)), "{error}");
    }

    #[tokio::test]
    async fn an_endless_answer_is_cut() {
        let (_dir, agent) = agent(|_, call| {
            if call["execute"] == "guest-sync-delimited" {
                synced(call)
            } else {
                vec![b'x'; MAX_ANSWER + (1 << 20)]
            }
        });
        assert!(matches!(agent.ping(7, LIMIT).await, Err(Error::NotQmp(_))));
    }

    #[tokio::test]
    async fn a_shutdown_has_no_answer_and_a_refusal_has() {
        let (_dir, silent) =
            agent(
                |_, call| if call["execute"] == "guest-shutdown" { vec![] } else { synced(call) },
            );
        silent.shutdown(7, Duration::from_millis(50)).await.unwrap();
        let (_dir, refuses) =
            agent(|_, call| honest(call, r#"{"error": {"class": "GenericError", "desc": "no"}}"#));
        assert!(matches!(refuses.shutdown(7, LIMIT).await, Err(Error::Refused { .. })));
    }

    #[tokio::test]
    async fn a_command_is_followed_to_its_end() {
        let (_dir, agent) = agent(|number, call| match call["execute"].as_str().unwrap() {
            "guest-exec" => b"{\"return\": {\"pid\": 5}}\n".to_vec(),
            "guest-exec-status" if number < 6 => b"{\"return\": {\"exited\": false}}\n".to_vec(),
            "guest-exec-status" => {
                b"{\"return\": {\"exited\": true, \"exitcode\": 3, \"out-data\": \"aGk=\"}}\n"
                    .to_vec()
            }
            _ => synced(call),
        });
        let done = agent.exec(&["/bin/true".into()], 7, LIMIT).await.unwrap();
        assert_eq!((done.exit_code, done.out.as_str()), (3, "aGk="));
    }
}
