//! A scripted QEMU peer: a QMP server and a guest agent with configurable replies.

use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, Mutex},
    time::Duration,
};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{UnixListener, UnixStream},
    sync::mpsc,
};

use super::{Host, LIMIT};
use crate::{
    store::{layout::VmPaths, record::Record},
    supervisor::running::{event::VmEvent, qemu::Qemu},
    sys::{pidfd::Process, tasks::Tasks},
};

/// The greeting of a QMP server.
const GREETING: &str = qmp::fake::GREETING;

/// The reply to a command.
#[derive(Debug, Clone)]
pub(crate) enum Answer {
    /// This value.
    Return(Value),
    /// A value computed from the arguments.
    Compute(fn(&Value) -> Value),
    /// An empty object after this event.
    After(&'static str),
    /// An error with this description.
    Refuse(&'static str),
    /// No reply.
    Silence,
}

/// Answers by command name.
#[derive(Debug, Clone, Default)]
pub(crate) struct Script(Arc<Mutex<BTreeMap<&'static str, Answer>>>);

impl Script {
    /// Sets the reply to `command`; the default is an empty object.
    pub(crate) fn on(&self, command: &'static str, answer: Answer) -> &Self {
        self.0.lock().unwrap().insert(command, answer);
        self
    }

    fn answer(&self, command: &str) -> Answer {
        let answers = self.0.lock().unwrap();
        answers.get(command).cloned().unwrap_or(Answer::Return(json!({})))
    }
}

/// The commands that a peer has read.
#[derive(Debug, Clone, Default)]
pub(crate) struct Commands(Arc<Mutex<Vec<Value>>>);

impl Commands {
    fn push(&self, command: Value) {
        self.0.lock().unwrap().push(command);
    }

    /// Returns the names.
    pub(crate) fn names(&self) -> Vec<String> {
        let commands = self.0.lock().unwrap();
        commands.iter().map(|one| one["execute"].as_str().unwrap().to_owned()).collect()
    }

    /// Returns the arguments of the last command of this name.
    pub(crate) fn arguments(&self, name: &str) -> Value {
        let commands = self.0.lock().unwrap();
        let found = commands.iter().rev().find(|one| one["execute"] == name);
        found.unwrap_or_else(|| panic!("no `{name}` in {commands:?}"))["arguments"].clone()
    }

    /// Waits until a command of this name was read.
    pub(crate) async fn until(&self, name: &str) {
        let seen = async {
            while !self.names().iter().any(|other| other == name) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        let found = tokio::time::timeout(LIMIT, seen).await;
        assert!(found.is_ok(), "no `{name}` in {:?}", self.names());
    }
}

/// A scripted QEMU process with a guest agent. Its process ID is the one of the test.
pub(crate) struct FakeQemu {
    pub(crate) qemu: Qemu,
    pub(crate) events: mpsc::Receiver<VmEvent>,
    pub(crate) peer: Peer,
}

/// The servers of the QMP and agent sockets.
pub(crate) struct Peer {
    pub(crate) script: Script,
    pub(crate) commands: Commands,
    /// The commands that the guest agent has read.
    pub(crate) calls: Commands,
    /// Lines for the QMP connection, such as events.
    lines: mpsc::Sender<String>,
    _tasks: Tasks,
}

impl Peer {
    /// Sends a QMP event.
    pub(crate) async fn send_event(&self, name: &str, data: Value) {
        self.lines.send(event_line(name, &data)).await.unwrap();
    }
}

fn event_line(name: &str, data: &Value) -> String {
    let time = json!({ "seconds": 1, "microseconds": 1 });
    json!({ "event": name, "data": data, "timestamp": time }).to_string()
}

/// Returns a run record of version 0.1.0, of this process.
pub(crate) fn record() -> Record {
    let text = include_str!("../../../tests/golden/record-0.1.0.json");
    let record: Record = serde_json::from_str(text).unwrap();
    Record { pid: std::process::id(), held: false, frozen_until: None, missed: None, ..record }
}

/// Starts the servers at the sockets of the VM.
pub(crate) fn peer(host: &Host) -> Peer {
    peer_at(host.ctx.paths())
}

/// Starts the servers at these paths.
pub(crate) fn peer_at(paths: &VmPaths) -> Peer {
    let (script, commands, calls) = (Script::default(), Commands::default(), Commands::default());
    let mut tasks = Tasks::default();
    let (lines, to_send) = mpsc::channel(16);
    let monitor = UnixListener::bind(paths.qmp_socket()).unwrap();
    tasks.spawn(play_qmp(monitor, script.clone(), commands.clone(), to_send));
    let agent = UnixListener::bind(paths.agent_socket()).unwrap();
    tasks.spawn(play_agent(agent, script.clone(), calls.clone()));
    Peer { script, commands, calls, lines, _tasks: tasks }
}

impl FakeQemu {
    /// Starts a QEMU process and an agent that reply to every command with an empty object.
    pub(crate) async fn new(host: &Host) -> Self {
        Self::of(host, record()).await
    }

    /// Starts a QEMU process with this run record.
    pub(crate) async fn of(host: &Host, record: Record) -> Self {
        let peer = peer(host);
        let session = qmp::connect(&host.ctx.paths().qmp_socket(), LIMIT).await.unwrap();
        let agent = qmp::agent::Agent::new(host.ctx.paths().agent_socket());
        let process = Arc::new(Process::open(std::process::id()).unwrap());
        let (mut qemu, events) = Qemu::new(process, session.client, agent, record, &host.ctx);
        qemu.listen(session.events);
        Self { qemu, events, peer }
    }

    /// Returns the next event of the tasks.
    pub(crate) async fn event(&mut self) -> VmEvent {
        let event = tokio::time::timeout(LIMIT, self.events.recv()).await;
        event.expect("no event").expect("the queue is closed")
    }
}

async fn play_qmp(
    listener: UnixListener,
    script: Script,
    commands: Commands,
    mut lines: mpsc::Receiver<String>,
) {
    while let Ok((stream, _)) = listener.accept().await {
        // The test closes connections.
        let _ = play_connection(stream, &script, &commands, &mut lines).await;
    }
}

async fn play_connection(
    stream: UnixStream,
    script: &Script,
    commands: &Commands,
    lines: &mut mpsc::Receiver<String>,
) -> io::Result<()> {
    let mut stream = BufReader::new(stream);
    stream.write_all(format!("{GREETING}\r\n").as_bytes()).await?;
    let mut text = Vec::new();
    loop {
        let answer = tokio::select! {
            line = lines.recv() => match line {
                Some(line) => line,
                None => return Ok(()),
            },
            read = stream.read_until(b'\n', &mut text) => {
                if read? == 0 {
                    return Ok(());
                }
                let command: Value = serde_json::from_slice(&std::mem::take(&mut text)).unwrap();
                let name = command["execute"].as_str().unwrap();
                let id = command["id"].clone();
                let answer = match script.answer(name) {
                    Answer::Return(value) => Some(json!({ "return": value, "id": id })),
                    Answer::Compute(value) => {
                        Some(json!({ "return": value(&command["arguments"]), "id": id }))
                    }
                    Answer::After(event) => {
                        let event = format!("{}\r\n", event_line(event, &json!({})));
                        stream.write_all(event.as_bytes()).await?;
                        Some(json!({ "return": {}, "id": id }))
                    }
                    Answer::Refuse(desc) => {
                        let error = json!({ "class": "GenericError", "desc": desc });
                        Some(json!({ "error": error, "id": id }))
                    }
                    Answer::Silence => None,
                };
                commands.push(command);
                match answer {
                    Some(answer) => answer.to_string(),
                    None => continue,
                }
            }
        };
        stream.write_all(format!("{answer}\r\n").as_bytes()).await?;
    }
}

/// The guest agent, which replies like QEMU.
async fn play_agent(listener: UnixListener, script: Script, calls: Commands) {
    while let Ok((mut stream, _)) = listener.accept().await {
        let (mut unread, mut buffer) = (vec![], [0; 4096]);
        while let Ok(count @ 1..) = stream.read(&mut buffer).await {
            unread.extend_from_slice(&buffer[..count]);
            while let Some(end) = unread.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = unread.drain(..=end).filter(|byte| *byte != 0xff).collect();
                let call: Value = serde_json::from_slice(&line).unwrap();
                let name = call["execute"].as_str().unwrap();
                let answer = if name == "guest-sync-delimited" {
                    [
                        &[0xff][..],
                        format!("{}\n", json!({ "return": call["arguments"]["id"] })).as_bytes(),
                    ]
                    .concat()
                } else {
                    let answer = match script.answer(name) {
                        Answer::Return(value) => json!({ "return": value }).to_string() + "\n",
                        Answer::Compute(value) => {
                            json!({ "return": value(&call["arguments"]) }).to_string() + "\n"
                        }
                        Answer::Refuse(desc) => {
                            let error = json!({ "class": "CommandNotFound", "desc": desc });
                            json!({ "error": error }).to_string() + "\n"
                        }
                        Answer::Silence | Answer::After(_) => String::new(),
                    };
                    calls.push(call);
                    answer.into_bytes()
                };
                if stream.write_all(&answer).await.is_err() {
                    break;
                }
            }
        }
    }
}
