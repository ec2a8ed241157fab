//! The client of the control socket.

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

use crate::value::{ErrorCode, keyboard::Chord};

pub use super::client_error::Error;
use super::types::{Command, Event, Guest, Statistics, Status};

/// The limit for a reply: the supervisor waits for QEMU with a shorter limit.
const ANSWER: Duration = Duration::from_secs(30);
/// The limit for saving a guest's state: a day, the maximum of `shutdownTimeoutSec`, and the time
/// that QEMU needs to exit.
const SUSPEND: Duration = Duration::from_secs(86_400 + 60);
/// The limit for a stop, which may wait for the adoption of QEMU.
const STOP: Duration = Duration::from_secs(90);
/// The limit for applying a VM file: the image of a new disk may have to be downloaded.
const APPLY: Duration = Duration::from_secs(3600);
/// The limit for one key chord.
const TYPING: Duration = Duration::from_secs(1);

/// varlink's error for denied permission.
const DENIED: &str = "org.varlink.service.PermissionDenied";

impl From<zlink::Error> for Error {
    fn from(error: zlink::Error) -> Self {
        match error {
            zlink::Error::Json(error) => Self::Answer(error),
            zlink::Error::VarlinkService(error) => {
                if matches!(error.inner(), Service::PermissionDenied) {
                    let reason = "the supervisor denied permission".to_owned();
                    return Self::NotAllowed { reason, hint: None };
                }
                let reply = serde_json::to_value(error.inner()).unwrap_or_default();
                let (code, reason) = match error.inner() {
                    Service::InvalidParameter { parameter } => {
                        let reason = format!("the parameter `{parameter}` is invalid");
                        (ErrorCode::ValueInvalid, reason)
                    }
                    Service::MethodNotFound { method } => {
                        let reason = format!(
                            "the supervisor does not support `{method}`; its version may differ"
                        );
                        (ErrorCode::MethodUnsupported, reason)
                    }
                    other => (ErrorCode::Other, other.to_string()),
                };
                let error = reply["error"].as_str().unwrap_or_default().to_owned();
                Self::Refused { error, code, reason }
            }
            // Any other failure of an established connection is its end.
            _ => Self::Closed,
        }
    }
}

/// An error reply with any name.
#[derive(Debug, Deserialize)]
struct Refused {
    error: String,
    #[serde(default)]
    parameters: Value,
}

impl From<Refused> for Error {
    fn from(Refused { error, parameters }: Refused) -> Self {
        let text = |key: &str| parameters.get(key)?.as_str().map(str::to_owned);
        let reason = text("reason")
            .or_else(|| text("state").map(|state| format!("not possible: the VM is {state}")))
            .unwrap_or_else(|| match error.rsplit('.').next() {
                Some("NotConnected") => "not possible: QEMU is not running".to_owned(),
                Some(word) => word.to_owned(),
                None => error.clone(),
            });
        match error.as_str() {
            DENIED => Self::NotAllowed { reason, hint: text("hint") },
            "io.qvm.Vm.GuestRefused" => Self::Guest { reason },
            "io.qvm.Vm.Frozen" => Self::Frozen { reason },
            "io.qvm.Vm.Unconfirmed" => Self::Unconfirmed { reason },
            "io.qvm.Vm.HostFault" => Self::HostFault { reason },
            _ => {
                let code = match text("code") {
                    Some(word) => ErrorCode::from_word(&word),
                    None => code_of_error(&error),
                };
                Self::Refused { error, code, reason }
            }
        }
    }
}

