//! The client of the guest agent: JSON as in QMP but without ids, over a channel that can contain
//! unread replies of earlier calls.
//!
//! Every call begins with `guest-sync-delimited`: a 0xFF byte and a number; everything before the
//! reply with this number is discarded, so that a late reply is never assigned to another call.
//! Without an agent there is no reply, so every call has a deadline. The guest is not trusted:
//! replies are bounded.
//!
//! The channel remains open after a successful call: an agent whose channel is closed polls it
//! every 100 ms (qga/main.c, `channel_event_cb`). After a failed call it is closed, which discards
//! pending replies.
//!
//! QEMU's chardev serves one connection at a time: the kernel accepts a second one, but nothing is
//! read from it until the first is closed (chardev/char-socket.c, `tcp_chr_disconnect_locked`).
//! Calls are therefore serialized here, and the time in the queue does not count against the
//! deadline.

use std::{path::PathBuf, sync::Arc, time::Duration};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    sync::{Mutex, OwnedSemaphorePermit, Semaphore},
};

use crate::Error;

/// The maximum length of a reply in bytes: `guest-exec-status` returns up to 16 MiB of each stream
/// in base64 (qga/commands.c).
const MAX_ANSWER: usize = 48 << 20;

/// The maximum number of queued and running calls; further calls fail immediately.
pub const CALL_QUEUE: usize = 64;

/// The address of the channel. Calls of all clones are serialized in their order.
#[derive(Debug, Clone)]
pub struct Agent {
    socket: PathBuf,
    /// The open channel after a successful call.
    kept: Arc<Mutex<Option<Channel>>>,
    /// Each permit is a queued or running call.
    calls: Arc<Semaphore>,
}

/// The result of a command in the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Executed {
    /// Its exit code; 128 plus the signal number if a signal ended it.
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
    /// The prefix length in bits.
    pub prefix: u8,
    /// The name of the interface in the guest.
    pub interface: String,
    /// The hardware address of the interface in the guest's notation.
    pub mac: Option<String>,
}

impl Agent {
    /// Returns a client for this socket without connecting.
    pub fn new(socket: PathBuf) -> Self {
        Self { socket, kept: Arc::default(), calls: Arc::new(Semaphore::new(CALL_QUEUE)) }
    }

    /// Queues the call of `command`.
    fn queue(&self, command: &str) -> Result<OwnedSemaphorePermit, Error> {
        self.calls
            .clone()
            .try_acquire_owned()
            .map_err(|_| Error::QueueFull { command: command.to_owned(), waiting: CALL_QUEUE })
    }

    /// Checks that an agent responds.
    ///
    /// # Errors
    /// `Timeout` if no agent responds.
    pub async fn ping(&self, sync: u32, limit: Duration) -> Result<(), Error> {
        self.call("guest-ping", json!({}), sync, limit).await.map(drop)
    }

