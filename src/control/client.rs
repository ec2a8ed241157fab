//! The other side of the control socket: what the command line asks a supervisor.

use std::{io, os::fd::OwnedFd, path::Path, time::Duration};

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use tokio::net::UnixStream;
use zlink::{
    Call,
    connection::{
        ReadConnection,
        socket::{Socket, WriteHalf},
    },
    tokio::unix::{Connection, Stream},
    varlink_service::Error as Service,
};

use crate::value::keyboard::Chord;

pub use super::client_error::Error;
use super::types::{Command, Event, Guest, Statistics, Status};

/// How long a supervisor may take to answer: it waits for QEMU, with a shorter bound of its own.
const ANSWER: Duration = Duration::from_secs(30);
/// How long saving a guest's state may take: a day, the most that `shutdownTimeoutSec` can say, and what QEMU needs to exit.
const SUSPEND: Duration = Duration::from_secs(86_400 + 60);
/// How long applying a VM file may take: a new disk's image may have to be fetched first.
const APPLY: Duration = Duration::from_secs(3600);
/// How long one chord may take.
const TYPING: Duration = Duration::from_secs(1);

/// varlink's error for who may not.
const DENIED: &str = "org.varlink.service.PermissionDenied";

impl From<zlink::Error> for Error {
    fn from(error: zlink::Error) -> Self {
        match error {
            zlink::Error::Json(error) => Self::Answer(error),
            zlink::Error::VarlinkService(error) => {
                if matches!(error.inner(), Service::PermissionDenied) {
                    let reason = "the supervisor does not let you".to_owned();
                    return Self::NotAllowed { reason, hint: None };
                }
                let told = serde_json::to_value(error.inner()).unwrap_or_default();
                let reason = match error.inner() {
                    Service::InvalidParameter { parameter } => {
                        format!("`{parameter}` is not valid")
                    }
                    Service::MethodNotFound { method } => {
                        format!(
                            "the supervisor does not know `{method}`; it may be of another version"
                        )
                    }
                    other => other.to_string(),
                };
                Self::Refused {
                    error: told["error"].as_str().unwrap_or_default().to_owned(),
                    reason,
                }
            }
            // Whatever fails on a connection that stood is its end.
            _ => Self::Closed,
        }
    }
}

/// An error reply of any name.
#[derive(Debug, Deserialize)]
struct Refused {
    error: String,
    #[serde(default)]
    parameters: Value,
}

impl From<Refused> for Error {
    fn from(Refused { error, parameters }: Refused) -> Self {
        let said = |key: &str| parameters.get(key)?.as_str().map(str::to_owned);
        let reason = said("reason")
            .or_else(|| said("state").map(|state| format!("not now: the VM is {state}")))
            .unwrap_or_else(|| match error.rsplit('.').next() {
                Some("NotConnected") => "not now: the VM has no QEMU".to_owned(),
                Some(word) => word.to_owned(),
                None => error.clone(),
            });
        match error.as_str() {
            DENIED => Self::NotAllowed { reason, hint: said("hint") },
            "io.qvm.Vm.GuestRefused" => Self::Guest { reason },
            "io.qvm.Vm.Frozen" => Self::Frozen { reason },
            "io.qvm.Vm.Unconfirmed" => Self::Unconfirmed { reason },
            "io.qvm.Vm.HostFault" => Self::HostFault { reason },
            _ => Self::Refused { error, reason },
        }
    }
}

#[derive(Debug, Serialize)]
struct Method<'a> {
    method: &'a str,
    parameters: Value,
}

/// A connection to one supervisor.
#[derive(Debug)]
pub struct Client {
    replies: ReadConnection<<Stream as Socket>::ReadHalf>,
    calls: <Stream as Socket>::WriteHalf,
}

