//! The supervisor's side of the control socket. Each connection is a task of its own, so that one which does not read,
//! or says nonsense, is nobody else's trouble; a method only posts a request to the loop and passes the answer on.

use std::{os::unix::net::UnixListener as StdListener, sync::Arc, time::Duration};

use serde::Deserialize;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncWriteExt, BufReader},
    net::{
        UnixListener, UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::{Semaphore, broadcast, oneshot},
};
use tracing::{debug, warn};

use super::{
    message::{self, Call, MAX_CALL, Reply},
    types::{Command, Port, Refusal, Request, State, Status},
};

/// How many connections are served at once; a further one is closed.
const MAX_CONNECTIONS: usize = 256;
/// How long a command in the guest may take unless the caller says.
const EXEC_LIMIT: Duration = Duration::from_secs(60);

const INTERFACES: [(&str, &str); 3] = [
    ("org.varlink.service", include_str!("../../docs/org.varlink.service.varlink")),
    ("io.systemd.MachineInstance", include_str!("../../docs/io.systemd.MachineInstance.varlink")),
    ("io.qvm.Vm", include_str!("../../docs/io.qvm.Vm.varlink")),
];

/// Serves until it is dropped.
pub async fn serve(listener: StdListener, port: Port) {
    let listener = listener.set_nonblocking(true).and_then(|()| UnixListener::from_std(listener));
    let listener = match listener {
        Ok(listener) => listener,
        Err(error) => {
            warn!("the control socket cannot be served: {error}");
            return;
        }
    };
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // No more descriptors: others will close theirs.
                warn!("a connection to the control socket was lost: {error}");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let Ok(place) = places.clone().try_acquire_owned() else {
            warn!("more than {MAX_CONNECTIONS} connections to the control socket: one was closed");
            continue;
        };
        let port = port.clone();
        tokio::spawn(async move {
            let _place = place;
            Connection::new(stream, port).serve().await;
        });
    }
}

/// What a call comes to.
enum Answer {
    /// One reply.
    Done(Value),
    /// An error by its full name, with its parameters.
    Error(String, Value),
    /// Replies without an end.
    Events(Option<Vec<String>>),
    /// The console.
    Console(bool),
}

type Outcome = Result<Answer, Answer>;

struct Connection {
    reader: BufReader<OwnedReadHalf>,
    writer: OwnedWriteHalf,
    port: Port,
}

impl Connection {
    fn new(stream: UnixStream, port: Port) -> Self {
        let (reader, writer) = stream.into_split();
        Self { reader: BufReader::with_capacity(1024, reader), writer, port }
    }

    async fn serve(mut self) {
        while let Some(bytes) = message::read(&mut self.reader, MAX_CALL).await {
            let Ok(call) = serde_json::from_slice::<Call>(&bytes) else {
                debug!("a connection to the control socket does not speak varlink");
                return;
            };
            let answer = self.dispatch(&call).await.unwrap_or_else(|error| error);
            let reply = match answer {
                Answer::Done(parameters) => Reply { parameters, continues: false, error: None },
                Answer::Error(name, parameters) => {
                    Reply { parameters, continues: false, error: Some(name) }
                }
                Answer::Events(filter) => return self.tell_events(filter).await,
                Answer::Console(read_only) => return self.become_console(read_only).await,
            };
            if !call.oneway && message::write(&mut self.writer, &reply).await.is_err() {
                return;
            }
        }
    }

    async fn dispatch(&self, call: &Call) -> Outcome {
        let (interface, method) = call.method.rsplit_once('.').unwrap_or((&call.method, ""));
        match interface {
            "org.varlink.service" => service(method, call),
            "io.systemd.MachineInstance" => self.machine(method, call).await,
            "io.qvm.Vm" => self.vm(method, call).await,
            _ => Err(Answer::Error(
                "org.varlink.service.InterfaceNotFound".into(),
                json!({ "interface": interface }),
            )),
        }
    }

