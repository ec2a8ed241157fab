//! Fixtures of the supervisor's unit tests: a context below a temporary directory, and a scripted
//! QEMU peer.

mod loop_steps;
#[path = "../../../tests/netns/mod.rs"]
pub(crate) mod netns;
mod requests;
mod shutdowns;
mod starts;
mod statuses;

use std::{
    cell::RefCell,
    collections::BTreeMap,
    io,
    os::unix::net::UnixDatagram,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{UnixListener, UnixStream},
    sync::{broadcast, mpsc},
};

use super::{
    context::Context,
    running::{event::VmEvent, qemu::Qemu},
    settings::Settings,
};
use crate::{
    control::types::Event,
    net::broker::Network,
    spec::{self, Vm},
    store::{
        layout::{Layout, VmPaths},
        record::Record,
    },
    sys::{pidfd::Process, tasks::Tasks},
    systemd::unit::Scope,
};

/// How long a test waits for what must happen, before it fails.
fn limit() -> Duration {
    Duration::from_secs(60)
}
/// The greeting of a QMP server.
const GREETING: &str = qmp::fake::GREETING;

/// How the peer answers a command.
#[derive(Debug, Clone)]
pub(crate) enum Answer {
    /// With this value.
    Return(Value),
    /// With a value computed from the arguments.
    Compute(fn(&Value) -> Value),
    /// With an empty object, behind this event.
    After(&'static str),
    /// With an error of this description.
    Refuse(&'static str),
    /// Not at all.
    Silence,
}

/// Answers by command name.
#[derive(Debug, Clone, Default)]
pub(crate) struct Script(Arc<Mutex<BTreeMap<&'static str, Answer>>>);

impl Script {
    /// From now on `command` is answered so. Without that, it is answered with an empty object.
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
        let found = tokio::time::timeout(limit(), seen).await;
        assert!(found.is_ok(), "no `{name}` in {:?}", self.names());
    }
}

/// A context below a temporary directory, which is removed with it.
pub(crate) struct Host {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) ctx: Context,
    events: broadcast::Receiver<Arc<Event>>,
}

/// The settings of a VM `web` below `dir`.
pub(crate) fn settings(dir: &Path) -> Settings {
    let [config, state, runtime] = ["c", "s", "r"].map(|place| dir.join(place));
    Settings {
        layout: Layout { config, state, runtime },
        name: "web".parse().unwrap(),
        qemu: None,
        search_path: None,
        config_home: None,
        root: dir.to_owned(),
        host_id: "0123456789abcdef0123456789abcdef".into(),
        scope: Scope::User,
        network: Network::default(),
        machined: None,
        uuid: || "6f1ed002-ab5d-42b7-8d6e-5e1c2f3a4b5c".into(),
        now: jiff::Timestamp::now,
        env: |name| ENVIRONMENT.with_borrow(|all| all.get(name).cloned()),
    }
}

/// Reads a VM file of a VM `web` on TCG, whose disk is a file that this creates below `dir`.
pub(crate) fn prepared_vm(dir: &Path, text: &str) -> Vm {
    let file = dir.join("root.raw");
    std::fs::write(&file, vec![0; 1 << 20]).unwrap();
    let (keys, tables) = match text.find('[') {
        Some(at) => text.split_at(at),
        None => (text, ""),
    };
    let disk = format!("[disk.root]\npath = \"{}\"\nformat = \"raw\"\n", file.display());
    vm(&format!("accel = \"tcg\"\n{keys}{disk}{tables}"))
}

/// Creates a program below `dir` that knows the version and the machine types of QEMU 8.2, and
/// else runs `script` of sh(1). A process other than this one writes it: a file that is open for
/// writing, also in a child that another test forks, cannot be executed (ETXTBSY).
pub(crate) fn qemu_program(dir: &Path, script: &str) -> PathBuf {
    let program = dir.join("qemu-system-x86_64");
    let text = format!(
        "#!/bin/sh\ncase \" $* \" in\n*' -version '*) echo 'QEMU emulator version 8.2.1'; exit ;;\n\
         *' -machine help '*) echo 'q35 PC (alias of pc-q35-8.2)'; exit ;;\nesac\n{script}\n"
    );
    let write = "printf %s \"$2\" > \"$1\" && chmod 755 \"$1\"";
    let mut command = std::process::Command::new("sh");
    let written = command.args(["-c", write, "sh"]).arg(&program).arg(text).status();
    assert!(written.unwrap().success());
    program
}

/// Reads a VM file of a VM `web`.
pub(crate) fn vm(text: &str) -> Vm {
    let file = Path::new("/v/web.toml");
    spec::read(&"web".parse().unwrap(), file, text, &mut |_| Ok(vec![])).unwrap()
}

thread_local! {
    /// The environment variables of the service manager, for contexts created by this thread.
    static ENVIRONMENT: RefCell<BTreeMap<&'static str, String>> = RefCell::default();
}

/// The service manager of a unit whose main process is this one: what it is notified of.
pub(crate) struct Unit {
    dir: tempfile::TempDir,
    socket: UnixDatagram,
}

impl Unit {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = UnixDatagram::bind(dir.path().join("notify")).unwrap();
        socket.set_nonblocking(true).unwrap();
        Self { dir, socket }
    }

