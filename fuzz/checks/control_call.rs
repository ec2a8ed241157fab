//! Any bytes from a client of the control socket: no panic, every reply is valid varlink, there are
//! no more replies than calls, and the supervisor's loop gets only valid requests.

use std::{
    cell::RefCell,
    fs::File,
    os::{
        fd::{BorrowedFd, OwnedFd},
        unix::net::UnixListener,
    },
    path::PathBuf,
    time::Duration,
};

use qvm::{
    control::{
        authorizer::{Accounts, Authorizer},
        handle::ControlHandle,
        server,
        types::{Command, CreatedSnapshot, Event, Executed, Guest, Request, Statistics, Status},
    },
    value::Peer,
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    runtime::Runtime,
    sync::{broadcast, mpsc, watch},
    task::JoinHandle,
};

/// The real-time limit of a connection: both ends are in this process.
const SOON: Duration = Duration::from_secs(5);

struct Place {
    runtime: Runtime,
    socket: PathBuf,
    /// The supervisor's loop.
    answering: JoinHandle<()>,
    _dir: tempfile::TempDir,
}

thread_local! {
    static PLACE: RefCell<Place> = RefCell::new(place());
}

fn place() -> Place {
    let dir = tempfile::tempdir().expect("a directory");
    let socket = dir.path().join("control.sock");
    let listener = UnixListener::bind(&socket).expect("a socket");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.expect("a runtime");
    let (requests, asked) = mpsc::channel(64);
    let (events, _) = broadcast::channel(16);
    // Root may call everything, so that no call is refused before the loop.
    let authorizer = Authorizer {
        own: 0,
        operators: watch::channel(vec![]).1,
        file: PathBuf::from("/vms/web.toml"),
        accounts: Accounts { id: |_| None, name: |_| None },
    };
    let peer = |_: BorrowedFd<'_>| Ok(Peer { uid: 0, gid: 0, groups: vec![] });
    let replaced = Default::default();
    let handle = ControlHandle { requests, events: events.clone(), authorizer, replaced, peer };
    runtime.spawn(server::serve(listener, handle));
    let answering = runtime.spawn(answer(asked, events));
    Place { runtime, socket, answering, _dir: dir }
}

pub fn check(bytes: &[u8]) {
    PLACE.with_borrow(|place| {
        place.runtime.block_on(async {
            let one = tokio::time::timeout(SOON, one(&place.socket, bytes));
            one.await.expect("a connection whose client has hung up ends");
        });
        assert!(!place.answering.is_finished(), "what came to the loop was not as it should be");
    });
}

async fn one(socket: &std::path::Path, bytes: &[u8]) {
    let stream = UnixStream::connect(socket).await.expect("a server");
    let (mut from, mut to) = stream.into_split();
    let say = async {
        let _ = to.write_all(bytes).await;
        let _ = to.shutdown().await;
    };
    let mut told = Vec::new();
    let ((), read) = tokio::join!(say, from.read_to_end(&mut told));
    // A client that is disconnected with unread bytes gets ECONNRESET.
    let replies: Vec<&[u8]> = told.split(|byte| *byte == 0).collect();
    let (last, whole) = replies.split_last().expect("at least one part");
    assert!(last.is_empty() || read.is_err(), "half a reply: {}", String::from_utf8_lossy(last));
    let calls = bytes.iter().filter(|byte| **byte == 0).count();
    let mut answers = 0;
    for reply in whole {
        let reply: Value = serde_json::from_slice(reply).expect("a reply is JSON");
        match reply["error"].as_str() {
            Some(error) => {
                let known = ["org.varlink.service.", "io.systemd.MachineInstance.", "io.qvm.Vm."];
                assert!(known.iter().any(|interface| error.starts_with(interface)), "{error}");
            }
            None => assert!(reply["parameters"].is_object(), "{reply}"),
        }
        // An event stream continues by itself.
        answers += usize::from(reply["continues"] != true);
    }
    assert!(answers <= calls, "{answers} replies to {calls} calls");
}

async fn answer(
    mut asked: mpsc::Receiver<Request>,
    events: broadcast::Sender<std::sync::Arc<Event>>,
) {
    let null = || OwnedFd::from(File::open("/dev/null").expect("the null device"));
    while let Some(request) = asked.recv().await {
        let _ = events.send(Event { at: None, event: "STOP".into(), data: None }.into());
        match request {
            Request::Command(command, reply) => {
                if let Command::PowerOff { timeout_sec: Some(seconds) } = command {
                    assert!((1..=86_400).contains(&seconds), "{seconds} s");
                }
                drop(reply.send(Ok(())));
            }
            Request::Status(reply) => drop(reply.send(status())),
            Request::RecentEvents(reply) => drop(reply.send(vec![])),
            Request::Statistics(reply) => drop(reply.send(Ok(Statistics::default()))),
            Request::Guest(reply) => {
                drop(reply.send(Ok(Guest { answers: false, addresses: vec![] })));
            }
            Request::Screenshot(reply) => drop(reply.send(Ok(null()))),
            Request::Console { reply, .. } => drop(reply.send(Ok(null()))),
            Request::Press(chords, reply) => {
                assert!((1..=4096).contains(&chords.len()), "{} chords", chords.len());
                drop(reply.send(Ok(())));
            }
            Request::Exec { argv, limit, reply } => {
                assert!(!argv.is_empty() && (1..=86_400).contains(&limit.as_secs()), "{limit:?}");
                let done = Executed { exit_code: 0, out: String::new(), err: String::new() };
                drop(reply.send(Ok(done)));
            }
            Request::Agent { command, arguments, limit, reply } => {
                let freezes = command.starts_with("guest-fsfreeze-");
                assert!(!freezes || command == "guest-fsfreeze-status", "{command}");
                assert!(arguments.is_object() && limit.as_secs() <= 600, "{arguments}, {limit:?}");
                drop(reply.send(Ok(json!({}))));
            }
            Request::Freeze { thaw_after, reply } => {
                assert!((1..=600).contains(&thaw_after.as_secs()), "{thaw_after:?}");
                drop(reply.send(Ok(1)));
            }
            Request::CreateSnapshot { snapshot, reply } => {
                let created = CreatedSnapshot {
                    name: snapshot.name.map_or_else(String::new, |name| name.to_string()),
                    kind: "overlay".into(),
                    consistency: "paused".into(),
                    not_frozen: None,
                };
                drop(reply.send(Ok(created)));
            }
            Request::Thaw(reply) => drop(reply.send(Ok(1))),
        }
    }
}

fn status() -> Status {
    let status = json!({
        "name": "web", "state": "running", "vcpu": 2, "memBytes": 1_073_741_824, "cpuWeight": 100,
        "autostart": true, "pending": [], "notes": [], "ends": [],
    });
    serde_json::from_value(status).expect("a status")
}
