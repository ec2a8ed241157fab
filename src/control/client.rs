//! The client of the control socket.

use std::{path::Path, time::Duration};

use super::types::{Command, Event, Status};

/// Why not.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No supervisor.
    #[error("not running")]
    NotRunning,
    /// No answer.
    #[error("no answer")]
    Silent,
}

impl Error {
    /// The way out, where there is one.
    pub fn hint(&self) -> Option<String> {
        None
    }
}

/// What a command in the guest did.
#[derive(Debug)]
pub struct Executed {
    /// Its code.
    pub exit_code: i64,
    /// Base64.
    pub out: String,
    /// Base64.
    pub err: String,
}

/// A connection.
#[derive(Debug)]
pub struct Client(());

/// A stream of events.
#[derive(Debug)]
pub struct Watch(());

#[allow(clippy::unused_async, missing_docs)]
impl Client {
    pub async fn connect(_: &Path) -> Result<Self, Error> {
        Err(Error::NotRunning)
    }
    pub async fn status(&mut self, _: Duration) -> Result<Status, Error> {
        Err(Error::NotRunning)
    }
    pub async fn command(&mut self, _: Command) -> Result<(), Error> {
        Err(Error::NotRunning)
    }
    pub async fn exec(&mut self, _: Vec<String>, _: Duration) -> Result<Executed, Error> {
        Err(Error::NotRunning)
    }
    pub async fn watch(self) -> Result<Watch, Error> {
        Err(Error::NotRunning)
    }
    pub async fn console(self, _: bool) -> Result<(tokio::net::UnixStream, Vec<u8>), Error> {
        Err(Error::NotRunning)
    }
    pub async fn gone(&mut self) {}
}

#[allow(clippy::unused_async, missing_docs)]
impl Watch {
    pub async fn next(&mut self) -> Option<Event> {
        None
    }
}
