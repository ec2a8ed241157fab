//! The control socket against a loop that only records requests: with qvm's own client, byte by
//! byte, with the Python package `varlink`, and with `qvm console` on a terminal.
use std::{
    collections::VecDeque,
    io::{IoSlice, Read, Write},
    os::{
        fd::{AsRawFd, BorrowedFd, OwnedFd},
        unix::net::{UnixListener, UnixStream as StdStream},
    },
    path::PathBuf,
    process::{Child, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use nix::sys::termios;
use qvm::control::{
    authorizer::{Accounts, Authorizer},
    client::{Client, Error},
    handle::ControlHandle,
    server,
    types::{Command, Event, Executed, Guest, Refusal, Request, Status},
};
use qvm::value::{ErrorCode, Explain, Operator, Peer};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::UnixStream,
    sync::{broadcast, mpsc, watch},
    task::JoinHandle,
};

use crate::lab::refusal::golden;

/// The time limit, after which a client counts as hung.
const BOUND: Duration = Duration::from_secs(30);

/// Child processes react to SIGHUP, even if the tests run under nohup(1): a signal with a handler
/// has its default action in a child (execve(2)).
fn hangs_up() {
    static HANDLER: std::sync::Once = std::sync::Once::new();
    HANDLER.call_once(|| {
        signal_hook::flag::register(signal_hook::consts::SIGHUP, Arc::default()).unwrap();
    });
}

async fn soon<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(BOUND, work).await.expect("it hangs")
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    soon(tokio::task::spawn_blocking(work)).await.unwrap()
}

fn status() -> Status {
    let text = json!({
        "name": "web", "state": "running", "vcpu": 2, "memBytes": 1_073_741_824,
        "memActualBytes": 536_870_912, "memTargetBytes": 805_306_368, "cpuWeight": 100,
        "autostart": true, "pending": [], "notes": ["a \u{1F980} \"note\"\n"], "ends": [],
    });
    serde_json::from_value(text).unwrap()
}

/// A supervisor's loop that answers at once and records the requests.
struct Fake {
    dir: TempDir,
    commands: Arc<Mutex<Vec<Command>>>,
    /// The results of the next commands; then `Ok`.
    answers: Arc<Mutex<VecDeque<Refusal>>>,
    events: broadcast::Sender<std::sync::Arc<Event>>,
    operators: watch::Sender<Vec<Operator>>,
    /// The guest's ends of the consoles.
    consoles: mpsc::UnboundedReceiver<(bool, StdStream)>,
    served: JoinHandle<()>,
    answering: JoinHandle<()>,
}

/// Root, with all permissions.
fn root(_: BorrowedFd<'_>) -> std::io::Result<Peer> {
    Ok(Peer { uid: 0, gid: 0, groups: vec![] })
}

/// A member of the socket's group.
fn alice(_: BorrowedFd<'_>) -> std::io::Result<Peer> {
    Ok(Peer { uid: 1000, gid: 1000, groups: vec![27] })
}

impl Fake {
    fn new() -> Self {
        hangs_up();
        Self::seeing(root)
    }

