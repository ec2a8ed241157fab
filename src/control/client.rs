//! The other side of the control socket: what the command line asks a supervisor.

use std::{io, path::Path, time::Duration};

use serde::Deserialize;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, BufReader},
    net::UnixStream,
};

use super::{
    message::{self, Call, MAX_MESSAGE, Reply},
    types::{Command, Event, Executed, Status},
};

/// Why a supervisor did not do as asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nobody listens.
    #[error("not running")]
    NotRunning,
    /// The socket is another user's.
    #[error("permission denied by the supervisor's control socket")]
    Denied,
    /// It cannot be reached.
    #[error("cannot reach the supervisor")]
    Io(#[source] io::Error),
    /// It is there, and says nothing.
    #[error("the supervisor does not answer within {0:?}")]
    Timeout(Duration),
    /// It went away.
    #[error("the supervisor has gone")]
    Closed,
    /// It says no.
    #[error("{reason}")]
    Refused {
        /// The varlink error.
        error: String,
        /// In words.
        reason: String,
    },
    /// It says something that this program does not know.
    #[error("cannot read the supervisor's answer; it may be of another version")]
    Answer(#[source] serde_json::Error),
}

impl Error {
    /// The way out.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::NotRunning => None,
            Self::Denied => Some("run it as root, or as a member of the group `qvm`".into()),
            Self::Timeout(_) => Some("its log tells why: `journalctl -u qvm@NAME`".into()),
            Self::Io(_) | Self::Closed | Self::Refused { .. } | Self::Answer(_) => None,
        }
    }
}

/// A connection to one supervisor.
#[derive(Debug)]
pub struct Client {
    stream: BufReader<UnixStream>,
}

impl Client {
    /// Connects.
    ///
    /// # Errors
    /// `NotRunning` where nobody listens.
    pub async fn connect(path: &Path) -> Result<Self, Error> {
        match UnixStream::connect(path).await {
            Ok(stream) => Ok(Self { stream: BufReader::new(stream) }),
            Err(error) => Err(match error.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => Error::NotRunning,
                io::ErrorKind::PermissionDenied => Error::Denied,
                _ => Error::Io(error),
            }),
        }
    }

    async fn say(&mut self, call: &Call) -> Result<(), Error> {
        message::write(self.stream.get_mut(), call).await.map_err(|_| Error::Closed)
    }

    async fn hear(&mut self) -> Result<Reply, Error> {
        let bytes = message::read(&mut self.stream, MAX_MESSAGE).await.ok_or(Error::Closed)?;
        let reply: Reply = serde_json::from_slice(&bytes).map_err(Error::Answer)?;
        match reply.error {
            None => Ok(reply),
            Some(error) => {
                let said = |key: &str| reply.parameters[key].as_str().map(str::to_owned);
                let reason = said("reason")
                    .or_else(|| said("state").map(|state| format!("not now: the VM is {state}")))
                    .or_else(|| said("parameter").map(|name| format!("`{name}` is not valid")))
                    .unwrap_or_else(|| error.rsplit('.').next().unwrap_or(&error).to_owned());
                Err(Error::Refused { error, reason })
            }
        }
    }

    async fn call(&mut self, method: &str, parameters: Value) -> Result<Value, Error> {
        let method = method.to_owned();
        self.say(&Call { method, parameters, more: false, oneway: false, upgrade: false }).await?;
        Ok(self.hear().await?.parameters)
    }

    /// Everything about the VM.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn status(&mut self, limit: Duration) -> Result<Status, Error> {
        #[derive(Deserialize)]
        struct Told {
            status: Status,
        }
        let told = tokio::time::timeout(limit, self.call("io.qvm.Vm.Status", json!({})));
        let told = told.await.map_err(|_| Error::Timeout(limit))??;
        serde_json::from_value::<Told>(told).map(|t| t.status).map_err(Error::Answer)
    }

    /// Has something begun.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn command(&mut self, command: Command) -> Result<(), Error> {
        let (method, parameters) = match command {
            Command::PowerOff { timeout_sec } => ("PowerOff", json!({ "timeoutSec": timeout_sec })),
            Command::Terminate => ("Kill", json!({})),
            Command::Reboot => ("Reboot", json!({})),
            Command::Reset => ("Reset", json!({})),
            Command::Pause => ("Pause", json!({})),
            Command::Resume => ("Resume", json!({})),
            Command::Reload => ("Reload", json!({})),
            Command::SetMemory { bytes } => {
                let parameters = json!({ "bytes": bytes });
                return self
                    .call("io.systemd.MachineInstance.SetMemory", parameters)
                    .await
                    .map(drop);
            }
        };
        self.call(&format!("io.qvm.Vm.{method}"), parameters).await.map(drop)
    }

    /// Runs a command in the guest.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn exec(&mut self, argv: Vec<String>, timeout: Duration) -> Result<Executed, Error> {
        let parameters = json!({ "argv": argv, "timeoutSec": timeout.as_secs() });
        let done = self.call("io.qvm.Vm.Exec", parameters).await?;
        serde_json::from_value(done).map_err(Error::Answer)
    }

    /// Everything that happens from now on.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn watch(mut self) -> Result<Watch, Error> {
        let method = "io.qvm.Vm.Watch".to_owned();
        let call =
            Call { method, parameters: json!({}), more: true, oneway: false, upgrade: false };
        self.say(&call).await?;
        Ok(Watch { client: self })
    }

    /// The serial console: a stream, and what of it has been read already.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn console(mut self, read_only: bool) -> Result<(UnixStream, Vec<u8>), Error> {
        let method = "io.qvm.Vm.Console".to_owned();
        let parameters = json!({ "readOnly": read_only });
        self.say(&Call { method, parameters, more: false, oneway: false, upgrade: true }).await?;
        self.hear().await?;
        let begun = self.stream.buffer().to_vec();
        Ok((self.stream.into_inner(), begun))
    }

    /// Waits until the supervisor has closed the connection.
    pub async fn gone(&mut self) {
        let mut buffer = [0; 256];
        while let Ok(1..) = self.stream.read(&mut buffer).await {}
    }
}

/// What happens to a VM, as it happens.
#[derive(Debug)]
pub struct Watch {
    client: Client,
}

impl Watch {
    /// The next event; `None` when the supervisor has gone.
    pub async fn next(&mut self) -> Option<Event> {
        let reply = self.client.hear().await.ok()?;
        serde_json::from_value(reply.parameters).ok()
    }
}