impl Client {
    /// Connects.
    ///
    /// # Errors
    /// `NotRunning` where nobody listens.
    pub async fn connect(path: &Path) -> Result<Self, Error> {
        let stream = UnixStream::connect(path).await.map_err(|error| match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => Error::NotRunning,
            io::ErrorKind::PermissionDenied => Error::Denied,
            _ => Error::Io(error),
        })?;
        let (replies, calls) = Connection::new(Stream::try_from(stream)?).split();
        Ok(Self { replies, calls: calls.into_write_half() })
    }

    /// Serialized here, once: zlink's writer begins anew for every 256 bytes that it grows by, and a call may carry a part of a file.
    async fn say(&mut self, method: &str, parameters: Value, more: bool) -> Result<(), Error> {
        let call = Call::new(Method { method, parameters }).set_more(more);
        let mut bytes = serde_json::to_vec(&call).map_err(Error::Answer)?;
        bytes.push(0);
        Ok(self.calls.write(&bytes, &[] as &[OwnedFd], None).await?)
    }

    async fn hear<T>(&mut self) -> Result<(T, Vec<OwnedFd>), Error>
    where
        T: DeserializeOwned + std::fmt::Debug,
    {
        // As a value first: zlink tries one kind of reply after the other, and an answer that
        // this program cannot read would come out as no kind at all.
        let (reply, fds) = self.replies.receive_reply::<Value, Refused>().await?;
        let parameters = reply?.into_parameters().unwrap_or_else(|| json!({}));
        Ok((serde_json::from_value(parameters).map_err(Error::Answer)?, fds))
    }

    pub(super) async fn call<T>(
        &mut self,
        method: &str,
        parameters: Value,
        limit: Duration,
    ) -> Result<(T, Vec<OwnedFd>), Error>
    where
        T: DeserializeOwned + std::fmt::Debug,
    {
        let answer = async {
            self.say(method, parameters, false).await?;
            self.hear().await
        };
        tokio::time::timeout(limit, answer).await.map_err(|_| Error::Timeout(limit))?
    }

    /// Everything about the VM.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn status(&mut self, limit: Duration) -> Result<Status, Error> {
        #[derive(Debug, Deserialize)]
        struct Told {
            status: Status,
        }
        let (told, _): (Told, _) = self.call("io.qvm.Vm.Status", json!({}), limit).await?;
        Ok(told.status)
    }

    /// What the guest agent tells, if one answers.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn guest(&mut self) -> Result<Guest, Error> {
        #[derive(Debug, Deserialize)]
        struct Told {
            guest: Guest,
        }
        let (told, _): (Told, _) = self.call("io.qvm.Vm.Guest", json!({}), ANSWER).await?;
        Ok(told.guest)
    }

    /// What happened last, newest first.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn recent_events(&mut self) -> Result<Vec<Event>, Error> {
        #[derive(Debug, Deserialize)]
        struct Told {
            events: Vec<Event>,
        }
        let (told, _): (Told, _) = self.call("io.qvm.Vm.RecentEvents", json!({}), ANSWER).await?;
        Ok(told.events)
    }

    /// What only QEMU knows of the machine.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn statistics(&mut self, limit: Duration) -> Result<Statistics, Error> {
        #[derive(Debug, Deserialize)]
        struct Told {
            statistics: Statistics,
        }
        let (told, _): (Told, _) = self.call("io.qvm.Vm.Statistics", json!({}), limit).await?;
        Ok(told.statistics)
    }

    /// Has something done. Returns when the effect is there; of `PowerOff` and `Reboot`, when the guest was asked.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn command(&mut self, command: Command) -> Result<(), Error> {
        let (method, parameters) = match command {
            Command::PowerOff { timeout_sec } => {
                ("io.qvm.Vm.PowerOff", json!({ "timeoutSec": timeout_sec }))
            }
            Command::Terminate => ("io.qvm.Vm.Kill", json!({})),
            Command::Reboot => ("io.qvm.Vm.Reboot", json!({})),
            Command::Reset => ("io.qvm.Vm.Reset", json!({})),
            Command::Pause => ("io.qvm.Vm.Pause", json!({})),
            Command::Resume => ("io.qvm.Vm.Resume", json!({})),
            Command::Suspend => ("io.qvm.Vm.Suspend", json!({})),
            Command::Reload => ("io.qvm.Vm.Reload", json!({})),
            Command::SetMemory { bytes } => {
                ("io.systemd.MachineInstance.SetMemory", json!({ "bytes": bytes }))
            }
        };
        let limit = match command {
            Command::Reload => APPLY,
            Command::Suspend => SUSPEND,
            _ => ANSWER,
        };
        let (_, _): (Value, _) = self.call(method, parameters, limit).await?;
        Ok(())
    }

    /// A picture of the guest's screen: a PNG file without a name, read up to its end.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn screenshot(mut self) -> Result<OwnedFd, Error> {
        self.handed("io.qvm.Vm.Screenshot", json!({})).await
    }

    /// Presses keys, one chord after the other, and returns when the last one is up.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn press(&mut self, chords: &[Chord]) -> Result<(), Error> {
        let keys: Vec<String> = chords.iter().map(ToString::to_string).collect();
        let limit = ANSWER + TYPING * u32::try_from(keys.len()).unwrap_or(u32::MAX);
        let (_, _): (Value, _) =
            self.call("io.qvm.Vm.Press", json!({ "keys": keys }), limit).await?;
        Ok(())
    }

    /// The descriptor that comes with an answer.
    async fn handed(&mut self, method: &str, parameters: Value) -> Result<OwnedFd, Error> {
        #[derive(Debug, Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Handed {
            file_descriptor_index: usize,
        }
        let (handed, fds): (Handed, _) = self.call(method, parameters, ANSWER).await?;
        fds.into_iter().nth(handed.file_descriptor_index).ok_or(Error::Closed)
    }

    /// Everything that happens from now on: what is done after this has returned is not missed.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn watch(mut self) -> Result<Watch, Error> {
        let begun = async {
            self.say("io.qvm.Vm.Watch", json!({}), true).await?;
            self.hear::<Event>().await
        };
        tokio::time::timeout(ANSWER, begun).await.map_err(|_| Error::Timeout(ANSWER))??;
        Ok(Watch { client: self })
    }

    /// The serial console, after up to `scrollback` bytes of what it said before: a stream that ends when the supervisor does.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn console(mut self, read_only: bool, scrollback: u64) -> Result<UnixStream, Error> {
        let parameters = json!({ "readOnly": read_only, "scrollbackBytes": scrollback });
        let fd = self.handed("io.qvm.Vm.Console", parameters).await?;
        let stream = std::os::unix::net::UnixStream::from(fd);
        let stream = stream.set_nonblocking(true).and_then(|()| UnixStream::from_std(stream));
        stream.map_err(Error::Io)
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
        Some(self.client.hear().await.ok()?.0)
    }
}