    /// All clients have these credentials.
    fn seeing(peer: fn(BorrowedFd<'_>) -> std::io::Result<Peer>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("run/web")).unwrap();
        let listener = UnixListener::bind(dir.path().join("run/web/control.sock")).unwrap();
        let (requests, asked) = mpsc::channel(64);
        let (events, _) = broadcast::channel(256);
        let (attached, consoles) = mpsc::unbounded_channel();
        let (commands, answers) = (Arc::default(), Arc::default());
        let answering = answer(asked, Arc::clone(&commands), Arc::clone(&answers), attached);
        let (operators, told) = watch::channel(vec![]);
        let accounts = Accounts {
            id: |operator| match operator {
                Operator::Uid(id) | Operator::Gid(id) => Some(*id),
                Operator::User(_) | Operator::Group(_) => None,
            },
            name: |_| Some("alice".to_owned()),
        };
        let authorizer =
            Authorizer { own: 0, operators: told, file: "/etc/qvm/vms/web.toml".into(), accounts };
        let port = ControlHandle {
            requests,
            events: events.clone(),
            authorizer,
            replaced: Arc::default(),
            peer,
        };
        Self {
            dir,
            commands,
            answers,
            events,
            operators,
            consoles,
            served: tokio::spawn(server::serve(listener, port)),
            answering: tokio::spawn(answering),
        }
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("run/web/control.sock")
    }

    async fn client(&self) -> Client {
        soon(Client::connect(&self.socket())).await.unwrap()
    }

    async fn raw(&self) -> Raw {
        Raw(BufReader::new(UnixStream::connect(self.socket()).await.unwrap()))
    }

    fn commands(&self) -> Vec<Command> {
        std::mem::take(&mut self.commands.lock().unwrap())
    }

    fn refuse(&self, refusal: Refusal) {
        self.answers.lock().unwrap().push_back(refusal);
    }

    fn happens(&self, name: &str) {
        let _ = self
            .events
            .send(Event { at: None, event: name.into(), data: Some(json!({ "a": 1 })) }.into());
    }

    /// Ends the loop; the server sends its last messages.
    async fn end(self) -> TempDir {
        self.answering.abort();
        soon(self.served).await.unwrap();
        self.dir
    }

    /// Starts `qvm` with these standard streams.
    fn qvm(&self, words: &[&str], stdin: Stdio, stdout: Stdio) -> Running {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_qvm"));
        for (option, dir) in [("config", "etc"), ("state", "lib"), ("runtime", "run")] {
            command.arg(format!("--{option}-dir")).arg(self.dir.path().join(dir));
        }
        let child = command.args(words).stdin(stdin).stdout(stdout).stderr(Stdio::piped());
        Running(child.spawn().unwrap())
    }
}

async fn answer(
    mut asked: mpsc::Receiver<Request>,
    commands: Arc<Mutex<Vec<Command>>>,
    answers: Arc<Mutex<VecDeque<Refusal>>>,
    attached: mpsc::UnboundedSender<(bool, StdStream)>,
) {
    while let Some(request) = asked.recv().await {
        match request {
            Request::Command(command, reply) => {
                commands.lock().unwrap().push(command);
                let _ = reply.send(answers.lock().unwrap().pop_front().map_or(Ok(()), Err));
            }
            Request::Status(reply) => drop(reply.send(status())),
            Request::Guest(reply) => {
                let _ = reply.send(Ok(Guest { answers: true, addresses: vec![] }));
            }
            Request::Exec { argv, limit, reply } => {
                let out = match argv[0].as_str() {
                    "large" => "QUFB".repeat(2 << 20),
                    _ => format!("{argv:?} {}", limit.as_secs()),
                };
                let _ = reply.send(Ok(Executed { exit_code: 3, out, err: String::new() }));
            }
            Request::Agent { command, arguments, limit, reply } => {
                let told = serde_json::json!([command, arguments, limit.as_secs()]);
                let _ = reply.send(match command.as_str() {
                    "guest-no" => Err(Refusal::Guest {
                        class: "CommandNotFound".into(),
                        reason: "never heard of it".into(),
                    }),
                    "guest-file-open" => Err(Refusal::Frozen { left: Duration::from_secs(7) }),
                    _ => Ok(told),
                });
            }
            Request::Freeze { thaw_after, reply } => drop(reply.send(Ok(thaw_after.as_secs()))),
            Request::Thaw(reply) => drop(reply.send(Ok(0))),
            Request::RecentEvents(reply) => drop(reply.send(vec![])),
            Request::Statistics(reply) => drop(reply.send(Ok(Default::default()))),
            Request::Screenshot(reply) => {
                drop(reply.send(Err(Refusal::Failed(ErrorCode::NoScreen, "no screen".into()))));
            }
            Request::Press(chords, reply) => {
                let all: Vec<String> = chords.iter().map(ToString::to_string).collect();
                let _ = reply.send(Err(Refusal::Failed(ErrorCode::Other, all.join(" "))));
            }
            Request::Console { read_only, reply, .. } => {
                let (guest, viewer) = StdStream::pair().unwrap();
                let _ = attached.send((read_only, guest));
                let _ = reply.send(Ok(OwnedFd::from(viewer)));
            }
        }
    }
}

/// A process that ends with its test.
struct Running(Child);

impl Running {
    /// Returns its exit code and standard error after its end.
    fn end(mut self) -> (Option<i32>, String) {
        let mut told = String::new();
        self.0.stderr.take().unwrap().read_to_string(&mut told).unwrap();
        (self.0.wait().unwrap().code(), told)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A varlink connection.
struct Raw(BufReader<UnixStream>);

impl Raw {
    async fn bytes(&mut self, bytes: &[u8]) {
        self.0.get_mut().write_all(bytes).await.unwrap();
    }

    async fn say(&mut self, call: Value) {
        self.bytes(format!("{call}\0").as_bytes()).await;
    }

    /// The next message; `None` at the end.
    async fn hear(&mut self) -> Option<Value> {
        let mut message = vec![];
        // A server that closes with unread bytes resets the connection, which counts as an end too.
        let _ = soon(self.0.read_until(0, &mut message)).await;
        (message.pop() == Some(0)).then(|| serde_json::from_slice(&message).unwrap())
    }

    async fn call(&mut self, method: &str, parameters: Value) -> Value {
        self.say(json!({ "method": method, "parameters": parameters })).await;
        self.hear().await.unwrap()
    }

    async fn error(&mut self, method: &str, parameters: Value) -> (String, Value) {
        let reply = self.call(method, parameters).await;
        (reply["error"].as_str().unwrap_or("none").to_owned(), reply["parameters"].clone())
    }
}

#[tokio::test]
async fn service_information_is_returned() {
    let fake = Fake::new();
    let mut raw = fake.raw().await;
    let info = raw.call("org.varlink.service.GetInfo", json!({})).await;
    let interfaces = ["org.varlink.service", "io.systemd.MachineInstance", "io.qvm.Vm"];
    assert_eq!(info["parameters"]["interfaces"], json!(interfaces));
    assert_eq!(info["parameters"]["version"], env!("CARGO_PKG_VERSION"));
    for interface in interfaces {
        let asked = json!({ "interface": interface });
        let told = raw.call("org.varlink.service.GetInterfaceDescription", asked).await;
        let file = format!("{}/docs/{interface}.varlink", env!("CARGO_MANIFEST_DIR"));
        let text = std::fs::read_to_string(file).unwrap();
        assert_eq!(told, json!({ "parameters": { "description": text } }));
    }
}

#[tokio::test]
async fn every_method_is_its_command() {
    let fake = Fake::new();
    let mut raw = fake.raw().await;
    let off = |timeout_sec| Command::PowerOff { timeout_sec };
    for (method, parameters, command) in [
        ("io.systemd.MachineInstance.Terminate", json!({}), Command::Terminate),
        ("io.systemd.MachineInstance.PowerOff", json!({}), off(None)),
        ("io.systemd.MachineInstance.Reboot", json!({}), Command::Reboot),
        ("io.systemd.MachineInstance.Pause", json!({}), Command::Pause),
        ("io.systemd.MachineInstance.Resume", json!(null), Command::Resume),
        (
            "io.systemd.MachineInstance.SetMemory",
            json!({ "bytes": 1 << 29 }),
            Command::SetMemory { bytes: 1 << 29 },
        ),
        ("io.qvm.Vm.PowerOff", json!({}), off(None)),
        ("io.qvm.Vm.PowerOff", json!({ "timeoutSec": 5 }), off(Some(5))),
        ("io.qvm.Vm.Kill", json!({}), Command::Terminate),
        ("io.qvm.Vm.Reboot", json!({}), Command::Reboot),
        ("io.qvm.Vm.Reset", json!({}), Command::Reset),
        ("io.qvm.Vm.Pause", json!({}), Command::Pause),
        ("io.qvm.Vm.Resume", json!({}), Command::Resume),
        ("io.qvm.Vm.Reload", json!({}), Command::Reload),
    ] {
        assert_eq!(raw.call(method, parameters).await, json!({ "parameters": {} }), "{method}");
        assert_eq!(fake.commands(), [command], "{method}");
    }
    // Without `parameters`, like some clients.
    raw.say(json!({ "method": "io.qvm.Vm.Kill" })).await;
    assert_eq!(raw.hear().await, Some(json!({ "parameters": {} })));
}

#[tokio::test]
async fn own_client_makes_every_call() {
    let fake = Fake::new();
    let mut client = fake.client().await;
    let commands = [
        Command::PowerOff { timeout_sec: None },
        Command::PowerOff { timeout_sec: Some(7) },
        Command::Terminate,
        Command::Reboot,
        Command::Reset,
        Command::Pause,
        Command::Resume,
        Command::Reload,
        Command::SetMemory { bytes: 1 << 29 },
    ];
    for command in commands {
        soon(client.command(command)).await.unwrap();
    }
    assert_eq!(fake.commands(), commands);
    assert_eq!(soon(client.status(BOUND)).await.unwrap(), status());
}

#[tokio::test]
async fn state_is_returned() {
    let fake = Fake::new();
    let mut raw = fake.raw().await;
    let told = raw.call("io.qvm.Vm.Status", json!({})).await;
    assert_eq!(told["parameters"]["status"], serde_json::to_value(status()).unwrap());
    let memory = json!({
        "configuredBytes": 1_073_741_824, "targetBytes": 805_306_368, "actualBytes": 536_870_912,
    });
    assert_eq!(
        raw.call("io.systemd.MachineInstance.Describe", json!({})).await["parameters"],
        json!({ "running": true, "status": "running", "memory": memory })
    );
    assert_eq!(
        raw.call("io.systemd.MachineInstance.QueryStatus", json!({})).await["parameters"],
        json!({ "running": true, "status": "running" })
    );
}

#[tokio::test]
async fn errors_have_their_names() {
    let fake = Fake::new();
    let mut raw = fake.raw().await;
    let service = |name: &str| format!("org.varlink.service.{name}");
    for method in ["AddStorage", "RemoveStorage", "ReplaceStorage"] {
        let method = format!("io.systemd.MachineInstance.{method}");
        let name = "io.systemd.MachineInstance.NotSupported".to_owned();
        assert_eq!(raw.error(&method, json!({ "name": "x" })).await.0, name);
    }
    for (method, parameters, name, said) in [
        ("io.qvm.Vm.Fly", json!({}), "MethodNotFound", json!({ "method": "io.qvm.Vm.Fly" })),
        ("io.unknown.Fly", json!({}), "InterfaceNotFound", json!({ "interface": "io.unknown" })),
        ("Fly", json!({}), "InterfaceNotFound", json!({ "interface": "Fly" })),
        (
            "io.qvm.Vm.PowerOff",
            json!({ "timeoutSec": "soon" }),
            "InvalidParameter",
            json!({ "parameter": "timeoutSec" }),
        ),
        (
            "io.systemd.MachineInstance.SetMemory",
            json!({ "bytes": -5 }),
            "InvalidParameter",
            json!({ "parameter": "bytes" }),
        ),
        (
            "org.varlink.service.GetInterfaceDescription",
            json!({ "interface": "io.unknown" }),
            "InterfaceNotFound",
            json!({ "interface": "io.unknown" }),
        ),
    ] {
        assert_eq!(raw.error(method, parameters).await, (service(name), said), "{method}");
    }
    for method in ["io.qvm.Vm.Watch", "io.systemd.MachineInstance.SubscribeEvents"] {
        assert_eq!(raw.error(method, json!({})).await.0, service("ExpectedMore"));
    }
    raw.say(json!({ "method": "io.qvm.Vm.Status", "upgrade": true })).await;
    assert_eq!(raw.hear().await.unwrap()["error"], service("MethodNotImplemented"));
    // None of these calls reached the loop.
    assert_eq!(fake.commands(), []);
}

/// Descriptions are readable with permission for the state only, and do not reach the loop.
#[tokio::test]
async fn non_operator_reads_state_only() {
    let fake = Fake::seeing(alice);
    let mut raw = fake.raw().await;
    let vm = "io.qvm.Vm";
    let machine = "io.systemd.MachineInstance";
    let limit = json!({ "thawAfterSec": 1 });
    let exec = json!({ "argv": ["true"] });
    let calls = [
        (machine, "Terminate", json!({}), "force the VM off"),
        (machine, "PowerOff", json!({}), "shut the VM down"),
        (machine, "Reboot", json!({}), "reboot the VM"),
        (machine, "Pause", json!({}), "pause the VM"),
        (machine, "Resume", json!({}), "resume the VM"),
        (machine, "SetMemory", json!({ "bytes": 1 }), "change the VM's memory"),
        (vm, "PowerOff", json!({}), "shut the VM down"),
        (vm, "Kill", json!({}), "force the VM off"),
        (vm, "Reboot", json!({}), "reboot the VM"),
        (vm, "Reset", json!({}), "reset the VM"),
        (vm, "Pause", json!({}), "pause the VM"),
        (vm, "Resume", json!({}), "resume the VM"),
        (vm, "Suspend", json!({}), "suspend the VM"),
        (vm, "Reload", json!({}), "apply the VM file"),
        (vm, "Exec", exec.clone(), "run commands in the guest"),
        (vm, "Agent", json!({ "command": "guest-ping" }), "use the guest agent"),
        (vm, "Freeze", limit, "freeze the guest's file systems"),
        (vm, "Thaw", json!({}), "thaw the guest's file systems"),
        (vm, "Screenshot", json!({}), "view the VM's screen"),
        (vm, "Press", json!({ "keys": ["a"] }), "type on the VM's keyboard"),
        (vm, "Console", json!({}), "use the VM's console"),
        (vm, "Console", json!({ "readOnly": true }), "read the VM's console"),
    ];
    for (interface, name, parameters, what) in calls {
        let (error, told) = raw.error(&format!("{interface}.{name}"), parameters).await;
        assert_eq!(error, "org.varlink.service.PermissionDenied", "{name}");
        let reason = format!(
            "permission denied: only root and the VM's operators can {what}; \
             the client is `alice` (uid 1000)"
        );
        assert_eq!(told["reason"], reason);
    }
    for name in ["Status", "Guest", "RecentEvents", "Statistics"] {
        assert_eq!(raw.error(&format!("{vm}.{name}"), json!({})).await.0, "none", "{name}");
    }
    assert_eq!(raw.error(&format!("{machine}.Describe"), json!({})).await.0, "none");
    // A oneway call has no effect either.
    raw.say(json!({ "method": "io.qvm.Vm.Kill", "oneway": true })).await;
    assert_eq!(raw.error("org.varlink.service.GetInfo", json!({})).await.0, "none");
    assert_eq!(fake.commands(), []);

    let mut client = fake.client().await;
    let refused = soon(client.command(Command::Pause)).await.unwrap_err();
    assert!(matches!(refused, Error::NotAllowed { .. }), "{refused:?}");
    assert!(refused.to_string().contains("`alice`"), "{refused}");
    assert!(refused.hint().unwrap().contains("`operators = [\"alice\"]`"));

    // Permitted as soon as the list contains one of the client's groups, on the same connection.
    fake.operators.send_replace(vec!["@27".parse().unwrap()]);
    soon(client.command(Command::Pause)).await.unwrap();
    assert_eq!(fake.commands(), [Command::Pause]);
    assert_eq!(raw.error(&format!("{vm}.Exec"), exec).await.0, "none");
}

/// The console output before a crash may contain secrets.
#[tokio::test]
async fn console_lines_of_ends_require_operator() {
    let end = json!({ "reason": "qemu-signal", "console": ["a secret"] });
    for (peer, sees) in [(root as fn(BorrowedFd<'_>) -> _, true), (alice, false)] {
        let fake = Fake::seeing(peer);
        let mut raw = fake.raw().await;
        let watch = json!({ "method": "io.qvm.Vm.Watch", "parameters": {}, "more": true });
        raw.say(watch).await;
        assert_eq!(raw.hear().await.unwrap()["parameters"]["event"], "READY");
        let data = Some(end.clone());
        let _ = fake.events.send(Event { at: None, event: "QVM_END".into(), data }.into());
        let told = raw.hear().await.unwrap();
        assert_eq!(told["parameters"]["data"]["reason"], "qemu-signal");
        assert_eq!(told.to_string().contains("a secret"), sees);
    }
}

#[tokio::test]
async fn refusals_have_interface_names() {
    let fake = Fake::new();
    let mut raw = fake.raw().await;
    fake.refuse(Refusal::NotNow("starting"));
    let told = raw.error("io.systemd.MachineInstance.Pause", json!({})).await.0;
    assert_eq!(told, "io.systemd.MachineInstance.NotConnected");
    fake.refuse(Refusal::NotNow("starting"));
    let told = raw.error("io.qvm.Vm.Pause", json!({})).await;
    assert_eq!(told, ("io.qvm.Vm.NotNow".into(), json!({ "state": "starting" })));
    fake.refuse(Refusal::Failed(ErrorCode::QemuRefused, "no balloon".into()));
    let told = raw.error("io.systemd.MachineInstance.SetMemory", json!({ "bytes": 1 })).await;
    assert_eq!(
        told,
        ("io.qvm.Vm.Failed".into(), json!({ "code": "qemu-refused", "reason": "no balloon" }))
    );
    fake.refuse(Refusal::BadValue("out of range".into()));
    let told = raw.error("io.systemd.MachineInstance.SetMemory", json!({ "bytes": 1 })).await;
    assert_eq!(
        told,
        ("org.varlink.service.InvalidParameter".into(), json!({ "parameter": "bytes" }))
    );
    // The same texts as on the command line.
    let mut client = fake.client().await;
    let mut texts = String::new();
    for refusal in [
        Refusal::NotNow("starting"),
        Refusal::NotNow("paused after a panic"),
        Refusal::Failed(ErrorCode::QemuRefused, "no balloon".into()),
        Refusal::BadValue("out of range".into()),
    ] {
        let code = refusal.code();
        fake.refuse(refusal);
        let refused = soon(client.command(Command::SetMemory { bytes: 1 })).await.unwrap_err();
        assert_eq!(refused.code(), code);
        assert!(matches!(refused, Error::Refused { .. }));
        texts += &format!("{refused}\n");
    }
    golden("control", "refusals", &texts);
}

#[tokio::test]
async fn stream_begins_with_a_reply() {
    let fake = Fake::new();
    let mut raw = fake.raw().await;
    let method = "io.systemd.MachineInstance.SubscribeEvents";
    let filter = json!({ "filter": ["SHUTDOWN"] });
    raw.say(json!({ "method": method, "parameters": filter, "more": true })).await;
    let ready = json!({ "parameters": { "event": "READY", "data": null }, "continues": true });
    assert_eq!(raw.hear().await, Some(ready.clone()));
    let mut all = fake.raw().await;
    all.say(json!({ "method": method, "parameters": { "filter": [] }, "more": true })).await;
    assert_eq!(all.hear().await, Some(ready));
    let mut watch = soon(fake.client().await.watch()).await.unwrap();
    fake.happens("RESET");
    fake.happens("SHUTDOWN");
    assert_eq!(raw.hear().await.unwrap()["parameters"]["event"], "SHUTDOWN");
    for name in ["RESET", "SHUTDOWN"] {
        assert_eq!(all.hear().await.unwrap()["parameters"]["event"], name);
        assert_eq!(soon(watch.next()).await.unwrap().event, name);
    }
    // The last messages arrive before the end.
    fake.happens("QVM_END");
    fake.end().await;
    assert_eq!(soon(watch.next()).await.unwrap().event, "QVM_END");
    assert!(soon(watch.next()).await.is_none());
    assert_eq!(all.hear().await.unwrap()["parameters"]["event"], "QVM_END");
    assert_eq!(all.hear().await, None);
    assert_eq!(raw.hear().await, None);
}

#[tokio::test]
async fn slow_subscriber_gets_lost_count() {
    let fake = Fake::new();
    let mut watch = soon(fake.client().await.watch()).await.unwrap();
    for _ in 0..1000 {
        fake.happens("RTC_CHANGE");
    }
    let first = soon(watch.next()).await.unwrap();
    assert_eq!(first.event, "QVM_LOST");
    let lost = first.data.unwrap()["count"].as_u64().unwrap();
    for _ in lost..1000 {
        assert_eq!(soon(watch.next()).await.unwrap().event, "RTC_CHANGE");
    }
    fake.happens("STOP");
    assert_eq!(soon(watch.next()).await.unwrap().event, "STOP");
}

#[tokio::test]
async fn oneway_call_has_no_reply() {
    let fake = Fake::new();
    let mut raw = fake.raw().await;
    for method in ["io.qvm.Vm.Pause", "io.qvm.Vm.Fly", "io.qvm.Vm.Watch", "io.qvm.Vm.Console"] {
        raw.say(json!({ "method": method, "oneway": true })).await;
    }
    let info = raw.call("org.varlink.service.GetInfo", json!({})).await;
    assert_eq!(info["parameters"]["product"], "qvm");
    assert_eq!(fake.commands(), [Command::Pause]);
}

#[tokio::test]
async fn pipelined_calls_are_answered_in_order() {
    let fake = Fake::new();
    let mut raw = fake.raw().await;
    raw.bytes(b"{\"method\":\"io.qvm.Vm.Pause\"}\0{\"method\":\"io.qvm.Vm.Fly\"}\0{\"meth").await;
    assert_eq!(raw.hear().await.unwrap(), json!({ "parameters": {} }));
    assert_eq!(raw.hear().await.unwrap()["error"], "org.varlink.service.MethodNotFound");
    for byte in b"od\" : \"io.qvm.Vm.Kill\", \"parameters\" : {} }\n\0" {
        raw.bytes(&[*byte]).await;
    }
    assert_eq!(raw.hear().await.unwrap(), json!({ "parameters": {} }));
    assert_eq!(fake.commands(), [Command::Pause, Command::Terminate]);
}

#[tokio::test]
async fn invalid_input_closes_only_its_connection() {
    let fake = Fake::new();
    let mut bystander = fake.raw().await;
    let deep = "[".repeat(100_000);
    for nonsense in [
        b"GET / HTTP/1.1\r\n\r\n\0".to_vec(),
        b"\0".to_vec(),
        b"\0\0\0".to_vec(),
        b"{}\0".to_vec(),
        b"[]\0".to_vec(),
        b"null\0".to_vec(),
        b"{\"method\":5}\0".to_vec(),
        b"{\"method\":\"io.qvm.Vm.Kill\",\"more\":5}\0".to_vec(),
        b"{\"method\":\"io.qvm.Vm.Kill\"} x\0".to_vec(),
        b"{\"method\":\"io.qvm.Vm.Kill\"\0".to_vec(),
        b"{\"method\":\"io.qvm.Vm.Kill\xff\"}\0".to_vec(),
        format!("{{\"method\":\"io.qvm.Vm.Kill\",\"parameters\":{deep}}}\0").into_bytes(),
    ] {
        let mut raw = fake.raw().await;
        raw.bytes(&nonsense).await;
        assert_eq!(raw.hear().await, None, "{:?}", String::from_utf8_lossy(&nonsense));
    }
    bystander.call("io.qvm.Vm.Pause", json!({})).await;
    assert_eq!(fake.commands(), [Command::Pause]);
}

#[tokio::test]
async fn call_size_is_limited() {
    let fake = Fake::new();
    let mut raw = fake.raw().await;
    // Only the limit ends this call: it has no NUL.
    let chunk = [b' '; 1 << 16];
    let sent = async {
        let mut sent = 0;
        while raw.0.get_mut().write_all(&chunk).await.is_ok() {
            sent += chunk.len();
        }
        sent
    };
    let sent = soon(sent).await;
    assert!(sent < 4 << 20, "{sent} bytes were taken");
    // A call below the limit is parsed, and its unknown parameter is named.
    let mut raw = fake.raw().await;
    let told = raw.error("io.qvm.Vm.Kill", json!({ "padding": "x".repeat(1_000_000) })).await;
    assert_eq!(told.1, json!({ "parameter": "padding" }));
}

#[tokio::test]
async fn unexpected_descriptors_are_closed() {
    let fake = Fake::new();
    let stream = StdStream::connect(fake.socket()).unwrap();
    let (kept, sent) = StdStream::pair().unwrap();
    let message = b"{\"method\":\"io.qvm.Vm.Pause\"}\0";
    let fds = [sent.as_raw_fd()];
    let rights = [nix::sys::socket::ControlMessage::ScmRights(&fds)];
    nix::sys::socket::sendmsg::<()>(
        stream.as_raw_fd(),
        &[IoSlice::new(message)],
        &rights,
        nix::sys::socket::MsgFlags::empty(),
        None,
    )
    .unwrap();
    drop(sent);
    stream.set_nonblocking(true).unwrap();
    let mut raw = Raw(BufReader::new(UnixStream::from_std(stream).unwrap()));
    assert_eq!(raw.hear().await, Some(json!({ "parameters": {} })));
    // The connection is open, but the other end of the descriptor is closed.
    let end = blocking(move || (&kept).read(&mut [0]).unwrap()).await;
    assert_eq!(end, 0);
    raw.call("io.qvm.Vm.Pause", json!({})).await;
}

#[tokio::test]
async fn hundred_idle_clients_delay_nobody() {
    let fake = Fake::new();
    let mut lazy = vec![];
    for nr in 0..100 {
        let mut raw = fake.raw().await;
        if nr % 2 == 0 {
            raw.say(json!({ "method": "io.qvm.Vm.Watch", "more": true })).await;
        } else {
            // Far more replies than a socket buffers.
            let calls = "{\"method\":\"io.qvm.Vm.Status\"}\0".repeat(2000);
            let _ = raw.0.get_mut().try_write(calls.as_bytes());
        }
        lazy.push(raw);
    }
    for _ in 0..5000 {
        fake.happens("RTC_CHANGE");
        tokio::task::yield_now().await;
    }
    let mut client = fake.client().await;
    soon(client.command(Command::PowerOff { timeout_sec: Some(1) })).await.unwrap();
    assert_eq!(fake.commands(), [Command::PowerOff { timeout_sec: Some(1) }]);
    // They do not delay the end either.
    fake.end().await;
}

#[tokio::test]
async fn connections_are_limited_and_reusable() {
    static UID: AtomicU32 = AtomicU32::new(1000);
    let fake =
        Fake::seeing(|_| Ok(Peer { uid: UID.load(Ordering::SeqCst), gid: 1000, groups: vec![] }));
    let mut held = vec![];
    // The maximum number of connections of one user.
    for _ in 0..128 {
        let mut raw = fake.raw().await;
        raw.call("org.varlink.service.GetInfo", json!({})).await;
        held.push(raw);
    }
    let mut one_more = fake.raw().await;
    assert_eq!(one_more.hear().await, None);
    // Other users and root can still connect.
    UID.store(1001, Ordering::SeqCst);
    fake.raw().await.call("org.varlink.service.GetInfo", json!({})).await;
    UID.store(0, Ordering::SeqCst);
    soon(fake.client().await.command(Command::Pause)).await.unwrap();
    UID.store(1000, Ordering::SeqCst);
    held.pop();
    let served = async {
        loop {
            let mut raw = fake.raw().await;
            let _ = raw.0.get_mut().write_all(b"{\"method\":\"io.qvm.Vm.Pause\"}\0").await;
            if raw.hear().await.is_some() {
                return;
            }
        }
    };
    soon(served).await;
}

#[tokio::test]
async fn idle_disconnect_frees_its_connection() {
    let fake = Fake::new();
    for _ in 0..600 {
        drop(soon(fake.client().await.watch()).await.unwrap());
    }
    let mut client = fake.client().await;
    soon(client.command(Command::Pause)).await.unwrap();
}

#[tokio::test]
async fn large_output_is_complete() {
    let fake = Fake::new();
    let mut client = fake.client().await;
    let done = soon(client.exec(vec!["large".into()], BOUND)).await.unwrap();
    assert_eq!((done.exit_code, done.out.len()), (3, 8 << 20));
    let done = soon(client.exec(vec!["a b".into(), "c".into()], Duration::from_secs(7)));
    assert_eq!(done.await.unwrap().out, "[\"a b\", \"c\"] 7");
}

#[tokio::test]
async fn agent_calls_use_the_supervisor() {
    let fake = Fake::new();
    let mut client = fake.client().await;
    let limit = Duration::from_secs(17);
    let told = soon(client.agent("guest-x", json!({ "a": 1 }), limit)).await.unwrap();
    assert_eq!(told, json!(["guest-x", { "a": 1 }, 17]));
    // A part of a file in base64 fits, and needs little time.
    let part = "QUFB".repeat((512 << 10) / 3 + 1);
    let told = soon(client.agent("guest-file-write", json!({ "buf-b64": part }), limit)).await;
    assert_eq!(told.unwrap()[1]["buf-b64"].as_str().unwrap().len(), part.len());
    let refused = soon(client.agent("guest-no", json!({}), limit)).await.unwrap_err();
    assert!(matches!(refused, Error::Guest { .. }), "{refused}");
    assert_eq!(refused.to_string(), "guest agent: never heard of it");
    let frozen = soon(client.agent("guest-file-open", json!({}), limit)).await.unwrap_err();
    assert!(matches!(frozen, Error::Frozen { .. }), "{frozen}");
    assert_eq!(frozen.to_string(), "the guest's file systems are frozen, for 7 s more");
    // The supervisor owns the freeze and its deadline.
    let kept = soon(client.agent("guest-fsfreeze-freeze", json!({}), limit)).await.unwrap_err();
    assert!(matches!(kept, Error::Refused { .. }), "{kept}");
    assert_eq!(soon(client.freeze(Duration::from_secs(5))).await.unwrap(), 5);
    assert_eq!(soon(client.thaw()).await.unwrap(), 0);
    let long = soon(client.freeze(Duration::from_secs(601))).await.unwrap_err();
    assert_eq!(long.to_string(), "the parameter `thawAfterSec` is invalid");
}

#[tokio::test]
async fn console_descriptor_is_passed() {
    let mut fake = Fake::new();
    let mut viewer = soon(fake.client().await.console(true, 0)).await.unwrap();
    // The connection of the request is closed; the console is independent of it.
    let (read_only, mut guest) = soon(fake.consoles.recv()).await.unwrap();
    assert!(read_only);
    guest.write_all(b"login: ").unwrap();
    let mut seen = [0; 7];
    soon(viewer.read_exact(&mut seen)).await.unwrap();
    assert_eq!(&seen, b"login: ");
    soon(viewer.write_all(b"root\n")).await.unwrap();
    let typed = blocking(move || {
        let mut typed = [0; 5];
        guest.read_exact(&mut typed).unwrap();
        typed
    });
    assert_eq!(&typed.await, b"root\n");
    assert_eq!(soon(viewer.read(&mut seen)).await.unwrap(), 0);
    let mut raw = fake.raw().await;
    let told = raw.call("io.qvm.Vm.Console", json!({})).await;
    assert_eq!(told, json!({ "parameters": { "fileDescriptorIndex": 0 } }));
    assert!(!soon(fake.consoles.recv()).await.unwrap().0);
}

#[tokio::test]
async fn silent_supervisor_times_out() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("control.sock");
    let missing = Client::connect(&path).await.unwrap_err();
    assert!(matches!(missing, Error::NotRunning), "{missing}");
    let listener = UnixListener::bind(&path).unwrap();
    let limit = Duration::from_millis(50);
    let silent = Client::connect(&path).await.unwrap().status(limit).await.unwrap_err();
    assert!(matches!(silent, Error::Timeout(_)), "{silent}");
    let client = Client::connect(&path).await.unwrap();
    drop(listener);
    let closed = soon(client.watch()).await.unwrap_err();
    assert!(matches!(closed, Error::Closed), "{closed}");
    let stale = Client::connect(&path).await.unwrap_err();
    assert!(matches!(stale, Error::NotRunning), "{stale}");
}

#[tokio::test]
async fn reply_of_another_version_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("control.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let peer = std::thread::spawn(move || {
        for answer in [
            &b"{\"parameters\":{\"status\":{\"name\":\"web\"}}}\0"[..],
            b"{\"error\":\"io.qvm.Vm.Tired\",\"parameters\":{}}\0",
            b"nonsense\0",
        ] {
            let (mut stream, _) = listener.accept().unwrap();
            let mut call = [0; 1024];
            assert!(stream.read(&mut call).unwrap() > 0);
            stream.write_all(answer).unwrap();
        }
    });
    let mut told = vec![];
    for _ in 0..3 {
        let mut client = Client::connect(&path).await.unwrap();
        told.push(soon(client.status(BOUND)).await.unwrap_err());
    }
    assert!(matches!(told[0], Error::Answer(_)), "{:?}", told[0]);
    assert_eq!(told[1].to_string(), "Tired");
    assert!(matches!(told[2], Error::Answer(_)), "{:?}", told[2]);
    peer.join().unwrap();
}

/// The Python package parses the descriptions and makes calls.
#[tokio::test]
async fn python_package_is_compatible() {
    let python = std::env::var("QVM_TEST_PYTHON").unwrap_or_else(|_| "python3".into());
    let there = std::process::Command::new(&python)
        .args(["-c", "import varlink"])
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success());
    if !there {
        let required = std::env::var("QVM_TEST_REQUIRE").unwrap_or_default();
        assert!(
            !required.split(',').any(|need| need == "python-varlink"),
            "`{python}` has no `varlink`, which QVM_TEST_REQUIRE names"
        );
        eprintln!("skipped: `{python}` has no package `varlink` (`QVM_TEST_PYTHON` names another)");
        return;
    }
    let script = r#"
import sys, varlink
with varlink.Client("unix:" + sys.argv[1]) as client:
    names = [i.name if hasattr(i, "name") else i for i in client.get_interfaces()]
    assert set(names) == {"org.varlink.service", "io.systemd.MachineInstance", "io.qvm.Vm"}, names
    with client.open("io.qvm.Vm") as vm:
        status = vm.Status()["status"]
        assert (status["name"], status["state"], status["vcpu"]) == ("web", "running", 2), status
        vm.PowerOff(timeoutSec=9)
        vm.Kill()
        assert vm.Guest() == {"guest": {"answers": True, "addresses": []}}
        done = vm.Exec(argv=["true"])
        assert done["exitCode"] == 3, done
        try:
            vm.PowerOff(timeoutSec=0)
            assert False, "it was taken"
        except varlink.InvalidParameter as error:
            assert error.parameters()["parameter"] == "timeoutSec", error
    with client.open("io.systemd.MachineInstance") as machine:
        machine.SetMemory(bytes=123)
        assert machine.Describe()["running"] is True
        try:
            machine.RemoveStorage(name="x")
            assert False, "it was taken"
        except varlink.VarlinkError as error:
            assert error.error() == "io.systemd.MachineInstance.NotSupported", error
    with client.open("io.qvm.Vm") as vm:
        for event in vm.Watch(_more=True):
            assert event["event"] == "READY", event
            break
print("done")
"#;
    let fake = Fake::new();
    let socket = fake.socket();
    let output = blocking(move || {
        let mut command = std::process::Command::new(python);
        command.arg("-c").arg(script).arg(socket).output().unwrap()
    });
    let output = output.await;
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "done\n", "{told}");
    assert_eq!(
        fake.commands(),
        [
            Command::PowerOff { timeout_sec: Some(9) },
            Command::Terminate,
            Command::SetMemory { bytes: 123 },
        ]
    );
}