/// The code of an error without the parameter `code`.
fn code_of_error(error: &str) -> ErrorCode {
    match error.rsplit('.').next() {
        Some("NotNow" | "NotConnected" | "NotSupported") => ErrorCode::NotNow,
        Some("InvalidParameter") => ErrorCode::ValueInvalid,
        _ => ErrorCode::Other,
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
    /// Connects to a control socket.
    ///
    /// # Errors
    /// `NotRunning` if no process listens.
    pub async fn connect(path: &Path) -> Result<Self, Error> {
        let stream = UnixStream::connect(path).await.map_err(|error| match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => Error::NotRunning,
            io::ErrorKind::PermissionDenied => Error::Denied,
            _ => Error::Io(error),
        })?;
        let (replies, calls) = Connection::new(Stream::try_from(stream)?).split();
        Ok(Self { replies, calls: calls.into_write_half() })
    }

    /// Sends a call. It is serialized here in one step: zlink's writer starts again for every 256
    /// bytes of growth, and a call may contain a part of a file.
    async fn send(&mut self, method: &str, parameters: Value, more: bool) -> Result<(), Error> {
        let call = Call::new(Method { method, parameters }).set_more(more);
        let mut bytes = serde_json::to_vec(&call).map_err(Error::Answer)?;
        bytes.push(0);
        Ok(self.calls.write(&bytes, &[] as &[OwnedFd], None).await?)
    }

    async fn receive<T>(&mut self) -> Result<(T, Vec<OwnedFd>), Error>
    where
        T: DeserializeOwned + std::fmt::Debug,
    {
        // Parsed as a value first: zlink tries one kind of reply after the other, and a reply that
        // this version cannot parse would match none.
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
            self.send(method, parameters, false).await?;
            self.receive().await
        };
        tokio::time::timeout(limit, answer).await.map_err(|_| Error::Timeout(limit))?
    }

    /// Returns the status of the VM.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn status(&mut self, limit: Duration) -> Result<Status, Error> {
        #[derive(Debug, Deserialize)]
        struct Reply {
            status: Status,
        }
        let (reply, _): (Reply, _) = self.call("io.qvm.Vm.Status", json!({}), limit).await?;
        Ok(reply.status)
    }

    /// Returns what the guest agent reports, if it answers.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn guest(&mut self) -> Result<Guest, Error> {
        #[derive(Debug, Deserialize)]
        struct Reply {
            guest: Guest,
        }
        let (reply, _): (Reply, _) = self.call("io.qvm.Vm.Guest", json!({}), ANSWER).await?;
        Ok(reply.guest)
    }

    /// Returns the last events, newest first.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn recent_events(&mut self) -> Result<Vec<Event>, Error> {
        #[derive(Debug, Deserialize)]
        struct Reply {
            events: Vec<Event>,
        }
        let (reply, _): (Reply, _) = self.call("io.qvm.Vm.RecentEvents", json!({}), ANSWER).await?;
        Ok(reply.events)
    }

    /// Returns counters that only QEMU has.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn statistics(&mut self, limit: Duration) -> Result<Statistics, Error> {
        #[derive(Debug, Deserialize)]
        struct Reply {
            statistics: Statistics,
        }
        let (reply, _): (Reply, _) = self.call("io.qvm.Vm.Statistics", json!({}), limit).await?;
        Ok(reply.statistics)
    }

    /// Executes a command. Returns when it has taken effect; for `PowerOff` and `Reboot`, when the
    /// guest has been asked.
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
            Command::PowerOff { .. } => STOP,
            _ => ANSWER,
        };
        let (_, _): (Value, _) = self.call(method, parameters, limit).await?;
        Ok(())
    }

    /// Takes a screenshot: a PNG file without a name, to be read to its end.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn screenshot(mut self) -> Result<OwnedFd, Error> {
        self.call_for_descriptor("io.qvm.Vm.Screenshot", json!({})).await
    }

    /// Presses key chords in order and returns after the last release.
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

    /// Returns the descriptor of a reply.
    async fn call_for_descriptor(
        &mut self,
        method: &str,
        parameters: Value,
    ) -> Result<OwnedFd, Error> {
        #[derive(Debug, Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct DescriptorReply {
            file_descriptor_index: usize,
        }
        let (handed, fds): (DescriptorReply, _) = self.call(method, parameters, ANSWER).await?;
        fds.into_iter().nth(handed.file_descriptor_index).ok_or(Error::Closed)
    }

    /// Subscribes to events: no event after the return is missed.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn watch(mut self) -> Result<Watch, Error> {
        let begun = async {
            self.send("io.qvm.Vm.Watch", json!({}), true).await?;
            self.receive::<Event>().await
        };
        tokio::time::timeout(ANSWER, begun).await.map_err(|_| Error::Timeout(ANSWER))??;
        Ok(Watch { client: self })
    }

    /// Connects to the serial console, which starts with up to `scrollback` bytes of earlier
    /// output. The stream ends when the supervisor ends.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn console(mut self, read_only: bool, scrollback: u64) -> Result<UnixStream, Error> {
        let parameters = json!({ "readOnly": read_only, "scrollbackBytes": scrollback });
        let fd = self.call_for_descriptor("io.qvm.Vm.Console", parameters).await?;
        let stream = std::os::unix::net::UnixStream::from(fd);
        let stream = stream.set_nonblocking(true).and_then(|()| UnixStream::from_std(stream));
        stream.map_err(Error::Io)
    }
}

/// A subscription to the events of a VM.
#[derive(Debug)]
pub struct Watch {
    client: Client,
}

impl Watch {
    /// Returns the next event; `None` when the supervisor has ended.
    pub async fn next(&mut self) -> Option<Event> {
        Some(self.client.receive().await.ok()?.0)
    }
}