    /// Reads notifications until one contains this text. Returns all of them.
    pub(crate) async fn until(&self, text: &str) -> Vec<String> {
        let (mut all, mut buffer) = (vec![], [0; 4096]);
        let begun = std::time::Instant::now();
        loop {
            let Ok(length) = self.socket.recv(&mut buffer) else {
                assert!(begun.elapsed() < limit(), "no `{text}` in {all:?}");
                tokio::time::sleep(Duration::from_millis(1)).await;
                continue;
            };
            let message = String::from_utf8(buffer[..length].to_vec()).unwrap();
            let is_last = message.contains(text);
            all.push(message);
            if is_last {
                return all;
            }
        }
    }
}

impl Host {
    pub(crate) fn new() -> Self {
        Self::with(|_| ())
    }

    /// A host on which the supervisor is the main process of this unit.
    pub(crate) fn in_unit(unit: &Unit) -> Self {
        Self::in_unit_with(unit, |_| ())
    }

    /// The same with these settings.
    pub(crate) fn in_unit_with(unit: &Unit, change: impl FnOnce(&mut Settings)) -> Self {
        let socket = unit.dir.path().join("notify").display().to_string();
        let watchdog = [("NOTIFY_SOCKET", socket), ("WATCHDOG_USEC", "30000000".into())];
        ENVIRONMENT.with_borrow_mut(|all| all.extend(watchdog));
        let host = Self::with(change);
        ENVIRONMENT.with_borrow_mut(BTreeMap::clear);
        host
    }

    /// A host with these settings.
    pub(crate) fn with(change: impl FnOnce(&mut Settings)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut settings = settings(dir.path());
        change(&mut settings);
        let ctx = Context::new(settings);
        for path in [&ctx.paths().state, &ctx.paths().runtime] {
            std::fs::create_dir_all(path).unwrap();
        }
        let events = ctx.watchers().subscribe();
        Self { dir, ctx, events }
    }

    /// Returns the names of the events that were published since the last call.
    pub(crate) fn published(&mut self) -> Vec<String> {
        std::iter::from_fn(|| self.events.try_recv().ok())
            .map(|event| event.event.clone())
            .collect()
    }
}

/// A QEMU process that is a scripted peer, with its guest's agent. The process id is the test's
/// own.
pub(crate) struct FakeQemu {
    pub(crate) qemu: Qemu,
    pub(crate) events: mpsc::Receiver<VmEvent>,
    pub(crate) peer: Peer,
}

/// The other end of the sockets.
pub(crate) struct Peer {
    pub(crate) script: Script,
    pub(crate) commands: Commands,
    /// What the guest agent has read.
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

/// A run record as version 0.1.0 has written it, of this process.
pub(crate) fn record() -> Record {
    let text = include_str!("../../../tests/golden/record-0.1.0.json");
    let record: Record = serde_json::from_str(text).unwrap();
    Record { pid: std::process::id(), held: false, frozen_until: None, missed: None, ..record }
}

/// Begins to play the peer at the VM's sockets.
pub(crate) fn peer(host: &Host) -> Peer {
    peer_at(host.ctx.paths())
}

/// The same, by the paths.
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
    /// A QEMU process that answers every command with an empty object, and an agent that does so as
    /// well.
    pub(crate) async fn new(host: &Host) -> Self {
        Self::of(host, record()).await
    }

    /// The same with this run record.
    pub(crate) async fn of(host: &Host, record: Record) -> Self {
        let peer = peer(host);
        let session = qmp::connect(&host.ctx.paths().qmp_socket(), limit()).await.unwrap();
        let agent = qmp::agent::Agent::new(host.ctx.paths().agent_socket());
        let process = Arc::new(Process::open(std::process::id()).unwrap());
        let (mut qemu, events) = Qemu::new(process, session.client, agent, record, &host.ctx);
        qemu.listen(session.events);
        Self { qemu, events, peer }
    }

    /// Returns the next event of the tasks.
    pub(crate) async fn event(&mut self) -> VmEvent {
        let event = tokio::time::timeout(limit(), self.events.recv()).await;
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
        // A connection that closes is the test's doing.
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

/// The guest agent: calls are answered as commands of QEMU are.
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