/// A terminal: the first end is the operator's.
fn terminal() -> (OwnedFd, OwnedFd) {
    let pty = nix::pty::openpty(None, None).unwrap();
    (pty.master, pty.slave)
}

fn modes(terminal: &OwnedFd) -> (termios::LocalFlags, termios::InputFlags, termios::OutputFlags) {
    let modes = termios::tcgetattr(terminal).unwrap();
    (modes.local_flags, modes.input_flags, modes.output_flags)
}

/// Reads from a terminal or a stream until it contains `until`.
fn read_until(from: &mut impl Read, until: &str) -> String {
    let (mut seen, mut byte) = (vec![], [0]);
    while !String::from_utf8_lossy(&seen).ends_with(until) {
        assert_eq!(from.read(&mut byte).unwrap(), 1, "{}", String::from_utf8_lossy(&seen));
        seen.push(byte[0]);
    }
    String::from_utf8(seen).unwrap()
}

/// Starts a console on a terminal: returns the process, the terminal, and the guest's end, when the
/// terminal is in raw mode.
async fn console(fake: &mut Fake) -> (Running, std::fs::File, OwnedFd, StdStream) {
    let (operator, terminal) = terminal();
    let side = || Stdio::from(terminal.try_clone().unwrap());
    let running = fake.qvm(&["console", "web"], side(), side());
    let (_, guest) = soon(fake.consoles.recv()).await.unwrap();
    let raw = async {
        while modes(&terminal).0.contains(termios::LocalFlags::ICANON) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    soon(raw).await;
    (running, std::fs::File::from(operator), terminal, guest)
}

#[tokio::test]
async fn console_ends_with_ctrl_bracket() {
    let mut fake = Fake::new();
    let before = modes(&terminal().1);
    let (running, mut operator, terminal, mut guest) = console(&mut fake).await;
    let told = blocking(move || {
        guest.write_all(b"login: ").unwrap();
        assert_eq!(read_until(&mut operator, "login: "), "login: ");
        // Ctrl-C and Ctrl-D are for the guest; Ctrl-] ends the console, and later input is
        // discarded.
        operator.write_all(b"r\x03\x04\rok\x1dlost").unwrap();
        let mut typed = vec![];
        guest.read_to_end(&mut typed).unwrap();
        assert_eq!(typed, b"r\x03\x04\rok");
        (running.end(), operator)
    });
    let ((code, told), _operator) = told.await;
    // Terminal modes that a guest may have set are reset.
    assert_eq!(code, Some(0));
    assert!(told.starts_with("Connected to web; Ctrl-] leaves\r\n\u{1b}[0m"), "{told:?}");
    assert_eq!(modes(&terminal), before);
}

#[tokio::test]
async fn terminal_is_restored_after_a_signal() {
    for signal in [rustix::process::Signal::TERM, rustix::process::Signal::HUP] {
        let mut fake = Fake::new();
        let before = modes(&terminal().1);
        let (running, _operator, terminal, _guest) = console(&mut fake).await;
        let pid = i32::try_from(running.0.id()).ok().and_then(rustix::process::Pid::from_raw);
        rustix::process::kill_process(pid.unwrap(), signal).unwrap();
        blocking(move || running.end()).await;
        assert_eq!(modes(&terminal), before);
    }
}

#[tokio::test]
async fn terminal_is_restored_after_supervisor_exit() {
    let mut fake = Fake::new();
    let before = modes(&terminal().1);
    let (running, _operator, terminal, guest) = console(&mut fake).await;
    drop(guest);
    let (code, _) = blocking(move || running.end()).await;
    assert_eq!(code, Some(0));
    assert_eq!(modes(&terminal), before);
}

#[tokio::test]
async fn piped_console_ends_with_its_input() {
    let mut fake = Fake::new();
    let mut running = fake.qvm(&["console", "web"], Stdio::piped(), Stdio::piped());
    let (read_only, mut guest) = soon(fake.consoles.recv()).await.unwrap();
    assert!(!read_only);
    let (mut stdin, mut stdout) =
        (running.0.stdin.take().unwrap(), running.0.stdout.take().unwrap());
    let (seen, ended) = blocking(move || {
        stdin.write_all(b"halt\x1d\n").unwrap();
        assert_eq!(read_until(&mut guest, "\n"), "halt\x1d\n");
        guest.write_all(b"\xffgoing down\n").unwrap();
        let mut seen = vec![0; 12];
        stdout.read_exact(&mut seen).unwrap();
        drop(stdin);
        stdout.read_to_end(&mut seen).unwrap();
        (seen, running.end())
    })
    .await;
    assert_eq!((seen.as_slice(), ended), (&b"\xffgoing down\n"[..], (Some(0), String::new())));
}

#[tokio::test]
async fn read_only_console_sends_no_keys() {
    let mut fake = Fake::new();
    let words = ["console", "web", "--read-only"];
    let mut running = fake.qvm(&words, Stdio::piped(), Stdio::piped());
    let (read_only, mut guest) = soon(fake.consoles.recv()).await.unwrap();
    assert!(read_only);
    let mut stdout = running.0.stdout.take().unwrap();
    blocking(move || {
        // The reader may have ended; only the received output counts.
        let _ = running.0.stdin.take().unwrap().write_all(b"reboot\n");
        guest.write_all(b"x\n").unwrap();
        assert_eq!(read_until(&mut stdout, "\n"), "x\n");
        guest.shutdown(std::net::Shutdown::Write).unwrap();
        let mut typed = vec![];
        guest.read_to_end(&mut typed).unwrap();
        assert_eq!(typed, b"");
        running.end();
    })
    .await;
}

#[tokio::test]
async fn log_is_followed_through_rotation() {
    let mut fake = Fake::new();
    let state = fake.dir.path().join("lib/vms/web");
    std::fs::create_dir_all(&state).unwrap();
    let log = state.join("console.log");
    std::fs::write(&log, "one\ntwo\n").unwrap();
    let words = ["log", "web", "-f", "-n", "1"];
    let mut running = fake.qvm(&words, Stdio::null(), Stdio::piped());
    let (read_only, mut guest) = soon(fake.consoles.recv()).await.unwrap();
    assert!(read_only);
    let mut stdout = running.0.stdout.take().unwrap();
    blocking(move || {
        assert_eq!(read_until(&mut stdout, "two\n"), "two\n");
        std::fs::rename(&log, state.join("console.log.1")).unwrap();
        std::fs::write(&log, "three\n").unwrap();
        guest.write_all(b"!").unwrap();
        assert_eq!(read_until(&mut stdout, "three\n"), "three\n");
        std::fs::write(&log, "three\nfour").unwrap();
        drop(guest);
        let mut rest = String::new();
        stdout.read_to_string(&mut rest).unwrap();
        assert_eq!(rest, "four");
        assert_eq!(running.end(), (Some(0), String::new()));
    })
    .await;
}

#[tokio::test]
async fn verbs_print_supervisor_errors() {
    let fake = Fake::new();
    let run = |words: &'static [&str]| {
        let running = fake.qvm(words, Stdio::null(), Stdio::piped());
        blocking(move || running.end())
    };
    for (words, command) in [
        (&["pause", "web"][..], Command::Pause),
        (&["resume", "web"], Command::Resume),
        (&["reload", "web"], Command::Reload),
        (&["reboot", "web"], Command::Reboot),
        (&["reboot", "--force", "web"], Command::Reset),
        (
            &["stop", "--no-wait", "--timeout", "3", "web"],
            Command::PowerOff { timeout_sec: Some(3) },
        ),
    ] {
        assert_eq!(run(words).await, (Some(0), String::new()), "{words:?}");
        assert_eq!(fake.commands(), [command]);
    }
    fake.refuse(Refusal::NotNow("starting"));
    let (exit, text) = run(&["pause", "web"]).await;
    assert_eq!(exit, Some(1));
    golden("control", "pause-of-a-starting-vm", &text);
}