    async fn machine(&self, method: &str, call: &Call) -> Outcome {
        let command = match method {
            "Terminate" => Command::Terminate,
            "PowerOff" => Command::PowerOff { timeout_sec: None },
            "Reboot" => Command::Reboot,
            "Pause" => Command::Pause,
            "Resume" => Command::Resume,
            "SetMemory" => Command::SetMemory { bytes: parameters::<SetMemory>(call)?.bytes },
            "Describe" | "QueryStatus" => return self.describe(method == "Describe").await,
            "SubscribeEvents" => {
                more(call)?;
                return Ok(Answer::Events(parameters::<Subscribe>(call)?.filter));
            }
            "AddStorage" | "RemoveStorage" | "ReplaceStorage" => {
                return Err(Answer::Error(
                    "io.systemd.MachineInstance.NotSupported".into(),
                    json!({}),
                ));
            }
            _ => return Err(no_method(call)),
        };
        self.command(command, true).await
    }

    async fn describe(&self, with_memory: bool) -> Outcome {
        let status = self.status().await?;
        let word = match status.state {
            State::Running => "running",
            State::Paused => "paused",
            State::Starting => "starting",
            State::Stopping => "shutdown",
            State::Stopped | State::Failed => "stopped",
        };
        let mut told = json!({ "running": status.state == State::Running, "status": word });
        if with_memory {
            told["memory"] = json!({
                "configuredBytes": status.mem_bytes,
                "targetBytes": status.mem_target_bytes.unwrap_or(status.mem_bytes),
                "actualBytes": status.mem_actual_bytes,
            });
        }
        Ok(Answer::Done(told))
    }

    async fn vm(&self, method: &str, call: &Call) -> Outcome {
        let command = match method {
            "Status" => {
                let status = self.status().await?;
                return Ok(Answer::Done(json!({ "status": status })));
            }
            "PowerOff" => {
                Command::PowerOff { timeout_sec: parameters::<Timeout>(call)?.timeout_sec }
            }
            "Kill" => Command::Terminate,
            "Reboot" => Command::Reboot,
            "Reset" => Command::Reset,
            "Pause" => Command::Pause,
            "Resume" => Command::Resume,
            "Reload" => Command::Reload,
            "Watch" => {
                more(call)?;
                return Ok(Answer::Events(None));
            }
            "Exec" => return self.exec(parameters(call)?).await,
            "Console" => {
                if !call.upgrade {
                    return Err(invalid("upgrade"));
                }
                return Ok(Answer::Console(parameters::<Viewer>(call)?.read_only.unwrap_or(false)));
            }
            _ => return Err(no_method(call)),
        };
        self.command(command, false).await
    }

    /// Posts a request and waits for what the loop answers.
    async fn ask<T>(
        &self,
        request: impl FnOnce(oneshot::Sender<T>) -> Request,
    ) -> Result<T, Answer> {
        let (reply, answer) = oneshot::channel();
        let gone = |_| Answer::Error("io.qvm.Vm.NotNow".into(), json!({ "state": "stopping" }));
        self.port.requests.send(request(reply)).await.map_err(|_| gone(()))?;
        answer.await.map_err(|_| gone(()))
    }

    async fn status(&self) -> Result<Status, Answer> {
        self.ask(Request::Status).await
    }

    async fn command(&self, command: Command, as_machine: bool) -> Outcome {
        match self.ask(|reply| Request::Command(command, reply)).await? {
            Ok(()) => Ok(Answer::Done(json!({}))),
            Err(Refusal::NotNow("starting")) if as_machine => {
                Err(Answer::Error("io.systemd.MachineInstance.NotConnected".into(), json!({})))
            }
            Err(refusal) => Err(refused(refusal)),
        }
    }

    async fn exec(&self, exec: Exec) -> Outcome {
        if exec.argv.is_empty() {
            return Err(invalid("argv"));
        }
        let limit = exec.timeout_sec.map_or(EXEC_LIMIT, |s| Duration::from_secs(s.into()));
        let done = self.ask(|reply| Request::Exec { argv: exec.argv, limit, reply }).await?;
        done.map(|done| Answer::Done(json!(done))).map_err(refused)
    }

    async fn tell_events(mut self, filter: Option<Vec<String>>) {
        let mut events = self.port.events.subscribe();
        // The loop may end while somebody listens: its end of the queue must not be held open from here.
        drop(self.port);
        loop {
            let event = match events.recv().await {
                Ok(event) => event,
                Err(broadcast::error::RecvError::Lagged(lost)) => super::types::Event {
                    event: "QVM_LOST".into(),
                    data: Some(json!({ "count": lost })),
                },
                Err(broadcast::error::RecvError::Closed) => return,
            };
            if filter.as_ref().is_some_and(|names| !names.contains(&event.event)) {
                continue;
            }
            let reply = Reply { parameters: json!(event), continues: true, error: None };
            if message::write(&mut self.writer, &reply).await.is_err() {
                return;
            }
        }
    }