    /// Calls `name`. `sync` is a number that no recent call used; `limit` begins when the call
    /// leaves the queue.
    ///
    /// # Errors
    /// See [`Error`]; `Timeout` if no agent runs in the guest.
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
        let (channel, reply) = tokio::time::timeout(limit, talk).await.map_err(late)??;
        *kept = Some(channel);
        reply
    }

    /// Shuts the guest down. The agent replies only on failure, so a timeout after the sync means
    /// success.
    ///
    /// # Errors
    /// `Timeout` if no agent runs in the guest, `Refused` if it cannot shut down.
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

    /// Sets the guest's clock, for example after a long pause; `time` in nanoseconds since 1970.
    /// The hardware clock is not used: that requires a program that many guests lack.
    ///
    /// # Errors
    /// `Timeout` if no agent runs in the guest. `Refused` if it cannot set the clock, or only not
    /// the hardware clock.
    pub async fn set_time(&self, time: i64, sync: u32, limit: Duration) -> Result<(), Error> {
        self.call("guest-set-time", json!({ "time": time }), sync, limit).await.map(drop)
    }

    /// Freezes all file systems of the guest that support it; returns their number.
    ///
    /// # Errors
    /// `Timeout` if no agent runs in the guest, or its disks are slow, in which case it may still
    /// freeze them. `Refused` if one cannot be frozen: then none is.
    pub async fn freeze(&self, sync: u32, limit: Duration) -> Result<u64, Error> {
        self.count("guest-fsfreeze-freeze", sync, limit).await
    }

    /// Thaws all file systems of the guest; returns the number of frozen ones.
    ///
    /// # Errors
    /// See [`Error`]; `Timeout` if no agent runs in the guest.
    pub async fn thaw(&self, sync: u32, limit: Duration) -> Result<u64, Error> {
        self.count("guest-fsfreeze-thaw", sync, limit).await
    }

    async fn count(&self, name: &str, sync: u32, limit: Duration) -> Result<u64, Error> {
        let reply = self.call(name, json!({}), sync, limit).await?;
        reply.as_u64().ok_or_else(|| Error::NotQmp(reply.to_string().chars().take(64).collect()))
    }

    /// Returns all addresses of the guest except those of loopback interfaces.
    ///
    /// # Errors
    /// See [`Error`]; `Timeout` if no agent runs in the guest.
    pub async fn addresses(&self, sync: u32, limit: Duration) -> Result<Vec<Address>, Error> {
        let reply = self.call("guest-network-get-interfaces", json!({}), sync, limit).await?;
        Ok(addresses(&reply))
    }

    /// A refusal is also a reply and leaves the channel usable.
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
            reply => Ok((channel, reply)),
        }
    }

    /// Returns a channel without pending replies of earlier calls.
    async fn synced(&self, kept: Option<Channel>, sync: u32) -> Result<Channel, Error> {
        if let Some(mut channel) = kept {
            match channel.sync(sync).await {
                // The channel was closed in the meantime; connect again.
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

    /// Runs a program in the guest and waits for its exit.
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

/// Invalid addresses are skipped: the guest is not trusted, and new kinds may appear.
fn addresses(reply: &Value) -> Vec<Address> {
    let mut found = Vec::new();
    for interface in reply.as_array().into_iter().flatten() {
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
            // Invalid data after a sentinel belongs to an earlier call.
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

    /// An agent that sends what `script` returns for each line.
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
    async fn late_reply_of_another_call_is_discarded() {
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

    /// This agent accepts any number of connections, unlike QEMU's channel.
    #[tokio::test]
    async fn calls_are_serialized() {
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

    /// The fake counts what it reads on all connections, and accepts a second one when the first is
    /// closed.
    #[tokio::test]
    async fn channel_is_closed_after_timeouts() {
        let (_dir, agent) = agent(|number, call| match number {
            // Only the sync gets a reply.
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
    async fn call_fails_if_the_queue_is_full() {
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
    async fn closed_channel_is_reopened() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("agent.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        tokio::spawn(async move {
            // Each connection serves one call and is closed.
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
    async fn frozen_file_systems_are_counted() {
        let (_dir, agent) = agent(|_, call| match call["execute"].as_str().unwrap() {
            "guest-fsfreeze-freeze" => honest(call, "{\"return\": 3}"),
            _ => honest(call, "{\"return\": {}}"),
        });
        assert_eq!(agent.freeze(7, LIMIT).await.unwrap(), 3);
        assert!(matches!(agent.thaw(8, LIMIT).await.unwrap_err(), Error::NotQmp(_)));
    }

    #[tokio::test]
    async fn missing_agent_is_a_timeout() {
        let (_dir, agent) = agent(|_, _| vec![]);
        let error = agent.ping(7, Duration::from_millis(50)).await.unwrap_err();
        assert!(matches!(error, Error::Timeout { .. }), "{error}");
    }

    #[tokio::test]
    async fn invalid_replies_are_errors() {
        let (_dir, agent) = agent(|_, call| honest(call, "\u{1}not json"));
        let error = agent.ping(7, LIMIT).await.unwrap_err();
        assert!(matches!(error, Error::NotQmp(_)), "{error}");
    }

    #[tokio::test]
    async fn endless_reply_is_an_error() {
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
    async fn only_a_refused_shutdown_has_a_reply() {
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
    async fn command_is_awaited_until_exit() {
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