#[tokio::test]
async fn stop_reports_rungs_and_waits() {
    let fake = Fake::new();
    let mut running = fake.qvm(&["stop", "web"], Stdio::null(), Stdio::piped());
    let mut stdout = running.0.stdout.take().unwrap();
    let asked = async {
        while fake.commands().is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    soon(asked).await;
    let happens = |event: &str, data: Value| {
        fake.events.send(Event { at: None, event: event.into(), data: Some(data) }.into()).unwrap();
    };
    happens("QVM_STOP_RUNG", json!({ "text": "pressed the power button" }));
    happens("SHUTDOWN", json!({}));
    let (text, mut stdout) = blocking(move || (read_until(&mut stdout, "\n"), stdout)).await;
    assert_eq!(text, "web: pressed the power button\n");
    assert!(running.0.try_wait().unwrap().is_none(), "it did not wait");
    happens("QVM_END", json!({ "detail": "shut down when asked to" }));
    fake.end().await;
    let (ended, text) = blocking(move || {
        let mut text = String::new();
        stdout.read_to_string(&mut text).unwrap();
        (running.end(), text)
    })
    .await;
    assert_eq!(ended, (Some(0), String::new()));
    assert_eq!(text, "web: shut down when asked to\n");
}

#[tokio::test]
async fn list_shows_running_and_silent_vms() {
    let fake = Fake::new();
    let hung = fake.dir.path().join("run/hung");
    std::fs::create_dir_all(&hung).unwrap();
    let _listener = UnixListener::bind(hung.join("control.sock")).unwrap();
    let mut running = fake.qvm(&["list"], Stdio::null(), Stdio::piped());
    let mut stdout = running.0.stdout.take().unwrap();
    let (table, ended) = blocking(move || {
        let mut table = String::new();
        stdout.read_to_string(&mut table).unwrap();
        (table, running.end())
    })
    .await;
    assert_eq!(ended, (Some(0), String::new()));
    // Neither has a VM file.
    let lines: Vec<&str> = table.lines().filter(|line| !line.contains("VM file is gone")).collect();
    assert!(lines[1].starts_with("hung*  no answer"), "{table}");
    assert!(lines[2].contains("cannot ask its supervisor"), "{table}");
    assert!(lines[3].starts_with("web"), "{table}");
    assert!(lines[3].contains(" running "), "{table}");
}