    async fn become_console(mut self, read_only: bool) {
        let viewer = match self.ask(|reply| Request::Console { read_only, reply }).await {
            Ok(Ok(viewer)) => viewer,
            Ok(Err(refusal)) => return self.say_error(refused(refusal)).await,
            Err(answer) => return self.say_error(answer).await,
        };
        let reply = Reply { parameters: json!({}), continues: false, error: None };
        let std = std::os::unix::net::UnixStream::from(viewer);
        let stream = std.set_nonblocking(true).and_then(|()| UnixStream::from_std(std));
        let (Ok(()), Ok(stream)) = (message::write(&mut self.writer, &reply).await, stream) else {
            return;
        };
        drop(self.port);
        let (mut from_guest, mut to_guest) = stream.into_split();
        let (mut reader, mut writer) = (self.reader, self.writer);
        let typing = tokio::spawn(async move {
            let _ = tokio::io::copy_buf(&mut reader, &mut to_guest).await;
            let _ = to_guest.shutdown().await;
        });
        let _ = tokio::io::copy(&mut from_guest, &mut writer).await;
        typing.abort();
    }

    async fn say_error(&mut self, answer: Answer) {
        if let Answer::Error(name, parameters) = answer {
            let reply = Reply { parameters, continues: false, error: Some(name) };
            let _ = message::write(&mut self.writer, &reply).await;
        }
    }
}

#[derive(Deserialize)]
struct SetMemory {
    bytes: u64,
}

#[derive(Deserialize)]
struct Subscribe {
    filter: Option<Vec<String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Timeout {
    timeout_sec: Option<u32>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Exec {
    argv: Vec<String>,
    timeout_sec: Option<u32>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Viewer {
    read_only: Option<bool>,
}

#[derive(Deserialize)]
struct Description {
    interface: String,
}

fn parameters<T: for<'de> Deserialize<'de>>(call: &Call) -> Result<T, Answer> {
    let given = if call.parameters.is_null() { json!({}) } else { call.parameters.clone() };
    serde_json::from_value(given).map_err(|error| {
        // serde names the field between backticks where it is missing; the parameter's name is all that varlink has room for.
        let text = error.to_string();
        invalid(text.split('`').nth(1).unwrap_or("parameters"))
    })
}

fn more(call: &Call) -> Result<(), Answer> {
    if call.more {
        return Ok(());
    }
    Err(Answer::Error("org.varlink.service.ExpectedMore".into(), json!({})))
}

fn invalid(parameter: &str) -> Answer {
    Answer::Error("org.varlink.service.InvalidParameter".into(), json!({ "parameter": parameter }))
}

fn no_method(call: &Call) -> Answer {
    Answer::Error("org.varlink.service.MethodNotFound".into(), json!({ "method": call.method }))
}

fn refused(refusal: Refusal) -> Answer {
    match refusal {
        Refusal::NotNow(state) => {
            Answer::Error("io.qvm.Vm.NotNow".into(), json!({ "state": state }))
        }
        Refusal::BadValue(_) => invalid("bytes"),
        Refusal::Failed(reason) => {
            Answer::Error("io.qvm.Vm.Failed".into(), json!({ "reason": reason }))
        }
    }
}

fn service(method: &str, call: &Call) -> Outcome {
    match method {
        "GetInfo" => Ok(Answer::Done(json!({
            "vendor": "qvm",
            "product": "qvm",
            "version": env!("CARGO_PKG_VERSION"),
            "url": "",
            "interfaces": INTERFACES.map(|(name, _)| name),
        }))),
        "GetInterfaceDescription" => {
            let wanted = parameters::<Description>(call)?.interface;
            match INTERFACES.iter().find(|(name, _)| *name == wanted) {
                Some((_, text)) => Ok(Answer::Done(json!({ "description": text }))),
                None => Err(Answer::Error(
                    "org.varlink.service.InterfaceNotFound".into(),
                    json!({ "interface": wanted }),
                )),
            }
        }
        _ => Err(no_method(call)),
    }
}
